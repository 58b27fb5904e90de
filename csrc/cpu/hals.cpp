// HALS on a tile of columns: F_k ← max(0, F_k + R_k / G_kk), then R_i −= G_ik Δ_k for i > k; without
// the maximum where F is not bounded.
//
// F and R of the columns are first copied (codes: transposed) to a compact tile, which stays in L1
// for s up to 128. A group of concepts accumulates the terms of all others in registers; only
// inside the group does a concept depend on the one before. With AVX2: 3 concepts × 4 vectors of
// columns, so 4 + 3 loads for 12 fused multiply-adds. Limited by arithmetic; copying is a fifth at
// s = 128.

#include <cstddef>
#include <cstdint>

#include "gemm_tile.h"
#include "hals_tile.h"
#include "kernels.h"
#include "simd.h"

namespace {

using fastnmf::HalsBlock;
using fastnmf::HalsEach;
using fastnmf::HalsNormal;
using fastnmf::HalsRows;
using fastnmf::Kkt;

// concepts of a group, in which each concept depends on the one before, so that it is no larger than
// the registers need
constexpr int group = most_concepts < 4 ? most_concepts : 4;
// rows of data, times vectors of concepts, whose sums are in registers: 12 and 16 are no faster (avx2)
constexpr int rows_at_once = 8;
// vectors of concepts up to which products are computed in these, 16 in float32: without instructions
// that broadcast and add products they are slower (SSE2); not measured: AVX-512, arm64
#if defined(__AVX512F__)
constexpr int most_by_concepts = 1;
#elif defined(__AVX2__)
constexpr int most_by_concepts = 2;
#else
constexpr int most_by_concepts = 0;
#endif
// Of products that are summed along features: rows × concepts whose sums are in registers; concepts
// up to which, and features from which that is faster (16 concepts fill vectors, and the sums of few
// features take long to add up). avx512, K = 10: 4 × 5 before 4 × 4 by 1.4x, as rows come from L2
// twice and not three times. Not measured: arm64
#if defined(__AVX512F__)
constexpr int rows_in_dots = 4, concepts_in_dots = 5;
#elif defined(__clang__)
constexpr int rows_in_dots = 2, concepts_in_dots = 4;
#else
constexpr int rows_in_dots = 3, concepts_in_dots = 4;
#endif
#if defined(__AVX2__)
constexpr ptrdiff_t most_by_features = 12, least_features = 256;
#else
constexpr ptrdiff_t most_by_features = 0, least_features = 0;
#endif
// elements of concepts that stay in L1 while they are multiplied with rows
template <class T> constexpr ptrdiff_t concepts_in_cache = (24 << 10) / sizeof(T);
// features of a tile of data, which stays in L1 while it is multiplied with all concepts
constexpr ptrdiff_t tile_features = 128;

// sums (rows × vectors V) += X B for X (rows × terms) and B (terms × vectors V)
template <int rows, int vectors, class T>
inline void add_product_of_rows(T *sums, const T *X, ptrdiff_t stride_x, const T *B,
                                ptrdiff_t terms, Prefetch<T> &prefetch) {
    Prefetch<T> lines = prefetch;
    Vec<T> found[rows][vectors] = {};
    for (ptrdiff_t j = 0; j < terms; ++j) {
        lines.fetch();
        Vec<T> b[vectors];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) b[v] = load(B + (j * vectors + v) * V<T>);
#pragma GCC unroll 8
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
            for (int v = 0; v < vectors; ++v) found[i][v] += X[i * stride_x + j] * b[v];
    }
    prefetch = lines;
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; ++v) {
            T *place = sums + (i * vectors + v) * V<T>;
            store(place, load(place) + found[i][v]);
        }
}

// Element l of sums[0] ← the sum of sums[l], for as many as a vector has elements
template <class T, int b = Simd<T>::lanes / 2> inline void add_up(Vec<T> *sums) {
    constexpr int lanes = Simd<T>::lanes;
#pragma GCC unroll 8
    for (int i = 0; i < b; ++i) {
        exchange<T, b>(sums[i], sums[i + b], std::make_integer_sequence<int, lanes>{});
        sums[i] += sums[i + b];
    }
    if constexpr (b > 1) add_up<T, b / 2>(sums);
}

// C[k W + i] += X_i B_kᵀ for rows i of X and k of B. B has zeros up to a whole vector; so that a row
// has the same bits among any others, its sums are added up in the same order. fetches: the rows that
// follow are prefetched, which come from memory
template <int rows, int concepts, class T>
inline void add_dots(T *C, const T *X, ptrdiff_t stride_x, const T *B, ptrdiff_t stride_b,
                     ptrdiff_t terms, bool fetches) {
    constexpr int squares = (rows * concepts + V<T> - 1) / V<T>, line = 64 / sizeof(T);
    Vec<T> sums[squares * V<T>] = {};
    const auto add = [&](ptrdiff_t j, auto read) __attribute__((always_inline)) {
        Vec<T> x[rows];
#pragma GCC unroll 4
        for (int i = 0; i < rows; ++i) x[i] = read(X + i * stride_x + j);
#pragma GCC unroll 8
        for (int k = 0; k < concepts; ++k) {
            const Vec<T> b = load(B + k * stride_b + j);
#pragma GCC unroll 4
            for (int i = 0; i < rows; ++i) sums[k * rows + i] += x[i] * b;
        }
    };
    ptrdiff_t j = 0;
    for (; j + V<T> <= terms; j += V<T>) {
        if (fetches && j % line == 0)
#pragma GCC unroll 4
            for (int i = 0; i < rows; ++i) __builtin_prefetch(X + (i + rows) * stride_x + j);
        add(j, [](const T *x) { return load(x); });
    }
    if (const int rest = static_cast<int>(terms - j))
        add(j, [&](const T *x) { return load_some(x, rest); });
    T totals[squares * V<T>];
#pragma GCC unroll 4
    for (int i = 0; i < squares; ++i) {
        add_up<T>(sums + i * V<T>);
        store(totals + i * V<T>, sums[i * V<T>]);
    }
#pragma GCC unroll 8
    for (int k = 0; k < concepts; ++k)
#pragma GCC unroll 4
        for (int i = 0; i < rows; ++i) C[k * W<T> + i] += totals[k * rows + i];
}

template <int rows, class T, int size = concepts_in_dots, class... Rest>
inline void add_dots_of(int concepts, T *C, Rest &&...rest) {
    if constexpr (size > 1)
        if (concepts < size) return add_dots_of<rows, T, size - 1>(concepts, C, rest...);
    add_dots<rows, size>(C, rest...);
}

// columns [start, start + columns) of `to` ← those of `from`
template <class T>
void copy(Matrix<T> to, Matrix<T> from, ptrdiff_t rows, ptrdiff_t start, ptrdiff_t columns) {
    const bool adjacent = to.stride_k == 1 && from.stride_k == 1;
    for (ptrdiff_t i = start; i < start + columns; ++i)
        if (adjacent)
            __builtin_memcpy(at(to, 0, i), at(from, 0, i), rows * sizeof(T));
        else
            for (ptrdiff_t k = 0; k < rows; ++k) *at(to, k, i) = *at(from, k, i);
}

// The update of concepts k … k + size − 1; F and R are tiles (concepts × W).
// Block form: R holds R and receives Δ row by row, a concept subtracts products with these rows.
// Normal form: R holds C and receives Δ, a concept subtracts products with all rows of F.
template <bool block, bool bounded, int size, class T>
inline __attribute__((always_inline)) void update(T *F, T *R, const T *G, ptrdiff_t stride_g,
                                                  ptrdiff_t concepts, ptrdiff_t k) {
    const T *row = G + k * stride_g;
    const T *X = block ? R : F;
    const ptrdiff_t terms = block ? k : concepts;
    Vec<T> r[size][width];
#pragma GCC unroll 4
    for (int g = 0; g < size; ++g)
#pragma GCC unroll 4
        for (int v = 0; v < width; ++v) r[g][v] = load(R + (k + g) * W<T> + v * V<T>);
    for (ptrdiff_t j = 0; j < terms; ++j)
#pragma GCC unroll 4
        for (int g = 0; g < size; ++g)
#pragma GCC unroll 4
            for (int v = 0; v < width; ++v)
                r[g][v] -= row[g * stride_g + j] * load(X + j * W<T> + v * V<T>);
#pragma GCC unroll 4
    for (int g = 0; g < size; ++g) {
        const T diagonal = row[g * stride_g + k + g];
        const bool dead = diagonal < tiny<T>;
        const T inverse = dead ? T(0) : 1 / diagonal;
#pragma GCC unroll 4
        for (int v = 0; v < width; ++v) {
            T *place = F + (k + g) * W<T> + v * V<T>;
            const Vec<T> before = load(place);
            const Vec<T> best = before + inverse * r[g][v];
            const Vec<T> after = dead ? before : bounded ? positive_part(best) : best;
            const Vec<T> delta = after - before;
            store(place, after);
            store(R + (k + g) * W<T> + v * V<T>, delta);
#pragma GCC unroll 4
            for (int h = g + 1; h < size; ++h) r[h][v] -= row[h * stride_g + k + g] * delta;
        }
    }
}

template <bool block, bool bounded, class T>
inline void sweep(T *F, T *R, const T *G, ptrdiff_t stride_g, ptrdiff_t concepts) {
    ptrdiff_t k = 0;
    for (; k + group <= concepts; k += group)
        update<block, bounded, group>(F, R, G, stride_g, concepts, k);
    const ptrdiff_t rest = concepts - k;
    if (group > 3 && rest == 3) update<block, bounded, 3>(F, R, G, stride_g, concepts, k);
    if (group > 2 && rest == 2) update<block, bounded, 2>(F, R, G, stride_g, concepts, k);
    if (rest == 1) update<block, bounded, 1>(F, R, G, stride_g, concepts, k);
}

// all sweeps of a tile, with the same C; for a single one C may be R. sums may be null
template <bool bounded, class T, class Arguments>
inline void sweeps(T *F, T *R, const T *C, const Arguments &a, double *sums) {
    if (sums) sums[0] = sums[1] = 0;
    for (ptrdiff_t left = a.sweeps; left > 0; --left) {
        if (C != R) __builtin_memcpy(R, C, a.K * W<T> * sizeof(T));
        sweep<false, bounded>(F, R, a.G, a.stride_g, a.K);
        if (!sums) continue;
        double partial[2];
        sum_squares(R, F, a.K, partial);
        sums[0] += partial[0];
        sums[1] += partial[1];
    }
}

template <class T>
void hals_block(const HalsBlock<T> &a, ptrdiff_t start, T *scratch, double *sums) {
    const ptrdiff_t columns = min(a.m - start, W<T>);
    T *F = scratch, *R = scratch + a.s * W<T>;
    gather(R, a.R, a.s, start, columns);
    gather(F, constant(a.F), a.s, start, columns);
    if (a.bounded)
        sweep<true, true>(F, R, a.G, a.stride_g, a.s);
    else
        sweep<true, false>(F, R, a.G, a.stride_g, a.s);
    sum_squares(R, F, a.s, sums);
    scatter(a.F, F, a.s, start, columns);
    scatter(a.delta, R, a.s, start, columns);
}

template <class T>
void hals_normal(const HalsNormal<T> &a, ptrdiff_t start, T *scratch, double *sums) {
    const ptrdiff_t columns = min(a.m - start, W<T>), size = a.K * W<T>;
    T *F = scratch, *R = F + size, *C = a.sweeps > 1 ? R + size : R;
    gather(C, a.C, a.K, start, columns);
    gather(F, constant(a.F), a.K, start, columns);
    if (a.bounded)
        sweeps<true>(F, R, C, a, sums);
    else
        sweeps<false>(F, R, C, a, sums);
    scatter(a.F, F, a.K, start, columns);
}

// C (K × W) ← −l1 + B Xᵀ of the columns, in whole vectors of them
template <class T>
void product_by_columns(T *C, const HalsRows<T> &a, ptrdiff_t start, ptrdiff_t columns, T *X) {
    // columns right of the last stay zero: F is zero there, and l1 ≥ 0 keeps it so
    const int vectors = static_cast<int>((columns + V<T> - 1) / V<T>);
    for (ptrdiff_t i = 0; i < a.K * W<T>; ++i) C[i] = -a.l1;
    for (ptrdiff_t first = 0; first < a.p; first += tile_features) {
        const ptrdiff_t terms = min(a.p - first, tile_features);
        // as a matrix of features by rows
        gather(X, Matrix<const T>{a.X + first, 1, a.stride_x}, terms, start, columns);
        Prefetch<T> prefetch = next_lines<T>(a, start, columns, first + terms, W<T>, tile_features);
        for_groups<most_concepts>(a.K, [&](ptrdiff_t k, int concepts) {
            add_products(vectors, concepts, C + k * W<T>, ptrdiff_t(W<T>), a.B + first * a.K + k,
                         a.K, static_cast<const T *>(X), ptrdiff_t(W<T>), terms, prefetch);
        });
    }
}

// The same, to the bit, in vectors of concepts, for K ≤ vectors V: data are read as they are, and
// not made a matrix of features by rows, which takes as long as the product with 10 concepts. X:
// scratch for a tile of data
template <int vectors, class T>
void product_by_concepts(T *C, const HalsRows<T> &a, ptrdiff_t start, ptrdiff_t columns, T *X) {
    constexpr ptrdiff_t lanes = vectors * V<T>;
    T *B = X, *sums = X + tile_features * lanes;
    for (ptrdiff_t i = 0; i < tile_features * lanes; ++i) B[i] = 0;
    for (ptrdiff_t i = 0; i < W<T> * lanes; ++i) sums[i] = -a.l1;
    for (ptrdiff_t first = 0; first < a.p; first += tile_features) {
        const ptrdiff_t terms = min(a.p - first, tile_features);
        for (ptrdiff_t j = 0; j < terms; ++j)
            __builtin_memcpy(B + j * lanes, a.B + (first + j) * a.K, a.K * sizeof(T));
        Prefetch<T> prefetch = next_lines<T>(a, start, columns, first + terms, W<T>, tile_features);
        const T *rows = a.X + start * a.stride_x + first;
        constexpr int group = rows_at_once / vectors;
        ptrdiff_t i = 0;
        for (; i + group <= columns; i += group)
            add_product_of_rows<group, vectors>(sums + i * lanes, rows + i * a.stride_x, a.stride_x,
                                                B, terms, prefetch);
        for (; i < columns; ++i)
            add_product_of_rows<1, vectors>(sums + i * lanes, rows + i * a.stride_x, a.stride_x, B,
                                            terms, prefetch);
    }
    for (ptrdiff_t i = 0; i < W<T>; i += V<T>)
        for (ptrdiff_t k = 0; k < a.K; k += V<T>) {
            Vec<T> square[V<T>];
            load_transposed<T>(square, sums + i * lanes + k, lanes);
            for (int l = 0; l < V<T> && k + l < a.K; ++l) store(C + (k + l) * W<T> + i, square[l]);
        }
}

// by concepts in as many vectors as K needs, from `vectors` on, or else by columns
template <int vectors, class T>
void product(T *C, const HalsRows<T> &a, ptrdiff_t start, ptrdiff_t columns, T *X) {
    // what is in the place of a tile of data
    constexpr bool fits = vectors * (tile_features + W<T>) <= tile_features * width;
    if constexpr (vectors > most_by_concepts || !fits)
        product_by_columns(C, a, start, columns, X);
    else if (a.K <= vectors * V<T>)
        product_by_concepts<vectors>(C, a, start, columns, X);
    else
        product<vectors + 1>(C, a, start, columns, X);
}

// The same, but for rounding, along features: data are read as they are, and not made a matrix of
// features by rows, which takes as long as the product with 10 concepts.
template <class T>
void product_by_features(T *C, const HalsRows<T> &a, ptrdiff_t start, ptrdiff_t columns) {
    for (ptrdiff_t i = 0; i < a.K * W<T>; ++i) C[i] = -a.l1;
    const ptrdiff_t most = concepts_in_cache<T> / a.K / V<T> * V<T>;
    for (ptrdiff_t first = 0; first < a.p; first += most) {
        const ptrdiff_t terms = min(a.p - first, most);
        const T *rows = a.X + start * a.stride_x + first;
        for (ptrdiff_t i = 0; i < columns;) {
            const bool all = i + rows_in_dots <= columns;
            for_groups<concepts_in_dots>(a.K, [&](ptrdiff_t k, int concepts) {
                const T *B = a.B + k * a.stride_b + first;
                T *place = C + k * W<T> + i;
                if (all)
                    add_dots_of<rows_in_dots>(concepts, place, rows + i * a.stride_x, a.stride_x, B,
                                              a.stride_b, terms, k == 0);
                else
                    add_dots_of<1>(concepts, place, rows + i * a.stride_x, a.stride_x, B,
                                   a.stride_b, terms, k == 0);
            });
            i += all ? rows_in_dots : 1;
        }
    }
}

inline bool by_features(ptrdiff_t K, ptrdiff_t p) {
    return K <= most_by_features && p >= least_features;
}

// elements of the copy that `pack` may make
template <class T> ptrdiff_t packed_size(ptrdiff_t K, ptrdiff_t p) {
    return K * ((p + V<T> - 1) / V<T> * V<T>);
}

// a.B ← B (K × p) as hals_rows reads it: concept by concept, with zeros up to a whole vector, or
// feature by feature without gaps; a copy if it is not so
template <class T> void pack(HalsRows<T> &a, Matrix<const T> B, T *copy) {
    const bool dots = by_features(a.K, a.p);
    a.stride_b = dots ? packed_size<T>(1, a.p) : 1;
    a.B = copy;
    if (dots ? B.stride_m == 1 && a.p % V<T> == 0 : B.stride_k == 1 && B.stride_m == a.K) {
        a.B = B.data;
        a.stride_b = B.stride_k;
    } else if (dots) {
        for (ptrdiff_t k = 0; k < a.K; ++k)
            for (ptrdiff_t j = 0; j < a.stride_b; ++j)
                copy[k * a.stride_b + j] = j < a.p ? *at(B, k, j) : T(0);
    } else {
        for (ptrdiff_t k = 0; k < a.K; ++k)
            for (ptrdiff_t j = 0; j < a.p; ++j) copy[j * a.K + k] = *at(B, k, j);
    }
}

// C stays in the cache. For few concepts the product here is faster than a general GEMM
template <class T> void hals_rows(const HalsRows<T> &a, ptrdiff_t start, T *scratch, double *sums) {
    const ptrdiff_t columns = min(a.m - start, W<T>), size = a.K * W<T>;
    T *F = scratch, *R = F + size, *C = a.sweeps > 1 ? R + size : R, *before = C + size;
    T *X = before + size;
    if (by_features(a.K, a.p))
        product_by_features(C, a, start, columns);
    else
        product<1>(C, a, start, columns, X);
    gather(F, constant(a.F), a.K, start, columns);
    const bool extrapolates = a.swept.data;
    if (extrapolates) {
        copy(a.before, a.F, a.K, start, columns);
        __builtin_memcpy(before, F, size * sizeof(T));
    }
    sweeps<true>(F, R, C, a, extrapolates ? nullptr : sums);
    if (extrapolates) {
        gather(R, constant(a.swept), a.K, start, columns);
        for (ptrdiff_t i = 0; i < size; i += V<T>) {
            const Vec<T> now = load(F + i);
            const Vec<T> after = extrapolated(now, load(R + i), a.step, a.least);
            store(R + i, now);
            store(F + i, after);
            store(before + i, after - load(before + i));
        }
        sum_squares(before, F, a.K, sums);
        scatter(a.swept, R, a.K, start, columns);
    }
    scatter(a.F, F, a.K, start, columns);
}

template <class T> void cross(const HalsRows<T> &a, ptrdiff_t start, T *scratch, double *) {
    const ptrdiff_t columns = min(a.m - start, W<T>);
    product<1>(scratch, a, start, columns, scratch + a.K * W<T>);
    scatter(a.F, scratch, a.K, start, columns);
}

template <class T> void hals_each(const HalsEach<T> &a, ptrdiff_t start, T *scratch, double *sums) {
    const ptrdiff_t columns = min(a.m - start, W<T>), size = a.K * W<T>;
    T *F = scratch, *C = F + size, *delta = C + size, *G = delta + size;
    gather(C, a.C, a.K, start, columns);
    gather(F, constant(a.F), a.K, start, columns);
    gather(G, a.G, a.K * (a.K + 1) / 2, start, columns);
    sweep_each(F, C, G, delta, a.K, a.sweeps, a.bounded, sums);
    scatter(a.F, F, a.K, start, columns);
}

// the larger of two numbers in each lane; a NaN in x is lost
template <class V> inline V larger(V x, V y) { return x > y ? x : y; }

template <class T> void kkt(const Kkt<T> &a, ptrdiff_t start, T *scratch, double *) {
    const ptrdiff_t columns = min(a.m - start, W<T>), size = a.K * W<T>;
    T *F = scratch, *C = F + size, *product = C + size;
    gather(C, a.C, a.K, start, columns);
    gather(F, a.F, a.K, start, columns);
    __builtin_memset(product, 0, size * sizeof(T));
    Prefetch<T> nothing;
    for_groups<most_concepts>(a.K, [&](ptrdiff_t k, int concepts) {
        add_products(width, concepts, product + k * W<T>, ptrdiff_t(W<T>), a.G + k, a.stride_g,
                     static_cast<const T *>(F), ptrdiff_t(W<T>), a.K, nothing);
    });
    const Vec<T> least = Vec<T>{} + tiny<T>, zero = {}, one = zero + T(1);
    for (int i = 0; i < W<T> && i < columns; i += V<T>) {
        // 0 times what is not finite is NaN
        Vec<T> worst = zero, scale = zero, active = zero, invalid = zero;
        for (ptrdiff_t k = 0; k < a.K; ++k) {
            const ptrdiff_t place = k * W<T> + i;
            const Vec<T> z = load(F + place), c = load(C + place), p = load(product + place);
            const Vec<T> slope = c - p, size = z > zero ? larger(slope, -slope) : slope;
            worst = larger(size, worst);
            scale = larger(p - a.l2 * z + c, scale);
            active += z > zero ? one : zero;
            invalid += slope * zero;
        }
        scale = larger(scale + 2 * a.l1, least);
        const Vec<T> found = (worst > zero ? worst / scale : zero) + invalid;
        const int some = static_cast<int>(min(columns - i, ptrdiff_t(V<T>)));
        store_some(a.residual + start + i, found, some);
        store_some(a.active + start + i, active, some);
    }
}

} // namespace

namespace fastnmf::FASTNMF_ISA {
const HalsKernels<float> hals_float32{W<float>, tile_features, hals_block<float>,
                                      hals_normal<float>, hals_rows<float>, hals_each<float>,
                                      cross<float>, kkt<float>, packed_size<float>,
                                      pack<float>};
const HalsKernels<double> hals_float64{W<double>, tile_features, hals_block<double>,
                                       hals_normal<double>, hals_rows<double>, hals_each<double>,
                                       cross<double>, kkt<double>, packed_size<double>,
                                       pack<double>};
} // namespace fastnmf::FASTNMF_ISA

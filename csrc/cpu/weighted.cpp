// HALS where each entry has a weight: F_k ← max(0, F_k + (C_k − G_k F) / G_kk) for a row x of the data
// with weights w, of which G = Σ w b bᵀ and C = Σ w x b are sums over its entries. Only entries with a
// weight are read, so that a sweep costs what is observed.
//
// √w x and √w b take the place of x and b, so that nothing below knows of weights. Two ways, with the
// same iterates. Gram matrices: few concepts; the entries of a row are rows of B, copied to L1 with x
// behind them, so that one triangle of products has G, C and Σ w x²; rows are then swept in tiles, as
// wide as the registers. Residuals: many concepts; B is transposed as it is copied, and for each
// concept e = x − Bᵀf is read twice and written once, 2 + 4 sweeps flops for each entry and concept.

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "gemm_tile.h"
#include "hals_tile.h"
#include "kernels.h"
#include "simd.h"

namespace {

using fastnmf::HalsWeighted;

// entries whose products are summed at a time: with 20 concepts they stay in L1
constexpr ptrdiff_t most_terms = 256;
// entries from one whose row of B is prefetched to the current one
constexpr ptrdiff_t distance = 16;
constexpr ptrdiff_t line_bytes = 64, most_lines = 4;

template <class T> inline ptrdiff_t whole_vectors(ptrdiff_t count) {
    return (count + V<T> - 1) / V<T> * V<T>;
}

// What is observed of a row: `count` entries, their places, values and weights; no weights: ones.
template <class T, class I> struct Observed {
    const I *places;
    const T *values, *weights;
    ptrdiff_t count;
};

// that of row i; of dense data it is copied to `places` and to `values` (2 p)
template <class T, class I>
inline Observed<T, I> observed(const HalsWeighted<T, I> &a, ptrdiff_t i, I *places, T *values) {
    if (a.crow) {
        const ptrdiff_t first = a.crow[i], count = a.crow[i + 1] - a.crow[i];
        return {a.col + first, a.values + first, a.weights ? a.weights + first : nullptr, count};
    }
    ptrdiff_t count = 0;
    if (a.mask.data) {
        for (ptrdiff_t j = 0; j < a.p; ++j) {
            // without a branch, which would be foreseen as often as not
            places[count] = static_cast<I>(j);
            values[count] = *at(a.X, i, j);
            count += *at(a.mask, i, j) != 0;
        }
        return {places, values, nullptr, count};
    }
    T *weights = values + a.p;
    for (ptrdiff_t j = 0; j < a.p; ++j) {
        places[count] = static_cast<I>(j);
        values[count] = *at(a.X, i, j);
        weights[count] = *at(a.W, i, j);
        count += weights[count] > 0;
    }
    return {places, values, weights, count};
}

template <class T> inline void prefetch_row(const T *row, ptrdiff_t K) {
    const ptrdiff_t lines = min((K * sizeof(T) + line_bytes - 1) / line_bytes, most_lines);
    for (ptrdiff_t b = 0; b < lines; ++b)
        __builtin_prefetch(reinterpret_cast<const char *>(row) + b * line_bytes);
}

// to (K) ← from, both contiguous, times `root` if `weighted`
template <bool weighted, class T>
inline void copy_row(T *to, const T *from, ptrdiff_t K, [[maybe_unused]] T root) {
    const auto copied = [&](ptrdiff_t k) __attribute__((always_inline)) {
        const Vec<T> x = load(from + k);
        store(to + k, weighted ? root * x : x);
    };
    if (K < V<T>) {
        for (ptrdiff_t k = 0; k < K; ++k) to[k] = weighted ? root * from[k] : from[k];
        return;
    }
    for (ptrdiff_t k = 0; k + V<T> <= K; k += V<T>) copied(k);
    // the last vector may overlap the one before
    if (K % V<T>) copied(K - V<T>);
}

// lines (count, stride) ← √w (b, x) of entries from `first` on; what is behind x stays
template <bool weighted, class T, class I>
inline void copy_lines(T *lines, ptrdiff_t stride, const HalsWeighted<T, I> &a,
                       const Observed<T, I> &row, ptrdiff_t first, ptrdiff_t count) {
    for (ptrdiff_t e = first; e < first + count; ++e, lines += stride) {
        if (e + distance < row.count)
            prefetch_row(a.B + static_cast<ptrdiff_t>(row.places[e + distance]) * a.stride_b, a.K);
        const T root = weighted ? std::sqrt(row.weights[e]) : T(1);
        const T *from = a.B + static_cast<ptrdiff_t>(row.places[e]) * a.stride_b;
        copy_row<weighted>(lines, from, a.K, root);
        lines[a.K] = weighted ? root * row.values[e] : row.values[e];
    }
}

// rows of a group of products that is as wide as so many vectors: their sums stay in registers
#if defined(__AVX512F__)
constexpr int rows_of_group[] = {8, 8, 8, 6};
#elif defined(__AVX2__) && !defined(__clang__)
constexpr int rows_of_group[] = {8, 5, 4, 3};
#else
constexpr int rows_of_group[] = {4, 4, 3, 2};
#endif
constexpr int most_wide = most_vectors < 4 ? most_vectors : 4;

template <int vectors, int size, class T>
inline void add_group(int rows, T *G, const T *P, const T *Q, ptrdiff_t stride, ptrdiff_t terms) {
    if constexpr (size > 1)
        if (rows < size) return add_group<vectors, size - 1>(rows, G, P, Q, stride, terms);
    Prefetch<T> none;
    add_product<size, vectors>(G, stride, P, stride, Q, stride, terms, none);
}

// G (rows, vectors) += Σ of products of P and Q, groups of rows of nearly equal size
template <int vectors = most_wide, class T>
inline void add_band(int wide, ptrdiff_t rows, T *G, const T *P, const T *Q, ptrdiff_t stride,
                     ptrdiff_t terms) {
    if constexpr (vectors > 1)
        if (wide < vectors) return add_band<vectors - 1>(wide, rows, G, P, Q, stride, terms);
    constexpr int size = rows_of_group[vectors - 1];
    for_groups<size>(rows, [&](ptrdiff_t first, int some) {
        add_group<vectors, size>(some, G + first * stride, P + first, Q, stride, terms);
    });
}

// the lower triangle of G (size, stride) += Σ of lines' products with themselves
template <class T>
inline void add_triangle(T *G, const T *lines, ptrdiff_t size, ptrdiff_t stride, ptrdiff_t terms) {
    for (ptrdiff_t k = 0; k < size; k += V<T>) {
        const ptrdiff_t rows = min(V<T>, size - k), vectors = k / V<T> + 1;
        for (ptrdiff_t v = 0; v < vectors; v += most_wide)
            add_band(static_cast<int>(min(most_wide, vectors - v)), rows,
                     G + k * stride + v * V<T>, lines + k, lines + v * V<T>, stride, terms);
    }
}

// Scratch of a tile by Gram matrices.
template <class T> struct GramTile {
    T *F, *C, *delta, *squares, *G, *own, *lines, *values;
    ptrdiff_t stride;

    GramTile(T *scratch, ptrdiff_t K) : stride(whole_vectors<T>(K + 1)) {
        F = scratch;
        C = F + K * W<T>;
        delta = C + K * W<T>;
        squares = delta + K * W<T>;
        G = squares + W<T>;
        own = G + K * (K + 1) / 2 * W<T>;
        lines = own + (K + 1) * stride;
        values = lines + most_terms * stride;
    }
};

// G, C and Σ w x² of row i into column `column` of the tile
template <class T, class I>
void gram_of_row(const GramTile<T> &tile, const HalsWeighted<T, I> &a, ptrdiff_t i,
                 ptrdiff_t column, I *places) {
    const ptrdiff_t K = a.K, stride = tile.stride;
    const Observed<T, I> row = observed(a, i, places, tile.values);
    __builtin_memset(tile.own, 0, (K + 1) * stride * sizeof(T));
    for (ptrdiff_t first = 0; first < row.count; first += most_terms) {
        const ptrdiff_t terms = min(row.count - first, most_terms);
        if (row.weights)
            copy_lines<true>(tile.lines, stride, a, row, first, terms);
        else
            copy_lines<false>(tile.lines, stride, a, row, first, terms);
        add_triangle(tile.own, static_cast<const T *>(tile.lines), K + 1, stride, terms);
    }
    T *G = tile.G + column, *C = tile.C + column;
    for (ptrdiff_t k = 0; k < K; ++k)
        for (ptrdiff_t j = 0; j <= k; ++j, G += W<T>) *G = tile.own[k * stride + j];
    for (ptrdiff_t k = 0; k < K; ++k) C[k * W<T>] = tile.own[K * stride + k];
    tile.squares[column] = tile.own[K * stride + K];
}

// the curvature of a penalty, given a diagonal entry of G: a concept without entries has the slope l1
// alone, so that with any curvature its minimum is zero
template <class T> inline T curvature(T l1, T l2, T diagonal) {
    return l1 > 0 && diagonal + l2 < tiny<T> ? T(1) : l2;
}

// Σ w (x − fᵀ b)² of the rows of a tile, whose G and C are penalised
template <class T, class I>
double error_of_tile(const GramTile<T> &tile, const HalsWeighted<T, I> &a, ptrdiff_t columns) {
    double total = 0;
    for (ptrdiff_t i = 0; i < columns; ++i) {
        const T *f = tile.F + i, *g = tile.G + i;
        double error = tile.squares[i];
        for (ptrdiff_t k = 0; k < a.K; ++k) {
            const double now = f[k * W<T>];
            double product = 0;
            for (ptrdiff_t j = 0; j < k; ++j, g += W<T>) product += double(*g) * f[j * W<T>];
            // a concept whose curvature is not l2 is zero
            const double own = double(*g) - (a.l2 ? double(a.l2[k]) : 0.0);
            g += W<T>;
            error += now * (2 * product + own * now - 2 * (double(tile.C[k * W<T> + i]) + a.l1));
        }
        total += error;
    }
    return total;
}

template <class T, class I>
void by_grams(const HalsWeighted<T, I> &a, ptrdiff_t start, T *scratch, I *places, double *sums) {
    const ptrdiff_t columns = min(a.m - start, W<T>), K = a.K;
    const GramTile<T> tile(scratch, K);
    // zeros in the columns right of the last, and behind the lines
    if (columns < W<T>) __builtin_memset(tile.C, 0, (tile.own - tile.C) * sizeof(T));
    for (ptrdiff_t e = 0; e < most_terms; ++e)
        for (ptrdiff_t k = K + 1; k < tile.stride; ++k) tile.lines[e * tile.stride + k] = 0;
    for (ptrdiff_t i = 0; i < columns; ++i) gram_of_row(tile, a, start + i, i, places);
    if (a.l1 != 0)
        for (ptrdiff_t k = 0; k < K * W<T>; ++k) tile.C[k] -= a.l1;
    if (a.l2)
        for (ptrdiff_t k = 0; k < K; ++k) {
            T *diagonal = tile.G + place(k, k) * W<T>;
            for (ptrdiff_t i = 0; i < W<T>; ++i)
                diagonal[i] += curvature(a.l1, a.l2[k], diagonal[i]);
        }
    gather(tile.F, constant(a.F), K, start, columns);
    sweep_each(tile.F, static_cast<const T *>(tile.C), static_cast<const T *>(tile.G), tile.delta,
               K, a.sweeps, a.bounded, sums);
    scatter(a.F, static_cast<const T *>(tile.F), K, start, columns);
    sums[2] = a.measures ? error_of_tile(tile, a, columns) : 0;
}

// Bt (K, stride) ← the concepts at the entries of a row, times `roots`; zeros behind the last entry
template <bool weighted, class T, class I>
inline void copy_transposed(T *Bt, ptrdiff_t stride, const HalsWeighted<T, I> &a,
                            const Observed<T, I> &row, const T *roots) {
    for (ptrdiff_t e = 0; e < row.count; e += V<T>) {
        const int some = static_cast<int>(min(V<T>, row.count - e));
        const T *from[V<T>];
        for (int l = 0; l < some; ++l) {
            from[l] = a.B + static_cast<ptrdiff_t>(row.places[e + l]) * a.stride_b;
            if (e + V<T> + l < row.count)
                prefetch_row(a.B + static_cast<ptrdiff_t>(row.places[e + V<T> + l]) * a.stride_b,
                             a.K);
        }
        const Vec<T> root = weighted ? load(roots + e) : Vec<T>{};
        for (ptrdiff_t next = 0; next < a.K; next += V<T>) {
            Vec<T> square[V<T>] = {};
            // the last square may overlap the one before
            const ptrdiff_t k = a.K < V<T> ? 0 : min(next, a.K - V<T>);
            const int concepts = static_cast<int>(min(V<T>, a.K));
            for (int l = 0; l < some; ++l) square[l] = load_some(from[l] + k, concepts);
            transpose<T>(square);
            for (int c = 0; c < concepts; ++c)
                store(Bt + (k + c) * stride + e, weighted ? root * square[c] : square[c]);
        }
    }
}

// b · e, and b · b if `squares`
template <bool squares, class T>
inline T products(const T *b, const T *e, ptrdiff_t length, [[maybe_unused]] T *square) {
    constexpr int chains = 4;
    Vec<T> sums[chains] = {}, own[chains] = {};
    ptrdiff_t j = 0;
    for (; j + chains * V<T> <= length; j += chains * V<T>)
#pragma GCC unroll 4
        for (int c = 0; c < chains; ++c) {
            const Vec<T> x = load(b + j + c * V<T>);
            sums[c] += x * load(e + j + c * V<T>);
            if (squares) own[c] += x * x;
        }
    for (; j < length; j += V<T>) {
        const Vec<T> x = load(b + j);
        sums[0] += x * load(e + j);
        if (squares) own[0] += x * x;
    }
    if (squares) *square = static_cast<T>(sum<T>((own[0] + own[1]) + (own[2] + own[3])));
    return static_cast<T>(sum<T>((sums[0] + sums[1]) + (sums[2] + sums[3])));
}

// e −= by · b
template <class T> inline void subtract(T *e, const T *b, T by, ptrdiff_t length) {
    for (ptrdiff_t j = 0; j < length; j += V<T>) store(e + j, load(e + j) - by * load(b + j));
}

// One row; scratch: f, G_kk, the curvature of the penalty (K each), Bt (K, longest), e, roots (longest), values of dense data
template <class T, class I>
void residual_of_row(const HalsWeighted<T, I> &a, ptrdiff_t i, T *scratch, I *places,
                     double *sums) {
    const ptrdiff_t K = a.K, stride = whole_vectors<T>(a.longest);
    T *f = scratch, *diagonal = f + K, *added = diagonal + K, *Bt = scratch + whole_vectors<T>(3 * K);
    T *e = Bt + K * stride, *roots = e + stride;
    const Observed<T, I> row = observed(a, i, places, roots + stride);
    const ptrdiff_t length = whole_vectors<T>(row.count);
    for (ptrdiff_t j = row.count; j < length; ++j) e[j] = roots[j] = 0;
    for (ptrdiff_t j = 0; j < row.count; ++j) {
        roots[j] = row.weights ? std::sqrt(row.weights[j]) : T(1);
        e[j] = roots[j] * row.values[j];
    }
    if (row.weights)
        copy_transposed<true>(Bt, stride, a, row, roots);
    else
        copy_transposed<false>(Bt, stride, a, row, roots);
    for (ptrdiff_t k = 0; k < K; ++k) {
        f[k] = *at(a.F, k, i);
        if (f[k] != 0) subtract(e, Bt + k * stride, f[k], length);
    }
    for (ptrdiff_t left = a.sweeps; left > 0; --left)
        for (ptrdiff_t k = 0; k < K; ++k) {
            const T *b = Bt + k * stride;
            T slope;
            if (left == a.sweeps) {
                slope = products<true>(b, e, length, &diagonal[k]);
                added[k] = a.l2 ? curvature(a.l1, a.l2[k], diagonal[k]) : T(0);
                diagonal[k] += added[k];
            } else {
                slope = products<false, T>(b, e, length, nullptr);
            }
            if (diagonal[k] < tiny<T>) {
                sums[1] += double(f[k]) * f[k];
                continue;
            }
            const T before = f[k];
            const T best = before + (slope - a.l1 - added[k] * before) / diagonal[k];
            const T after = a.bounded && best < 0 ? T(0) : best;
            const T delta = after - before;
            if (delta != 0) subtract(e, b, delta, length);
            f[k] = after;
            sums[0] += double(delta) * delta;
            sums[1] += double(after) * after;
        }
    for (ptrdiff_t k = 0; k < K; ++k) *at(a.F, k, i) = f[k];
    if (!a.measures) return;
    for (ptrdiff_t j = 0; j < length; j += most_terms) {
        T square;
        const ptrdiff_t some = min(length - j, most_terms);
        products<true>(static_cast<const T *>(e + j), static_cast<const T *>(e + j), some, &square);
        sums[2] += square;
    }
}

template <class T, class I>
void by_residuals(const HalsWeighted<T, I> &a, ptrdiff_t start, T *scratch, I *places,
                  double *sums) {
    sums[0] = sums[1] = sums[2] = 0;
    for (ptrdiff_t i = start; i < min(a.m, start + W<T>); ++i)
        residual_of_row(a, i, scratch, places, sums);
}

template <class T, class I> ptrdiff_t scratch_size(const HalsWeighted<T, I> &a) {
    const ptrdiff_t K = a.K, dense = a.crow ? 0 : 2 * a.p;
    if (!a.grams) {
        const ptrdiff_t stride = whole_vectors<T>(a.longest);
        return whole_vectors<T>(3 * K) + (K + 2) * stride + dense + V<T>;
    }
    const ptrdiff_t stride = whole_vectors<T>(K + 1);
    return (3 * K + 1 + K * (K + 1) / 2) * W<T> + (K + 1 + most_terms) * stride + dense + V<T>;
}

template <class T, class I>
void sweep(const HalsWeighted<T, I> &a, ptrdiff_t start, T *scratch, I *places, double *sums) {
    if (a.grams)
        by_grams(a, start, scratch, places, sums);
    else
        by_residuals(a, start, scratch, places, sums);
}

} // namespace

namespace fastnmf::FASTNMF_ISA {
const WeightedKernels<float, int32_t> weighted_float32_int32{
    W<float>, scratch_size<float, int32_t>, sweep<float, int32_t>};
const WeightedKernels<float, int64_t> weighted_float32_int64{
    W<float>, scratch_size<float, int64_t>, sweep<float, int64_t>};
const WeightedKernels<double, int32_t> weighted_float64_int32{
    W<double>, scratch_size<double, int32_t>, sweep<double, int32_t>};
const WeightedKernels<double, int64_t> weighted_float64_int64{
    W<double>, scratch_size<double, int64_t>, sweep<double, int64_t>};
} // namespace fastnmf::FASTNMF_ISA

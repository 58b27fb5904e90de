// Products of a sparse matrix in compressed rows with a dense one: X B and XᵀZ.
//
// An entry takes a row of B, or adds to a row of the result, which lies anywhere. So columns are
// divided into blocks of which B, or the sums, stay in the cache, aligned and padded to whole
// vectors: without that a product takes twice as long. A row has a cursor, which goes on from block
// to block. The rows of entries that follow are prefetched. Limited by loads and stores of L2, and of
// L3 where blocks are larger.

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels.h"
#include "simd.h"

namespace {

using fastnmf::Matrix;
using fastnmf::SparseProduct;
using fastnmf::SparseTiles;

// vectors of a group of concepts, all in registers
constexpr int most_vectors = 8;
// entries that are summed at a time: the error of a sum grows with its length
constexpr ptrdiff_t most_terms = 256;
// entries from one whose row is prefetched to the current one: 20,000 × 30,000, K = 20 took 1.4 times
// as long without (Zen 3), 16 were a little slower
constexpr ptrdiff_t distance = 32;
constexpr int line_bytes = 64;

template <class T> constexpr int V = Simd<T>::lanes;

// the first entry from p on, before `end`, of a column that is not below `column`, which is near
template <class I>
inline ptrdiff_t near(const I *col, ptrdiff_t p, ptrdiff_t end, ptrdiff_t column) {
    while (p + 8 <= end && col[p + 7] < column) p += 8;
    while (p < end && col[p] < column) ++p;
    return p;
}

// the same, wherever it is
template <class I>
inline ptrdiff_t find(const I *col, ptrdiff_t p, ptrdiff_t end, ptrdiff_t column) {
    if (column == 0) return p;
    while (p < end) {
        const ptrdiff_t middle = p + (end - p) / 2;
        if (col[middle] < column)
            p = middle + 1;
        else
            end = middle;
    }
    return p;
}

// the row that an entry has, of rows of N vectors, comes into the cache
template <int N, int writes, class T> inline void prefetch_row(const T *row) {
    constexpr int bytes = N * sizeof(Vec<T>);
#pragma GCC unroll 8
    for (int b = 0; b < bytes; b += line_bytes)
        __builtin_prefetch(reinterpret_cast<const char *>(row) + b, writes);
}

// Concepts of a group: N vectors, of which the last has `rest` elements.
template <int N, class T> struct Group {
    int rest;

    void load_row(Vec<T> *x, const T *from) const {
#pragma GCC unroll 8
        for (int v = 0; v + 1 < N; ++v) x[v] = load(from + v * V<T>);
        x[N - 1] = load_some(from + (N - 1) * V<T>, rest);
    }
    void store_row(T *to, const Vec<T> *x) const {
#pragma GCC unroll 8
        for (int v = 0; v + 1 < N; ++v) store(to + v * V<T>, x[v]);
        store_some(to + (N - 1) * V<T>, x[N - 1], rest);
    }
};

// sums (N) ← Σ values[e] B[col[e] − column], e < count; B (columns, N vectors). Several sums for
// each vector, so that no product waits for the one before. col[e] may be read for e < known
template <int N, class T, class I>
inline void sum_rows(Vec<T> *sums, const I *col, const T *values, ptrdiff_t count, ptrdiff_t known,
                     const T *B, ptrdiff_t column) {
    constexpr int chains = N == 1 ? 8 : N == 2 ? 4 : N <= 4 ? 2 : 1;
    Vec<T> partial[chains][N] = {};
    ptrdiff_t e = 0;
    const auto add = [&](int chain, ptrdiff_t entry) __attribute__((always_inline)) {
        const T value = values[entry];
        const T *row = B + (static_cast<ptrdiff_t>(col[entry]) - column) * (N * V<T>);
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) partial[chain][v] += value * load(row + v * V<T>);
    };
    for (; e + chains <= count; e += chains) {
        if (e + distance + chains <= known)
#pragma GCC unroll 8
            for (int chain = 0; chain < chains; ++chain)
                prefetch_row<N, 0>(B + (static_cast<ptrdiff_t>(col[e + distance + chain]) - column) *
                                           (N * V<T>));
#pragma GCC unroll 8
        for (int chain = 0; chain < chains; ++chain) add(chain, e + chain);
    }
    for (; e < count; ++e) add(0, e);
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
#pragma GCC unroll 3
        for (int half = chains / 2; half > 0; half /= 2)
#pragma GCC unroll 4
            for (int chain = 0; chain < half; ++chain)
                partial[chain][v] += partial[chain + half][v];
        sums[v] = partial[0][v];
    }
}

// packed ← rows [column, next) of B, of which the entries or the columns are adjacent
template <int N, class T>
void pack(const Matrix<const T> &B, const Group<N, T> &group, T *packed, ptrdiff_t column,
          ptrdiff_t next, ptrdiff_t k) {
    for (ptrdiff_t j = column; j < next;) {
        if (B.stride_m == 1) {
            Vec<T> row[N];
            group.load_row(row, at(B, j++, k));
#pragma GCC unroll 8
            for (int v = 0; v < N; ++v, packed += V<T>) store(packed, row[v]);
            continue;
        }
        const int columns = static_cast<int>(min(V<T>, next - j));
        for (int v = 0; v < N; ++v) {
            const int concepts = v + 1 < N ? V<T> : group.rest;
            const T *from = at(B, j, k + v * V<T>);
            Vec<T> square[V<T>] = {};
            for (int l = 0; l < concepts; ++l)
                square[l] = load_some(from + l * B.stride_m, columns);
            transpose<T>(square);
            for (int i = 0; i < columns; ++i) store(packed + (i * N + v) * V<T>, square[i]);
        }
        packed += columns * N * V<T>;
        j += columns;
    }
}

template <int N, class T, class I>
void dot_group(const SparseProduct<T, I> &a, const SparseTiles &tiles, ptrdiff_t first,
               ptrdiff_t last, ptrdiff_t k, int concepts, T *packed, I *cursor) {
    const Group<N, T> group{concepts - (N - 1) * V<T>};
    const ptrdiff_t known = tiles.prefetches ? static_cast<ptrdiff_t>(a.crow[last]) : 0;
    for (ptrdiff_t start = first; start < last; start += tiles.rows) {
        const ptrdiff_t end = min(start + tiles.rows, last);
        for (ptrdiff_t i = start; i < end; ++i) cursor[i - start] = a.crow[i];
        for (ptrdiff_t column = 0; column < a.d; column += tiles.columns) {
            const ptrdiff_t next = min(column + tiles.columns, a.d);
            pack(a.dense, group, packed, column, next, k);
            for (ptrdiff_t i = start; i < end; ++i) {
                ptrdiff_t p = cursor[i - start];
                const ptrdiff_t stop = next == a.d ? static_cast<ptrdiff_t>(a.crow[i + 1])
                                                   : near(a.col, p, a.crow[i + 1], next);
                T *out = at(a.out, i, k);
                bool fresh = column == 0;
                while (p < stop || fresh) {
                    const ptrdiff_t count = min(stop - p, most_terms);
                    Vec<T> sums[N];
                    sum_rows<N>(sums, a.col + p, a.values + p, count, known - p, packed, column);
                    if (!fresh) {
                        Vec<T> before[N];
                        group.load_row(before, out);
#pragma GCC unroll 8
                        for (int v = 0; v < N; ++v) sums[v] += before[v];
                    }
                    group.store_row(out, sums);
                    fresh = false;
                    p += count;
                }
                cursor[i - start] = stop;
            }
        }
    }
}

// rows of sums (columns, N vectors) += values[e] z, rows col[e] − column, e < count; col[e] may be
// read for e < known. The pointers are no members of an object: a store could change those, so that
// they would be loaded each time
template <int N, class T, class I>
inline void add_to_rows(T *sums, const I *col, const T *values, ptrdiff_t count, ptrdiff_t known,
                        const Vec<T> *z, ptrdiff_t column) {
    for (ptrdiff_t e = 0; e < count; ++e) {
        if (e + distance < known)
            prefetch_row<N, 1>(sums + (static_cast<ptrdiff_t>(col[e + distance]) - column) *
                                          (N * V<T>));
        const T value = values[e];
        T *row = sums + (static_cast<ptrdiff_t>(col[e]) - column) * (N * V<T>);
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) store(row + v * V<T>, load(row + v * V<T>) + value * z[v]);
    }
}

// out ← sums, or += if `adds`, for columns [column, next)
template <int N, class T, class I>
void unpack(const SparseProduct<T, I> &a, const Group<N, T> &group, const T *sums, ptrdiff_t column,
            ptrdiff_t next, ptrdiff_t k, bool adds) {
    for (ptrdiff_t j = column; j < next; ++j, sums += N * V<T>) {
        T *out = at(a.out, j, k);
        Vec<T> row[N] = {};
        if (adds) group.load_row(row, out);
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) row[v] += load(sums + v * V<T>);
        group.store_row(out, row);
    }
}

template <int N, class T, class I>
void tdot_group(const SparseProduct<T, I> &a, const SparseTiles &tiles, ptrdiff_t first,
                ptrdiff_t last, ptrdiff_t k, int concepts, T *sums, I *cursor) {
    const Group<N, T> group{concepts - (N - 1) * V<T>};
    const ptrdiff_t known = tiles.prefetches ? static_cast<ptrdiff_t>(a.crow[a.m]) : 0;
    for (ptrdiff_t start = 0; start < a.m; start += tiles.rows) {
        const ptrdiff_t end = min(start + tiles.rows, a.m);
        for (ptrdiff_t i = start; i < end; ++i)
            cursor[i - start] = find(a.col, a.crow[i], a.crow[i + 1], first);
        for (ptrdiff_t column = first; column < last; column += tiles.columns) {
            const ptrdiff_t next = min(column + tiles.columns, last);
            __builtin_memset(sums, 0, (next - column) * N * sizeof(Vec<T>));
            for (ptrdiff_t i = start; i < end; ++i) {
                const ptrdiff_t p = cursor[i - start];
                const ptrdiff_t stop = next == a.d ? static_cast<ptrdiff_t>(a.crow[i + 1])
                                                   : near(a.col, p, a.crow[i + 1], next);
                if (p == stop) continue;
                Vec<T> z[N];
                group.load_row(z, at(a.dense, i, k));
                add_to_rows<N>(sums, a.col + p, a.values + p, stop - p, known - p, z, column);
                cursor[i - start] = stop;
            }
            unpack(a, group, sums, column, next, k, a.adds || start > 0);
        }
    }
}

// run(N) for the number of vectors of a group
template <int N = most_vectors, class Run> inline void with_vectors(int vectors, Run run) {
    if constexpr (N > 1)
        if (vectors < N) return with_vectors<N - 1>(vectors, run);
    run(std::integral_constant<int, N>{});
}

// groups of concepts of nearly equal size
template <class T, class I, class Run>
inline void for_groups(const SparseProduct<T, I> &a, const SparseTiles &tiles, Run run) {
    const ptrdiff_t vectors = (a.K + V<T> - 1) / V<T>;
    const ptrdiff_t groups = (a.K + tiles.concepts - 1) / tiles.concepts;
    for (ptrdiff_t g = 0; g < groups; ++g) {
        const ptrdiff_t k = g * vectors / groups * V<T>;
        const ptrdiff_t end = min((g + 1) * vectors / groups * V<T>, a.K);
        with_vectors(static_cast<int>((end - k + V<T> - 1) / V<T>),
                     [&](auto N) { run(N, k, static_cast<int>(end - k)); });
    }
}

template <class T> inline void add_row(T *to, T value, const T *from, ptrdiff_t count) {
    for (ptrdiff_t k = 0; k < count; ++k) to[k] += value * from[k];
}

// so few entries that copies would take longer
template <class T, class I>
void dot_few(const SparseProduct<T, I> &a, ptrdiff_t first, ptrdiff_t last, T *sums) {
    for (ptrdiff_t i = first; i < last; ++i) {
        T *out = at(a.out, i, 0);
        __builtin_memset(out, 0, a.K * sizeof(T));
        for (ptrdiff_t p = a.crow[i]; p < a.crow[i + 1]; p += most_terms) {
            const ptrdiff_t stop = min(p + most_terms, a.crow[i + 1]);
            __builtin_memset(sums, 0, a.K * sizeof(T));
            for (ptrdiff_t e = p; e < stop; ++e)
                if (a.dense.stride_m == 1)
                    add_row(sums, a.values[e], at(a.dense, a.col[e], 0), a.K);
                else
                    for (ptrdiff_t k = 0; k < a.K; ++k)
                        sums[k] += a.values[e] * *at(a.dense, a.col[e], k);
            add_row(out, T(1), static_cast<const T *>(sums), a.K);
        }
    }
}

template <class T, class I>
void tdot_few(const SparseProduct<T, I> &a, ptrdiff_t first, ptrdiff_t last) {
    if (!a.adds)
        for (ptrdiff_t j = first; j < last; ++j)
            __builtin_memset(at(a.out, j, 0), 0, a.K * sizeof(T));
    for (ptrdiff_t i = 0; i < a.m; ++i) {
        const ptrdiff_t end = a.crow[i + 1];
        for (ptrdiff_t e = find(a.col, a.crow[i], end, first); e < end && a.col[e] < last; ++e)
            add_row(at(a.out, a.col[e], 0), a.values[e], at(a.dense, i, 0), a.K);
    }
}

template <class T, class I>
void dot(const SparseProduct<T, I> &a, const SparseTiles &tiles, ptrdiff_t first, ptrdiff_t last,
         T *scratch, I *cursor) {
    if (!tiles.packed) return dot_few(a, first, last, scratch);
    for_groups(a, tiles, [&](auto N, ptrdiff_t k, int concepts) {
        dot_group<N>(a, tiles, first, last, k, concepts, scratch, cursor);
    });
}

template <class T, class I>
void tdot(const SparseProduct<T, I> &a, const SparseTiles &tiles, ptrdiff_t first, ptrdiff_t last,
          T *scratch, I *cursor) {
    if (!tiles.packed) return tdot_few(a, first, last);
    for_groups(a, tiles, [&](auto N, ptrdiff_t k, int concepts) {
        tdot_group<N>(a, tiles, first, last, k, concepts, scratch, cursor);
    });
}

} // namespace

namespace fastnmf::FASTNMF_ISA {
const SparseKernels<float, int32_t> sparse_float32_int32{
    most_vectors * V<float>, V<float>, dot<float, int32_t>, tdot<float, int32_t>};
const SparseKernels<float, int64_t> sparse_float32_int64{
    most_vectors * V<float>, V<float>, dot<float, int64_t>, tdot<float, int64_t>};
const SparseKernels<double, int32_t> sparse_float64_int32{
    most_vectors * V<double>, V<double>, dot<double, int32_t>, tdot<double, int32_t>};
const SparseKernels<double, int64_t> sparse_float64_int64{
    most_vectors * V<double>, V<double>, dot<double, int64_t>, tdot<double, int64_t>};
} // namespace fastnmf::FASTNMF_ISA

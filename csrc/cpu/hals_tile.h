// Tiles of columns, as wide as the registers suit, on which HALS sweeps: how factors come into them
// and back, sums of their squares, and the sweep in which each column has a Gram matrix of its own.
#pragma once

#include <cstddef>

#include "../matrix.h"
#include "gemm_tile.h"
#include "simd.h"

namespace {

using fastnmf::Matrix;

// vectors of columns in a tile
constexpr int width = most_vectors;

template <class T> constexpr int V = Simd<T>::lanes;
// whether a part of a vector is read and written at once
#if defined(__AVX512F__)
constexpr bool masks = true;
#else
constexpr bool masks = false;
#endif
template <class T> constexpr int W = width * V<T>;

// tile (rows × W) ← columns [start, start + columns) of `from`; zeros in the columns right of them
template <class T>
void gather(T *tile, Matrix<const T> from, ptrdiff_t rows, ptrdiff_t start, ptrdiff_t columns) {
    const T *origin = at(from, 0, start);
    if (columns == W<T> && from.stride_m == 1) {
        for (ptrdiff_t k = 0; k < rows; ++k)
            for (int i = 0; i < W<T>; i += V<T>)
                store(tile + k * W<T> + i, load(origin + k * from.stride_k + i));
    } else if (from.stride_k == 1 && rows >= V<T>) {
        for (int i = 0; i < W<T>; i += V<T>) {
            const ptrdiff_t some = columns - i;
            for (ptrdiff_t next = 0; next < rows; next += V<T>) {
                // the last square may overlap the one before
                const ptrdiff_t k = next + V<T> <= rows ? next : rows - V<T>;
                Vec<T> square[V<T>] = {};
                if (some >= V<T>) {
                    load_transposed<T>(square, origin + i * from.stride_m + k, from.stride_m);
                } else {
                    for (int l = 0; l < some; ++l)
                        square[l] = load(origin + (i + l) * from.stride_m + k);
                    transpose<T>(square);
                }
                for (int l = 0; l < V<T>; ++l) store(tile + (k + l) * W<T> + i, square[l]);
            }
        }
    } else if (masks && from.stride_k == 1) {
        for (int i = 0; i < W<T>; i += V<T>) {
            Vec<T> square[V<T>] = {};
            for (int l = 0; l < V<T> && i + l < columns; ++l)
                square[l] = load_some(origin + (i + l) * from.stride_m, static_cast<int>(rows));
            transpose<T>(square);
            for (ptrdiff_t k = 0; k < rows; ++k) store(tile + k * W<T> + i, square[k]);
        }
    } else {
        for (ptrdiff_t k = 0; k < rows; ++k)
            for (ptrdiff_t i = 0; i < W<T>; ++i)
                tile[k * W<T> + i] = i < columns ? *at(from, k, start + i) : T(0);
    }
}

// columns [start, start + columns) of `to` ← tile (rows × W)
template <class T>
void scatter(Matrix<T> to, const T *tile, ptrdiff_t rows, ptrdiff_t start, ptrdiff_t columns) {
    T *origin = at(to, 0, start);
    if (columns == W<T> && to.stride_m == 1) {
        for (ptrdiff_t k = 0; k < rows; ++k)
            for (int i = 0; i < W<T>; i += V<T>)
                store(origin + k * to.stride_k + i, load(tile + k * W<T> + i));
    } else if (columns == W<T> && to.stride_k == 1 && rows >= V<T>) {
        for (int i = 0; i < W<T>; i += V<T>)
            for (ptrdiff_t next = 0; next < rows; next += V<T>) {
                const ptrdiff_t k = next + V<T> <= rows ? next : rows - V<T>;
                Vec<T> square[V<T>];
                for (int l = 0; l < V<T>; ++l) square[l] = load(tile + (k + l) * W<T> + i);
                transpose<T>(square);
                for (int l = 0; l < V<T>; ++l) store(origin + (i + l) * to.stride_m + k, square[l]);
            }
    } else if (masks && to.stride_k == 1 && rows < V<T>) {
        for (int i = 0; i < columns; i += V<T>) {
            Vec<T> square[V<T>] = {};
            for (ptrdiff_t k = 0; k < rows; ++k) square[k] = load(tile + k * W<T> + i);
            transpose<T>(square);
            for (int l = 0; l < V<T> && i + l < columns; ++l)
                store_some(origin + (i + l) * to.stride_m, square[l], static_cast<int>(rows));
        }
    } else {
        for (ptrdiff_t i = 0; i < columns; ++i)
            for (ptrdiff_t k = 0; k < rows; ++k) *at(to, k, start + i) = tile[k * W<T> + i];
    }
}

template <class T> Matrix<const T> constant(Matrix<T> x) {
    return {x.data, x.stride_k, x.stride_m};
}

// sums ← ‖Δ‖², ‖F‖² of a tile, added up in T; over tiles that is done in float64
template <class T>
inline void sum_squares(const T *delta, const T *F, ptrdiff_t rows, double *sums) {
    Vec<T> change[width] = {}, norm[width] = {};
    for (ptrdiff_t k = 0; k < rows; ++k)
#pragma GCC unroll 4
        for (int v = 0; v < width; ++v) {
            const Vec<T> x = load(delta + k * W<T> + v * V<T>), y = load(F + k * W<T> + v * V<T>);
            change[v] += x * x;
            norm[v] += y * y;
        }
    for (int v = 1; v < width; ++v) {
        change[0] += change[v];
        norm[0] += norm[v];
    }
    sums[0] = sum<T>(change[0]);
    sums[1] = sum<T>(norm[0]);
}

// where entry (k, j) of a symmetric matrix is in its lower triangle
inline ptrdiff_t place(ptrdiff_t k, ptrdiff_t j) {
    return j <= k ? k * (k + 1) / 2 + j : j * (j + 1) / 2 + k;
}

// F_k ← max(0, F_k + (C_k − G_k F) / G_kk) of one concept k of a tile, each column with its own G;
// delta ← the change
template <bool bounded, class T>
inline void update_each(T *F, const T *C, const T *G, T *delta, ptrdiff_t K, ptrdiff_t k) {
    Vec<T> r[width];
#pragma GCC unroll 4
    for (int v = 0; v < width; ++v) r[v] = load(C + k * W<T> + v * V<T>);
    for (ptrdiff_t j = 0; j < K; ++j) {
        const T *g = G + place(k, j) * W<T>;
#pragma GCC unroll 4
        for (int v = 0; v < width; ++v) r[v] -= load(g + v * V<T>) * load(F + j * W<T> + v * V<T>);
    }
#pragma GCC unroll 4
    for (int v = 0; v < width; ++v) {
        const Vec<T> diagonal = load(G + place(k, k) * W<T> + v * V<T>), one = Vec<T>{} + T(1);
        const Vec<T> least = Vec<T>{} + tiny<T>, before = load(F + k * W<T> + v * V<T>);
        const Vec<T> best = before + r[v] / (diagonal < least ? one : diagonal);
        const Vec<T> alive = bounded ? positive_part(best) : best;
        const Vec<T> after = diagonal < least ? before : alive;
        store(delta + k * W<T> + v * V<T>, after - before);
        store(F + k * W<T> + v * V<T>, after);
    }
}

// `count` sweeps of a tile F with C, each column with its own G; delta: as large as F. sums ← ‖Δ‖²,
// ‖F‖², of all sweeps
template <class T>
inline void sweep_each(T *F, const T *C, const T *G, T *delta, ptrdiff_t K, ptrdiff_t count,
                       bool bounded, double *sums) {
    sums[0] = sums[1] = 0;
    for (ptrdiff_t left = count; left > 0; --left) {
        for (ptrdiff_t k = 0; k < K; ++k)
            if (bounded)
                update_each<true>(F, C, G, delta, K, k);
            else
                update_each<false>(F, C, G, delta, K, k);
        double partial[2];
        sum_squares(delta, F, K, partial);
        sums[0] += partial[0];
        sums[1] += partial[1];
    }
}

} // namespace

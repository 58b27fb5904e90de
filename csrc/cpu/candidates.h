// Candidates of a row in flight: the steepest concepts, and products of concepts.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "nnls_thread.h"

namespace {

// concepts whose largest slope is stored
constexpr int stretch = 32;

// Σ_j x_j y_j in float64
template <class X, class Y> inline double dot(const X *x, const Y *y, ptrdiff_t n) {
    Vec<double> sums[2] = {};
    ptrdiff_t j = 0;
    for (; j + 2 * wide <= n; j += 2 * wide)
        for (int u = 0; u < 2; ++u)
            sums[u] += widened(x + j + u * wide) * widened(y + j + u * wide);
    double total = sum<double>(sums[0] + sums[1]);
    for (; j < n; ++j) total += double(x[j]) * double(y[j]);
    return total;
}

// f(i, Σ_j x_i[j] y_j) in float64 for i < n, with x_i = x(i), of `p` entries
template <class X, class F> inline void each_dot(int n, ptrdiff_t p, const double *y, X x, F f) {
    constexpr int group = 4;
    int i = 0;
    for (; i + group <= n; i += group) {
        const decltype(x(i)) of[group] = {x(i), x(i + 1), x(i + 2), x(i + 3)};
        Vec<double> sums[group][2] = {};
        ptrdiff_t j = 0;
        for (; j + 2 * wide <= p; j += 2 * wide)
#pragma GCC unroll 2
            for (int u = 0; u < 2; ++u) {
                const Vec<double> of_y = load(y + j + u * wide);
#pragma GCC unroll 4
                for (int r = 0; r < group; ++r) sums[r][u] += widened(of[r] + j + u * wide) * of_y;
            }
        for (int r = 0; r < group; ++r) {
            double total = sum<double>(sums[r][0] + sums[r][1]);
            for (ptrdiff_t rest = j; rest < p; ++rest) total += double(of[r][rest]) * y[rest];
            f(i + r, total);
        }
    }
    for (; i < n; ++i) f(i, dot(x(i), y, p));
}

// concepts of a tile of `products_of`
constexpr int tile_i = vector_bytes == 64 ? 4 : 2, tile_c = 4;

// out[i * tile_c + c] = Σ_j x_i[j] y_c[j] for a tile, summed in T
template <class T>
inline void products_of(const T *const *x, const T *const *y, ptrdiff_t n, T *out) {
    constexpr int lanes = Simd<T>::lanes, all = tile_i * tile_c;
    Vec<T> sums[all] = {};
    ptrdiff_t j = 0;
    for (; j + lanes <= n; j += lanes) {
        Vec<T> of_y[tile_c];
#pragma GCC unroll 4
        for (int c = 0; c < tile_c; ++c) of_y[c] = load(y[c] + j);
#pragma GCC unroll 4
        for (int i = 0; i < tile_i; ++i) {
            const Vec<T> of_x = load(x[i] + j);
#pragma GCC unroll 4
            for (int c = 0; c < tile_c; ++c) sums[i * tile_c + c] += of_x * of_y[c];
        }
    }
    // a transposed square of sums has all of a lane in a vector
    for (int square = 0; square < all; square += lanes) {
        transpose<T>(sums + square);
        Vec<T> total = sums[square];
        for (int l = 1; l < lanes; ++l) total += sums[square + l];
        store(out + square, total);
    }
    for (; j < n; ++j)
        for (int i = 0; i < tile_i; ++i)
            for (int c = 0; c < tile_c; ++c) out[i * tile_c + c] += x[i][j] * y[c][j];
}

// e −= Σ_r f_r b_r for `rows` concepts
template <int rows, class T>
inline void subtract_concepts(ptrdiff_t n, T *e, const T *f, const T *const *b) {
    constexpr int lanes = Simd<T>::lanes;
    ptrdiff_t j = 0;
    for (; j + lanes <= n; j += lanes) {
        Vec<T> sum = load(e + j);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) sum -= f[r] * load(b[r] + j);
        store(e + j, sum);
    }
    for (; j < n; ++j)
        for (int r = 0; r < rows; ++r) e[j] -= f[r] * b[r][j];
}

// Move the `most` largest values, and their indices, to the front.
inline void partition(double *values, int *index, int count, int most) {
    int first = 0, last = count - 1;
    while (first < last) {
        const double middle = values[(first + last) / 2];
        int i = first, j = last;
        while (i <= j) {
            while (values[i] > middle) ++i;
            while (values[j] < middle) --j;
            if (i > j) break;
            const double value = values[i];
            const int k = index[i];
            values[i] = values[j], index[i++] = index[j];
            values[j] = value, index[j--] = k;
        }
        if (most <= j)
            last = j;
        else if (most >= i)
            first = i;
        else
            return;
    }
}

// tops ← the largest of W ← (W − l1) rounded, or 0, of each stretch of the K concepts; returns the
// largest
template <class T>
inline double scale_slopes(T *W, const T *rounded, T l1, ptrdiff_t K, double *tops) {
    constexpr int lanes = Simd<T>::lanes;
    double most = 0;
    for (ptrdiff_t first = 0; first < K; first += stretch) {
        const ptrdiff_t last = first + stretch < K ? first + stretch : K;
        Vec<T> top = {};
        ptrdiff_t k = first;
        for (; k + lanes <= last; k += lanes) {
            const Vec<T> w = (load(W + k) - l1) * load(rounded + k);
            store(W + k, w);
            top = w > top ? w : top;
        }
        double steepest = 0;
        for (int l = 0; l < lanes; ++l) steepest = top[l] > steepest ? double(top[l]) : steepest;
        for (; k < last; ++k) {
            W[k] = (W[k] - l1) * rounded[k];
            steepest = W[k] > steepest ? double(W[k]) : steepest;
        }
        tops[first / stretch] = steepest;
        most = steepest > most ? steepest : most;
    }
    return most;
}

// chosen, values ← the concepts with the largest W, at most `most`, of at least `least`; tops: of
// scale_slopes. values and chosen have space for K.
template <class T>
inline int steepest_concepts(const T *W, const double *tops, ptrdiff_t K, double least, int most,
                             int *chosen, double *values) {
    const int stretches = int((K + stretch - 1) / stretch);
    if (stretches > most) {
        // as many concepts as this are at least as steep as the last of their stretches
        for (int i = 0; i < stretches; ++i) values[i] = tops[i];
        partition(values, chosen, stretches, most);
        double low = values[0];
        for (int i = 1; i < most; ++i) low = fmin(low, values[i]);
        least = fmax(least, low);
    }
    int found = 0;
    for (int i = 0; i < stretches; ++i) {
        if (!(tops[i] >= least)) continue;
        const ptrdiff_t first = ptrdiff_t(i) * stretch;
        const ptrdiff_t last = first + stretch < K ? first + stretch : K;
        for (ptrdiff_t k = first; k < last; ++k)
            if (double(W[k]) >= least) {
                values[found] = double(W[k]);
                chosen[found++] = int(k);
            }
    }
    if (found > most) partition(values, chosen, found, most);
    return found < most ? found : most;
}

} // namespace

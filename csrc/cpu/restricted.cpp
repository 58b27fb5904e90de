// HALS restricted to few concepts of each row, from residuals: the candidates of a row are the
// concepts with a code and those whose slope is above the penalty; and the half-step of the
// dictionary over the codes that are not zero.
//
// A row of codes: the residual of the row stays in L1, and concepts come from anywhere, ahead of
// their use. A concept of the dictionary: the rows of the residual where it has codes come from
// anywhere; of these so many features at a time that their sums stay in registers, and features are
// independent of each other.

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "simd.h"

namespace {

using fastnmf::Candidates;
using fastnmf::HalsCandidates;
using fastnmf::HalsConcepts;

template <class T> constexpr int V = Simd<T>::lanes;
// vectors of features whose sums are in registers
constexpr int sums_at_once = 8;
// entries from the one whose rows are prefetched to the current one
constexpr ptrdiff_t distance = 4;
constexpr ptrdiff_t line_bytes = 64;

template <class T> inline void prefetch(const T *from, ptrdiff_t elements) {
    for (ptrdiff_t b = 0; b < elements * ptrdiff_t(sizeof(T)); b += line_bytes)
        __builtin_prefetch(reinterpret_cast<const char *>(from) + b);
}

// vectors that are compared before one branch
constexpr int compared = 4;

// whether one of the elements is above the bound
template <class T> inline bool any_above(const T *x, T bound) {
    auto mask = load(x) > bound;
#pragma GCC unroll 4
    for (int v = 1; v < compared; ++v) mask |= load(x + v * V<T>) > bound;
    int64_t words[sizeof mask / 8], any = 0;
    __builtin_memcpy(words, &mask, sizeof mask);
    for (int64_t word : words) any |= word;
    return any;
}

// how many of the elements are above the bound
template <class T> ptrdiff_t count_above(const T *x, ptrdiff_t size, T bound) {
    ptrdiff_t found = 0, k = 0;
    for (; k + compared * V<T> <= size; k += compared * V<T>)
        if (any_above(x + k, bound))
            for (ptrdiff_t j = k; j < k + compared * V<T>; ++j) found += x[j] > bound;
    for (; k < size; ++k) found += x[k] > bound;
    return found;
}

// the number of candidates of row i
template <class T, class I> ptrdiff_t count(const Candidates<T, I> &a, ptrdiff_t i) {
    const T *slopes = a.S + i * a.stride_s;
    ptrdiff_t found = count_above(slopes, a.K, a.bound);
    for (I e = a.crow[i]; e < a.crow[i + 1]; ++e) found += !(slopes[a.col[e]] > a.bound);
    return found;
}

// the candidates of row i, of which there are `end − p` of this row
template <class T, class I> void fill(const Candidates<T, I> &a, ptrdiff_t i) {
    const T *slopes = a.S + i * a.stride_s;
    I p = a.crow_out[i], e = a.crow[i];
    const I end = a.crow[i + 1];
    const auto take = [&](ptrdiff_t k) {
        const bool old = e < end && a.col[e] == k;
        a.col_out[p] = static_cast<I>(k);
        a.values_out[p++] = old ? a.values[e++] : T(0);
    };
    constexpr ptrdiff_t some = compared * V<T>;
    for (ptrdiff_t k = 0; k < a.K; k += some) {
        const ptrdiff_t next = min(a.K, k + some);
        const bool old = e < end && a.col[e] < next;
        if (next == k + some && !old && !any_above(slopes + k, a.bound)) continue;
        for (ptrdiff_t j = k; j < next; ++j)
            if (slopes[j] > a.bound || (e < end && a.col[e] == j)) take(j);
    }
}

template <class T> inline T dot(const T *x, const T *y, ptrdiff_t size) {
    Vec<T> sums[4] = {};
    ptrdiff_t j = 0;
    for (; j + 4 * V<T> <= size; j += 4 * V<T>)
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) sums[v] += load(x + j + v * V<T>) * load(y + j + v * V<T>);
    for (; j + V<T> <= size; j += V<T>) sums[0] += load(x + j) * load(y + j);
    const Vec<T> all = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    T total = 0;
    for (int l = 0; l < V<T>; ++l) total += all[l];
    for (; j < size; ++j) total += x[j] * y[j];
    return total;
}

// y += factor x
template <class T> inline void add(T *y, T factor, const T *x, ptrdiff_t size) {
    ptrdiff_t j = 0;
    for (; j + V<T> <= size; j += V<T>) store(y + j, load(y + j) + factor * load(x + j));
    for (; j < size; ++j) y[j] += factor * x[j];
}

template <class T, class I>
void sweep_row(const HalsCandidates<T, I> &a, ptrdiff_t i, T *start, double *sums) {
    const ptrdiff_t first = a.crow[i], count = a.crow[i + 1] - first;
    const I *col = a.col + first;
    T *values = a.values + first, *e = a.E + i * a.stride_e;
    __builtin_memcpy(start, values, count * sizeof(T));
    for (ptrdiff_t sweep = 0; sweep < a.sweeps; ++sweep) {
        bool moves = false;
        for (ptrdiff_t j = 0; j < count; ++j) {
            if (sweep == 0 && j + distance < count)
                prefetch(a.B + col[j + distance] * a.stride_b, a.p);
            const ptrdiff_t k = col[j];
            if (a.inverse[k] == 0) continue;
            const T *concept_k = a.B + k * a.stride_b;
            const T slope = dot(concept_k, e, a.p) - a.l1 - a.curvature[k] * values[j];
            const T best = values[j] + slope * a.inverse[k];
            // keeps a NaN
            const T after = T(0) > best ? T(0) : best, delta = after - values[j];
            if (delta == 0) continue;
            values[j] = after;
            add(e, -delta, concept_k, a.p);
            moves = true;
        }
        if (!moves) break;
    }
    double change = 0, squares = 0;
    for (ptrdiff_t j = 0; j < count; ++j) {
        const double delta = double(values[j]) - double(start[j]);
        change += delta * delta;
        squares += double(values[j]) * double(values[j]);
    }
    sums[0] += change;
    sums[1] += squares;
}

// features [start, start + N vectors) of concept k, of which the last vector has `rest`
template <int N, class T, class I>
inline void update_concept(const HalsConcepts<T, I> &a, ptrdiff_t k, ptrdiff_t start, int rest,
                           T inverse, double *sums) {
    const auto read = [&](const T *from, int v) __attribute__((always_inline)) {
        return v + 1 < N || rest == V<T> ? load(from + v * V<T>)
                                         : load_some(from + v * V<T>, rest);
    };
    const auto write = [&](T *to, int v, Vec<T> x) __attribute__((always_inline)) {
        if (v + 1 < N || rest == V<T>)
            store(to + v * V<T>, x);
        else
            store_some(to + v * V<T>, x, rest);
    };
    const ptrdiff_t first = a.crow[k], last = a.crow[k + 1], known = a.crow[a.K];
    T *F = a.F + k * a.stride_f + start, *E = a.E + start;
    Vec<T> found[N] = {};
    for (ptrdiff_t e = first; e < last; ++e) {
        if (e + 2 * distance < known)
            prefetch(E + a.row[e + 2 * distance] * a.stride_e, N * V<T>);
        const T *residual = E + a.row[e] * a.stride_e;
        const T z = a.values[e];
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) found[v] += z * read(residual, v);
    }
    const T curvature = a.curvature ? a.curvature[k] : T(0);
    Vec<T> delta[N];
    double change = 0, squares = 0;
    bool moves = false;
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
        const Vec<T> before = read(F, v);
        const Vec<T> best = before + inverse * (found[v] - curvature * before);
        const Vec<T> after = a.bounded ? positive_part(best) : best;
        delta[v] = after - before;
        write(F, v, after);
        for (int l = 0; l < V<T>; ++l) {
            change += double(delta[v][l]) * double(delta[v][l]);
            squares += double(after[l]) * double(after[l]);
            moves |= delta[v][l] != 0;
        }
    }
    sums[0] += change;
    sums[1] += squares;
    if (!moves) return;
    for (ptrdiff_t e = first; e < last; ++e) {
        T *residual = E + a.row[e] * a.stride_e;
        const T z = a.values[e];
#pragma GCC unroll 8
        for (int v = 0; v < N; ++v) write(residual, v, read(residual, v) - z * delta[v]);
    }
}

template <int N = sums_at_once, class T, class I>
void update_features(const HalsConcepts<T, I> &a, ptrdiff_t start, ptrdiff_t features,
                     double *sums) {
    const int vectors = static_cast<int>((features + V<T> - 1) / V<T>);
    if constexpr (N > 1)
        if (vectors < N) return update_features<N - 1>(a, start, features, sums);
    const int rest = static_cast<int>(features - (N - 1) * V<T>);
    for (ptrdiff_t k = 0; k < a.K; ++k) {
        T gram = 0;
        for (ptrdiff_t e = a.crow[k]; e < a.crow[k + 1]; ++e) gram += a.values[e] * a.values[e];
        if (a.curvature) gram += a.curvature[k];
        const T inverse = gram < tiny<T> ? T(0) : 1 / gram;
        update_concept<N>(a, k, start, rest, inverse, sums);
    }
}

} // namespace

namespace fastnmf::FASTNMF_ISA {
#define FASTNMF_RESTRICTED(T, I)                                                                   \
    {                                                                                              \
        sums_at_once *V<T>, count<T, I>, fill<T, I>, sweep_row<T, I>, update_features<sums_at_once, T, I> \
    }
const RestrictedKernels<float, int32_t> restricted_float32_int32 FASTNMF_RESTRICTED(float, int32_t);
const RestrictedKernels<float, int64_t> restricted_float32_int64 FASTNMF_RESTRICTED(float, int64_t);
const RestrictedKernels<double, int32_t> restricted_float64_int32 FASTNMF_RESTRICTED(double, int32_t);
const RestrictedKernels<double, int64_t> restricted_float64_int64 FASTNMF_RESTRICTED(double, int64_t);
#undef FASTNMF_RESTRICTED
} // namespace fastnmf::FASTNMF_ISA

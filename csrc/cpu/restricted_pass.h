// The arguments of HALS restricted to few concepts of each row, checked, and its rows, or features,
// distributed over threads. Results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <optional>
#include <tuple>

#include "../view.h"
#include "compressed.h"
#include "isa.h"
#include "threads.h"

namespace fastnmf {

// l1, curvature (K), inverse (K)
using OfCandidates = std::tuple<double, View, View>;

// rows that a thread takes at a time
constexpr Size restricted_rows = 16;

template <class T, class I>
Candidates<T, I> candidates(const View &S, const Compressed &codes, double bound) {
    check_shape("S", S, {-1, -1});
    Candidates<T, I> a{};
    a.m = S.shape[0];
    a.K = S.shape[1];
    if (a.m && a.K) {
        const Matrix<const T> slopes = row_matrix<const T>("S", S, a.m, a.K);
        a.S = slopes.data;
        a.stride_s = slopes.stride_k;
    }
    const Entries<const T, I> entries(codes, a.m);
    a.crow = entries.crow;
    a.col = entries.col;
    a.values = entries.values;
    a.bound = static_cast<T>(bound);
    return a;
}

template <class T, class I> void take_candidates(Candidates<T, I> &a, const Compressed &out) {
    const Entries<T, I> entries(out, a.m);
    a.crow_out = entries.crow;
    a.col_out = const_cast<I *>(entries.col);
    a.values_out = entries.values;
}

// work(row, thread, sums) for m rows, some at a time
template <class Work> void for_rows(Size m, int threads, double *sums, Work work) {
    const Size tiles = (m + restricted_rows - 1) / restricted_rows;
    for_tiles<1>(tiles, threads, sums, [&](Size tile, int thread, double *partial) {
        const Size last = std::min(m, (tile + 1) * restricted_rows);
        for (Size i = tile * restricted_rows; i < last; ++i) work(i, thread, partial);
    });
}

template <class T, class I> void compute_counts(const Candidates<T, I> &a, I *crow, int threads) {
    const auto count = restricted_kernels<T, I>().count;
    double unused[2] = {};
    threads = threads_for(a.m, 2.0 * a.m * a.K, threads);
    crow[0] = 0;
    for_rows(a.m, threads, unused,
             [&](Size i, int, double *) { crow[i + 1] = static_cast<I>(count(a, i)); });
    for (Size i = 0; i < a.m; ++i) crow[i + 1] += crow[i];
}

template <class T, class I> void compute_candidates(const Candidates<T, I> &a, int threads) {
    const auto fill = restricted_kernels<T, I>().fill;
    double unused[2] = {};
    threads = threads_for(a.m, 2.0 * a.m * a.K, threads);
    for_rows(a.m, threads, unused, [&](Size i, int, double *) { fill(a, i); });
}

template <class T, class I>
HalsCandidates<T, I> hals_candidates_arguments(const Compressed &codes, const View &E,
                                               const View &B, const OfCandidates &penalty,
                                               Size sweeps) {
    HalsCandidates<T, I> a{};
    check_shape("E", E, {-1, -1});
    check_shape("B", B, {-1, E.shape[1]});
    a.m = E.shape[0];
    a.p = E.shape[1];
    const Size K = B.shape[0];
    const Entries<T, I> entries(codes, a.m);
    a.crow = entries.crow;
    a.col = entries.col;
    a.values = entries.values;
    if (!entries.count) return a;
    const auto &[l1, curvature, inverse] = penalty;
    const Matrix<T> residual = row_matrix<T>("E", E, a.m, a.p);
    const Matrix<const T> fixed = data_matrix<T>("B", B, K, a.p);
    a.E = residual.data;
    a.stride_e = residual.stride_k;
    a.B = fixed.data;
    a.stride_b = fixed.stride_k;
    a.l1 = static_cast<T>(l1);
    a.curvature = array<const T>("curvature", curvature, {K});
    a.inverse = array<const T>("inverse", inverse, {K});
    a.sweeps = sweeps;
    for (Size i = 0; i < a.m; ++i)
        a.longest = std::max(a.longest, static_cast<Size>(a.crow[i + 1] - a.crow[i]));
    return a;
}

template <class T, class I>
void compute_hals_candidates(const HalsCandidates<T, I> &a, int threads, double *sums) {
    if (!a.col) return;
    threads = threads_for(a.m, 4.0 * a.crow[a.m] * a.p, threads);
    const Size size = (a.longest + 15) / 16 * 16;
    const Scratch<T> start(threads * size);
    const auto row = restricted_kernels<T, I>().row;
    for_rows(a.m, threads, sums, [&](Size i, int thread, double *partial) {
        row(a, i, start.data + thread * size, partial);
    });
}

template <class T, class I>
HalsConcepts<T, I> hals_concepts_arguments(const View &F, const View &E, const Compressed &codes,
                                           const std::optional<View> &curvature, bool bounded) {
    check_shape("F", F, {-1, -1});
    check_shape("E", E, {-1, F.shape[1]});
    HalsConcepts<T, I> a{};
    a.K = F.shape[0];
    a.p = F.shape[1];
    a.bounded = bounded;
    const Entries<const T, I> entries(codes, a.K);
    a.crow = entries.crow;
    a.row = entries.col;
    a.values = entries.values;
    if (!a.K || !a.p) return a;
    const Matrix<T> concepts = row_matrix<T>("F", F, a.K, a.p);
    a.F = concepts.data;
    a.stride_f = concepts.stride_k;
    if (E.shape[0]) {
        const Matrix<T> residual = row_matrix<T>("E", E, E.shape[0], a.p);
        a.E = residual.data;
        a.stride_e = residual.stride_k;
    }
    if (curvature) a.curvature = array<const T>("curvature", *curvature, {a.K});
    return a;
}

template <class T, class I>
void compute_hals_concepts(const HalsConcepts<T, I> &a, int threads, double *sums) {
    const RestrictedKernels<T, I> &kernels = restricted_kernels<T, I>();
    const Size tiles = (a.p + kernels.features - 1) / kernels.features;
    threads = threads_for(tiles, 4.0 * a.crow[a.K] * a.p, threads);
    for_tiles<1>(tiles, threads, sums, [&](Size tile, int, double *partial) {
        const Size start = tile * kernels.features;
        kernels.concepts(a, start, std::min(kernels.features, a.p - start), partial);
    });
}

} // namespace fastnmf

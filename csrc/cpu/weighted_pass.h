// The arguments of HALS where each entry has a weight, checked, and its tiles distributed over threads.
#pragma once

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "../view.h"
#include "compressed.h"
#include "isa.h"
#include "threads.h"

namespace fastnmf {

// crow, col, values, weights: None for ones
using WeightedRows = std::tuple<View, View, View, std::optional<View>>;
// l1, l2 (K): None for no penalty
using WeightedPenalty = std::optional<std::tuple<double, View>>;

// x (m, p) in any layout; it is only read, so that entries may share memory
template <class T> Matrix<const T> read_matrix(const char *name, const View &x, Size m, Size p) {
    check_shape(name, x, {m, p});
    return {pointer<const T>(name, x), x.strides[0], x.strides[1]};
}

// what dense and sparse data have in common
template <class T, class I>
HalsWeighted<T, I> hals_weighted_arguments(const View &F, const View &B,
                                           const WeightedPenalty &penalty) {
    HalsWeighted<T, I> a{};
    a.K = F.shape[0];
    a.m = F.shape[1];
    a.p = B.shape[0];
    a.F = matrix<T>("F", F, a.K, a.m);
    const Matrix<const T> fixed = data_matrix<T>("B", B, a.p, a.K);
    a.B = fixed.data;
    a.stride_b = fixed.stride_k;
    if (penalty) {
        const auto &[l1, l2] = *penalty;
        // the columns that fill up a tile would grow
        if (!(l1 >= 0)) refuse("l1 = ", l1, " must not be negative");
        a.l1 = static_cast<T>(l1);
        a.l2 = array<const T>("l2", l2, {a.K});
    }
    return a;
}

// a.crow, a.col, …: entries of compressed rows, whose columns are not checked
template <class T, class I>
void read_rows(HalsWeighted<T, I> &a, const WeightedRows &rows) {
    const auto &[crow, col, values, weights] = rows;
    const Entries<const T, I> entries({crow, col, values}, a.m);
    a.crow = entries.crow;
    a.col = entries.col;
    a.values = entries.values;
    if (weights) check_shape("weights", *weights, {entries.count});
    for (Size i = 0; i < a.m; ++i)
        a.longest = std::max(a.longest, static_cast<Size>(a.crow[i + 1] - a.crow[i]));
    if (weights && entries.count) a.weights = array<const T>("weights", *weights, {entries.count});
}

template <class T, class I>
void compute_hals_weighted(const HalsWeighted<T, I> &a, int threads, double *sums) {
    const WeightedKernels<T, I> &kernels = weighted_kernels<T, I>();
    const double entries = a.crow ? double(a.crow[a.m]) : double(a.m) * a.p;
    const double pairs = a.grams ? double(a.K) * a.K : (2 + 4.0 * a.sweeps) * a.K;
    const Size tiles = (a.m + kernels.tile_columns - 1) / kernels.tile_columns;
    threads = threads_for(tiles, entries * pairs, threads);
    // each thread's part on cache lines of its own
    const Size size = (kernels.scratch_size(a) + 15) / 16 * 16, width = a.crow ? 0 : a.p;
    const Scratch<T> scratch(threads * size);
    const Scratch<I> places(threads * width + 1);
    std::vector<double> errors(tiles);
    for_tiles<1>(tiles, threads, sums, [&](Size tile, int thread, double *partial) {
        double found[3] = {};
        kernels.sweep(a, tile * kernels.tile_columns, scratch.data + thread * size,
                      places.data + thread * width, found);
        partial[0] = found[0];
        partial[1] = found[1];
        errors[tile] = found[2];
    });
    if (a.measures)
        for (double error : errors) sums[2] += error;
}

} // namespace fastnmf

// The arguments of nnls as they come from Python, for the bindings of both extensions.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../view.h"
#include "problem.h"

namespace fastnmf {

// G, scale and index of NnlsRows; without an index every row may use all concepts
using NnlsGram = std::tuple<View, View, std::optional<View>>;
// warm, tolerance, rank_tolerance, max_steps, capacity, block: NnlsRows::warm, and NnlsRules
using NnlsLimits = std::tuple<bool, double, double, int, int, int>;

inline void check_limits(const NnlsLimits &limits) {
    const auto &[warm, tolerance, rank_tolerance, max_steps, capacity, block] = limits;
    if (capacity < 1 || block < 1 || max_steps < 0)
        refuse("capacity = ", capacity, ", block = ", block, ", max_steps = ", max_steps,
               ": at least 1, 1 and 0 are needed");
}

// how many concepts a row may use at most
inline Size concepts_of(const View &F, const NnlsGram &gram) {
    const auto &index = std::get<2>(gram);
    if (!index) return F.shape[0];
    check_shape("index", *index, {F.shape[1], -1});
    return index->shape[1];
}

// F (K, m) not empty
template <class T>
NnlsRows<T> nnls_rows(const View &F, const View &C, const NnlsGram &gram, const NnlsLimits &limits,
                      const View &report) {
    const auto &[G, scale, index] = gram;
    const auto &[warm, tolerance, rank_tolerance, max_steps, capacity, block] = limits;
    const Size all = F.shape[0], m = F.shape[1], K = concepts_of(F, gram);
    NnlsRows<T> rows{};
    rows.F = matrix<T>("F", F, all, m);
    rows.C = matrix<const T>("C", C, all, m);
    if (index && G.dims == 3) {
        check_shape("G", G, {m, K, K});
        if (m > 1 && G.strides[0] < 1)
            refuse("G ", listed(G.shape, 3), " has strides ", listed(G.strides, 3),
                   ": the first must be positive");
        // a stride of 0 would stand for one G of all concepts
        rows.stride_row = m > 1 ? G.strides[0] : K * K;
    } else {
        check_shape("G", G, {all, all});
    }
    View one = G;
    one.dims = 2;
    std::copy(G.shape + G.dims - 2, G.shape + G.dims, one.shape);
    std::copy(G.strides + G.dims - 2, G.strides + G.dims, one.strides);
    const auto shared = row_matrix<const T>("G", one, one.shape[0], one.shape[1]);
    rows.G = shared.data;
    rows.stride_g = shared.stride_k;
    rows.scale = array<const double>("scale", scale, {all});
    rows.index = index ? array<const int32_t>("index", *index, {m, K}) : nullptr;
    rows.K = static_cast<int32_t>(K);
    rows.m = m;
    rows.warm = warm;
    rows.rules = {tolerance, rank_tolerance, max_steps, std::min(capacity, rows.K), block};
    static_assert(sizeof(NnlsReport) == 4 * sizeof(double), "a row of the report");
    rows.report = reinterpret_cast<NnlsReport *>(array<double>("report", report, {m, 4}));
    return rows;
}

} // namespace fastnmf

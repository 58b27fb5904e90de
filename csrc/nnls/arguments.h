// The arguments of nnls as they come from Python, for both extensions.
#pragma once

#include <algorithm>

#include "../view.h"
#include "problem.h"

namespace fastnmf {

inline void check_rules(int max_steps, int capacity, int block) {
    if (capacity < 1 || block < 1 || max_steps < 0)
        refuse("capacity = ", capacity, ", block = ", block, ", max_steps = ", max_steps,
               ": at least 1, 1 and 0 are needed");
}

template <class T>
NnlsRows<T> nnls_rows(Address F, Size stride_fk, Size stride_fm, Address C, Size stride_ck,
                      Size stride_cm, Address G, Size stride_g, Size stride_row, Address scale,
                      Address index, Size K, Size m, bool warm, double tolerance,
                      double rank_tolerance, int max_steps, int capacity, int block,
                      Address account) {
    view<T>("F", F, stride_fk, stride_fm, K, m);
    view<const T>("C", C, stride_ck, stride_cm, K, m);
    view<const T>("G", G, stride_g, 1, K, K);
    return {pointer<T>("F", F),
            stride_fk,
            stride_fm,
            pointer<const T>("C", C),
            stride_ck,
            stride_cm,
            pointer<const T>("G", G),
            stride_g,
            stride_row,
            pointer<const double>("scale", scale),
            index ? pointer<const int32_t>("index", index) : nullptr,
            static_cast<int32_t>(K),
            m,
            warm,
            {tolerance, rank_tolerance, max_steps, std::min(capacity, static_cast<int>(K)), block},
            pointer<NnlsAccount>("account", account)};
}

} // namespace fastnmf

// What the caller and the row solver (nnls/solver.h) agree on: the rows, the rules, the report.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../matrix.h"

namespace fastnmf {

// solved: no slope above the tolerance. capped: max_steps met. floored: what is left is rounding.
enum NnlsStatus : int32_t { nnls_solved = 0, nnls_capped = 1, nnls_floored = 2 };

// tolerance: the largest slope of a solved row, over its largest at zero. rank_tolerance: the
// square of a unit concept's distance from the passive ones below which it depends on them.
// max_steps: searches for concepts to enter. capacity: passive concepts at most. block: concepts
// entering together at most. draft: F is written only where a row is solved. again: the rows that
// the report says are solved are left out.
struct NnlsRules {
    double tolerance, rank_tolerance;
    int32_t max_steps, capacity, block;
    bool draft = false, again = false;
};

// One for every row. support: passive concepts at the end. steps: searches, left: concepts that
// left. slope: the largest violation of the KKT conditions, as `tolerance` counts it. gain: ‖X_i‖²
// less the squared residual.
struct NnlsReport {
    int32_t status, support, steps, left;
    double slope, gain;
};

// F_i ← argmin ½ ‖X_i − F_iᵀ B‖² over F_i ≥ 0, for every row (column of F) i: by C = B Xᵀ and
// G = B̂ B̂ᵀ of the unit concepts B̂_k = scale_k B_k. A concept with scale_k = 0 is dead: it keeps
// its F_k. Element (k, i) of F and C as for View. warm: start from F.
// index (m, K), or null: the concepts that row i may use, −1 behind the last; no others are read or
// written. stride_row: 0 where G is that of all concepts, else the way from one row's G, of the
// concepts it may use, to the next.
template <class S> struct NnlsRows {
    Matrix<S> F;
    Matrix<const S> C;
    const S *G;
    ptrdiff_t stride_g, stride_row;
    const double *scale;
    const int32_t *index;
    int32_t K;
    ptrdiff_t m;
    bool warm;
    NnlsRules rules;
    NnlsReport *report;
};

} // namespace fastnmf

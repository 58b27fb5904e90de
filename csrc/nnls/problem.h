// The problem that a caller gives to the row solver (solver.h): rows, rules, and the report.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../matrix.h"

namespace fastnmf {

// solved: no slope above the tolerance. capped: max_steps met. floored: rounding prevents more.
enum NnlsStatus : int32_t { nnls_solved = 0, nnls_capped = 1, nnls_floored = 2 };

// tolerance: the largest slope of a solved row, relative to its largest at zero. rank_tolerance: a
// unit concept depends on the passive ones if its squared distance from their span is below this.
// max_steps: how many times concepts may enter. capacity: most passive concepts. block: most concepts
// that enter together. draft: write F only where a row is solved. again: skip the rows that the
// report marks as solved.
struct NnlsRules {
    double tolerance, rank_tolerance;
    int32_t max_steps, capacity, block;
    bool draft = false, again = false;
};

// Of one row. support: passive concepts at the end. steps: how many times concepts entered; left:
// concepts that left. slope: the largest violation of the KKT conditions relative to the largest
// slope at zero, infinite where a number is not finite. gain: ‖X_i‖² minus the squared residual.
struct NnlsReport {
    int32_t status, support, steps, left;
    double slope, gain;
};

// F_i ← argmin ½ ‖X_i − F_iᵀ B‖² over F_i ≥ 0, for every row (column of F) i, given C = B Xᵀ and
// G = B̂ B̂ᵀ of the unit concepts B̂_k = scale_k B_k. A concept with scale_k = 0 is dead: it keeps its
// F_k. warm: start from F.
// index (m, K), or null: the concepts that row i may use, −1 behind the last; no others are read or
// written. stride_row: 0 if all rows share the G of all concepts, else the distance between the Gs
// of consecutive rows, each of the concepts that its row may use.
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

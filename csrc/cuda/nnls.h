// Non-negative least squares on the current CUDA device: the functions of nnls.cu.
#pragma once

#include "../nnls/problem.h"

namespace fastnmf {

// bytes of a workspace: least, for one row at a time, and most, the largest that is useful
struct NnlsWorkspace {
    ptrdiff_t least, most;
};

// Reads only K, m, rules.capacity, index and stride_row of the rows. Throws std::runtime_error with
// CUDA's reason.
template <class S> NnlsWorkspace nnls_workspace(const NnlsRows<S> &rows);

// The rows as for the CPU, with all addresses on the current device. sums (m, 2) float64 ← ‖ΔF_i‖²,
// ‖F_i‖² of every row. On the stream; does not synchronise. Throws std::invalid_argument if the
// workspace is smaller than the least, std::runtime_error with CUDA's reason.
template <class S>
void nnls_cuda(const NnlsRows<S> &rows, double *sums, void *workspace, ptrdiff_t bytes,
               void *stream);

} // namespace fastnmf

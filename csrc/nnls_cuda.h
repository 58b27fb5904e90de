// Non-negative least squares on a CUDA device, for bindings; nnls_cuda.cu.
#pragma once

#include "nnls_rows.h"

namespace fastnmf {

// The rows as for the CPU, all addresses on the current device. sums (m, 2) float64 ← ‖ΔF_i‖²,
// ‖F_i‖² of every row. On the stream; does not synchronise. workspace = nullptr: returns the bytes
// that it must have and does nothing else. Throws std::runtime_error with CUDA's reason.
template <class S>
size_t nnls_cuda(const NnlsRows<S> &rows, double *sums, void *workspace, void *stream);

} // namespace fastnmf

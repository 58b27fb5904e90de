// fastnmf._cuda: checks arguments, takes the device and the stream of the caller, releases the GIL.
//
// Imports where there is no driver and no device: the runtime of CUDA is linked in, and loads the
// driver in the first call. Kernels: cuda/nnls.cu.

#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "../view.h"
#include "device.h"
#include "../nnls/arguments.h"
#include "nnls.h"

namespace py = pybind11;
using namespace fastnmf;

namespace {

int devices() {
    int count = 0;
    check(cudaGetDeviceCount(&count), "count of devices");
    return count;
}

std::pair<Size, Size> workspace(const std::string &dtype, Size K, Size m, int capacity,
                                bool gathers, int device) {
    check_sizes("K", K, m, 1);
    check_rules(0, capacity, 1);
    NnlsWorkspace bytes{0, 0};
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        if (K == 0 || m == 0) return;
        const OnDevice on(device);
        NnlsRows<T> rows{};
        const int32_t unread = 0;
        rows.index = gathers ? &unread : nullptr;
        rows.K = static_cast<int32_t>(K);
        rows.m = m;
        rows.rules.capacity = std::min(capacity, rows.K);
        bytes = nnls_workspace(rows);
    });
    return {bytes.least, bytes.most};
}

void nnls(const std::string &dtype, Address F, Size stride_fk, Size stride_fm, Address C,
          Size stride_ck, Size stride_cm, Address G, Size stride_g, Size stride_row, Address scale,
          Address index, Size K, Size m, bool warm, double tolerance, double rank_tolerance,
          int max_steps, int capacity, int block, Address account, Address sums, Address workspace,
          Size workspace_bytes, int device, Address stream) {
    check_sizes("K", K, m, 1);
    check_rules(max_steps, capacity, block);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        if (K == 0 || m == 0) return;
        const auto rows = nnls_rows<T>(F, stride_fk, stride_fm, C, stride_ck, stride_cm, G,
                                       stride_g, stride_row, scale, index, K, m, warm, tolerance,
                                       rank_tolerance, max_steps, capacity, block, account);
        auto *row_sums = pointer<double>("sums", sums);
        struct alignas(16) Aligned {};
        pointer<Aligned>("workspace", workspace);
        py::gil_scoped_release released;
        const OnDevice on(device);
        const std::pair<const char *, Address> addresses[] = {
            {"F", F},         {"C", C},
            {"G", G},         {"scale", scale},
            {"index", index}, {"account", account},
            {"sums", sums},   {"workspace", workspace}};
        for (const auto &[name, address] : addresses)
            if (address) check_on_device(name, address, device);
        nnls_cuda(rows, row_sums, reinterpret_cast<void *>(workspace), workspace_bytes,
                  reinterpret_cast<void *>(stream));
    });
}

} // namespace

PYBIND11_MODULE(_cuda, module) {
    module.doc() = "CUDA kernels of fastnmf. Matrices are given as address and strides in "
                   "elements, all on `device`; dtype is 'float32' or 'float64'. Errors of CUDA are "
                   "RuntimeErrors.";
    module.def("devices", &devices, "How many devices there are; a RuntimeError says why none.");
    module.def("nnls_workspace", &workspace, py::arg("dtype"), py::arg("K"), py::arg("m"),
               py::arg("capacity"), py::arg("gathers"), py::arg("device"),
               "(bytes that a workspace of nnls must have, bytes that are of use). gathers: with "
               "index and without stride_row.");
    module.def(
        "nnls", &nnls, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"), py::arg("stride_fm"),
        py::arg("C"), py::arg("stride_ck"), py::arg("stride_cm"), py::arg("G"), py::arg("stride_g"),
        py::arg("stride_row"), py::arg("scale"), py::arg("index"), py::arg("K"), py::arg("m"),
        py::arg("warm"), py::arg("tolerance"), py::arg("rank_tolerance"), py::arg("max_steps"),
        py::arg("capacity"), py::arg("block"), py::arg("account"), py::arg("sums"),
        py::arg("workspace"), py::arg("workspace_bytes"), py::arg("device"), py::arg("stream"),
        "As nnls of fastnmf._C, on a stream of a device; does not synchronise.\n\n"
        "sums: (m, 2) float64, the squared norms of the change and of the new F of every column. "
        "workspace: aligned to 16 bytes.");
}

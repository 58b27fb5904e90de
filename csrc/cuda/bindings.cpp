// fastnmf._cuda: checks arguments, releases the GIL, and calls the solver on the caller's device
// and stream.
//
// Matrices come as views (view.h); nothing here needs torch. The runtime of CUDA is linked in, and
// loads the driver in the first call. Kernels: nnls.cu.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <utility>

#include "../nnls/arguments.h"
#include "../view.h"
#include "device.h"
#include "nnls.h"

namespace py = pybind11;
using namespace fastnmf;

namespace {

// the number of a device, and a cudaStream_t on it
using Place = std::tuple<int, Address>;

int devices() {
    int count = 0;
    check(cudaGetDeviceCount(&count), "count of devices");
    return count;
}

// run(rows) with NnlsRows of F's dtype, unless they are empty
template <class Run>
void on_rows(const View &F, const View &C, const NnlsGram &gram, const NnlsLimits &limits,
             const View &report, Run run) {
    check_limits(limits);
    check_shape("F", F, {-1, -1});
    with_dtype("F", F, [&](auto zero) {
        using T = decltype(zero);
        if (F.shape[0] == 0 || F.shape[1] == 0 || concepts_of(F, gram) == 0) return;
        run(nnls_rows<T>(F, C, gram, limits, report));
    });
}

std::pair<Size, Size> workspace_bytes(const View &F, const View &C, const NnlsGram &gram,
                                      const NnlsLimits &limits, const View &report, int device) {
    NnlsWorkspace bytes{0, 0};
    on_rows(F, C, gram, limits, report, [&](const auto &rows) {
        const OnDevice on(device);
        bytes = nnls_workspace(rows);
    });
    return {bytes.least, bytes.most};
}

void nnls(const View &F, const View &C, const NnlsGram &gram, const NnlsLimits &limits,
          const View &report, const View &sums, const View &workspace, const Place &place) {
    on_rows(F, C, gram, limits, report, [&](const auto &rows) {
        auto *row_sums = array<double>("sums", sums, {rows.m, 2});
        check_shape("workspace", workspace, {-1});
        auto *start = array<uint8_t>("workspace", workspace, {workspace.shape[0]});
        struct alignas(16) Aligned {};
        pointer<Aligned>("workspace", workspace.address);
        const auto [device, stream] = place;
        py::gil_scoped_release released;
        const OnDevice on(device);
        const std::pair<const char *, const void *> addresses[] = {
            {"F", rows.F.data},    {"C", rows.C.data},    {"G", rows.G},
            {"scale", rows.scale}, {"index", rows.index}, {"report", rows.report},
            {"sums", row_sums},    {"workspace", start}};
        for (const auto &[name, address] : addresses)
            if (address) check_on_device(name, address, device);
        nnls_cuda(rows, row_sums, start, workspace.shape[0], reinterpret_cast<void *>(stream));
    });
}

} // namespace

PYBIND11_MODULE(_cuda, module) {
    module.doc() =
        "CUDA kernels of fastnmf. A matrix is a tuple (address, shape, strides in elements, "
        "dtype), "
        "in the memory of one device. Arguments that do not fit are ValueErrors, errors of CUDA "
        "are RuntimeErrors.";
    module.def("devices", &devices, "How many devices there are; a RuntimeError says why none.");
    module.def("nnls_workspace", &workspace_bytes, py::arg("F"), py::arg("C"), py::arg("gram"),
               py::arg("limits"), py::arg("report"), py::arg("device"),
               "(bytes that the workspace of nnls must have, bytes that it can use).");
    module.def("nnls", &nnls, py::arg("F"), py::arg("C"), py::arg("gram"), py::arg("limits"),
               py::arg("report"), py::arg("sums"), py::arg("workspace"), py::arg("place"),
               "As nnls of fastnmf._C, on a device and a stream; does not synchronise.\n\n"
               "sums: (m, 2) float64, the squared norms of the change and of the new F of every "
               "column. workspace: (bytes,) uint8, aligned to 16 bytes. place: (device, stream).");
}

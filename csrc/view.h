// Arguments from Python: addresses and strides become views, or std::invalid_argument says why not.
#pragma once

#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace fastnmf {

using Address = uintptr_t;
using Size = ptrdiff_t;

template <class... Parts> [[noreturn]] void refuse(const Parts &...parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::invalid_argument(message.str());
}

template <class T> T *pointer(const char *name, Address address) {
    if (address == 0) refuse(name, " is a null pointer");
    if (address % alignof(T)) refuse(name, " = ", address, " is not aligned to ", alignof(T));
    return reinterpret_cast<T *>(address);
}

// two elements of a matrix (K × m) must not share memory
template <class T>
View<T> view(const char *name, Address address, Size stride_k, Size stride_m, Size K, Size m) {
    const bool columns_inside = m < 2 || (K > 1 && stride_m < stride_k);
    const Size inner = columns_inside ? stride_m : stride_k, inner_size = columns_inside ? m : K;
    const Size outer = columns_inside ? stride_k : stride_m, outer_size = columns_inside ? K : m;
    if ((inner_size > 1 && inner < 1) ||
        (outer_size > 1 && outer < 1 + (inner_size > 1 ? (inner_size - 1) * inner : 0)))
        refuse(name, " (", K, " x ", m, ") has strides (", stride_k, ", ", stride_m,
               "): they must be positive and its elements apart");
    return {pointer<T>(name, address), stride_k, stride_m};
}

// X (m × p), its rows contiguous. It is only read, and so its rows may share memory: windows that
// overlap, or one row again and again
template <class T>
const T *read_rows(const char *name, Address address, Size stride, Size m) {
    if (m > 1 && stride < 0)
        refuse(name, " has rows ", stride, " apart: that must not be negative");
    return pointer<const T>(name, address);
}

inline void check_sizes(const char *rows_name, Size rows, Size m, int threads) {
    if (rows < 0 || m < 0) refuse(rows_name, " = ", rows, ", m = ", m, ": a size is negative");
    if (threads < 1) refuse("threads = ", threads, ": at least 1 is needed");
}

// calls run(T{}) for the named dtype
template <class Run> void with_dtype(const std::string &dtype, Run run) {
    if (dtype == "float32")
        run(float{});
    else if (dtype == "float64")
        run(double{});
    else
        refuse("dtype '", dtype, "' is neither 'float32' nor 'float64'");
}

} // namespace fastnmf

// A matrix as kernels see it: an address and two strides, in elements. No checks, no ownership.
#pragma once

#include <cstddef>

namespace fastnmf {

using Size = ptrdiff_t;

// (K, m): concepts by columns; element (k, i) is at data[k * stride_k + i * stride_m].
template <class T> struct Matrix {
    T *data;
    ptrdiff_t stride_k, stride_m;
};

template <class T> static inline T *at(const Matrix<T> &x, ptrdiff_t k, ptrdiff_t i) {
    return x.data + k * x.stride_k + i * x.stride_m;
}

} // namespace fastnmf

// A matrix argument from Python, and the one place that checks it: dtype, shape, strides, address.
//
// Python passes a tuple (address, shape, strides, dtype), with strides in elements and the dtype by
// name. Nothing here needs torch. Only bindings include this file.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <string>

#include "errors.h"
#include "matrix.h"

namespace fastnmf {

using Address = uintptr_t;

// dtype points into a Python string, which lives as long as the call
struct View {
    static constexpr int most_dims = 3;
    Address address = 0;
    int dims = 0;
    Size shape[most_dims] = {}, strides[most_dims] = {};
    const char *dtype = "";
};

template <class T> constexpr const char *dtype_name = nullptr;
template <> inline constexpr const char *dtype_name<float> = "float32";
template <> inline constexpr const char *dtype_name<double> = "float64";
template <> inline constexpr const char *dtype_name<int32_t> = "int32";
template <> inline constexpr const char *dtype_name<int64_t> = "int64";
template <> inline constexpr const char *dtype_name<uint8_t> = "uint8";

inline std::string listed(const Size *values, int count) {
    std::string text = "(";
    for (int i = 0; i < count; ++i) text += (i ? ", " : "") + std::to_string(values[i]);
    return text + ")";
}

// a negative size in `shape` stands for any
inline void check_shape(const char *name, const View &x, std::initializer_list<Size> shape) {
    bool fits = x.dims == static_cast<int>(shape.size());
    for (int i = 0; fits && i < x.dims; ++i) {
        const Size wanted = shape.begin()[i];
        fits = x.shape[i] >= 0 && (wanted < 0 || x.shape[i] == wanted);
    }
    if (!fits)
        refuse(name, " has shape ", listed(x.shape, x.dims), ": ",
               listed(shape.begin(), static_cast<int>(shape.size())),
               " is needed, -1 for any size");
}

// memory that begins at `address`, which T can be read from
template <class T> T *pointer(const char *name, Address address) {
    if (address == 0) refuse(name, " is a null pointer");
    if (address % alignof(T)) refuse(name, " = ", address, " is not aligned to ", alignof(T));
    return reinterpret_cast<T *>(address);
}

template <class T> T *pointer(const char *name, const View &x) {
    const char *wanted = dtype_name<std::remove_const_t<T>>;
    if (std::strcmp(x.dtype, wanted) != 0)
        refuse(name, " has dtype '", x.dtype, "': '", wanted, "' is needed");
    return pointer<T>(name, x.address);
}

// x (K, m) in any layout in which no two elements share memory
template <class T> Matrix<T> matrix(const char *name, const View &x, Size K, Size m) {
    check_shape(name, x, {K, m});
    const Size stride_k = x.strides[0], stride_m = x.strides[1];
    const bool columns_inside = m < 2 || (K > 1 && stride_m < stride_k);
    const Size inner = columns_inside ? stride_m : stride_k, inner_size = columns_inside ? m : K;
    const Size outer = columns_inside ? stride_k : stride_m, outer_size = columns_inside ? K : m;
    if ((inner_size > 1 && inner < 1) ||
        (outer_size > 1 && outer < 1 + (inner_size > 1 ? (inner_size - 1) * inner : 0)))
        refuse(name, " ", listed(x.shape, 2), " has strides ", listed(x.strides, 2),
               ": they must be positive, and no two elements at one address");
    return {pointer<T>(name, x), stride_k, stride_m};
}

// x (K, m) with contiguous rows, no two elements of which share memory
template <class T> Matrix<T> row_matrix(const char *name, const View &x, Size K, Size m) {
    const Matrix<T> found = matrix<T>(name, x, K, m);
    if (m > 1 && found.stride_m != 1)
        refuse(name, " ", listed(x.shape, 2), " has strides ", listed(x.strides, 2),
               ": its rows must be contiguous");
    return {found.data, found.stride_k, 1};
}

// X (m, p) with contiguous rows. It is only read, so rows may share memory: windows that overlap,
// or one row repeated
template <class T> Matrix<const T> data_matrix(const char *name, const View &x, Size m, Size p) {
    check_shape(name, x, {m, p});
    if ((p > 1 && x.strides[1] != 1) || (m > 1 && x.strides[0] < 0))
        refuse(name, " ", listed(x.shape, 2), " has strides ", listed(x.strides, 2),
               ": its rows must be contiguous, and a non-negative stride apart");
    return {pointer<const T>(name, x), x.strides[0], 1};
}

// x of this shape, without gaps, in the order of C
template <class T> T *array(const char *name, const View &x, std::initializer_list<Size> shape) {
    check_shape(name, x, shape);
    Size stride = 1;
    for (int i = x.dims; i-- > 0; stride *= x.shape[i])
        if (x.shape[i] > 1 && x.strides[i] != stride)
            refuse(name, " ", listed(x.shape, x.dims), " has strides ", listed(x.strides, x.dims),
                   ": it must be contiguous");
    return pointer<T>(name, x);
}

// run(T{}) for the dtype of x
template <class Run> void with_dtype(const char *name, const View &x, Run run) {
    if (std::strcmp(x.dtype, "float32") == 0)
        run(float{});
    else if (std::strcmp(x.dtype, "float64") == 0)
        run(double{});
    else
        refuse(name, " has dtype '", x.dtype, "': 'float32' or 'float64' is needed");
}

} // namespace fastnmf

// A tuple is read by a caster of its own: a class would cost a Python object for each matrix.
template <> struct pybind11::detail::type_caster<fastnmf::View> {
    PYBIND11_TYPE_CASTER(fastnmf::View,
                         const_name("tuple[int, tuple[int, ...], tuple[int, ...], str]"));

    bool load(handle source, bool) {
        PyObject *given = source.ptr();
        if (!PyTuple_Check(given) || PyTuple_GET_SIZE(given) != 4) return false;
        PyObject *shape = PyTuple_GET_ITEM(given, 1), *strides = PyTuple_GET_ITEM(given, 2);
        PyObject *dtype = PyTuple_GET_ITEM(given, 3);
        if (!PyTuple_Check(shape) || !PyTuple_Check(strides) || !PyUnicode_Check(dtype))
            return false;
        const Py_ssize_t dims = PyTuple_GET_SIZE(shape);
        if (dims > fastnmf::View::most_dims || PyTuple_GET_SIZE(strides) != dims) return false;
        value.dims = static_cast<int>(dims);
        value.address = PyLong_AsSize_t(PyTuple_GET_ITEM(given, 0));
        for (Py_ssize_t i = 0; i < dims; ++i) {
            value.shape[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i));
            value.strides[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(strides, i));
        }
        value.dtype = PyUnicode_AsUTF8(dtype);
        if (!PyErr_Occurred()) return true;
        PyErr_Clear();
        return false;
    }
};

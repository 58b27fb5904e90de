// A sparse matrix in compressed rows as an argument from Python, and its checks.
#pragma once

#include <cstdint>
#include <cstring>
#include <tuple>

#include "../view.h"

namespace fastnmf {

// crow, col, values
using Compressed = std::tuple<View, View, View>;

// entries of m compressed rows, whose columns are not checked
template <class T, class I> struct Entries {
    const I *crow, *col = nullptr;
    T *values = nullptr;
    Size count;

    Entries(const Compressed &X, Size m) {
        const auto &[crow_view, col_view, values_view] = X;
        crow = array<const I>("crow", crow_view, {m + 1});
        check_shape("col", col_view, {-1});
        count = col_view.shape[0];
        if (crow[0] != 0 || crow[m] != count)
            refuse("crow goes from ", crow[0], " to ", crow[m], ": 0 to ", count,
                   " entries of col are needed");
        check_shape("values", values_view, {count});
        if (!count) return;
        col = array<const I>("col", col_view, {count});
        values = array<T>("values", values_view, {count});
    }
};

// run(I{}) for the dtype of indices
template <class Run> void with_index(const View &crow, Run run) {
    if (std::strcmp(crow.dtype, "int64") == 0)
        run(int64_t{});
    else
        run(int32_t{});
}

} // namespace fastnmf

// The linear system of a row on its support, by Cholesky's method in float64, row by row: supports
// of some ten to hundred concepts, for which a call of LAPACK takes several times as long.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "simd.h"

namespace {

// a whole number of vectors, for up to n numbers
inline ptrdiff_t whole_vectors(ptrdiff_t n) {
    constexpr ptrdiff_t lanes = Simd<double>::lanes;
    return (n + lanes - 1) / lanes * lanes;
}

// the factor, by rows; y and 1 over the pivots; and the concepts
ptrdiff_t support_scratch(int most) {
    const ptrdiff_t stride = whole_vectors(most);
    return stride * stride + 3 * stride;
}

// Σ_j x_j y_j of the first n numbers; what follows up to a whole vector is zero in y
inline double dot(const double *x, const double *y, ptrdiff_t n) {
    constexpr int lanes = Simd<double>::lanes;
    Vec<double> even = {}, odd = {};
    ptrdiff_t j = 0;
    for (; j + lanes < n; j += 2 * lanes) {
        even += load(x + j) * load(y + j);
        odd += load(x + j + lanes) * load(y + j + lanes);
    }
    if (j < n) even += load(x + j) * load(y + j);
    return sum<double>(even + odd);
}

// The Cholesky factor L (q, q) of G on `concepts`, by rows of `stride`, with zeros from the diagonal on,
// and the inverse of its diagonal; y = L⁻¹ R. Returns whether no concept depends on those before it.
template <class T>
bool factor(const fastnmf::Supports<T> &a, const T *R, const int32_t *concepts, int q,
            ptrdiff_t stride, double *L, double *inverse, double *y) {
    for (ptrdiff_t r = 0; r < stride; ++r) y[r] = 0;
    for (int r = 0; r < q; ++r) {
        double *row = L + r * stride;
        const double *g = a.G + concepts[r] * a.stride_g;
        for (int c = 0; c < r; ++c) row[c] = g[concepts[c]];
        for (ptrdiff_t c = r; c < stride; ++c) row[c] = 0;
        for (int c = 0; c < r; ++c)
            row[c] = (row[c] - dot(row, L + c * stride, c)) * inverse[c];
        const double square = g[concepts[r]], pivot = square - dot(row, row, r);
        // what is not finite depends, too
        if (!(pivot > a.tolerance * square)) return false;
        inverse[r] = 1 / sqrt(pivot);
        y[r] = (double(R[concepts[r]]) - dot(row, y, r)) * inverse[r];
    }
    return true;
}

template <class T>
void solve_on_support(const fastnmf::Supports<T> &a, ptrdiff_t i, int most, double *scratch) {
    const ptrdiff_t stride = whole_vectors(most);
    double *L = scratch, *y = L + stride * stride, *inverse = y + stride;
    int32_t *concepts = reinterpret_cast<int32_t *>(inverse + stride);
    const uint8_t *used = a.used + i * a.stride_u;
    T *X = a.X + i * a.stride_x;
    int q = 0;
    for (ptrdiff_t k = 0; k < a.K; ++k) {
        if (used[k] && q < most) concepts[q++] = static_cast<int32_t>(k);
        X[k] = 0;
    }
    const bool independent =
        factor(a, a.R + i * a.stride_r, concepts, q, stride, L, inverse, y);
    a.dependent[i] = !independent;
    if (!independent) return;
    for (int r = q; r-- > 0;) {
        const double *row = L + r * stride, x = y[r] * inverse[r];
        for (int c = 0; c < r; ++c) y[c] -= row[c] * x;
        X[concepts[r]] = static_cast<T>(x);
    }
}

} // namespace

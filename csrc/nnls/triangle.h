// The memory that solver.h needs for a row: the triangular factor, and vectors.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define FASTNMF_TEAM __device__ __forceinline__
#define FASTNMF_EVERYWHERE __host__ __device__ __forceinline__
#else
#define FASTNMF_TEAM inline __attribute__((always_inline))
#define FASTNMF_EVERYWHERE FASTNMF_TEAM
#endif

namespace {

// A lower triangular matrix by rows, each filled with zeros to a multiple of `pack`. The first
// near_rows rows are in fast memory, if there is any.
template <class T, int pack> struct Triangle {
    T *near, *far;
    int near_rows;

    static FASTNMF_EVERYWHERE int length(int i) { return (i / pack + 1) * pack; }
    static FASTNMF_EVERYWHERE int64_t offset(int i) {
        const int64_t full = i / pack;
        return full * (full + 1) / 2 * (pack * pack) + (i - full * pack) * (full + 1) * pack;
    }
    FASTNMF_TEAM T *row(int i) const {
        return i < near_rows ? near + offset(i) : far + (offset(i) - offset(near_rows));
    }
};

// y, x, s, l, h, r, passive, moved: capacity, filled to a multiple of the pack; w, c, entering,
// blocked: K
template <class T> struct NnlsScratch {
    T *y, *x, *s, *l, *h, *r, *w, *c;
    int *passive, *moved, *entering, *blocked;
};

} // namespace

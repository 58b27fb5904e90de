// How cuda/nnls.cu places the vectors and the factor of a row in memory, and how many rows it
// solves at a time. Plain arithmetic, which tests call without a device.
#pragma once

#include <algorithm>

#include "triangle.h"

namespace {

// Bytes that a block of threads needs: of shared memory (near), and of the workspace (far)
template <class T> struct Layout {
    int capacity, K, near_rows;
    bool vectors_near;
    ptrdiff_t gathered;

    FASTNMF_EVERYWHERE ptrdiff_t vectors() const {
        return capacity * ptrdiff_t(6 * sizeof(T) + 2 * sizeof(int));
    }
    FASTNMF_EVERYWHERE ptrdiff_t triangle(int rows) const {
        return Triangle<T, 1>::offset(rows) * ptrdiff_t(sizeof(T));
    }
    FASTNMF_EVERYWHERE ptrdiff_t near() const {
        return triangle(near_rows) + (vectors_near ? vectors() : 0);
    }
    FASTNMF_EVERYWHERE ptrdiff_t far() const {
        const ptrdiff_t bytes = gathered + triangle(capacity) - triangle(near_rows) +
                                (vectors_near ? 0 : vectors()) +
                                K * ptrdiff_t(2 * sizeof(T) + 2 * sizeof(int));
        return (bytes + 255) / 256 * 256;
    }
    // doubles, then T, then int: aligned without gaps
    FASTNMF_EVERYWHERE Triangle<T, 1> place(NnlsScratch<T> &at, char *shared, char *global) const {
        global += gathered;
        T *near_M = reinterpret_cast<T *>(shared), *far_M = reinterpret_cast<T *>(global);
        shared += triangle(near_rows);
        global += triangle(capacity) - triangle(near_rows);
        T *vector = reinterpret_cast<T *>(vectors_near ? shared : global);
        if (!vectors_near) global += capacity * ptrdiff_t(6 * sizeof(T));
        T *wide = reinterpret_cast<T *>(global);
        int *index = reinterpret_cast<int *>(wide + 2 * ptrdiff_t(K));
        at.y = vector;
        at.x = at.y + capacity;
        at.s = at.x + capacity;
        at.l = at.s + capacity;
        at.h = at.l + capacity;
        at.r = at.h + capacity;
        at.w = wide;
        at.c = wide + K;
        at.entering = index;
        at.blocked = index + K;
        at.passive = vectors_near ? reinterpret_cast<int *>(at.r + capacity) : index + 2 * K;
        at.moved = at.passive + capacity;
        return {near_M, far_M, near_rows};
    }
};

// Vectors first, then as many rows of the factor as fit into near_bytes. entry: bytes of an entry
// of G where it is gathered, else 0
template <class T> Layout<T> laid_out(int capacity, int K, ptrdiff_t entry, ptrdiff_t near_bytes) {
    const ptrdiff_t gathered = (ptrdiff_t(K) * K * entry + 15) / 16 * 16;
    Layout<T> layout{capacity, K, 0, true, gathered};
    layout.vectors_near = layout.near() <= near_bytes;
    while (layout.near_rows < layout.capacity && layout.near() <= near_bytes) ++layout.near_rows;
    if (layout.near() > near_bytes) --layout.near_rows;
    return layout;
}

// a workspace begins with the number of the next row
constexpr ptrdiff_t counter_bytes = 256;

inline ptrdiff_t workspace_bytes(ptrdiff_t blocks, ptrdiff_t far) {
    return counter_bytes + blocks * far;
}

// the number of blocks that fit into a workspace, at most `useful`
inline ptrdiff_t blocks_in(ptrdiff_t bytes, ptrdiff_t far, ptrdiff_t useful) {
    return std::min(useful, (bytes - counter_bytes) / far);
}

// supports up to this are solved by a warp, larger ones by 128 threads
constexpr int most_of_a_warp = 96;

} // namespace

// A tile of a matrix product of few concepts with many rows: sums in registers, values of the
// concepts broadcast.
//
// A vendor's GEMM is tuned for large matrices: at 50 concepts it runs at half to three quarters of
// its rate, and it cannot leave out half of a symmetric result.
#pragma once

#include <cstddef>

#include "simd.h"

namespace {

// The sums (concepts × vectors), the vectors of one factor and the broadcast value must fit into
// the registers: for the products here, and for the sweep in hals.cpp, whose tiles are as wide.
// Measured, of the sweep: avx2 with GCC, 3 × 4 before 4 × 3, 6 × 2, 3 × 3 by 5 to 15 %; with Clang,
// which spills those, 4 × 2; SSE2, 2 × 4 before 3 × 3, 4 × 2, 4 × 3; avx512, 4 × 3, 4 × 4, 6 × 3
// and 8 × 3 within 5 %. Not measured: arm64
#if defined(__AVX512F__)
constexpr int most_concepts = 8, most_vectors = 3;
#elif defined(__AVX2__) && defined(__clang__)
constexpr int most_concepts = 4, most_vectors = 2;
#elif defined(__AVX2__)
constexpr int most_concepts = 3, most_vectors = 4;
#elif defined(__aarch64__)
constexpr int most_concepts = 4, most_vectors = 4;
#else
constexpr int most_concepts = 2, most_vectors = 4;
#endif

// Cache lines that will be read soon, prefetched one at a time between products. They lie in few
// rows of many lines, which the hardware does not predict, and in a burst they would delay each
// other.
template <class T> class Prefetch {
    const char *next_ = nullptr;
    ptrdiff_t stride_ = 0;
    int lines_ = 0, line_ = 0, rows_ = 0;

  public:
    Prefetch() = default;
    // rows of `elements` elements, stride apart
    Prefetch(const T *from, ptrdiff_t stride, ptrdiff_t rows, ptrdiff_t elements)
        : next_(reinterpret_cast<const char *>(from)), stride_(stride * sizeof(T)),
          lines_((elements * sizeof(T) + 63) / 64), rows_(rows) {}

    void fetch() {
        if (rows_ <= 0) return;
        __builtin_prefetch(next_ + line_ * 64);
        if (++line_ == lines_) {
            line_ = 0;
            --rows_;
            next_ += stride_;
        }
    }
};

// The features that follow feature `after` of `rows` rows of a.X (m × p): at most most_features
// more of the same rows, or the first of the next rows, at most most_rows.
template <class T, class Arguments>
inline Prefetch<T> next_lines(const Arguments &a, ptrdiff_t start, ptrdiff_t rows, ptrdiff_t after,
                              ptrdiff_t most_rows, ptrdiff_t most_features) {
    const bool beside = after < a.p;
    const ptrdiff_t row = beside ? start : start + rows, feature = beside ? after : 0;
    return {a.X + row * a.stride_x + feature, a.stride_x, beside ? rows : min(a.m - row, most_rows),
            min(a.p - feature, most_features)};
}

// out[g * stride_o + v] += Σ_i P[i * stride_p + g] Q[i * stride_q + v] for `size` concepts g and
// `vectors` vectors of v
template <int size, int vectors, class T>
inline void add_product(T *out, ptrdiff_t stride_o, const T *P, ptrdiff_t stride_p, const T *Q,
                        ptrdiff_t stride_q, ptrdiff_t terms, Prefetch<T> &prefetch) {
    Prefetch<T> lines = prefetch;
    constexpr int lanes = Simd<T>::lanes;
    Vec<T> sums[size][vectors] = {};
    for (ptrdiff_t i = 0; i < terms; ++i) {
        lines.fetch();
        Vec<T> q[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) q[v] = load(Q + i * stride_q + v * lanes);
#pragma GCC unroll 8
        for (int g = 0; g < size; ++g)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; ++v) sums[g][v] += P[i * stride_p + g] * q[v];
    }
    prefetch = lines;
#pragma GCC unroll 8
    for (int g = 0; g < size; ++g)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; ++v) {
            T *place = out + g * stride_o + v * lanes;
            store(place, load(place) + sums[g][v]);
        }
}

template <int vectors, class T, int size = most_concepts, class... Rest>
inline void add_for_concepts(int concepts, T *out, Rest &&...rest) {
    if constexpr (size > 1)
        if (concepts < size) return add_for_concepts<vectors, T, size - 1>(concepts, out, rest...);
    add_product<size, vectors>(out, rest...);
}

// the same for any numbers of vectors and concepts up to `vectors` and `size`
template <class T, int vectors = most_vectors, int size = most_concepts, class... Rest>
inline void add_products(int wanted, int concepts, T *out, Rest &&...rest) {
    if constexpr (vectors > 1)
        if (wanted < vectors)
            return add_products<T, vectors - 1, size>(wanted, concepts, out, rest...);
    add_for_concepts<vectors, T, size>(concepts, out, rest...);
}

// group(first, size) for groups of 0 … all − 1 of nearly equal size, none larger than `most`
template <int most, class Group> inline void for_groups(ptrdiff_t all, Group group) {
    const ptrdiff_t groups = (all + most - 1) / most;
    for (ptrdiff_t g = 0; g < groups; ++g) {
        const ptrdiff_t first = g * all / groups;
        group(first, static_cast<int>((g + 1) * all / groups - first));
    }
}

} // namespace

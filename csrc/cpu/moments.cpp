// ZᵀA and ZᵀZ of few concepts: a panel of rows at a time, which stays in L2, and a few vectors of
// its features, which are multiplied with all concepts.

#include <cstddef>

#include "gemm_tile.h"
#include "kernels.h"
#include "simd.h"

namespace {

using fastnmf::Moments;

// A tile. With AVX2 and GCC 6 × 2 before 3 × 4 by 1.3x (1,300 × 512, K = 10): rows of a power of two
// push each other out of L1, from which each group of concepts reads them again
#if defined(__AVX2__) && !defined(__AVX512F__) && !defined(__clang__)
constexpr int tile_concepts = 6, tile_vectors = 2;
#else
constexpr int tile_concepts = most_concepts, tile_vectors = most_vectors;
#endif

template <class T> constexpr int V = Simd<T>::lanes;
template <class T> constexpr ptrdiff_t W = tile_vectors * V<T>;
// rows of a panel: whole tiles of hals.cpp. Measured: 128 before 64 and 256 by up to
// 8 % (avx2, avx512)
constexpr ptrdiff_t panel_rows = 144;

template <class T> ptrdiff_t padded(ptrdiff_t p) { return (p + V<T> - 1) / V<T> * V<T>; }

// panel (rows × W) ← features [j, j + count) of the rows from `start`; the rest of the last vector
// is not set
template <class T>
void pack(T *panel, const Moments<T> &a, ptrdiff_t start, ptrdiff_t rows, ptrdiff_t j,
          ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < rows; ++i)
        __builtin_memcpy(panel + i * W<T>, a.X + (start + i) * a.stride_x + j, count * sizeof(T));
}

template <class T>
void add(const Moments<T> &a, bool symmetric, ptrdiff_t first, ptrdiff_t last, T *out, T *panel) {
    const ptrdiff_t stride_o = padded<T>(a.p), all = (a.m - 1) * a.stride_x + a.p;
    for (ptrdiff_t start = first; start < last; start += panel_rows) {
        const ptrdiff_t rows = min(last - start, panel_rows);
        for_groups<tile_vectors>(stride_o / V<T>, [&](ptrdiff_t vector, int vectors) {
            const ptrdiff_t j = vector * V<T>, end = j + vectors * V<T>;
            const T *features = a.X + start * a.stride_x + j;
            ptrdiff_t stride = a.stride_x;
            // memory behind the last feature of the last row must not be read
            if ((start + rows - 1) * a.stride_x + end > all) {
                pack(panel, a, start, rows, j, a.p - j);
                features = panel;
                stride = W<T>;
            }
            Prefetch<T> prefetch;
            if (!a.cached || end >= a.p)
                prefetch = next_lines<T>(a, start, rows, end, panel_rows, W<T>);
            for_groups<tile_concepts>(a.K, [&](ptrdiff_t k, int concepts) {
                if (symmetric && k >= end) return;
                add_products<T, tile_vectors, tile_concepts>(
                    vectors, concepts, out + k * stride_o + j, stride_o,
                    a.F + start * a.stride_f + k, a.stride_f, features, stride, rows, prefetch);
            });
        });
    }
}

} // namespace

namespace fastnmf::FASTNMF_ISA {
const MomentsKernels<float> moments_float32{panel_rows * W<float>, panel_rows, padded<float>,
                                            add<float>};
const MomentsKernels<double> moments_float64{panel_rows * W<double>, panel_rows, padded<double>,
                                             add<double>};
} // namespace fastnmf::FASTNMF_ISA

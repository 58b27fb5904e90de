// What bindings.cpp and the CPU kernels share: arguments, and the kernels of one instruction set.
//
// cpu/hals.cpp, cpu/moments.cpp, cpu/updates.cpp and cpu/nnls.cpp are compiled once per instruction
// set, into namespaces of that name. Besides the tables at the end of each, all names in them have
// internal linkage: of an inline function or template with external linkage, std's included, the
// linker keeps one copy for everybody, and that could be the one with AVX-512 in it. `nm` must show
// no W, V or u.
#pragma once

#include <cstddef>

#include "../matrix.h"
#include "../nnls/problem.h"

namespace fastnmf {

// F, R, delta (s, m); G (s, s). delta may be R.
template <class T> struct HalsBlock {
    Matrix<T> F;
    Matrix<const T> R;
    Matrix<T> delta;
    const T *G;
    ptrdiff_t stride_g, s, m;
};

// F, C (K, m); G (K, K); so many sweeps
template <class T> struct HalsNormal {
    Matrix<T> F;
    Matrix<const T> C;
    const T *G;
    ptrdiff_t stride_g, K, m, sweeps;
};

// F (K, m); B (p, K), contiguous: the factor held fixed, transposed; G (K, K) = BᵀB; X (m, p), its
// features adjacent. C = BᵀXᵀ − l1, and so many sweeps. If there is a swept (K, m), before (K, m) ←
// F first, and then F ← max(least F, F + step (F − swept)), swept ← what the sweeps left
template <class T> struct HalsRows {
    Matrix<T> F, swept, before;
    const T *X, *B, *G;
    T l1, step, least;
    ptrdiff_t stride_x, stride_g, K, m, p, sweeps;
};

// F (K, m), its concepts adjacent, from one column to the next stride_f; X (m, p), its features
// adjacent
template <class T> struct Moments {
    const T *F, *X;
    ptrdiff_t stride_f, stride_x, K, m, p;
};

// all (K, m)
template <class T> struct MuUpdate {
    Matrix<T> F;
    Matrix<const T> numerator, denominator;
    ptrdiff_t K, m;
};

// all (K, m)
template <class T> struct PgdUpdate {
    Matrix<T> F, Y;
    Matrix<const T> gradient;
    T step, momentum;
    ptrdiff_t K, m;
};

// all (K, m); before: none, or what to measure Δ from
template <class T> struct Extrapolate {
    Matrix<T> F, swept;
    Matrix<const T> before;
    T step, least;
    ptrdiff_t K, m;
};

// all (K, m); scale (K)
template <class T> struct Rescale {
    Matrix<T> F, swept;
    const T *scale;
    Matrix<const T> before;
    ptrdiff_t K, m;
};

// Every kernel writes ‖Δ‖² and ‖F‖² of what it updated to sums[0] and sums[1]; rows with a swept,
// Δ = F − before, as for extrapolate and rescale.
// The HALS kernels update columns [start, start + tile_columns) as far as there are any, and
// need 2 · concepts · tile_columns elements of scratch; normal 3, rows (4 · concepts +
// tile_features) · tile_columns. The others update all they are given.
template <class T> struct HalsKernels {
    ptrdiff_t tile_columns, tile_features;
    void (*block)(const HalsBlock<T> &, ptrdiff_t start, T *scratch, double *sums);
    void (*normal)(const HalsNormal<T> &, ptrdiff_t start, T *scratch, double *sums);
    void (*rows)(const HalsRows<T> &, ptrdiff_t start, T *scratch, double *sums);
};

// add: out (K × padded(p)) += F X over columns [first, last) of F, or of a symmetric result what is
// right of the diagonal and some of the rest; so many rows at a time. It needs scratch_size
// elements of scratch.
template <class T> struct MomentsKernels {
    ptrdiff_t scratch_size, rows;
    ptrdiff_t (*padded)(ptrdiff_t p);
    void (*add)(const Moments<T> &, bool symmetric, ptrdiff_t first, ptrdiff_t last, T *out,
                T *scratch);
};

template <class T> struct UpdateKernels {
    void (*mu)(const MuUpdate<T> &, double *sums);
    void (*pgd)(const PgdUpdate<T> &, double *sums);
    void (*extrapolate)(const Extrapolate<T> &, double *sums);
    void (*rescale)(const Rescale<T> &, double *sums);
};

// solve takes row i, and needs scratch_size(rules, K, gathers) doubles; gathers: rows have an
// index, and no G of their own. To sums it writes ‖ΔF_i‖², ‖F_i‖².
template <class T> struct NnlsKernels {
    ptrdiff_t (*scratch_size)(const NnlsRules &rules, int K, bool gathers);
    void (*solve)(const NnlsRows<T> &, ptrdiff_t i, double *scratch, double *sums);
};

#define FASTNMF_DECLARE(isa)                                                                       \
    namespace isa {                                                                                \
    extern const HalsKernels<float> hals_float32;                                                  \
    extern const HalsKernels<double> hals_float64;                                                 \
    extern const MomentsKernels<float> moments_float32;                                            \
    extern const MomentsKernels<double> moments_float64;                                           \
    extern const UpdateKernels<float> update_float32;                                              \
    extern const UpdateKernels<double> update_float64;                                             \
    extern const NnlsKernels<float> nnls_float32;                                                  \
    extern const NnlsKernels<double> nnls_float64;                                                 \
    }
FASTNMF_DECLARE(baseline)
FASTNMF_DECLARE(avx2)
FASTNMF_DECLARE(avx512)
#undef FASTNMF_DECLARE

} // namespace fastnmf

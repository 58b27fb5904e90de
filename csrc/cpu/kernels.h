// The interface between bindings.cpp and the CPU kernels: arguments, and a table of kernels for
// each instruction set.
//
// hals.cpp, moments.cpp, updates.cpp, nnls.cpp, active_set.cpp, sparse.cpp, weighted.cpp and
// restricted.cpp are compiled once per instruction set, each time into a namespace of that name. Except for the tables
// at their ends, all names in them must have internal linkage. Of an inline function or template with external linkage, including those of
// std, the linker keeps one copy for all callers, and that may be the one compiled for AVX-512.
// `nm` must show no W, V or u in their object files.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../matrix.h"
#include "../nnls/problem.h"

namespace fastnmf {

// F, R, delta (s, m); G (s, s). delta may be R. bounded: whether F ≥ 0
template <class T> struct HalsBlock {
    Matrix<T> F;
    Matrix<const T> R;
    Matrix<T> delta;
    const T *G;
    ptrdiff_t stride_g, s, m;
    bool bounded;
};

// F, C (K, m); G (K, K). bounded: whether F ≥ 0
template <class T> struct HalsNormal {
    Matrix<T> F;
    Matrix<const T> C;
    const T *G;
    ptrdiff_t stride_g, K, m, sweeps;
    bool bounded;
};

// F, C (K, m); G (K, K), symmetric. residual, active (m) ← the KKT residual of each column of F ≥ 0, and
// how many of its entries are positive. l1 is subtracted in C, l2 added to the diagonal of G.
template <class T> struct Kkt {
    Matrix<const T> F, C;
    const T *G;
    T l1, l2;
    T *residual, *active;
    ptrdiff_t stride_g, K, m;
};

// F, C (K, m); G (K (K + 1) / 2, m), its columns adjacent: of each column the lower triangle of a
// Gram matrix of its own, row by row. bounded: whether F ≥ 0
template <class T> struct HalsEach {
    Matrix<T> F;
    Matrix<const T> C, G;
    ptrdiff_t K, m, sweeps;
    bool bounded;
};

// `sweeps` sweeps of F (K, m) with C = B Xᵀ − l1. B: the fixed factor (K, p), as
// HalsKernels.pack left it; G (K, K) = B Bᵀ; X (m, p), its features adjacent. With a swept (K, m): before (K, m) ←
// F at the start, and after the sweeps swept, F ← F, max(least F, F + step (F − swept))
template <class T> struct HalsRows {
    Matrix<T> F, swept, before;
    const T *X, *B, *G;
    T l1, step, least;
    ptrdiff_t stride_x, stride_b, stride_g, K, m, p, sweeps;
};

// F (K, m), its concepts adjacent, its columns stride_f apart; X (m, p), its features adjacent.
// cached: whether these rows of X are in the cache, and only those that follow are prefetched
template <class T> struct Moments {
    const T *F, *X;
    ptrdiff_t stride_f, stride_x, K, m, p;
    bool cached = false;
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

// all (K, m); Δ = F − before, if there is a before
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

// both (K, m), with contiguous rows
template <class T> struct Rows {
    const T *X, *Y;
    ptrdiff_t stride_x, stride_y, K, m;
};

// Every kernel writes ‖Δ‖² and ‖F‖² of the elements it updated to sums[0] and sums[1]. For
// extrapolate, rescale, and rows with a swept, Δ = F − before.
// The HALS kernels update columns [start, start + tile_columns) or up to the last one. Elements of
// scratch over tile_columns: block 2 s, normal and kkt 3 K, rows 4 K + tile_features, cross K + tile_features, each 3 K + K (K + 1) / 2. The others update
// their whole argument. pack: B (K, p) of any layout as `rows` reads it, in a copy of packed_size
// elements where need be.
template <class T> struct HalsKernels {
    ptrdiff_t tile_columns, tile_features;
    void (*block)(const HalsBlock<T> &, ptrdiff_t start, T *scratch, double *sums);
    void (*normal)(const HalsNormal<T> &, ptrdiff_t start, T *scratch, double *sums);
    void (*rows)(const HalsRows<T> &, ptrdiff_t start, T *scratch, double *sums);
    void (*each)(const HalsEach<T> &, ptrdiff_t start, T *scratch, double *sums);
    // these write no sums; cross: F ← C, of rows with nothing else than X, l1 and B (p, K),
    // contiguous
    void (*cross)(const HalsRows<T> &, ptrdiff_t start, T *scratch, double *sums);
    void (*kkt)(const Kkt<T> &, ptrdiff_t start, T *scratch, double *sums);
    ptrdiff_t (*packed_size)(ptrdiff_t K, ptrdiff_t p);
    void (*pack)(HalsRows<T> &, Matrix<const T> B, T *copy);
};

// add: out (K × padded(p)) += F X over columns [first, last) of F, panel_rows of them at a time. Of
// a symmetric result it computes the part right of the diagonal, and some of the rest. It needs
// scratch_size elements of scratch.
template <class T> struct MomentsKernels {
    ptrdiff_t scratch_size, panel_rows;
    ptrdiff_t (*padded)(ptrdiff_t p);
    void (*add)(const Moments<T> &, bool symmetric, ptrdiff_t first, ptrdiff_t last, T *out,
                T *scratch);
};

template <class T> struct UpdateKernels {
    void (*mu)(const MuUpdate<T> &, double *sums);
    void (*pgd)(const PgdUpdate<T> &, double *sums);
    void (*extrapolate)(const Extrapolate<T> &, double *sums);
    void (*rescale)(const Rescale<T> &, double *sums);
    // ⟨X, Y⟩: products in T, summed in float64
    double (*inner)(const Rows<T> &);
    // ‖X_k − Y_k‖² and ‖X_k‖² of each row, summed in float64, to sums[2 k] and sums[2 k + 1]
    void (*change)(const Rows<T> &, double *sums);
};

// X (n, K) ← the solutions of G_SS x_S = R_S on the support S of each row, zero elsewhere. G (K, K) of
// float64, symmetric; R (n, K); used (n, K): the supports. dependent (n) ← whether the squared distance
// of a concept of S to those before it is at most `tolerance` of its squared norm; X is zero there.
template <class T> struct Supports {
    T *X;
    const T *R;
    const double *G;
    const uint8_t *used;
    uint8_t *dependent;
    double tolerance;
    ptrdiff_t stride_x, stride_r, stride_g, stride_u, K;
};

// solve: row i, with scratch_size(rules, K, gathers) doubles of scratch; gathers: rows have an
// index and share one G. It writes ‖ΔF_i‖², ‖F_i‖² to sums.
template <class T> struct NnlsKernels {
    ptrdiff_t (*scratch_size)(const NnlsRules &rules, int K, bool gathers);
    void (*solve)(const NnlsRows<T> &, ptrdiff_t i, double *scratch, double *sums);
    // row i of the solutions on supports of at most `most` concepts, with support_scratch(most)
    // doubles of scratch
    ptrdiff_t (*support_scratch)(int most);
    void (*on_support)(const Supports<T> &, ptrdiff_t i, int most, double *scratch);
};

// The fixed factor B (K, p), its features adjacent. unit (K, K), or null: the Gram matrix of unit
// concepts. scale (K): 1 over √(‖B_k‖² + curvature_k), 0 for zero concepts; rounded: the same as T.
// l1, curvature (K) or null: of a penalty. roughness: of the norm of the residual, how far slopes of
// unit concepts may be off where they are from bfloat16; 0: none are. limit: 0, or how many concepts a row may have: they enter
// one by one, the steepest first, and a solution with more is not looked for.
template <class T> struct ActiveSet {
    const T *B, *unit;
    ptrdiff_t stride_b, stride_unit;
    const double *scale;
    const T *rounded, *curvature;
    double l1, roughness;
    ptrdiff_t K, p;
    NnlsRules rules;
    int32_t limit;
};

// A row in flight: X (p), its residual e (p), the passive concepts with their x = z / scale, and the
// inverse Cholesky factor M of their unit Gram matrix, with y and s as in nnls/solver.h. kept: the
// best passive concepts so far. blocked: concepts that depend on the passive ones; forced: one that
// entered alone although it does, or −1. rough: its next slopes may be from bfloat16. M has the rows up
// to p, and room for those that may enter in a step.
template <class T> struct ActiveRow {
    static constexpr int most_blocked = 64;
    const T *X;
    ptrdiff_t index;
    double *e, *y, *x, *s, *kept_x, *M;
    int32_t *passive, *kept, p, kept_p;
    int32_t blocked[most_blocked], blocked_count, forced;
    int32_t steps, block, refinements, stalls, rebuilds, status;
    // slopes relative to `reference`, the largest at zero; objectives relative to its square
    double reference, least, lowest, worst, kept_worst;
    bool begun, warm, exact, beyond, rough;
};

// begin: a row at zero, from a start in x and passive if warm; E (p) ← X. advance: one step, from the
// slopes W (K) = B E of its last E; W is overwritten, E ← the new residual. Returns whether the row
// has ended; then x, p, status, steps and worst are final. blocks: times that concepts may enter in a
// step. scratch_size: doubles of scratch.
template <class T> struct ActiveSetKernels {
    int blocks;
    ptrdiff_t (*scratch_size)(const ActiveSet<T> &);
    void (*begin)(const ActiveSet<T> &, ActiveRow<T> &, T *E);
    bool (*advance)(const ActiveSet<T> &, ActiveRow<T> &, T *W, T *E, double *scratch);
};

// A sparse matrix X (m, d) in compressed rows: the entries of row i are those from crow[i] to
// crow[i + 1], their columns ascend. dot: out (m, K) = X B, B (d, K). tdot: out (d, K) = XᵀZ, or +=
// with `adds`, Z (m, K). Rows of B, Z and out are contiguous.
template <class T, class I> struct SparseProduct {
    const I *crow, *col;
    const T *values;
    Matrix<const T> dense;
    Matrix<T> out;
    ptrdiff_t m, d, K;
    bool adds;
};

// How a product is divided: into groups of concepts, tiles of rows, and blocks of columns, for which
// B or the sums are copied, aligned and padded, if `packed`. prefetches: whether a block is larger
// than what a core keeps near.
struct SparseTiles {
    ptrdiff_t concepts, rows, columns;
    bool packed, prefetches;
};

// dot: rows [first, last) of the result; tdot: rows [first, last) of the result, which are columns of
// X. scratch: columns × concepts, not packed: K; cursor: one for each row of a tile. Groups have whole
// vectors, at most most_concepts.
template <class T, class I> struct SparseKernels {
    ptrdiff_t most_concepts, lanes;
    void (*dot)(const SparseProduct<T, I> &, const SparseTiles &, ptrdiff_t first, ptrdiff_t last,
                T *scratch, I *cursor);
    void (*tdot)(const SparseProduct<T, I> &, const SparseTiles &, ptrdiff_t first, ptrdiff_t last,
                 T *scratch, I *cursor);
};

// Sweeps of F (K, m) where the entries of X (m, p) have weights. X is sparse, in compressed rows whose
// entries have `weights`, null for ones, and no others have any; or, without crow, dense, X (m, p) in
// any layout, with a mask, or else weights W, in any layout. B (p, K), contiguous rows: the fixed
// factor, transposed. A penalty: l1, l2 (K), null for none; l1 only with an l2. longest: the most
// entries that a row has. grams: by a Gram matrix for each row, else by its residual. measures:
// whether the squared error is wanted. bounded: whether F ≥ 0
template <class T, class I> struct HalsWeighted {
    Matrix<T> F;
    const I *crow, *col;
    const T *values, *weights;
    Matrix<const T> X, W;
    Matrix<const uint8_t> mask;
    const T *B, *l2;
    T l1;
    ptrdiff_t stride_b, K, m, p, sweeps, longest;
    bool grams, measures, bounded;
};

// sweep: columns [start, start + tile_columns) or up to the last; sums (3) ← ‖Δ‖², ‖F‖², of all
// sweeps, and Σ w (x − fᵀ b)² if it is wanted. scratch_size: elements of scratch; places: p, of dense
// data only.
template <class T, class I> struct WeightedKernels {
    ptrdiff_t tile_columns;
    ptrdiff_t (*scratch_size)(const HalsWeighted<T, I> &);
    void (*sweep)(const HalsWeighted<T, I> &, ptrdiff_t start, T *scratch, I *places, double *sums);
};

// Sparse codes (m, K) in compressed rows, as in SparseProduct, and slopes S (m, K), contiguous rows.
// crow_out, col_out, values_out: the entries of the codes, and zeros where else S is above the bound,
// in the order of columns.
template <class T, class I> struct Candidates {
    const T *S;
    const I *crow, *col;
    const T *values;
    const I *crow_out;
    I *col_out;
    T *values_out;
    T bound;
    ptrdiff_t stride_s, m, K;
};

// Codes (m, K) in compressed rows, whose entries alone change, at most `sweeps` times, and the
// residual E (m, p) of them. B (K, p): the dictionary; inverse (K): 1 over ‖B_k‖² + curvature_k, 0 for
// concepts that keep their codes. l1, curvature (K): of the penalty.
template <class T, class I> struct HalsCandidates {
    const I *crow, *col;
    T *values, *E;
    const T *B, *inverse, *curvature;
    T l1;
    ptrdiff_t stride_e, stride_b, m, p, longest, sweeps;
};

// One sweep of the concepts F (K, p), given codes in compressed rows of the concepts, (K, m), and the
// residual E (m, p) of both, which follows. curvature (K), or null: of a penalty. bounded: whether
// F ≥ 0
template <class T, class I> struct HalsConcepts {
    T *F, *E;
    const I *crow, *row;
    const T *values, *curvature;
    ptrdiff_t stride_f, stride_e, K, p;
    bool bounded;
};

// count: the candidates of row i; fill: row i of them, given crow_out. row: of codes; start: scratch of
// `longest` elements. concepts: of features [start, start + features), at most `features` of them.
// Both add ‖Δ‖² and the squares of what was updated to sums[0] and sums[1].
template <class T, class I> struct RestrictedKernels {
    ptrdiff_t features;
    ptrdiff_t (*count)(const Candidates<T, I> &, ptrdiff_t i);
    void (*fill)(const Candidates<T, I> &, ptrdiff_t i);
    void (*row)(const HalsCandidates<T, I> &, ptrdiff_t i, T *start, double *sums);
    void (*concepts)(const HalsConcepts<T, I> &, ptrdiff_t start, ptrdiff_t features, double *sums);
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
    extern const ActiveSetKernels<float> active_set_float32;                                       \
    extern const ActiveSetKernels<double> active_set_float64;                                      \
    extern const SparseKernels<float, int32_t> sparse_float32_int32;                               \
    extern const SparseKernels<float, int64_t> sparse_float32_int64;                               \
    extern const SparseKernels<double, int32_t> sparse_float64_int32;                              \
    extern const SparseKernels<double, int64_t> sparse_float64_int64;                              \
    extern const WeightedKernels<float, int32_t> weighted_float32_int32;                           \
    extern const WeightedKernels<float, int64_t> weighted_float32_int64;                           \
    extern const WeightedKernels<double, int32_t> weighted_float64_int32;                          \
    extern const WeightedKernels<double, int64_t> weighted_float64_int64;                          \
    extern const RestrictedKernels<float, int32_t> restricted_float32_int32;                       \
    extern const RestrictedKernels<float, int64_t> restricted_float32_int64;                       \
    extern const RestrictedKernels<double, int32_t> restricted_float64_int32;                      \
    extern const RestrictedKernels<double, int64_t> restricted_float64_int64;                      \
    }
FASTNMF_DECLARE(baseline)
FASTNMF_DECLARE(avx2)
FASTNMF_DECLARE(avx512)
#undef FASTNMF_DECLARE

} // namespace fastnmf

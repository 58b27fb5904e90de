// Non-negative least squares on the CPU, from the Gram matrix: a thread solves a row at a time, by
// nnls/solver.h on vectors, in float64 for every type of G.

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "nnls_thread.h"
#include "on_support.h"

namespace {

// the gathered G, eight vectors of the capacity, four of K, the triangle, a block, and places
ptrdiff_t scratch_size(const NnlsRules &rules, int K, bool gathers) {
    const ptrdiff_t across = Block::padded(rules.capacity);
    const ptrdiff_t gathered = gathers ? ptrdiff_t(K) * K : 0;
    return gathered + 8 * across + 4 * ptrdiff_t(K) +
           Triangle<double, 8>::offset(rules.capacity + 1) + Block::size(across) +
           Places::size(rules.capacity);
}

// to (K, K) ← G on the concepts of a row, row by row, so that the hardware can prefetch
template <class S> void gather(S *to, const S *G, ptrdiff_t stride, const int32_t *index, int K) {
    for (int a = 0; a < K; ++a) {
        const S *row = G + index[a] * stride;
        for (int b = 0; b < K; ++b) to[ptrdiff_t(a) * K + b] = row[index[b]];
    }
}

template <class S> void solve(const NnlsRows<S> &rows, ptrdiff_t i, double *scratch, double *sums) {
    const ptrdiff_t across = Block::padded(rows.rules.capacity);
    RowGram<S> gram{rows.G + i * rows.stride_row, rows.stride_g, concepts(rows, i)};
    double *next = scratch;
    const auto take = [&](ptrdiff_t size) { return (next += size) - size; };
    const auto whole = [&](ptrdiff_t size) { return reinterpret_cast<int *>(take(size)); };
    if (rows.index && !rows.stride_row) {
        S *own = reinterpret_cast<S *>(take(ptrdiff_t(rows.K) * rows.K));
        gather(own, gram.G, gram.stride_g, rows.index + i * rows.K, gram.K);
        gram = {own, gram.K, gram.K};
    }
    NnlsScratch<double> at;
    for (double **vector : {&at.y, &at.x, &at.s, &at.l, &at.h, &at.r}) *vector = take(across);
    for (double **vector : {&at.w, &at.c}) *vector = take(rows.K);
    for (int **vector : {&at.passive, &at.moved}) *vector = whole(across);
    for (int **vector : {&at.entering, &at.blocked}) *vector = whole(rows.K);
    double *triangle = take(Triangle<double, 8>::offset(rows.rules.capacity + 1));
    Thread team;
    team.block = Block(take(Block::size(across)), across);
    team.places = Places(next, rows.rules.capacity);
    nnls_row<Thread, double, S>(team, rows, i, gram, at, {nullptr, triangle, 0}, sums);
}

} // namespace

namespace fastnmf::FASTNMF_ISA {
const NnlsKernels<float> nnls_float32{scratch_size, solve<float>, support_scratch,
                                      solve_on_support<float>};
const NnlsKernels<double> nnls_float64{scratch_size, solve<double>, support_scratch,
                                       solve_on_support<double>};
} // namespace fastnmf::FASTNMF_ISA

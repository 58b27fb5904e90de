// Passes over rows of data: ZᵀA and ZᵀZ of given codes, and codes by HALS together with these sums,
// computed while rows and codes are in the cache.
#pragma once

#include <algorithm>
#include <vector>

#include "isa.h"
#include "threads.h"

namespace fastnmf {

// a HALS kernel on all tiles of columns
template <class T, class Arguments>
void run_hals(void (*kernel)(const Arguments &, Size, T *, double *), Size columns,
              const Arguments &a, Size scratch_rows, double flops, int threads, double *sums) {
    const Size tiles = (a.m + columns - 1) / columns, scratch_size = scratch_rows * columns;
    threads = threads_for(tiles, flops, threads);
    const Scratch<T> scratch(threads * scratch_size);
    for_tiles(tiles, threads, sums, [&](Size tile, int thread, double *partial) {
        kernel(a, tile * columns, scratch.data + thread * scratch_size, partial);
    });
}

// ZᵀA (K × p) and ZᵀZ (K × K), written, or added to what is there
template <class T> struct Sums {
    Matrix<T> cross, gram;
    bool adds;
};

// bytes of the rows of a chunk, which stays in L2
constexpr Size chunk_bytes = 256 << 10;

// to (K × p) ← the sum of the threads' parts, in their order; += with `adds`
template <class T>
void add_parts(const T *all, Size stride, int parts, Size width, Matrix<T> to, Size K, Size p,
               bool adds) {
    double unused[2] = {};
    for_tiles(K, threads_for(K, double(parts) * K * p, parts), unused, [&](Size k, int, double *) {
        T *row = at(to, k, 0);
        if (!adds) std::fill(row, row + p, T(0));
        for (int part = 0; part < parts; ++part) {
            const T *more = all + part * stride + k * width;
            for (Size j = 0; j < p; ++j) row[j] += more[j];
        }
    });
}

// a symmetric result is complete only right of the diagonal
template <class T> void mirror(Matrix<T> x, Size K) {
    for (Size k = 0; k < K; ++k)
        for (Size j = 0; j < k; ++j) *at(x, k, j) = *at(x, j, k);
}

// features [first, first + p) of the result: every thread sums its part of the rows in `partial`,
// and the parts are added
template <class T>
void add_moments(Moments<T> a, bool symmetric, Size first, Size p, Size parts, T *partial,
                 Matrix<T> to, bool adds) {
    const MomentsKernels<T> &kernels = moments_kernels<T>();
    const Size width = kernels.padded(p), size = a.K * width;
    a.X += first;
    a.p = p;
    const Scratch<T> packed(parts * kernels.scratch_size);
    double unused[2] = {};
    for_tiles(parts, static_cast<int>(parts), unused, [&](Size part, int, double *) {
        T *mine = partial + part * size;
        std::fill(mine, mine + size, T(0));
        kernels.add(a, symmetric, part * a.m / parts, (part + 1) * a.m / parts, mine,
                    packed.data + part * kernels.scratch_size);
    });
    add_parts(partial, size, static_cast<int>(parts), width, to, a.K, p, adds);
}

// features whose sums are computed at a time, whole vectors of all kernels: the sums of a thread
// stay in its cache, and their memory does not grow with the number of features
inline Size moments_features(Size feature_bytes) {
    constexpr Size sum_bytes = 1 << 20, vectors = 192;
    return std::max<Size>(1, sum_bytes / (feature_bytes * vectors)) * vectors;
}

// to (K × p) ← F X, or += with `adds`
template <class T>
void compute_moments(const Moments<T> &a, bool symmetric, Matrix<T> to, bool adds, int threads) {
    // a part for each thread, of whole cache lines of rows
    const Size parts = threads_for((a.m + 63) / 64, 2.0 * a.m * a.K * a.p, threads);
    const Size most = symmetric ? a.p : moments_features(a.K * sizeof(T));
    const Size width = moments_kernels<T>().padded(std::min(a.p, most));
    const Scratch<T> partial(parts * a.K * width);
    for (Size first = 0; first < a.p; first += most)
        add_moments(a, symmetric, first, std::min(most, a.p - first), parts, partial.data,
                    Matrix<T>{at(to, 0, first), to.stride_k, 1}, adds);
    if (symmetric) mirror(to, a.K);
}

// The codes of all rows, and their sums. A thread takes consecutive tiles, a chunk of them at a
// time. totals do not depend on the number of threads: they are added in the order of tiles.
template <class T>
void pass(const HalsRows<T> &a, const Sums<T> &to, double flops, int threads, double *totals) {
    const HalsKernels<T> &hals = hals_kernels<T>();
    const MomentsKernels<T> &moments = moments_kernels<T>();
    const Size W = hals.tile_columns, tiles = (a.m + W - 1) / W;
    const Size fit = chunk_bytes / static_cast<Size>(std::max<Size>(1, a.p) * sizeof(T));
    const Size chunk_tiles = std::max<Size>(1, std::min(fit, moments.panel_rows) / W);
    const Size width = moments.padded(a.p), gram_width = moments.padded(a.K);
    const Size size = a.K * (width + gram_width), scratch_size = (4 * a.K + hals.tile_features) * W;
    threads = threads_for(tiles, flops, threads);
    const Scratch<T> parts(threads * size), scratch(threads * scratch_size),
        packed(threads * moments.scratch_size);
    std::vector<double> partial(2 * tiles);
    double unused[2] = {};
    for_tiles(threads, threads, unused, [&](Size part, int, double *) {
        T *cross = parts.data + part * size, *gram = cross + a.K * width;
        T *panel = packed.data + part * moments.scratch_size;
        std::fill(cross, cross + size, T(0));
        const Size end = (part + 1) * tiles / threads, rows = std::min(a.m, end * W);
        // only up to `rows`: other threads write the codes behind them
        const Moments<T> data{a.F.data, a.X, a.F.stride_m, a.stride_x, a.K, rows, a.p, true};
        const Moments<T> codes{a.F.data, a.F.data, a.F.stride_m, a.F.stride_m, a.K, rows, a.K, true};
        for (Size tile = part * tiles / threads; tile < end;) {
            const Size first = tile * W, last = std::min(tile + chunk_tiles, end);
            for (; tile < last; ++tile)
                hals.rows(a, tile * W, scratch.data + part * scratch_size, &partial[2 * tile]);
            const Size after = std::min(rows, last * W);
            moments.add(data, false, first, after, cross, panel);
            moments.add(codes, true, first, after, gram, panel);
        }
    });
    for (Size tile = 0; tile < tiles; ++tile) {
        totals[0] += partial[2 * tile];
        totals[1] += partial[2 * tile + 1];
    }
    add_parts(parts.data, size, threads, width, to.cross, a.K, a.p, to.adds);
    add_parts(parts.data + a.K * width, size, threads, gram_width, to.gram, a.K, a.K, to.adds);
    mirror(to.gram, a.K);
}

} // namespace fastnmf

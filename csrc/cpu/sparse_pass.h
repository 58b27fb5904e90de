// How the products of a sparse matrix are divided, and distributed over threads. The division does
// not depend on the number of threads, so neither do the results.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "isa.h"
#include "threads.h"

namespace fastnmf {

// bytes of B, or of sums, in a block. Measured with 900 entries a row on an EPYC of Zen 4, 20 and
// 100 concepts: 4 MB before 0.5 MB, which fits L2, by up to 2, since a row is read in fewer parts
constexpr Size block_bytes = 4 << 20;

// and such as stay in L2 beside the entries
constexpr Size near_bytes = 128 << 10;

template <class T, class I>
SparseTiles sparse_tiles(const SparseProduct<T, I> &a, bool transposed) {
    const SparseKernels<T, I> &kernels = sparse_kernels<T, I>();
    const double entries = double(a.crow[a.m] - a.crow[0]);
    const Size vectors = (a.K + kernels.lanes - 1) / kernels.lanes;
    const Size most = kernels.most_concepts / kernels.lanes, groups = (vectors + most - 1) / most;
    const Size concepts = (vectors + groups - 1) / groups * kernels.lanes;
    SparseTiles tiles{concepts, 1 << 16, a.d, entries >= 2.0 * a.d, false};
    if (!tiles.packed) return tiles;
    const Size blocks = 1 + a.d * concepts * Size(sizeof(T)) / block_bytes;
    tiles.columns = (a.d + blocks - 1) / blocks;
    tiles.prefetches = tiles.columns * concepts * Size(sizeof(T)) > near_bytes;
    if (transposed) {
        // a sum of a tile is added to the result: after many entries, for that takes time, but not
        // too many, since the error of a sum grows with its length
        const double rows = double(a.d) * a.m / entries;
        tiles.rows = static_cast<Size>(std::max(std::min(64 * rows, 4096.0), 8 * rows)) + 1;
        tiles.rows = std::min<Size>(std::max<Size>(tiles.rows, 256), 1 << 20);
    }
    return tiles;
}

// bounds of `parts` parts of the rows that take about equally long
template <class T, class I>
std::vector<Size> parts_of_rows(const SparseProduct<T, I> &a, int parts) {
    // a row takes as long as some entries
    constexpr double row_cost = 8;
    std::vector<Size> bounds{0};
    for (int part = 1; part < parts; ++part) {
        const double wanted = (double(a.crow[a.m] - a.crow[0]) + row_cost * a.m) * part / parts;
        Size low = bounds.back(), high = a.m;
        while (low < high) {
            const Size middle = low + (high - low) / 2;
            if (double(a.crow[middle] - a.crow[0]) + row_cost * middle < wanted)
                low = middle + 1;
            else
                high = middle;
        }
        bounds.push_back(low);
    }
    bounds.push_back(a.m);
    return bounds;
}

// bounds of `parts` parts of the columns with about as many entries each: quantiles of a sample
template <class T, class I>
std::vector<Size> parts_of_columns(const SparseProduct<T, I> &a, int parts) {
    const Size begin = a.crow[0], entries = a.crow[a.m] - begin;
    const Size count = std::min<Size>(entries, 1024);
    std::vector<I> sample(count);
    for (Size s = 0; s < count; ++s)
        sample[s] = a.col[begin + static_cast<Size>(double(entries) * s / count)];
    std::sort(sample.begin(), sample.end());
    std::vector<Size> bounds{0};
    for (int part = 1; part < parts; ++part) {
        const Size bound = count ? Size(sample[count * part / parts]) : 0;
        bounds.push_back(std::max(bounds.back(), bound));
    }
    bounds.push_back(a.d);
    return bounds;
}

// X B, or XᵀZ if `transposed`
template <class T, class I>
void compute_sparse_product(const SparseProduct<T, I> &a, bool transposed, int threads) {
    const SparseKernels<T, I> &kernels = sparse_kernels<T, I>();
    const SparseTiles tiles = sparse_tiles(a, transposed);
    const double entries = double(a.crow[a.m] - a.crow[0]);
    threads = threads_for(transposed ? a.d : a.m, 2 * (entries + a.m) * a.K, threads);
    const std::vector<Size> bounds =
        transposed ? parts_of_columns(a, threads) : parts_of_rows(a, threads);
    const Size size = tiles.packed ? tiles.columns * tiles.concepts : a.K;
    const Size rows = std::min(tiles.rows, a.m);
    const Scratch<T> scratch(threads * size + 1);
    const Scratch<I> cursor(threads * rows + 1);
    double unused[2] = {};
    for_tiles(threads, threads, unused, [&](Size part, int, double *) {
        const auto kernel = transposed ? kernels.tdot : kernels.dot;
        if (bounds[part] < bounds[part + 1])
            kernel(a, tiles, bounds[part], bounds[part + 1], scratch.data + part * size,
                   cursor.data + part * rows);
    });
}

} // namespace fastnmf

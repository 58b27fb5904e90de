// Tiles of work distributed over OpenMP's threads, with sums that do not depend on their number.
#pragma once

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

#include "../matrix.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace fastnmf {

// fork and join take as long as 0.5 M flops: 5 µs, measured with libgomp on 2 cores
constexpr double flops_per_thread = 250e3;

// how many of the allowed threads pay for their start
inline int threads_for(ptrdiff_t tiles, double flops, int allowed) {
    const double useful = std::min(double(tiles), std::max(1.0, flops / flops_per_thread));
    return static_cast<int>(std::min(double(allowed), useful));
}

// work(tile, thread, two doubles) for every tile; the doubles are added to sums[0] and sums[1] in
// the order of tiles. uneven: tiles differ in their cost, and a thread takes that many when it is
// done; 0: each thread has its share from the start
template <int uneven = 0, class Work>
void for_tiles(ptrdiff_t tiles, int threads, double *sums, Work work) {
    std::vector<double> partial(2 * tiles);
#ifdef _OPENMP
    if (threads > 1 && uneven > 0) {
#pragma omp parallel for schedule(dynamic, uneven > 0 ? uneven : 1) num_threads(threads)
        for (ptrdiff_t tile = 0; tile < tiles; ++tile)
            work(tile, omp_get_thread_num(), &partial[2 * tile]);
    } else if (threads > 1) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (ptrdiff_t tile = 0; tile < tiles; ++tile)
            work(tile, omp_get_thread_num(), &partial[2 * tile]);
    } else
#endif
        for (ptrdiff_t tile = 0; tile < tiles; ++tile) work(tile, 0, &partial[2 * tile]);
    for (ptrdiff_t tile = 0; tile < tiles; ++tile) {
        sums[0] += partial[2 * tile];
        sums[1] += partial[2 * tile + 1];
    }
}

// A tile of a matrix (K, m): rows k and columns i onwards.
struct Tile {
    Size k, i, concepts, columns;

    template <class T> Matrix<T> of(const Matrix<T> &x) const {
        return {at(x, k, i), x.stride_k, x.stride_m};
    }
};

// work(tile, two doubles) for tiles of F (K, m) of lines of up to 512 elements along what is
// contiguous: long enough for the prefetcher, and a tile has as many squares as a sum in float32
// should have
template <class T, class Work>
void for_element_tiles(const Matrix<T> &F, Size K, Size m, int threads, double *sums, Work work) {
    const bool concepts_adjacent = F.stride_k == 1;
    const Size along = std::min<Size>(512, concepts_adjacent ? K : m), lines = 8192 / along;
    const Size concepts = concepts_adjacent ? along : lines;
    const Size columns = concepts_adjacent ? lines : along;
    const Size across = (m + columns - 1) / columns;
    const Size tiles = across * ((K + concepts - 1) / concepts);
    // an element costs about what 8 flops do
    threads = threads_for(tiles, 8.0 * K * m, threads);
    for_tiles(tiles, threads, sums, [&](Size tile, int, double *partial) {
        const Size k = tile / across * concepts, i = tile % across * columns;
        work(Tile{k, i, std::min(concepts, K - k), std::min(columns, m - i)}, partial);
    });
}

// uninitialised and on a cache line
template <class T> struct Scratch {
    T *data;

    explicit Scratch(ptrdiff_t size)
        : data(static_cast<T *>(::operator new(size * sizeof(T), std::align_val_t{64}))) {}
    ~Scratch() { ::operator delete(data, std::align_val_t{64}); }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
};

} // namespace fastnmf

// Non-negative least squares on a CUDA device: a block of threads solves a row at a time.
//
// nnls.h on the lanes of nnls_lanes.h. A warp for supports of up to 96, else 128 threads; as many
// blocks as fit, each takes the next row until there are none. The vectors of the passive concepts
// and the first rows of their factor are in shared memory, 4 p (p + 1) / 2 + 32 p bytes in float32;
// what does not fit, and what is as long as K, in a workspace. Float64 arithmetic where the card
// has it at half the rate of float32, else float32 for float32 data.
// Not yet run on a device; the same source is run on threads (tests/nnls_team.cpp).

#include <algorithm>
#include <stdexcept>
#include <string>

#include <cuda_runtime.h>

#include "nnls_cuda.h"
#include "nnls_lanes.h"

namespace {

constexpr unsigned all = ~0u;

template <class T, int threads> struct Block : Lanes<Block<T, threads>, T> {
    static constexpr int width = threads;
    T *values;
    int *indices;

    __device__ Block(T *values, int *indices) : values(values), indices(indices) {}
    __device__ int lane() const { return threadIdx.x; }
    __device__ void sync() const {
        if constexpr (threads == 32)
            __syncwarp();
        else
            __syncthreads();
    }
    // (x, i) ← the better of all lanes' pairs
    template <class Better> __device__ void reduce(T &x, int &i, Better better) const {
        for (int far = 16; far; far /= 2) {
            const T other = __shfl_xor_sync(all, x, far);
            const int index = __shfl_xor_sync(all, i, far);
            better(x, i, other, index);
        }
        if constexpr (threads > 32) {
            sync();
            if (lane() % 32 == 0) {
                values[lane() / 32] = x;
                indices[lane() / 32] = i;
            }
            sync();
            x = values[0];
            i = indices[0];
            for (int warp = 1; warp < threads / 32; ++warp)
                better(x, i, values[warp], indices[warp]);
        }
    }
    __device__ T total(T x) const {
        int unused = 0;
        reduce(x, unused, [](T &a, int &, T b, int) { a += b; });
        return x;
    }
    __device__ T top(T x) const {
        int unused = 0;
        reduce(x, unused, [](T &a, int &, T b, int) { a = a > b ? a : b; });
        return x;
    }
    __device__ void lowest(T &x, int &i) const {
        reduce(x, i, [](T &a, int &j, T b, int k) {
            if (b < a || (b == a && k < j)) {
                a = b;
                j = k;
            }
        });
    }
    __device__ int before(bool on, int &count) const {
        const unsigned votes = __ballot_sync(all, on);
        const int below = __popc(votes & ((1u << lane() % 32) - 1));
        count = __popc(votes);
        if constexpr (threads == 32) return below;
        sync();
        if (lane() % 32 == 0) indices[lane() / 32] = count;
        sync();
        int earlier = 0;
        count = 0;
        for (int warp = 0; warp < threads / 32; ++warp) {
            if (warp < lane() / 32) earlier += indices[warp];
            count += indices[warp];
        }
        return earlier + below;
    }
};

// What a block needs, in bytes: in shared memory, and of the workspace
template <class T> struct Layout {
    int capacity, K, near_rows;
    bool vectors_near;
    ptrdiff_t gathered;

    __host__ __device__ ptrdiff_t vectors() const {
        return capacity * ptrdiff_t(6 * sizeof(T) + 2 * sizeof(int));
    }
    __host__ __device__ ptrdiff_t triangle(int rows) const {
        return Triangle<T, 1>::offset(rows) * ptrdiff_t(sizeof(T));
    }
    __host__ __device__ ptrdiff_t near() const {
        return triangle(near_rows) + (vectors_near ? vectors() : 0);
    }
    __host__ __device__ ptrdiff_t far() const {
        const ptrdiff_t bytes = gathered + triangle(capacity) - triangle(near_rows) +
                                (vectors_near ? 0 : vectors()) +
                                K * ptrdiff_t(2 * sizeof(T) + 2 * sizeof(int));
        return (bytes + 255) / 256 * 256;
    }
    // doubles, then T, then int: aligned without gaps
    __device__ Triangle<T, 1> place(NnlsScratch<T> &at, char *shared, char *global) const {
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

template <class T, class S, int threads>
__global__ void __launch_bounds__(threads)
    nnls_kernel(NnlsRows<S> rows, Layout<T> layout, double *sums, unsigned long long *next,
                char *workspace) {
    extern __shared__ __align__(16) char shared[];
    __shared__ T values[threads / 32];
    __shared__ int indices[threads / 32];
    __shared__ unsigned long long taken;
    const Block<T, threads> team(values, indices);
    char *global = workspace + blockIdx.x * layout.far();
    NnlsScratch<T> at;
    const Triangle<T, 1> M = layout.place(at, shared, global);
    for (;;) {
        team.sync();
        if (team.leader()) taken = atomicAdd(next, 1ull);
        team.sync();
        const ptrdiff_t i = static_cast<ptrdiff_t>(taken);
        if (i >= rows.m) return;
        const int K = concepts(rows, i);
        const S *G = rows.G + i * rows.stride_row;
        ptrdiff_t stride = rows.stride_g;
        if (layout.gathered) {
            S *own = reinterpret_cast<S *>(global);
            const int32_t *index = rows.index + i * rows.K;
            for (int a = 0; a < K; ++a)
                team.each(K, [&](int b) {
                    own[ptrdiff_t(a) * K + b] = G[index[a] * stride + index[b]];
                });
            team.sync();
            G = own;
            stride = K;
        }
        nnls_row<const Block<T, threads>, T, S>(team, rows, i, K, G, stride, at, M, sums + 2 * i);
    }
}

void check(cudaError_t error, const char *what) {
    if (error != cudaSuccess)
        throw std::runtime_error(std::string("nnls on CUDA: ") + what + ": " +
                                 cudaGetErrorString(error));
}

int attribute(cudaDeviceAttr name) {
    int device, value;
    check(cudaGetDevice(&device), "no current device");
    check(cudaDeviceGetAttribute(&value, name, device), "device attribute");
    return value;
}

// vectors first, then as many rows of the factor as there is room for
template <class T, class S> Layout<T> laid_out(const NnlsRows<S> &rows, ptrdiff_t room) {
    const ptrdiff_t entries = ptrdiff_t(rows.K) * rows.K;
    const bool gathers = rows.index && !rows.stride_row;
    Layout<T> layout{rows.rules.capacity, rows.K, 0, true,
                     gathers ? (entries * ptrdiff_t(sizeof(S)) + 15) / 16 * 16 : 0};
    layout.vectors_near = layout.near() <= room;
    while (layout.near_rows < layout.capacity && layout.near() <= room) ++layout.near_rows;
    if (layout.near() > room) --layout.near_rows;
    return layout;
}

template <class T, class S, int threads>
size_t launch(const NnlsRows<S> &rows, double *sums, void *workspace, cudaStream_t stream) {
    const auto kernel = nnls_kernel<T, S, threads>;
    // what is static in the kernel, and what the driver keeps for itself
    const int room = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - 2048;
    const Layout<T> layout = laid_out<T>(rows, room);
    const int near = static_cast<int>(layout.near());
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, near),
          "shared memory");
    int resident = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads, near),
          "occupancy");
    const ptrdiff_t most = ptrdiff_t(resident) * attribute(cudaDevAttrMultiProcessorCount);
    const unsigned blocks = static_cast<unsigned>(std::max<ptrdiff_t>(1, std::min(rows.m, most)));
    const size_t bytes = 256 + blocks * static_cast<size_t>(layout.far());
    if (!workspace) return bytes;
    char *start = static_cast<char *>(workspace);
    check(cudaMemsetAsync(start, 0, 256, stream), "counter");
    kernel<<<blocks, threads, near, stream>>>(
        rows, layout, sums, reinterpret_cast<unsigned long long *>(start), start + 256);
    check(cudaGetLastError(), "launch");
    return bytes;
}

template <class T, class S>
size_t by_width(const NnlsRows<S> &rows, double *sums, void *workspace, cudaStream_t stream) {
    return rows.rules.capacity <= 96 ? launch<T, S, 32>(rows, sums, workspace, stream)
                                     : launch<T, S, 128>(rows, sums, workspace, stream);
}

} // namespace

namespace fastnmf {

template <>
size_t nnls_cuda(const NnlsRows<double> &rows, double *sums, void *workspace, void *stream) {
    return by_width<double>(rows, sums, workspace, static_cast<cudaStream_t>(stream));
}

template <>
size_t nnls_cuda(const NnlsRows<float> &rows, double *sums, void *workspace, void *stream) {
    const auto on = static_cast<cudaStream_t>(stream);
    if (attribute(cudaDevAttrSingleToDoublePrecisionPerfRatio) <= 2)
        return by_width<double>(rows, sums, workspace, on);
    // what rounding leaves of a slope in float32
    NnlsRows<float> coarse = rows;
    coarse.rules.tolerance = std::max(rows.rules.tolerance, 5e-6);
    return by_width<float>(coarse, sums, workspace, on);
}

} // namespace fastnmf

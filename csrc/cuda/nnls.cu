// Non-negative least squares on a CUDA device: a block of threads solves a row at a time.
//
// nnls/solver.h on the lanes of nnls/lanes.h. A warp for supports of up to 96, else 128 threads; as
// many blocks as fit, each takes the next row until none is left. The vectors of the passive
// concepts and the first rows of their factor are in shared memory, 4 p (p + 1) / 2 + 32 p bytes in
// float32; the rest, and vectors of length K, are in a workspace. Float64 arithmetic on cards that
// have it at half the rate of float32; else float32 for float32 data, to the accuracy that it can
// reach. Not yet run on a device: tests run this file on one thread that executes the lanes in turn
// (tests/emulated_cuda), and the operations of the lanes on many (tests/nnls_team.cpp).

#include <algorithm>

#include "../nnls/lanes.h"
#include "../nnls/layout.h"
#include "device.h"
#include "nnls.h"

namespace {

using namespace fastnmf;

constexpr unsigned all = ~0u;

template <class T, int threads> struct Block : Lanes<Block<T, threads>, T> {
    static constexpr int width = threads;
    double *values;
    int *indices;

    __device__ Block(double *values, int *indices) : values(values), indices(indices) {}
    __device__ int lane() const { return threadIdx.x; }
    __device__ void sync() const {
        if constexpr (threads == 32)
            __syncwarp();
        else
            __syncthreads();
    }
    // (x, i) ← the better of all lanes' pairs
    template <class X, class Better> __device__ void reduce(X &x, int &i, Better better) const {
        for (int far = 16; far; far /= 2) {
            const X other = __shfl_xor_sync(all, x, far);
            const int index = __shfl_xor_sync(all, i, far);
            better(x, i, other, index);
        }
        if constexpr (threads == 32) {
            // with a NaN the lanes may differ: all take the values of one
            x = __shfl_sync(all, x, 0);
            i = __shfl_sync(all, i, 0);
        } else {
            sync();
            if (lane() % 32 == 0) {
                values[lane() / 32] = x;
                indices[lane() / 32] = i;
            }
            sync();
            x = X(values[0]);
            i = indices[0];
            for (int warp = 1; warp < threads / 32; ++warp)
                better(x, i, X(values[warp]), indices[warp]);
        }
    }
    template <class X> __device__ X total(X x) const {
        int unused = 0;
        reduce(x, unused, [](X &a, int &, X b, int) { a += b; });
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

template <class T, class S, int threads>
__global__ void __launch_bounds__(threads)
    nnls_kernel(NnlsRows<S> rows, Layout<T> layout, double *sums, unsigned long long *next,
                char *workspace) {
    extern __shared__ __align__(16) char shared[];
    __shared__ double values[threads / 32];
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
        if (rows.rules.again && rows.report[i].status == nnls_solved) continue;
        RowGram<S> gram{rows.G + i * rows.stride_row, rows.stride_g, concepts(rows, i)};
        if (layout.gathered) {
            S *own = reinterpret_cast<S *>(global);
            const int32_t *index = rows.index + i * rows.K;
            for (int a = 0; a < gram.K; ++a)
                team.each(gram.K, [&](int b) {
                    own[ptrdiff_t(a) * gram.K + b] = gram.G[index[a] * gram.stride_g + index[b]];
                });
            team.sync();
            gram = {own, gram.K, gram.K};
        }
        nnls_row<const Block<T, threads>, T, S>(team, rows, i, gram, at, M, sums + 2 * i);
    }
}

// The launch of one kernel: the memory of its blocks, and the number of them that is useful.
template <class T, class S, int threads> class Launch {
  public:
    explicit Launch(const NnlsRows<S> &rows) {
        cudaFuncAttributes own;
        check(cudaFuncGetAttributes(&own, kernel), "nnls: no kernel for this device");
        const int near_bytes = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) -
                               static_cast<int>(own.sharedSizeBytes);
        const bool gathers = rows.index && !rows.stride_row;
        layout = laid_out<T>(rows.rules.capacity, rows.K, gathers ? sizeof(S) : 0, near_bytes);
        // a limit, the same for all calls: several threads may set it
        check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, near_bytes),
              "nnls: shared memory");
        int resident;
        check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, threads,
                                                            layout.near()),
              "nnls: occupancy");
        const ptrdiff_t most = ptrdiff_t(resident) * attribute(cudaDevAttrMultiProcessorCount);
        useful = std::max<ptrdiff_t>(1, std::min(rows.m, most));
    }

    NnlsWorkspace workspace() const {
        return {workspace_bytes(1, layout.far()), workspace_bytes(useful, layout.far())};
    }

    void operator()(NnlsRows<S> rows, double *sums, void *workspace, ptrdiff_t bytes,
                    cudaStream_t stream) {
        const ptrdiff_t blocks = blocks_in(bytes, layout.far(), useful);
        if (blocks < 1)
            refuse("workspace has ", bytes, " bytes: at least ", workspace_bytes(1, layout.far()),
                   " are needed");
        auto *next = static_cast<unsigned long long *>(workspace);
        char *start = static_cast<char *>(workspace) + counter_bytes;
        check(cudaMemsetAsync(next, 0, sizeof *next, stream), "nnls: counter");
        void *arguments[] = {&rows, &layout, &sums, &next, &start};
        check(cudaLaunchKernel(kernel, dim3(static_cast<unsigned>(blocks)), dim3(threads),
                               arguments, layout.near(), stream),
              "nnls: launch");
    }

  private:
    static constexpr auto kernel = nnls_kernel<T, S, threads>;
    Layout<T> layout;
    ptrdiff_t useful;
};

template <class T, class S, class Run> void by_width(const NnlsRows<S> &rows, Run run) {
    if (rows.rules.capacity <= most_of_a_warp)
        run(rows, Launch<T, S, 32>(rows));
    else
        run(rows, Launch<T, S, 128>(rows));
}

// run(rows, launch) in the arithmetic that suits the data and the device. Where float64 is slow, it
// is used only for the rows that float32 does not solve, those with concepts that depend on each
// other
template <class Run> void by_arithmetic(const NnlsRows<double> &rows, Run run) {
    by_width<double>(rows, run);
}

template <class Run> void by_arithmetic(const NnlsRows<float> &rows, Run run) {
    if (attribute(cudaDevAttrSingleToDoublePrecisionPerfRatio) <= 2)
        return by_width<double>(rows, run);
    NnlsRows<float> rules = rows;
    rules.rules.draft = true;
    // the rounding error of a slope in float32
    rules.rules.tolerance = std::max(rows.rules.tolerance, 5e-6);
    by_width<float>(rules, run);
    rules = rows;
    rules.rules.again = true;
    by_width<double>(rules, run);
}

} // namespace

namespace fastnmf {

template <class S> NnlsWorkspace nnls_workspace(const NnlsRows<S> &rows) {
    NnlsWorkspace bytes{0, 0};
    by_arithmetic(rows, [&](const NnlsRows<S> &, auto launch) {
        const NnlsWorkspace one = launch.workspace();
        bytes = {std::max(bytes.least, one.least), std::max(bytes.most, one.most)};
    });
    return bytes;
}

template <class S>
void nnls_cuda(const NnlsRows<S> &rows, double *sums, void *workspace, ptrdiff_t bytes,
               void *stream) {
    by_arithmetic(rows, [&](const NnlsRows<S> &rules, auto launch) {
        launch(rules, sums, workspace, bytes, static_cast<cudaStream_t>(stream));
    });
}

template NnlsWorkspace nnls_workspace(const NnlsRows<float> &);
template NnlsWorkspace nnls_workspace(const NnlsRows<double> &);
template void nnls_cuda(const NnlsRows<float> &, double *, void *, ptrdiff_t, void *);
template void nnls_cuda(const NnlsRows<double> &, double *, void *, ptrdiff_t, void *);

} // namespace fastnmf

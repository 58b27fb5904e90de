// What csrc/cuda/nnls.cu and csrc/cuda/bindings.cpp use of CUDA, on one thread of the CPU: a block at a
// time, its lanes one after the other from barrier to barrier, in an order drawn anew each time. A
// shuffle or a ballot is a barrier, too. Lanes that meet at different barriers, and writes beyond
// the shared memory that was requested, end the launch with an error.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(threads)
#define __align__(bytes) __attribute__((aligned(bytes)))
// lanes share what lives as long as the thread
#define __shared__ thread_local

enum cudaError_t : int { cudaSuccess, emulated_failure, emulated_divergence, emulated_overrun };
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount,
    cudaDevAttrMaxSharedMemoryPerBlockOptin,
    cudaDevAttrSingleToDoublePrecisionPerfRatio
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaMemoryType { cudaMemoryTypeHost, cudaMemoryTypeDevice, cudaMemoryTypeManaged };
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
};
struct cudaFuncAttributes {
    size_t sharedSizeBytes;
};
struct dim3 {
    unsigned x, y, z;
    explicit dim3(unsigned x = 1) : x(x), y(1), z(1) {}
};
using cudaStream_t = void *;

inline thread_local dim3 threadIdx, blockIdx;

namespace emulated {

// by name: what the device is like, what was requested, and the calls that fail
inline std::map<std::string, long> settings{
    {"devices", 2}, {"current", 0}, {"ratio", 2}, {"processors", 2}, {"shared", 8192}};

inline cudaError_t result(const char *call) {
    return settings.count(call) ? emulated_failure : cudaSuccess;
}

struct Lane {
    ucontext_t start;
    jmp_buf at;
    std::unique_ptr<char[]> stack;
    bool begun = false, ended = false;
    int barrier = 0, phase = 0;
    uint64_t posted[2];
};

constexpr size_t stack_bytes = 1 << 17;

class Block {
  public:
    explicit Block(int threads) : lanes(threads) {
        for (Lane &lane : lanes) lane.stack.reset(new char[stack_bytes]);
    }

    // body() on every lane
    template <class Body> cudaError_t run(Body body) {
        work = [](void *what) { (*static_cast<Body *>(what))(); };
        argument = &body;
        current = this;
        std::vector<int> order(lanes.size());
        for (size_t i = 0; i < order.size(); ++i) order[i] = int(i);
        for (Lane &lane : lanes) lane.begun = lane.ended = false;
        for (;;) {
            std::shuffle(order.begin(), order.end(), random);
            for (int i : order) go_on(i);
            for (const Lane &lane : lanes)
                if (lane.ended != lanes[0].ended || lane.barrier != lanes[0].barrier)
                    return emulated_divergence;
            if (lanes[0].ended) return cudaSuccess;
        }
    }

    // waits for all lanes at the barrier of this kind; value(lane) is then what that lane posted
    template <class T> auto meet(int barrier, T value) {
        Lane &mine = lanes[now];
        const int phase = mine.phase ^= 1;
        std::memcpy(&mine.posted[phase], &value, sizeof value);
        mine.barrier = barrier;
        if (!_setjmp(mine.at)) _longjmp(scheduler, 1);
        return [this, phase](int lane) {
            T other;
            std::memcpy(&other, &lanes[lane].posted[phase], sizeof other);
            return other;
        };
    }

    static inline thread_local Block *current = nullptr;

  private:
    void go_on(int i) {
        now = i;
        threadIdx.x = i;
        Lane &lane = lanes[i];
        if (_setjmp(scheduler)) return;
        if (lane.begun) _longjmp(lane.at, 1);
        lane.begun = true;
        getcontext(&lane.start);
        lane.start.uc_stack.ss_sp = lane.stack.get();
        lane.start.uc_stack.ss_size = stack_bytes;
        makecontext(&lane.start, begin, 0);
        setcontext(&lane.start);
    }
    static void begin() {
        Block *block = current;
        block->work(block->argument);
        block->lanes[block->now].ended = true;
        _longjmp(block->scheduler, 1);
    }

    std::vector<Lane> lanes;
    std::mt19937 random{1};
    jmp_buf scheduler;
    int now = 0;
    void (*work)(void *) = nullptr;
    void *argument = nullptr;
};

inline int lane_of_warp(int lane) { return int(threadIdx.x) / 32 * 32 + lane; }

} // namespace emulated

inline void __syncthreads() { emulated::Block::current->meet(1, 0); }
inline void __syncwarp() { emulated::Block::current->meet(2, 0); }
template <class T> T __shfl_xor_sync(unsigned, T x, int far) {
    const int to = int(threadIdx.x) ^ far;
    return emulated::Block::current->meet(64 + far, x)(to);
}
template <class T> T __shfl_sync(unsigned, T x, int from) {
    const int to = emulated::lane_of_warp(from);
    return emulated::Block::current->meet(3, x)(to);
}
inline unsigned __ballot_sync(unsigned, bool on) {
    const int first = emulated::lane_of_warp(0);
    const auto voted = emulated::Block::current->meet(4, on);
    unsigned votes = 0;
    for (int lane = 0; lane < 32; ++lane) votes |= unsigned(voted(first + lane)) << lane;
    return votes;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline unsigned long long atomicAdd(unsigned long long *to, unsigned long long x) {
    return (*to += x) - x;
}

inline const char *cudaGetErrorName(cudaError_t) { return "emulated"; }
inline const char *cudaGetErrorString(cudaError_t error) {
    return error == emulated_divergence ? "lanes went different ways"
           : error == emulated_overrun  ? "more shared memory than requested"
                                        : "it was set to fail";
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaGetDeviceCount(int *count) {
    *count = int(emulated::settings["devices"]);
    return emulated::result("cudaGetDeviceCount");
}
inline cudaError_t cudaGetDevice(int *device) {
    *device = int(emulated::settings["current"]);
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= emulated::settings["devices"]) return emulated_failure;
    emulated::settings["current"] = device;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr name, int) {
    const char *names[] = {"processors", "shared", "ratio"};
    *value = int(emulated::settings[names[name]]);
    return cudaSuccess;
}
// all memory is that of the first device, but for one address
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *found, const void *address) {
    const bool host = reinterpret_cast<long>(address) == emulated::settings["host address"];
    *found = {host ? cudaMemoryTypeHost : cudaMemoryTypeDevice, 0};
    return cudaSuccess;
}
template <class F> cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *found, F *) {
    found->sharedSizeBytes = 64;
    return emulated::result("cudaFuncGetAttributes");
}
template <class F> cudaError_t cudaFuncSetAttribute(F *, cudaFuncAttribute, int bytes) {
    emulated::settings["dynamic limit"] = bytes;
    return bytes > emulated::settings["shared"] - 64 ? emulated_failure : cudaSuccess;
}
template <class F>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, F *, int, size_t) {
    *blocks = 2;
    return emulated::result("cudaOccupancyMaxActiveBlocksPerMultiprocessor");
}
inline cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    std::memset(to, value, bytes);
    emulated::settings["stream"] = reinterpret_cast<long>(stream);
    return emulated::result("cudaMemsetAsync");
}

namespace {

// the shared memory of the kernel, which it declares without a size
alignas(256) thread_local char shared[1 << 18];

template <class... A, size_t... I>
cudaError_t launch(void (*kernel)(A...), dim3 grid, dim3 block, void **arguments, size_t bytes,
                   std::index_sequence<I...>) {
    emulated::Block lanes(int(block.x));
    // the last block does all rows there are: it is that which could run over the workspace
    for (unsigned b = grid.x; b-- > 0;) {
        blockIdx.x = b;
        // NaN, and what must not change
        std::memset(shared, 0xff, bytes);
        std::memset(shared + bytes, 0x5a, sizeof shared - bytes);
        const cudaError_t error =
            lanes.run([&] { kernel(*static_cast<A *>(arguments[I])...); });
        if (error != cudaSuccess) return error;
        for (const char *end = shared + bytes; end < shared + sizeof shared; ++end)
            if (*end != 0x5a) return emulated_overrun;
    }
    return cudaSuccess;
}

template <class... A>
cudaError_t cudaLaunchKernel(void (*kernel)(A...), dim3 grid, dim3 block, void **arguments,
                             size_t bytes, cudaStream_t stream) {
    emulated::settings["blocks"] = grid.x;
    emulated::settings["threads"] = block.x;
    emulated::settings["launches"] += 1;
    if (bytes > size_t(emulated::settings["dynamic limit"])) return emulated_failure;
    if (reinterpret_cast<long>(stream) != emulated::settings["stream"]) return emulated_failure;
    if (const cudaError_t error = emulated::result("cudaLaunchKernel")) return error;
    return launch(kernel, grid, block, arguments, bytes, std::index_sequence_for<A...>{});
}

} // namespace

// for tests, by name
#define EMULATED_EXPORT extern "C" __attribute__((visibility("default"), used)) inline

EMULATED_EXPORT long emulated_setting(const char *name) { return emulated::settings[name]; }
EMULATED_EXPORT void emulate(const char *name, long value) { emulated::settings[name] = value; }
EMULATED_EXPORT void emulate_no(const char *name) { emulated::settings.erase(name); }

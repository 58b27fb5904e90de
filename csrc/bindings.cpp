// fastnmf._C: checks arguments, releases the GIL, picks the instruction set, deals tiles to
// threads.
//
// Matrices come as an address and strides in elements; nothing here knows torch. The caller keeps
// the memory alive and sees to its dtype. CPU kernels: hals_cpu.cpp, update_cpu.cpp.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "kernels_cpu.h"

namespace py = pybind11;
using namespace fastnmf;

namespace {

using Address = uintptr_t;
using Size = ptrdiff_t;

template <class... Parts> [[noreturn]] void refuse(const Parts &...parts) {
    std::ostringstream message;
    (message << ... << parts);
    throw std::invalid_argument(message.str());
}

// instruction sets

struct Isa {
    const char *name;
    bool usable;
    const HalsKernels<float> &hals_float32;
    const HalsKernels<double> &hals_float64;
    const UpdateKernels<float> &update_float32;
    const UpdateKernels<double> &update_float64;
};

#define FASTNMF_ISA_ROW(isa, usable)                                                               \
    Isa {                                                                                          \
        #isa, usable, isa::hals_float32, isa::hals_float64, isa::update_float32,                   \
            isa::update_float64                                                                    \
    }

// worst first
const std::vector<Isa> &isas() {
    static const std::vector<Isa> table{
        FASTNMF_ISA_ROW(baseline, true),
#if FASTNMF_X86
        FASTNMF_ISA_ROW(avx2, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")),
        FASTNMF_ISA_ROW(avx512,
                        __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma")),
#endif
    };
    return table;
}

std::atomic<const Isa *> forced_isa{nullptr};

const Isa &isa() {
    if (const Isa *forced = forced_isa) return *forced;
    const auto best =
        std::find_if(isas().rbegin(), isas().rend(), [](auto &i) { return i.usable; });
    return *best;
}

void force_isa(const std::string &name) {
    if (name == "auto") {
        forced_isa = nullptr;
        return;
    }
    std::string names;
    for (const Isa &one : isas()) {
        if (name == one.name && one.usable) {
            forced_isa = &one;
            return;
        }
        if (one.usable) names += std::string(", ") + one.name;
    }
    refuse("force_isa: '", name, "' is not an instruction set usable here; they are: auto", names);
}

template <class T> const HalsKernels<T> &hals_kernels() {
    if constexpr (std::is_same_v<T, float>)
        return isa().hals_float32;
    else
        return isa().hals_float64;
}

template <class T> const UpdateKernels<T> &update_kernels() {
    if constexpr (std::is_same_v<T, float>)
        return isa().update_float32;
    else
        return isa().update_float64;
}

// arguments

template <class T> T *pointer(const char *name, Address address) {
    if (address == 0) refuse(name, " is a null pointer");
    if (address % alignof(T)) refuse(name, " = ", address, " is not aligned to ", alignof(T));
    return reinterpret_cast<T *>(address);
}

// two elements of a matrix (K × m) must not share memory
template <class T>
View<T> view(const char *name, Address address, Size stride_k, Size stride_m, Size K, Size m) {
    const bool columns_inside = m < 2 || (K > 1 && stride_m < stride_k);
    const Size inner = columns_inside ? stride_m : stride_k, inner_size = columns_inside ? m : K;
    const Size outer = columns_inside ? stride_k : stride_m, outer_size = columns_inside ? K : m;
    if ((inner_size > 1 && inner < 1) ||
        (outer_size > 1 && outer < 1 + (inner_size > 1 ? (inner_size - 1) * inner : 0)))
        refuse(name, " (", K, " x ", m, ") has strides (", stride_k, ", ", stride_m,
               "): they must be positive and its elements apart");
    return {pointer<T>(name, address), stride_k, stride_m};
}

void check_sizes(const char *rows_name, Size rows, Size m, int threads) {
    if (rows < 0 || m < 0) refuse(rows_name, " = ", rows, ", m = ", m, ": a size is negative");
    if (threads < 1) refuse("threads = ", threads, ": at least 1 is needed");
}

// calls run(T{}) for the named dtype
template <class Run> void with_dtype(const std::string &dtype, Run run) {
    if (dtype == "float32")
        run(float{});
    else if (dtype == "float64")
        run(double{});
    else
        refuse("dtype '", dtype, "' is neither 'float32' nor 'float64'");
}

// threads

constexpr double work_per_thread = 100e3;

// work(tile, thread, two doubles) for every tile; their sums are added to sums[0], sums[1] in the
// order of tiles, whatever the number of threads. `cost`: elementary operations in all.
template <class Work>
void for_tiles(Size tiles, int threads, double cost, double *sums, Work work) {
    std::vector<double> partial(2 * tiles);
    threads = static_cast<int>(
        std::min<double>({double(threads), double(tiles), std::max(1.0, cost / work_per_thread)}));
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel for schedule(static) num_threads(threads)
        for (Size tile = 0; tile < tiles; ++tile)
            work(tile, omp_get_thread_num(), &partial[2 * tile]);
    } else
#endif
        for (Size tile = 0; tile < tiles; ++tile) work(tile, 0, &partial[2 * tile]);
    for (Size tile = 0; tile < tiles; ++tile) {
        sums[0] += partial[2 * tile];
        sums[1] += partial[2 * tile + 1];
    }
}

// HALS

// uninitialised and on a cache line
template <class T> struct Scratch {
    T *data;

    explicit Scratch(Size size)
        : data(static_cast<T *>(::operator new(size * sizeof(T), std::align_val_t{64}))) {}
    ~Scratch() { ::operator delete(data, std::align_val_t{64}); }
    Scratch(const Scratch &) = delete;
    Scratch &operator=(const Scratch &) = delete;
};

template <class T, class Arguments>
void run_hals(void (*kernel)(const Arguments &, Size, T *, double *), Size columns,
              const Arguments &a, Size concepts, Size m, double cost, int threads, double *sums) {
    const Size scratch_size = 2 * concepts * columns;
    const Scratch<T> scratch(threads * scratch_size);
    for_tiles((m + columns - 1) / columns, threads, cost, sums,
              [&](Size tile, int thread, double *partial) {
                  kernel(a, tile * columns, scratch.data + thread * scratch_size, partial);
              });
}

void hals_block(const std::string &dtype, Address F, Size stride_fk, Size stride_fm, Address R,
                Size stride_r, Address G, Size stride_g, Address delta, Size stride_d, Size s,
                Size m, Address sums, int threads) {
    check_sizes("s", s, m, threads);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        double *total = pointer<double>("sums", sums);
        if (s == 0 || m == 0) return;
        const HalsBlock<T> a{view<T>("F", F, stride_fk, stride_fm, s, m),
                             view<const T>("R", R, stride_r, 1, s, m),
                             view<T>("delta", delta, stride_d, 1, s, m),
                             view<const T>("G", G, stride_g, 1, s, s).data,
                             stride_g,
                             s,
                             m};
        py::gil_scoped_release released;
        const HalsKernels<T> &kernels = hals_kernels<T>();
        run_hals(kernels.block, kernels.tile_columns, a, s, m, double(m) * s * s, threads, total);
    });
}

void hals_normal(const std::string &dtype, Address F, Size stride_fk, Size stride_fm, Address C,
                 Size stride_ck, Size stride_cm, Address G, Size stride_g, Size K, Size m,
                 Address sums, int threads) {
    check_sizes("K", K, m, threads);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        double *total = pointer<double>("sums", sums);
        if (K == 0 || m == 0) return;
        const HalsNormal<T> a{view<T>("F", F, stride_fk, stride_fm, K, m),
                              view<const T>("C", C, stride_ck, stride_cm, K, m),
                              view<const T>("G", G, stride_g, 1, K, K).data,
                              stride_g,
                              K,
                              m};
        py::gil_scoped_release released;
        const HalsKernels<T> &kernels = hals_kernels<T>();
        run_hals(kernels.normal, kernels.tile_columns, a, K, m, 2.0 * m * K * K, threads, total);
    });
}

// mu and pgd

// work(k, i, concepts, columns, two doubles) for blocks of 16 lines × 512 along what is contiguous:
// enough for the prefetcher, and as many squares as a sum in float32 should have
template <class Work>
void for_blocks(Size K, Size m, bool concepts_adjacent, int threads, double *sums, Work work) {
    const Size concepts = concepts_adjacent ? 512 : 16, columns = concepts_adjacent ? 16 : 512;
    const Size across = (m + columns - 1) / columns, down = (K + concepts - 1) / concepts;
    for_tiles(across * down, threads, double(K) * m, sums, [&](Size tile, int, double *partial) {
        const Size k = tile / across * concepts, i = tile % across * columns;
        work(k, i, std::min(concepts, K - k), std::min(columns, m - i), partial);
    });
}

template <class T> View<T> part(View<T> x, Size k, Size i) {
    return {at(x, k, i), x.stride_k, x.stride_m};
}

void mu_update(const std::string &dtype, Address F, Size stride_fk, Size stride_fm,
               Address numerator, Size stride_nk, Size stride_nm, Address denominator,
               Size stride_dk, Size stride_dm, Address alive, Size K, Size m, Address sums,
               int threads) {
    check_sizes("K", K, m, threads);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        double *total = pointer<double>("sums", sums);
        if (K == 0 || m == 0) return;
        const MuUpdate<T> a{view<T>("F", F, stride_fk, stride_fm, K, m),
                            view<const T>("numerator", numerator, stride_nk, stride_nm, K, m),
                            view<const T>("denominator", denominator, stride_dk, stride_dm, K, m),
                            reinterpret_cast<const uint8_t *>(alive),
                            K,
                            m};
        py::gil_scoped_release released;
        const auto kernel = update_kernels<T>().mu;
        for_blocks(K, m, stride_fk == 1, threads, total,
                   [&](Size k, Size i, Size concepts, Size columns, double *partial) {
                       kernel({part(a.F, k, i), part(a.numerator, k, i), part(a.denominator, k, i),
                               a.alive ? a.alive + k : nullptr, concepts, columns},
                              partial);
                   });
    });
}

void pgd_update(const std::string &dtype, Address F, Size stride_fk, Size stride_fm, Address Y,
                Size stride_yk, Size stride_ym, Address gradient, Size stride_gk, Size stride_gm,
                double step, double momentum, Size K, Size m, Address sums, int threads) {
    check_sizes("K", K, m, threads);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        double *total = pointer<double>("sums", sums);
        if (K == 0 || m == 0) return;
        const PgdUpdate<T> a{view<T>("F", F, stride_fk, stride_fm, K, m),
                             view<T>("Y", Y, stride_yk, stride_ym, K, m),
                             view<const T>("gradient", gradient, stride_gk, stride_gm, K, m),
                             static_cast<T>(step),
                             static_cast<T>(momentum),
                             K,
                             m};
        py::gil_scoped_release released;
        const auto kernel = update_kernels<T>().pgd;
        for_blocks(K, m, stride_fk == 1, threads, total,
                   [&](Size k, Size i, Size concepts, Size columns, double *partial) {
                       kernel({part(a.F, k, i), part(a.Y, k, i), part(a.gradient, k, i), a.step,
                               a.momentum, concepts, columns},
                              partial);
                   });
    });
}

} // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "CPU kernels of fastnmf. Matrices are given as address and strides in elements; "
                   "dtype is 'float32' or 'float64'; to sums (two float64) are added the squared "
                   "norms of the change and of the updated F.";
    module.def(
        "hals_block", &hals_block, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"),
        py::arg("stride_fm"), py::arg("R"), py::arg("stride_r"), py::arg("G"), py::arg("stride_g"),
        py::arg("delta"), py::arg("stride_d"), py::arg("s"), py::arg("m"), py::arg("sums"),
        py::arg("threads"),
        "F_k = max(0, F_k + R_k / G_kk), then R_i -= G_ik delta_k for i > k; k = 0 ... s-1.\n\n"
        "F (s, m) in any layout, R and delta (s, m) and G (s, s) with contiguous rows; delta "
        "may be R. A concept with G_kk below the smallest normal number is left as it is.");
    module.def(
        "hals_normal", &hals_normal, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"),
        py::arg("stride_fm"), py::arg("C"), py::arg("stride_ck"), py::arg("stride_cm"),
        py::arg("G"), py::arg("stride_g"), py::arg("K"), py::arg("m"), py::arg("sums"),
        py::arg("threads"),
        "F_k = max(0, F_k + (C_k - G_k F) / G_kk); k = 0 ... K-1.\n\n"
        "F, C (K, m) in any layout, G (K, K) with contiguous rows. A concept with G_kk below "
        "the smallest normal number is left as it is.");
    module.def(
        "mu_update", &mu_update, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"),
        py::arg("stride_fm"), py::arg("numerator"), py::arg("stride_nk"), py::arg("stride_nm"),
        py::arg("denominator"), py::arg("stride_dk"), py::arg("stride_dm"), py::arg("alive"),
        py::arg("K"), py::arg("m"), py::arg("sums"), py::arg("threads"),
        "F *= numerator / max(denominator, smallest normal number).\n\n"
        "All (K, m) in any layout. alive: K bytes, F_k is kept where it is 0; or 0 for none.");
    module.def("pgd_update", &pgd_update, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"),
               py::arg("stride_fm"), py::arg("Y"), py::arg("stride_yk"), py::arg("stride_ym"),
               py::arg("gradient"), py::arg("stride_gk"), py::arg("stride_gm"), py::arg("step"),
               py::arg("momentum"), py::arg("K"), py::arg("m"), py::arg("sums"), py::arg("threads"),
               "F_new = max(0, Y - step gradient); Y = F_new + momentum (F_new - F); F = F_new.\n\n"
               "All (K, m) in any layout.");
    module.def("isa", [] { return isa().name; }, "The instruction set in use.");
    module.def(
        "isas",
        [] {
            py::dict usable;
            for (const Isa &one : isas()) usable[one.name] = one.usable;
            return usable;
        },
        "Every instruction set compiled in, worst first, and whether this CPU has it.");
    module.def("force_isa", &force_isa, py::arg("name"),
               "Use the named instruction set from now on, or the best with 'auto'. For tests.");
}

// The instruction sets that the kernels are compiled for, and which of them is in use.
#pragma once

#include <algorithm>
#include <atomic>
#include <string>
#include <type_traits>
#include <vector>

#include "../errors.h"
#include "kernels.h"

namespace fastnmf {

struct Isa {
    const char *name;
    bool usable;
    const HalsKernels<float> &hals_float32;
    const HalsKernels<double> &hals_float64;
    const MomentsKernels<float> &moments_float32;
    const MomentsKernels<double> &moments_float64;
    const UpdateKernels<float> &update_float32;
    const UpdateKernels<double> &update_float64;
    const NnlsKernels<float> &nnls_float32;
    const NnlsKernels<double> &nnls_float64;
    const ActiveSetKernels<float> &active_set_float32;
    const ActiveSetKernels<double> &active_set_float64;
    const SparseKernels<float, int32_t> &sparse_float32_int32;
    const SparseKernels<float, int64_t> &sparse_float32_int64;
    const SparseKernels<double, int32_t> &sparse_float64_int32;
    const SparseKernels<double, int64_t> &sparse_float64_int64;
    const WeightedKernels<float, int32_t> &weighted_float32_int32;
    const WeightedKernels<float, int64_t> &weighted_float32_int64;
    const WeightedKernels<double, int32_t> &weighted_float64_int32;
    const WeightedKernels<double, int64_t> &weighted_float64_int64;
    const RestrictedKernels<float, int32_t> &restricted_float32_int32;
    const RestrictedKernels<float, int64_t> &restricted_float32_int64;
    const RestrictedKernels<double, int32_t> &restricted_float64_int32;
    const RestrictedKernels<double, int64_t> &restricted_float64_int64;
};

#define FASTNMF_ISA_ROW(isa, usable)                                                               \
    Isa {                                                                                          \
        #isa, usable, isa::hals_float32, isa::hals_float64, isa::moments_float32,                  \
            isa::moments_float64, isa::update_float32, isa::update_float64, isa::nnls_float32,     \
            isa::nnls_float64, isa::active_set_float32, isa::active_set_float64,                   \
            isa::sparse_float32_int32, isa::sparse_float32_int64, isa::sparse_float64_int32,       \
            isa::sparse_float64_int64, isa::weighted_float32_int32, isa::weighted_float32_int64,   \
            isa::weighted_float64_int32, isa::weighted_float64_int64,                              \
            isa::restricted_float32_int32, isa::restricted_float32_int64,                          \
            isa::restricted_float64_int32, isa::restricted_float64_int64                           \
    }

// worst first
inline const std::vector<Isa> &isas() {
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

inline std::atomic<const Isa *> forced_isa{nullptr};

inline const Isa &isa() {
    if (const Isa *forced = forced_isa) return *forced;
    const auto best =
        std::find_if(isas().rbegin(), isas().rend(), [](auto &i) { return i.usable; });
    return *best;
}

inline void force_isa(const std::string &name) {
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

template <class T, template <class> class Kernels>
const Kernels<T> &of_type(const Kernels<float> &float32, const Kernels<double> &float64) {
    if constexpr (std::is_same_v<T, float>)
        return float32;
    else
        return float64;
}

template <class T> const HalsKernels<T> &hals_kernels() {
    return of_type<T>(isa().hals_float32, isa().hals_float64);
}

template <class T> const MomentsKernels<T> &moments_kernels() {
    return of_type<T>(isa().moments_float32, isa().moments_float64);
}

template <class T> const UpdateKernels<T> &update_kernels() {
    return of_type<T>(isa().update_float32, isa().update_float64);
}

template <class T> const NnlsKernels<T> &nnls_kernels() {
    return of_type<T>(isa().nnls_float32, isa().nnls_float64);
}

template <class T> const ActiveSetKernels<T> &active_set_kernels() {
    return of_type<T>(isa().active_set_float32, isa().active_set_float64);
}

template <class T, class I, template <class, class> class Kernels>
const Kernels<T, I> &of_types(const Kernels<float, int32_t> &float32_int32,
                              const Kernels<float, int64_t> &float32_int64,
                              const Kernels<double, int32_t> &float64_int32,
                              const Kernels<double, int64_t> &float64_int64) {
    if constexpr (std::is_same_v<T, float> && std::is_same_v<I, int32_t>)
        return float32_int32;
    else if constexpr (std::is_same_v<T, float>)
        return float32_int64;
    else if constexpr (std::is_same_v<I, int32_t>)
        return float64_int32;
    else
        return float64_int64;
}

template <class T, class I> const SparseKernels<T, I> &sparse_kernels() {
    const Isa &best = isa();
    return of_types<T, I>(best.sparse_float32_int32, best.sparse_float32_int64,
                          best.sparse_float64_int32, best.sparse_float64_int64);
}

template <class T, class I> const WeightedKernels<T, I> &weighted_kernels() {
    const Isa &best = isa();
    return of_types<T, I>(best.weighted_float32_int32, best.weighted_float32_int64,
                          best.weighted_float64_int32, best.weighted_float64_int64);
}

template <class T, class I> const RestrictedKernels<T, I> &restricted_kernels() {
    const Isa &best = isa();
    return of_types<T, I>(best.restricted_float32_int32, best.restricted_float32_int64,
                          best.restricted_float64_int32, best.restricted_float64_int64);
}

} // namespace fastnmf

// Vectors as wide as the instruction set that this file is compiled for; internal linkage only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#if !defined(__GNUC__)
#error "fastnmf's CPU kernels use GCC's vector extensions: compile with GCC or Clang (clang-cl)"
#endif

namespace {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class T> struct Simd {
    static constexpr int lanes = vector_bytes / sizeof(T);
    typedef T vec __attribute__((vector_size(vector_bytes)));
};
template <class T> using Vec = typename Simd<T>::vec;

template <class T> inline Vec<T> load(const T *from) {
    Vec<T> x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

template <class T> inline void store(T *to, Vec<T> x) { __builtin_memcpy(to, &x, sizeof x); }

// max(0, x); keeps a NaN, as torch.clamp does
template <class V> inline V positive_part(V x) { return V{} > x ? V{} : x; }

template <class T> inline double sum(Vec<T> x) {
    double total = 0;
    for (int l = 0; l < Simd<T>::lanes; ++l) total += x[l];
    return total;
}

// swap the off-diagonal squares of b × b within x and y, b rows apart
template <class T, int b, int... l>
inline void exchange(Vec<T> &x, Vec<T> &y, std::integer_sequence<int, l...>) {
    constexpr int lanes = Simd<T>::lanes;
#if defined(__clang__)
    const Vec<T> upper = __builtin_shufflevector(x, y, (l & b ? lanes + l - b : l)...);
    const Vec<T> lower = __builtin_shufflevector(x, y, (l & b ? lanes + l : l + b)...);
#else
    typedef decltype(x > y) index;
    const Vec<T> upper = __builtin_shuffle(x, y, index{(l & b ? lanes + l - b : l)...});
    const Vec<T> lower = __builtin_shuffle(x, y, index{(l & b ? lanes + l : l + b)...});
#endif
    x = upper;
    y = lower;
}

// rows (lanes × lanes) ← their transpose
template <class T, int b = Simd<T>::lanes / 2> inline void transpose(Vec<T> *rows) {
    constexpr int lanes = Simd<T>::lanes;
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i)
        if (!(i & b))
            exchange<T, b>(rows[i], rows[i + b], std::make_integer_sequence<int, lanes>{});
    if constexpr (b > 1) transpose<T, b / 2>(rows);
}

} // namespace

// Vectors as wide as the instruction set that this file is compiled for; all with internal linkage.
#pragma once

#include <cfloat>
#include <cstddef>
#include <cstdint>
#include <utility>

#if defined(__AVX2__)
#pragma GCC diagnostic push
// some versions of GCC warn about their own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

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

// the smallest normal number
template <class T> constexpr T tiny = sizeof(T) == 4 ? T(FLT_MIN) : T(DBL_MIN);

// that of std may have external linkage
inline ptrdiff_t min(ptrdiff_t x, ptrdiff_t y) { return x < y ? x : y; }

template <class T> inline Vec<T> load(const T *from) {
    Vec<T> x;
    __builtin_memcpy(&x, from, sizeof x);
    return x;
}

inline Vec<double> widened(const double *from) { return load(from); }

inline Vec<double> widened(const float *from) {
    // GCC converts halves, with two shuffles
#if defined(__AVX512F__)
    return (Vec<double>)_mm512_cvtps_pd(_mm256_loadu_ps(from));
#elif defined(__AVX2__)
    return (Vec<double>)_mm256_cvtps_pd(_mm_loadu_ps(from));
#else
    typedef float Narrow __attribute__((vector_size(vector_bytes / 2)));
    Narrow x;
    __builtin_memcpy(&x, from, sizeof x);
    return __builtin_convertvector(x, Vec<double>);
#endif
}

template <class T> inline void store(T *to, Vec<T> x) { __builtin_memcpy(to, &x, sizeof x); }

// the first `count` elements, and zeros
template <class T> inline Vec<T> load_some(const T *from, int count) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        return (Vec<T>)_mm512_maskz_loadu_ps((1u << count) - 1, from);
    else
        return (Vec<T>)_mm512_maskz_loadu_pd((1u << count) - 1, from);
#else
    if (count == Simd<T>::lanes) return load(from);
    Vec<T> x = {};
    for (int l = 0; l < count; ++l) x[l] = from[l];
    return x;
#endif
}

template <class T> inline void store_some(T *to, Vec<T> x, int count) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
        _mm512_mask_storeu_ps(to, (1u << count) - 1, (__m512)x);
    else
        _mm512_mask_storeu_pd(to, (1u << count) - 1, (__m512d)x);
#else
    if (count == Simd<T>::lanes) return store(to, x);
    for (int l = 0; l < count; ++l) to[l] = x[l];
#endif
}

// max(0, x); keeps a NaN, as torch.clamp does
template <class V> inline V positive_part(V x) { return V{} > x ? V{} : x; }

// max(least x, x + step (x − before)), E: T or Vec<T>; keeps a NaN
template <class T, class E> inline E extrapolated(E x, E before, T step, T least) {
    const E moved = x + step * (x - before), rest = least * x;
    return rest > moved ? rest : moved;
}

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

// squares (lanes × lanes) ← the transpose of as many rows of memory
template <class T> inline void load_transposed(Vec<T> *square, const T *from, ptrdiff_t stride) {
    for (int l = 0; l < Simd<T>::lanes; ++l) square[l] = load(from + l * stride);
    transpose<T>(square);
}

#if defined(__AVX512F__)
// The only execution unit that shuffles across lanes also multiplies, so shuffles delay products.
// Loading quarters of vectors to their final place halves the number of shuffles.
template <int exchanges, class Quarter>
inline void gather_quarters(__m512 *quarters, Quarter read) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c)
#pragma GCC unroll 4
        for (int i = 0; i < exchanges; ++i) {
            __m512 x = _mm512_castps128_ps512(read(i, c));
            x = _mm512_mask_broadcast_f32x4(x, 0x00f0, read(i + exchanges, c));
            x = _mm512_mask_broadcast_f32x4(x, 0x0f00, read(i + 2 * exchanges, c));
            x = _mm512_mask_broadcast_f32x4(x, 0xf000, read(i + 3 * exchanges, c));
            quarters[c * exchanges + i] = x;
        }
}

template <>
inline void load_transposed<float>(Vec<float> *square, const float *from, ptrdiff_t stride) {
    __m512 x[16];
    gather_quarters<4>(x,
                       [&](int row, int c) { return _mm_loadu_ps(from + row * stride + 4 * c); });
#pragma GCC unroll 4
    for (int k = 0; k < 16; k += 4) {
        const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(x[k], x[k + 1]));
        const __m512d high01 = _mm512_castps_pd(_mm512_unpackhi_ps(x[k], x[k + 1]));
        const __m512d low23 = _mm512_castps_pd(_mm512_unpacklo_ps(x[k + 2], x[k + 3]));
        const __m512d high23 = _mm512_castps_pd(_mm512_unpackhi_ps(x[k + 2], x[k + 3]));
        square[k] = (Vec<float>)_mm512_unpacklo_pd(low01, low23);
        square[k + 1] = (Vec<float>)_mm512_unpackhi_pd(low01, low23);
        square[k + 2] = (Vec<float>)_mm512_unpacklo_pd(high01, high23);
        square[k + 3] = (Vec<float>)_mm512_unpackhi_pd(high01, high23);
    }
}

template <>
inline void load_transposed<double>(Vec<double> *square, const double *from, ptrdiff_t stride) {
    __m512 x[8];
    gather_quarters<2>(x, [&](int row, int c) {
        return _mm_castpd_ps(_mm_loadu_pd(from + row * stride + 2 * c));
    });
#pragma GCC unroll 4
    for (int k = 0; k < 8; k += 2) {
        const __m512d first = _mm512_castps_pd(x[k]), second = _mm512_castps_pd(x[k + 1]);
        square[k] = (Vec<double>)_mm512_unpacklo_pd(first, second);
        square[k + 1] = (Vec<double>)_mm512_unpackhi_pd(first, second);
    }
}
#endif

} // namespace

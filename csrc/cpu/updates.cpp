// Element-wise updates. mu: F ← F ∘ numerator / denominator. pgd: F ← max(0, Y − step · gradient),
// with momentum. extrapolate: F ← max(least F, F + step (F − swept)). rescale: concepts of F and
// swept by factors. And two sums over elements, inner and change.
//
// One pass over lines along the contiguous dimension of F, with vectors where all operands are
// contiguous along it. In float32, mu moves 16 bytes an element, pgd and extrapolate 20. Limited by
// memory.

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "simd.h"

namespace {

using fastnmf::Extrapolate;
using fastnmf::Matrix;
using fastnmf::MuUpdate;
using fastnmf::PgdUpdate;
using fastnmf::Rescale;
using fastnmf::Rows;

template <class T> constexpr int V = Simd<T>::lanes;

// `count` lines of n elements: rows of concepts, or columns if the concepts of F are adjacent
struct Lines {
    bool across;
    ptrdiff_t count, n;

    template <class T>
    Lines(Matrix<T> F, ptrdiff_t K, ptrdiff_t m)
        : across(F.stride_k == 1 && F.stride_m != 1), count(across ? m : K), n(across ? K : m) {}

    // a single line, if no matrix has gaps between lines: for short lines the sums at the end of
    // each would take longer than the line
    template <class... Matrices> Lines joined(const Matrices &...matrices) const {
        Lines all = *this;
        if ((... && (across ? matrices.stride_k == 1 && matrices.stride_m == n
                            : matrices.stride_m == 1 && matrices.stride_k == n))) {
            all.n *= count;
            all.count = 1;
        }
        return all;
    }
};

template <class T> struct Line {
    T *data;
    ptrdiff_t stride;

    T &operator[](ptrdiff_t i) const { return data[i * stride]; }
};

template <class T> Line<T> line(const Lines &lines, Matrix<T> x, ptrdiff_t l) {
    return lines.across ? Line<T>{x.data + l * x.stride_m, x.stride_k}
                        : Line<T>{x.data + l * x.stride_k, x.stride_m};
}

template <class T> struct Sums {
    T change{}, norm{};

    void add(T before, T after) {
        change += (after - before) * (after - before);
        norm += after * after;
    }
};

// E: T or Vec<T>. Subnormal results become zero
template <class T, class E> inline E mu_step(E before, E numerator, E denominator) {
    const E least = E{} + tiny<T>;
    const E after = before * numerator / (denominator < least ? least : denominator);
    return denominator > E{} ? (after < least ? E{} : after) : before;
}

template <class T>
void mu_line(Line<T> F, Line<const T> numerator, Line<const T> denominator, ptrdiff_t n,
             double *sums) {
    Sums<Vec<T>> of_vectors;
    Sums<T> of_rest;
    ptrdiff_t i = 0;
    if (F.stride == 1 && numerator.stride == 1 && denominator.stride == 1)
        for (; i + V<T> <= n; i += V<T>) {
            const Vec<T> before = load(F.data + i);
            const Vec<T> after =
                mu_step<T>(before, load(numerator.data + i), load(denominator.data + i));
            store(F.data + i, after);
            of_vectors.add(before, after);
        }
    for (; i < n; ++i) {
        const T before = F[i], after = mu_step<T>(before, numerator[i], denominator[i]);
        F[i] = after;
        of_rest.add(before, after);
    }
    sums[0] += sum<T>(of_vectors.change) + of_rest.change;
    sums[1] += sum<T>(of_vectors.norm) + of_rest.norm;
}

template <class T> void mu(const MuUpdate<T> &a, double *sums) {
    const Lines lines = Lines(a.F, a.K, a.m).joined(a.F, a.numerator, a.denominator);
    sums[0] = sums[1] = 0;
    for (ptrdiff_t l = 0; l < lines.count; ++l)
        mu_line(line(lines, a.F, l), line(lines, a.numerator, l), line(lines, a.denominator, l),
                lines.n, sums);
}

template <class T>
void pgd_line(Line<T> F, Line<T> Y, Line<const T> gradient, T step, T momentum, ptrdiff_t n,
              double *sums) {
    Sums<Vec<T>> of_vectors;
    Sums<T> of_rest;
    ptrdiff_t i = 0;
    if (F.stride == 1 && Y.stride == 1 && gradient.stride == 1)
        for (; i + V<T> <= n; i += V<T>) {
            const Vec<T> before = load(F.data + i);
            const Vec<T> after =
                positive_part(load<T>(Y.data + i) - step * load(gradient.data + i));
            store(F.data + i, after);
            store(Y.data + i, after + momentum * (after - before));
            of_vectors.add(before, after);
        }
    for (; i < n; ++i) {
        const T before = F[i], after = positive_part(Y[i] - step * gradient[i]);
        F[i] = after;
        Y[i] = after + momentum * (after - before);
        of_rest.add(before, after);
    }
    sums[0] += sum<T>(of_vectors.change) + of_rest.change;
    sums[1] += sum<T>(of_vectors.norm) + of_rest.norm;
}

template <class T> void pgd(const PgdUpdate<T> &a, double *sums) {
    const Lines lines = Lines(a.F, a.K, a.m).joined(a.F, a.Y, a.gradient);
    sums[0] = sums[1] = 0;
    for (ptrdiff_t l = 0; l < lines.count; ++l)
        pgd_line(line(lines, a.F, l), line(lines, a.Y, l), line(lines, a.gradient, l), a.step,
                 a.momentum, lines.n, sums);
}

template <bool measures, class T>
void extrapolate_line(Line<T> F, Line<T> swept, Line<const T> before, T step, T least, ptrdiff_t n,
                      double *sums) {
    Sums<Vec<T>> of_vectors;
    Sums<T> of_rest;
    ptrdiff_t i = 0;
    if (F.stride == 1 && swept.stride == 1 && (!measures || before.stride == 1))
        for (; i + V<T> <= n; i += V<T>) {
            const Vec<T> now = load<T>(F.data + i);
            const Vec<T> after = extrapolated(now, load<T>(swept.data + i), step, least);
            store(swept.data + i, now);
            store(F.data + i, after);
            if constexpr (measures) of_vectors.add(load(before.data + i), after);
        }
    for (; i < n; ++i) {
        const T now = F[i], after = extrapolated(now, swept[i], step, least);
        swept[i] = now;
        F[i] = after;
        if constexpr (measures) of_rest.add(before[i], after);
    }
    sums[0] += sum<T>(of_vectors.change) + of_rest.change;
    sums[1] += sum<T>(of_vectors.norm) + of_rest.norm;
}

template <class T> void extrapolate(const Extrapolate<T> &a, double *sums) {
    const Lines all(a.F, a.K, a.m);
    const bool measures = a.before.data;
    const Lines lines = measures ? all.joined(a.F, a.swept, a.before) : all.joined(a.F, a.swept);
    const auto each = measures ? extrapolate_line<true, T> : extrapolate_line<false, T>;
    sums[0] = sums[1] = 0;
    for (ptrdiff_t l = 0; l < lines.count; ++l)
        each(line(lines, a.F, l), line(lines, a.swept, l), line(lines, a.before, l), a.step,
             a.least, lines.n, sums);
}

template <class T>
void rescale_line(Line<T> F, Line<T> swept, Line<const T> scale, Line<const T> before, ptrdiff_t n,
                  Sums<Vec<T>> &of_vectors, Sums<T> &of_rest) {
    ptrdiff_t i = 0;
    if (F.stride == 1 && swept.stride == 1 && before.stride == 1)
        for (; i + V<T> <= n; i += V<T>) {
            const Vec<T> factor = scale.stride ? load(scale.data + i) : Vec<T>{} + scale[0];
            const Vec<T> after = factor * load<T>(F.data + i);
            store(F.data + i, after);
            store(swept.data + i, factor * load<T>(swept.data + i));
            of_vectors.add(load(before.data + i), after);
        }
    for (; i < n; ++i) {
        const T after = scale[i] * F[i];
        F[i] = after;
        swept[i] *= scale[i];
        of_rest.add(before[i], after);
    }
}

template <class T> void rescale(const Rescale<T> &a, double *sums) {
    const Lines lines(a.F, a.K, a.m);
    Sums<Vec<T>> of_vectors;
    Sums<T> of_rest;
    for (ptrdiff_t l = 0; l < lines.count; ++l)
        rescale_line(line(lines, a.F, l), line(lines, a.swept, l),
                     line(lines, Matrix<const T>{a.scale, 1, 0}, l), line(lines, a.before, l),
                     lines.n, of_vectors, of_rest);
    sums[0] = sum<T>(of_vectors.change) + of_rest.change;
    sums[1] = sum<T>(of_vectors.norm) + of_rest.norm;
}

// the sum in float64 of term(i), of T, for 0 ≤ i < n, in as many sums as fill two vectors
template <class T, class Term> inline double sum_of(ptrdiff_t n, Term term) {
    constexpr int lanes = Simd<T>::lanes;
    double sums[lanes] = {}, total = 0;
    ptrdiff_t i = 0;
    for (; i + lanes <= n; i += lanes)
        for (int l = 0; l < lanes; ++l) sums[l] += term(i + l);
    for (; i < n; ++i) total += term(i);
    for (int l = 0; l < lanes; ++l) total += sums[l];
    return total;
}

template <class T> double inner(const Rows<T> &a) {
    double total = 0;
    for (ptrdiff_t k = 0; k < a.K; ++k) {
        const T *x = a.X + k * a.stride_x, *y = a.Y + k * a.stride_y;
        total += sum_of<T>(a.m, [=](ptrdiff_t i) { return x[i] * y[i]; });
    }
    return total;
}

template <class T> void change(const Rows<T> &a, double *sums) {
    for (ptrdiff_t k = 0; k < a.K; ++k) {
        const T *x = a.X + k * a.stride_x, *y = a.Y + k * a.stride_y;
        sums[2 * k] = sum_of<T>(a.m, [=](ptrdiff_t i) { return (x[i] - y[i]) * (x[i] - y[i]); });
        sums[2 * k + 1] = sum_of<T>(a.m, [=](ptrdiff_t i) { return x[i] * x[i]; });
    }
}

} // namespace

namespace fastnmf::FASTNMF_ISA {
const UpdateKernels<float> update_float32{mu<float>,      pgd<float>,   extrapolate<float>,
                                          rescale<float>, inner<float>, change<float>};
const UpdateKernels<double> update_float64{mu<double>,      pgd<double>,   extrapolate<double>,
                                           rescale<double>, inner<double>, change<double>};
} // namespace fastnmf::FASTNMF_ISA

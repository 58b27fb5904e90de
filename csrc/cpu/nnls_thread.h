// The team of one thread: the operations that nnls/solver.h needs, on vectors in float64.
//
// Both products with M take four rows at once, each filled with zeros to whole packs, so nothing is
// masked; G streams by eight rows at a time. Limited by loads: of M from L1 or L2, of G from where
// K² numbers fit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../nnls/solver.h"
#include "simd.h"

namespace {

// doubles in a vector
constexpr int wide = Simd<double>::lanes;

inline Vec<double> widened(const double *from) { return load(from); }

inline Vec<double> widened(const float *from) {
    typedef float Narrow __attribute__((vector_size(vector_bytes / 2)));
    Narrow x;
    __builtin_memcpy(&x, from, sizeof x);
    return __builtin_convertvector(x, Vec<double>);
}

// w −= Σ_r x_r g_r for `rows` rows of G
template <int rows, class S>
inline void subtract(int K, double *w, const double *x, const S *const *g) {
    int k = 0;
    for (; k + wide <= K; k += wide) {
        Vec<double> sum = load(w + k);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r) sum -= x[r] * widened(g[r] + k);
        store(w + k, sum);
    }
    for (; k < K; ++k)
        for (int r = 0; r < rows; ++r) w[k] -= x[r] * double(g[r][k]);
}

// out_r = row_r · v for `rows` rows of M of the same length
template <int rows>
inline void dots(const double *const *row, const double *v, int length, double *out) {
    Vec<double> sums[rows][2] = {};
    for (int j = 0; j < length; j += 8)
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
            for (int b = 0; b < 8; b += wide)
                sums[r][b / wide % 2] += load(row[r] + j + b) * load(v + j + b);
    for (int r = 0; r < rows; ++r) out[r] = sum<double>(sums[r][0] + sums[r][1]);
}

// out += Σ_r v_r row_r
template <int rows>
inline void add_rows(const double *const *row, const double *v, int length, double *out) {
    for (int j = 0; j < length; j += wide) {
        Vec<double> sum = load(out + j);
#pragma GCC unroll 4
        for (int r = 0; r < rows; ++r) sum += v[r] * load(row[r] + j);
        store(out + j, sum);
    }
}

struct Thread {
    static constexpr int pack = 8;
    using M_t = Triangle<double, pack>;

    void sync() const {}
    bool leader() const { return true; }

    template <class F> FASTNMF_TEAM void each(int n, F f) const {
#pragma omp simd
        for (int i = 0; i < n; ++i) f(i);
    }
    template <class F> FASTNMF_TEAM double sum(int n, F f) const {
        double total = 0;
#pragma omp simd reduction(+ : total)
        for (int i = 0; i < n; ++i) total += f(i);
        return total;
    }
    template <class F> FASTNMF_TEAM double most(int n, F f) const {
        double best = 0;
#pragma omp simd reduction(max : best)
        for (int i = 0; i < n; ++i) {
            const double value = f(i);
            best = best > value ? best : value;
        }
        return best;
    }
    template <class F> FASTNMF_TEAM double least(int n, F f, double bound, int &index) const {
        index = -1;
        for (int i = 0; i < n; ++i) {
            const double value = f(i);
            if (value < bound) {
                bound = value;
                index = i;
            }
        }
        return bound;
    }
    template <class F> FASTNMF_TEAM int collect(int n, F f, int *out) const {
        int found = 0;
        for (int i = 0; i < n; ++i)
            if (f(i)) out[found++] = i;
        return found;
    }

    void multiply(M_t M, int p, double *v, double *out) const {
        for (int i = p; i % pack; ++i) v[i] = 0;
        int i = 0;
        for (; i + 4 <= p; i += 4) {
            const double *const rows[] = {M.row(i), M.row(i + 1), M.row(i + 2), M.row(i + 3)};
            dots<4>(rows, v, M_t::length(i), out + i);
        }
        for (; i < p; ++i) {
            const double *const row = M.row(i);
            dots<1>(&row, v, M_t::length(i), out + i);
        }
    }

    void multiply_transposed(M_t M, int p, const double *v, double *out) const {
        for (int j = 0; j < p || j % pack; ++j) out[j] = 0;
        int i = 0;
        for (; i + 4 <= p; i += 4) {
            const double *const rows[] = {M.row(i), M.row(i + 1), M.row(i + 2), M.row(i + 3)};
            add_rows<4>(rows, v + i, M_t::length(i), out);
        }
        for (; i < p; ++i) {
            const double *const row = M.row(i);
            add_rows<1>(&row, v + i, M_t::length(i), out);
        }
    }

    // out ← M v, back ← Mᵀ out, the sums of both products above, and M is read once
    void project(M_t M, int p, double *v, double *out, double *back) const {
        for (int i = p; i % pack; ++i) v[i] = 0;
        for (int j = 0; j < p || j % pack; ++j) back[j] = 0;
        int i = 0;
        for (; i + 4 <= p; i += 4) {
            const double *const rows[] = {M.row(i), M.row(i + 1), M.row(i + 2), M.row(i + 3)};
            dots<4>(rows, v, M_t::length(i), out + i);
            add_rows<4>(rows, out + i, M_t::length(i), back);
        }
        for (; i < p; ++i) {
            const double *const row = M.row(i);
            dots<1>(&row, v, M_t::length(i), out + i);
            add_rows<1>(&row, out + i, M_t::length(i), back);
        }
    }

    template <class S>
    void combine(const double *c, const S *G, ptrdiff_t stride, int K, const int *passive,
                 const double *x, int p, double *w) const {
        for (int k = 0; k < K; ++k) w[k] = c[k];
        const S *g[8];
        int i = 0;
        for (; i + 8 <= p; i += 8) {
            for (int r = 0; r < 8; ++r) g[r] = G + passive[i + r] * stride;
            subtract<8>(K, w, x + i, g);
        }
        for (; i < p; ++i) {
            g[0] = G + passive[i] * stride;
            subtract<1>(K, w, x + i, g);
        }
    }

    void rotate(M_t M, int p, int q, const double *cosine, const double *sine,
                double *carried) const {
        const double *first = M.row(q);
        for (int j = 0; j < p || j % pack; ++j) carried[j] = j <= q ? first[j] : 0;
        for (int i = q; i + 1 < p; ++i) {
            const double *below = M.row(i + 1);
            double *row = M.row(i);
            const int length = M_t::length(i + 1), own = M_t::length(i);
            for (int j = 0; j < own; j += wide)
                turn(cosine[i], sine[i], carried + j, below + j, row + j);
            // column i + 1 is beyond this row: it moves into it with the shift
            double last[pack];
            if (length > own) turn_pack(cosine[i], sine[i], carried + own, below + own, last);
            for (int j = q; j < i; ++j) row[j] = row[j + 1];
            row[i] = length > own ? last[0] : row[i + 1];
            if (length == own) row[i + 1] = 0;
        }
        for (int j = q; j + 1 < p; ++j) carried[j] = carried[j + 1];
    }

  private:
    static void turn(double cosine, double sine, double *carried, const double *below, double *to) {
        const Vec<double> x = load(carried), y = load(below);
        store(to, cosine * x - sine * y);
        store(carried, sine * x + cosine * y);
    }
    static void turn_pack(double cosine, double sine, double *carried, const double *below,
                          double *to) {
        for (int j = 0; j < pack; j += wide) turn(cosine, sine, carried + j, below + j, to + j);
    }
};

} // namespace

// Concepts that enter an inverse Cholesky factor M together, up to `together` of them: M is read
// once for each product with all, which costs less than half of the time of as many products.
//
// M G_PP Mᵀ = I as in nnls/solver.h. For candidates with products H (p, q) with the passive
// concepts and S (q, q) with each other, L = M H has their coordinates in the basis of the passive
// concepts, and S − Lᵀ L is what of their products is outside. Those that enter get their rows of M
// from both.
#pragma once

#include <math.h>

#include "../nnls/triangle.h"
#include "simd.h"

namespace {

// doubles in a vector
constexpr int wide = Simd<double>::lanes;
// concepts that enter together at most, and the distance of the rows of H, L and S
constexpr int together = 16;

// scratch: H, L (capacity, together), with zeros in unused columns, and in rows up to a whole pack;
// S (together, together)
struct Block {
    static constexpr int pack = 8;
    using M_t = Triangle<double, pack>;
    double *H, *L, *S;

    // a capacity for this many passive concepts, and the size of all
    static ptrdiff_t padded(ptrdiff_t most) { return (most + 2 * pack - 1) / pack * pack; }
    static ptrdiff_t size(ptrdiff_t capacity) { return together * (2 * capacity + together); }
    Block() : H(nullptr), L(nullptr), S(nullptr) {}
    Block(double *from, ptrdiff_t capacity)
        : H(from), L(H + together * capacity), S(L + together * capacity) {}

    // columns of q candidates, with those that are padding
    static int across(int q) { return q <= pack ? pack : together; }

    // L ← M H and S ← S − Lᵀ L for p passive concepts and q candidates
    void project(M_t M, int p, int q) const {
        if (q <= pack) {
            for (int first = 0; first < pack; first += narrow * wide) multiply<narrow>(M, p, first);
        } else {
            for (int first = 0; first < together; first += broad * wide)
                multiply<broad>(M, p, first);
        }
        for (int o = 0; o < across(q); o += tall)
            for (int first = 0; first < across(q); first += narrow * wide)
                subtract_products(p, o, first);
    }

    // S[c] ← the row of the Cholesky factor of S for candidate c of q, and S without it; w, their
    // slopes or products with the data, follow. Returns its y
    double eliminate(int c, int q, const bool *open, double *w) const {
        double *own = S + c * together;
        const double distance = sqrt(own[c]), y = w[c] / distance;
        for (int o = 0; o < q; ++o) own[o] /= distance;
        for (int o = 0; o < q; ++o) {
            if (!open[o]) continue;
            double *other = S + o * together;
            const double product = own[o];
            for (int v = 0; v < across(q); v += wide)
                store(other + v, load(other + v) - product * load(own + v));
            w[o] -= y * product;
        }
        return y;
    }

    // rows p + t of M, t < count, ← those of the eliminated candidates order[t]; s and y of them,
    // of which `steps` has y. With R the Cholesky factor of S they are −R⁻ᵀ Lᵀ M and R⁻ᵀ
    void append(M_t M, int p, const int *order, int count, const double *steps, double *s,
                double *y) const {
        double inverse[together * together] = {};
        invert(order, count, inverse);
        // L of those that enter, times R⁻¹; H is not needed any more
        for (int i = 0; i < p; ++i)
            multiply_row(L + i * together, order, count, inverse, H + i * together);
        for (int first = 0; first < count; first += tall) {
            const int n = count - first < tall ? count - first : tall;
            double *next[tall];
            for (int t = 0; t < n; ++t) next[t] = M.row(p + first + t);
            for (int J = 0; J < p; J += pack) columns_of_rows(M, p, J, first, n, next, steps, s);
        }
        for (int t = 0; t < count; ++t) {
            double *next = M.row(p + t);
            s[p + t] = 0;
            for (int u = 0; u <= t; ++u) {
                next[p + u] = inverse[u * together + t];
                s[p + u] += steps[t] * next[p + u];
            }
            for (int i = p + t + 1; i < M_t::length(p + t); ++i) next[i] = 0;
            y[p + t] = steps[t];
        }
    }

  private:
    // of a tile in registers: rows, and vectors of columns
    static constexpr int tall = vector_bytes == 64 ? 8 : 4;
    static constexpr int broad = 2, narrow = broad * wide < pack ? broad : pack / wide;

    // columns of L from `first` on
    template <int vectors> void multiply(M_t M, int p, int first) const {
        int i = 0;
        for (; i + tall <= p; i += tall) rows_of_L<tall, vectors>(M, i, first);
        if (tall > 4 && i + 4 <= p) {
            rows_of_L<4, vectors>(M, i, first);
            i += 4;
        }
        if (i + 2 <= p) {
            rows_of_L<2, vectors>(M, i, first);
            i += 2;
        }
        if (i < p) rows_of_L<1, vectors>(M, i, first);
    }

    // rows i … i + n of L, which are in one pack
    template <int n, int vectors> void rows_of_L(M_t M, int i, int first) const {
        Vec<double> sums[n][vectors] = {};
        const double *m = M.row(i), *h = H + first;
        const int length = M_t::length(i);
        for (int k = 0; k < length; ++k, h += together) {
            Vec<double> x[vectors];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) x[v] = load(h + v * wide);
#pragma GCC unroll 8
            for (int r = 0; r < n; ++r)
#pragma GCC unroll 8
                for (int v = 0; v < vectors; ++v) sums[r][v] += m[r * length + k] * x[v];
        }
        for (int r = 0; r < n; ++r)
            for (int v = 0; v < vectors; ++v)
                store(L + (i + r) * together + first + v * wide, sums[r][v]);
    }

    void subtract_products(int p, int o, int first) const {
        Vec<double> sums[tall][narrow] = {};
        const double *l = L;
        for (int i = 0; i < p; ++i, l += together) {
            Vec<double> x[narrow];
#pragma GCC unroll 8
            for (int v = 0; v < narrow; ++v) x[v] = load(l + first + v * wide);
#pragma GCC unroll 8
            for (int r = 0; r < tall; ++r)
#pragma GCC unroll 8
                for (int v = 0; v < narrow; ++v) sums[r][v] += l[o + r] * x[v];
        }
        for (int r = 0; r < tall; ++r)
            for (int v = 0; v < narrow; ++v) {
                double *to = S + (o + r) * together + first + v * wide;
                store(to, load(to) - sums[r][v]);
            }
    }

    // to (count, together) ← R⁻¹, upper triangular, by rows
    void invert(const int *order, int count, double *to) const {
        for (int t = 0; t < count; ++t) {
            const double pivot = 1 / S[order[t] * together + order[t]];
            to[t * together + t] = pivot;
            for (int u = t - 1; u >= 0; --u) {
                double sum = 0;
                for (int v = u; v < t; ++v)
                    sum += to[u * together + v] * S[order[v] * together + order[t]];
                to[u * together + t] = -pivot * sum;
            }
        }
    }

    // to ← the entries order[t] of a row of L, times R⁻¹
    static void multiply_row(const double *row, const int *order, int count, const double *inverse,
                             double *to) {
        constexpr int vectors = together / wide;
        Vec<double> sums[vectors] = {};
        for (int t = 0; t < count; ++t) {
            const double l = row[order[t]];
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v)
                sums[v] += l * load(inverse + t * together + v * wide);
        }
        for (int v = 0; v < vectors; ++v) store(to + v * wide, sums[v]);
    }

    // columns J … J + pack of `next`, −Mᵀ H for n columns of H from `first` on, and what they add
    // to s
    void columns_of_rows(M_t M, int p, int J, int first, int n, double *const *next,
                         const double *steps, double *s) const {
        constexpr int across_pack = pack / wide;
        Vec<double> sums[tall][across_pack] = {};
        for (int I = J; I < p; I += pack) {
            const int length = I + pack, last = p - I < pack ? p - I : pack;
            const double *m = M.row(I) + J, *l = H + I * together + first;
            for (int i = 0; i < last; ++i, m += length, l += together) {
#pragma GCC unroll 8
                for (int v = 0; v < across_pack; ++v) {
                    const Vec<double> x = load(m + v * wide);
#pragma GCC unroll 8
                    for (int t = 0; t < tall; ++t) sums[t][v] -= l[t] * x;
                }
            }
        }
        for (int v = 0; v < across_pack; ++v) {
            double *to = s + J + v * wide;
            Vec<double> moved = load(to);
            for (int t = 0; t < n; ++t) {
                store(next[t] + J + v * wide, sums[t][v]);
                moved += steps[first + t] * sums[t][v];
            }
            store(to, moved);
        }
    }
};

} // namespace

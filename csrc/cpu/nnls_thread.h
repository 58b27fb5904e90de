// The team of one thread: the operations that nnls/solver.h needs, on vectors in float64.
//
// Both products with M take four rows at once, each filled with zeros to whole packs, so nothing is
// masked; G streams by eight rows at a time. Limited by loads: of M from L1 or L2, of G from where
// K² numbers fit.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../nnls/solver.h"
#include "factor.h"
#include "polish.h"
#include "simd.h"

namespace {

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
    static constexpr int pack = Block::pack, most_together = together;
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

    // scratch of `enter`, and of `polish`
    Block block;
    Places places;

    // whether the row is solved from its start w > 0, which else is unchanged; worst ← its largest
    // violation of the KKT conditions. Not for float64, whose tolerance float32 does not reach
    template <class Row> bool polish(Row &row, double &worst) const {
        if constexpr (sizeof(typename Row::Entry) == sizeof(float)) {
            Polish<Row> polish(row, places);
            const bool solved = polish();
            if (solved) worst = polish.worst();
            return solved;
        }
        return false;
    }

    // `count` concepts k enter a row in this order, as by its function `enter` for one that is not
    // alone
    template <class Row, class S = typename Row::Entry>
    void enter(Row &row, const int *k, int count, const double *start) const {
        const int p = row.p, across = Block::across(count);
        const S *g[together];
        for (int c = 0; c < across; ++c) g[c] = row.G + k[c < count ? c : 0] * row.stride_g;
        const auto gather = [&](double *to, const int *index, int n) {
            for (int i = 0; i < n; ++i, to += together) {
                const int other = index[i];
                for (int c = 0; c < across; ++c) to[c] = double(g[c][other]);
                for (int c = count; c < across; ++c) to[c] = 0;
            }
            // rows of M are padded to whole packs
            for (; n % pack; ++n, to += together)
                for (int c = 0; c < across; ++c) to[c] = 0;
        };
        gather(block.H, row.at.passive, p);
        gather(block.S, k, count);
        block.project(row.M, p, count);
        double w[together] = {}, steps[together];
        for (int i = 0; i < p; ++i)
            for (int c = 0; c < across; ++c) w[c] -= row.at.y[i] * block.L[i * together + c];
        for (int c = 0; c < count; ++c) w[c] += row.at.c[k[c]];
        bool open[together];
        for (int c = 0; c < count; ++c) open[c] = true;
        int order[together], come = 0;
        for (int c = 0; c < count; ++c) {
            open[c] = false;
            if (!(block.S[c * together + c] > row.rules.rank_tolerance * double(g[c][k[c]])))
                continue;
            steps[come] = block.eliminate(c, count, open, w);
            order[come++] = c;
        }
        block.append(row.M, p, order, come, steps, row.at.s, row.at.y);
        for (int t = 0; t < come; ++t) {
            row.at.passive[p + t] = k[order[t]];
            row.at.x[p + t] = start ? start[k[order[t]]] : 0;
        }
        row.p += come;
        row.entered += come;
    }

    // the slopes w of `count` concepts k of a row; returns the largest
    template <class Row> double price(Row &row, const int *k, int count) const {
        double most = 0;
        for (int t = 0; t < count; ++t) {
            const auto *const g = row.G + k[t] * row.stride_g;
            double sums[4] = {};
            int i = 0;
            for (; i + 4 <= row.p; i += 4)
#pragma GCC unroll 4
                for (int u = 0; u < 4; ++u)
                    sums[u] += row.at.x[i + u] * double(g[row.at.passive[i + u]]);
            for (; i < row.p; ++i) sums[0] += row.at.x[i] * double(g[row.at.passive[i]]);
            const double w = row.at.c[k[t]] - (sums[0] + sums[1] + sums[2] + sums[3]);
            row.at.w[k[t]] = w;
            most = w > most ? w : most;
        }
        return most;
    }

    // move the concepts with the largest w, at most `most` and none below `least`, to the front;
    // returns how many there are
    int steepest_first(int *k, int count, const double *w, int most, double least) const {
        for (int t = 0; t < most; ++t) {
            int best = -1;
            for (int o = t; o < count; ++o)
                if (w[k[o]] >= (best < 0 ? least : w[k[best]])) best = o;
            if (best < 0) return t;
            const int moved = k[t];
            k[t] = k[best];
            k[best] = moved;
        }
        return most;
    }

    // k ← in the order of falling x[k]
    void order(int *k, int count, const double *x) const {
        // in place: heap sort
        const auto sink = [&](int from, int n) {
            const int moved = k[from];
            for (int child; (child = 2 * from + 1) < n; from = child) {
                if (child + 1 < n && x[k[child + 1]] < x[k[child]]) ++child;
                if (!(x[k[child]] < x[moved])) break;
                k[from] = k[child];
                k[child] = moved;
            }
        };
        for (int i = count / 2; i-- > 0;) sink(i, count);
        for (int n = count - 1; n > 0; --n) {
            const int least = k[0];
            k[0] = k[n];
            k[n] = least;
            sink(0, n);
        }
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
        for (int i = q; i + 1 < p;) {
            constexpr int tall = 4;
            if (i % tall == 0 && i + tall < p) {
                turn<tall>(M, i, q, cosine, sine, carried);
                i += tall;
            } else {
                turn<1>(M, i, q, cosine, sine, carried);
                ++i;
            }
        }
        for (int j = q; j + 1 < p; ++j) carried[j] = carried[j + 1];
    }

  private:
    // rows i … i + n of M, in one pack, ← the first parts of the rotations of `carried` and the
    // next n rows, without column q
    template <int n>
    static void turn(M_t M, int i, int q, const double *cosine, const double *sine,
                     double *carried) {
        const int own = M_t::length(i), left = q / wide * wide;
        double *rows[n + 1];
        for (int r = 0; r <= n; ++r) rows[r] = M.row(i + r);
        // row i + r is read before it is written, and up to as far to the right
        const auto each = [&](int j, auto put) {
            Vec<double> carry = load(carried + j);
#pragma GCC unroll 4
            for (int r = 0; r < n; ++r) {
                const Vec<double> below = load(rows[r + 1] + j);
                put(rows[r], cosine[i + r] * carry - sine[i + r] * below);
                carry = sine[i + r] * carry + cosine[i + r] * below;
            }
            store(carried + j, carry);
        };
        for (int j = 0; j < left; j += wide)
            each(j, [&](double *row, Vec<double> x) { store(row + j, x); });
        each(left, [&](double *row, Vec<double> x) {
            for (int l = 0; l < q - left; ++l) row[left + l] = x[l];
            for (int l = q - left + 1; l < wide; ++l) row[left + l - 1] = x[l];
        });
        for (int j = left + wide; j < own; j += wide)
            each(j, [&](double *row, Vec<double> x) { store(row + j - 1, x); });
        if (M_t::length(i + n) > own) {
            // only the last of the rows reaches this far, and `carried` does not
            const double below = rows[n][own];
            rows[n - 1][own - 1] = -sine[i + n - 1] * below;
            carried[own] = cosine[i + n - 1] * below;
        }
    }
};

} // namespace

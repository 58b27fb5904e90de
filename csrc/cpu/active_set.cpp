// Non-negative least squares of many rows at once: a row advances one step whenever the slopes of
// all concepts have been computed from its residual, which one product does for all rows in flight.
//
// In a step up to rules.block concepts enter the support, chosen one by one from the steepest: the
// steepest of these candidates enters, and the slopes of the others follow it. So M L = H, with the
// candidates' coordinates L in the basis of the support and H their products with it, is a product
// of matrices, and so are the new rows of M: M is read twice in a step. Then concepts leave as in
// nnls/solver.h. In float64; products of float32 concepts are sums in float32 where that is enough.
//
// Sums in float32 do not show how far a nearly dependent concept is from the support. So below
// `doubtful` its products are computed in float64, and if it still seems to depend on the support,
// M is computed anew. One that does depend enters only alone, and only if that lowers the objective;
// else it is left out until the objective falls. Its slope counts.

#include <cstddef>
#include <cstdint>
#include <math.h>

#include "kernels.h"
#include "nnls_thread.h"

namespace {

using fastnmf::ActiveRow;
using fastnmf::ActiveSet;

// candidates of a step at most, a multiple of what a tile of `block_product` has; without a Gram
// matrix their products cost more, and fewer are better
constexpr int most_candidates = 32, tile = 16;
// of the steepest slope: a candidate has at least this share, and enters while its own is above it
constexpr double share = 0.3;
// squared distance from the support below which sums in float32 are too rough
constexpr double doubtful = 1e-3;
constexpr double infinite = HUGE_VAL;
// many concepts: their slopes take long, so a step has up to most_blocks more blocks of candidates,
// from a pool of concepts with at least a smaller share of the steepest slope
constexpr int many_concepts = 1500, most_pool = 96, most_blocks = 7;
constexpr double share_of_pool = 0.1;
constexpr int most_refinements = 8, most_stalls = 3, most_rebuilds = 2;
// concepts whose largest slope is stored
constexpr int stretch = 32;

inline ptrdiff_t padded(ptrdiff_t n) { return (n + 15) / 8 * 8; }

// scratch of a thread
template <class T> struct ActiveScratch {
    double *l, *h, *r, *H, *L, *rows, *S, *w, *values, *tops;
    T *candidates;
    int *moved, *chosen;

    static ptrdiff_t size(const ActiveSet<T> &a) {
        const ptrdiff_t across = padded(a.rules.capacity + a.rules.block);
        return 4 * across + (2 * most_candidates + a.rules.block) * across +
               most_candidates * (most_candidates + 1) + 2 * a.K + a.K / stretch + 1 +
               padded(a.p) * most_candidates;
    }
    ActiveScratch(const ActiveSet<T> &a, double *next) {
        const ptrdiff_t across = padded(a.rules.capacity + a.rules.block);
        const auto take = [&](ptrdiff_t size) { return (next += size) - size; };
        for (double **vector : {&l, &h, &r}) *vector = take(across);
        moved = reinterpret_cast<int *>(take(across));
        for (double **matrix : {&H, &L}) *matrix = take(most_candidates * across);
        rows = take(a.rules.block * across);
        S = take(most_candidates * most_candidates);
        w = take(most_candidates);
        candidates = reinterpret_cast<T *>(take(padded(a.p) * most_candidates));
        values = take(a.K);
        chosen = reinterpret_cast<int *>(take(a.K));
        tops = take(a.K / stretch + 1);
    }
};

// Σ_j x_j y_j in float64
template <class X, class Y> inline double dot(const X *x, const Y *y, ptrdiff_t n) {
    Vec<double> sums[2] = {};
    ptrdiff_t j = 0;
    for (; j + 2 * wide <= n; j += 2 * wide)
        for (int u = 0; u < 2; ++u)
            sums[u] += widened(x + j + u * wide) * widened(y + j + u * wide);
    double total = sum<double>(sums[0] + sums[1]);
    for (; j < n; ++j) total += double(x[j]) * double(y[j]);
    return total;
}

// out[r * most_candidates + v] = scale_r Σ_j b_r[j] C[j * most_candidates + v] for `rows` concepts
// and the columns v of one tile
template <int rows, class T>
inline void block_product(ptrdiff_t n, const T *const *b, const double *scale, const T *C,
                          double *const *out) {
    constexpr int lanes = Simd<T>::lanes, vectors = tile / lanes;
    Vec<T> sums[rows][vectors] = {};
    for (ptrdiff_t j = 0; j < n; ++j) {
        Vec<T> c[vectors];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) c[v] = load(C + j * most_candidates + v * lanes);
#pragma GCC unroll 8
        for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < vectors; ++v) sums[r][v] += b[r][j] * c[v];
    }
    for (int r = 0; r < rows; ++r)
        for (int v = 0; v < vectors; ++v)
            for (int l = 0; l < lanes; ++l)
                out[r][v * lanes + l] = scale[r] * double(sums[r][v][l]);
}

// out_r = row_r H for `rows` rows of M of the same length, one tile of columns of H
template <int rows>
inline void triangle_product(const double *const *row, int length, const double *H, double *out) {
    constexpr int vectors = tile / wide, group = vectors < 2 ? vectors : 2;
    for (int first = 0; first < vectors; first += group) {
        Vec<double> sums[rows][group] = {};
        const double *from = H + first * wide;
        for (int k = 0; k < length; ++k) {
            Vec<double> h[group];
#pragma GCC unroll 2
            for (int v = 0; v < group; ++v) h[v] = load(from + k * most_candidates + v * wide);
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
                for (int v = 0; v < group; ++v) sums[r][v] += row[r][k] * h[v];
        }
        for (int r = 0; r < rows; ++r)
            for (int v = 0; v < group; ++v)
                store(out + r * most_candidates + (first + v) * wide, sums[r][v]);
    }
}

// Move the `most` largest values, and their indices, to the front.
inline void partition(double *values, int *index, int count, int most) {
    int first = 0, last = count - 1;
    while (first < last) {
        const double middle = values[(first + last) / 2];
        int i = first, j = last;
        while (i <= j) {
            while (values[i] > middle) ++i;
            while (values[j] < middle) --j;
            if (i > j) break;
            const double value = values[i];
            const int k = index[i];
            values[i] = values[j], index[i++] = index[j];
            values[j] = value, index[j--] = k;
        }
        if (most <= j)
            last = j;
        else if (most >= i)
            first = i;
        else
            return;
    }
}

template <class T> struct ActiveStep {
    using M_t = Triangle<double, Thread::pack>;
    const ActiveSet<T> &a;
    ActiveRow<T> &row;
    const ActiveScratch<T> at;
    Thread team;
    NnlsRow<Thread, double, T> solver;

    ActiveStep(const ActiveSet<T> &a, ActiveRow<T> &row, double *scratch)
        : a(a), row(row), at(a, scratch),
          solver{team, int(a.K), nullptr, 0, a.rules, vectors(), {nullptr, row.M, 0}, row.p} {}

    NnlsScratch<double> vectors() const {
        return {row.y,   row.x,    row.s,   at.l,       at.h,    at.r,
                nullptr, nullptr,  row.passive, at.moved, nullptr, nullptr};
    }
    const T *concept_of(int k) const { return a.B + k * a.stride_b; }

    // slope of concept k, whose x is given, from the residual
    double slope(int k, double x) const {
        const double scale = a.scale[k];
        double found = dot(concept_of(k), row.e, a.p) - a.l1;
        if (a.curvature) found -= double(a.curvature[k]) * x * scale;
        return found * scale;
    }
    // product of unit concepts i and k, in float64
    double product(int i, int k) const {
        return dot(concept_of(i), concept_of(k), a.p) * a.scale[i] * a.scale[k];
    }

    // e = X − Bᵀ z
    void residual() {
        for (ptrdiff_t j = 0; j < a.p; ++j) row.e[j] = double(row.X[j]);
        double f[8];
        const T *b[8];
        const auto take = [&](int i, int r) {
            b[r] = concept_of(row.passive[i]);
            f[r] = row.x[i] * a.scale[row.passive[i]];
        };
        int i = 0;
        for (; i + 8 <= solver.p; i += 8) {
            for (int r = 0; r < 8; ++r) take(i + r, r);
            subtract<8>(int(a.p), row.e, f, b);
        }
        for (; i < solver.p; ++i) {
            take(i, 0);
            subtract<1>(int(a.p), row.e, f, b);
        }
    }

    // ‖e‖² and the penalty: twice the objective
    double objective() const {
        double penalty = 0;
        for (int i = 0; i < solver.p; ++i) {
            const int k = row.passive[i];
            const double z = row.x[i] * a.scale[k];
            penalty += 2 * a.l1 * z + (a.curvature ? double(a.curvature[k]) * z * z : 0);
        }
        return dot(row.e, row.e, a.p) + penalty;
    }

    // h ← the slopes of P, precise; returns the largest of |h|
    double passive_slopes() {
        double most = 0;
        for (int i = 0; i < solver.p; ++i) {
            at.h[i] = slope(row.passive[i], row.x[i]);
            most = fmax(most, fabs(at.h[i]));
        }
        return most;
    }

    void refine() {
        passive_slopes();
        solver.refine();
        solver.descend();
    }

    // the candidates' features side by side, padded with zeros to a tile
    int pack_candidates(const int *chosen, int q) {
        const int across = (q + tile - 1) / tile * tile;
        for (int c = 0; c < across; ++c) {
            const T *from = c < q ? concept_of(chosen[c]) : nullptr;
            for (ptrdiff_t j = 0; j < a.p; ++j)
                at.candidates[j * most_candidates + c] = from ? from[j] : T(0);
        }
        return across;
    }

    // H (p, q) ← products of the candidates with P, S (q, q) ← with each other; zeros behind both
    int products(const int *chosen, int q) {
        const int p = solver.p, across = (q + tile - 1) / tile * tile;
        const double *scale = a.scale;
        if (a.unit) {
            for (int c = 0; c < across; ++c) {
                const T *g = c < q ? a.unit + chosen[c] * a.stride_unit : nullptr;
                for (int i = 0; i < p; ++i)
                    at.H[i * most_candidates + c] = g ? double(g[row.passive[i]]) : 0;
                for (int o = 0; o < across; ++o)
                    at.S[o * most_candidates + c] = g && o < q ? double(g[chosen[o]]) : 0;
            }
        } else {
            pack_candidates(chosen, q);
            for (int first = 0; first < across; first += tile) {
                const T *C = at.candidates + first;
                const auto group = [&](auto rows, const int *index, int i, double *out) {
                    constexpr int count = decltype(rows)::value;
                    const T *b[count];
                    double f[count], *to[count];
                    for (int r = 0; r < count; ++r) {
                        b[r] = concept_of(index[i + r]);
                        f[r] = scale[index[i + r]];
                        to[r] = out + (i + r) * most_candidates + first;
                    }
                    block_product<count>(a.p, b, f, C, to);
                };
                const auto all = [&](const int *index, int n, double *out) {
                    int i = 0;
                    for (; i + rows_of_tile <= n; i += rows_of_tile)
                        group(Count<rows_of_tile>{}, index, i, out);
                    for (; i < n; ++i) group(Count<1>{}, index, i, out);
                };
                all(row.passive, p, at.H);
                all(chosen, q, at.S);
            }
            for (int i = 0; i < p; ++i)
                for (int c = 0; c < q; ++c) at.H[i * most_candidates + c] *= scale[chosen[c]];
            for (int o = 0; o < q; ++o)
                for (int c = 0; c < q; ++c) at.S[o * most_candidates + c] *= scale[chosen[c]];
        }
        for (int c = 0; c < q; ++c) at.S[c * most_candidates + c] = 1;
        // rows of M are padded to whole packs
        for (int i = p; i % Thread::pack; ++i)
            for (int c = 0; c < across; ++c) at.H[i * most_candidates + c] = 0;
        return across;
    }
    template <int n> struct Count {
        static constexpr int value = n;
    };
    static constexpr int rows_of_tile = vector_bytes == 64 ? 8 : vector_bytes == 32 ? 4 : 2;

    // L = M H, and S −= Lᵀ L: what is left of the candidates' products outside the span of P
    void project(int across) {
        const int p = solver.p;
        const M_t M = solver.M;
        for (int first = 0; first < across; first += tile) {
            int i = 0;
            for (; i + 4 <= p; i += 4) {
                const double *const rows[] = {M.row(i), M.row(i + 1), M.row(i + 2), M.row(i + 3)};
                triangle_product<4>(rows, M_t::length(i), at.H + first,
                                    at.L + i * most_candidates + first);
            }
            for (; i < p; ++i) {
                const double *const one = M.row(i);
                triangle_product<1>(&one, M_t::length(i), at.H + first,
                                    at.L + i * most_candidates + first);
            }
        }
        constexpr int vectors = tile / wide;
        for (int o = 0; o < across; o += 2)
            for (int first = 0; first < across; first += tile) {
                Vec<double> sums[2][vectors] = {};
                for (int i = 0; i < p; ++i) {
                    const double *l = at.L + i * most_candidates;
#pragma GCC unroll 8
                    for (int v = 0; v < vectors; ++v) {
                        const Vec<double> x = load(l + first + v * wide);
                        sums[0][v] += l[o] * x;
                        sums[1][v] += l[o + 1] * x;
                    }
                }
                for (int r = 0; r < 2; ++r)
                    for (int v = 0; v < vectors; ++v) {
                        double *to = at.S + (o + r) * most_candidates + first + v * wide;
                        store(to, load(to) - sums[r][v]);
                    }
            }
    }

    // column c of L and row and column c of S, from products in float64
    void project_precisely(const int *chosen, int q, int c) {
        const int p = solver.p, k = chosen[c];
        for (int i = 0; i < p; ++i) at.h[i] = product(row.passive[i], k);
        team.multiply(solver.M, p, at.h, at.l);
        for (int i = 0; i < p; ++i) at.L[i * most_candidates + c] = at.l[i];
        for (int o = 0; o < q; ++o) {
            double left = o == c ? 1 : product(chosen[o], k);
            for (int i = 0; i < p; ++i) left -= at.l[i] * at.L[i * most_candidates + o];
            at.S[o * most_candidates + c] = at.S[c * most_candidates + o] = left;
        }
    }

    // rows[t], t < count: P's next members order[t] of the candidates, whose coordinates in the
    // basis of P are in L and in that of each other in S, get their rows of M, y from `steps`
    void append(const int *chosen, const int *order, int count, const double *steps,
                const double *start) {
        const int p = solver.p;
        const M_t M = solver.M;
        const ptrdiff_t across = padded(a.rules.capacity + a.rules.block);
        // the coordinates of those that enter, side by side, in H, which is not needed any more
        double *Lb = at.H;
        for (int i = 0; i < p; ++i)
            for (int t = 0; t < count; ++t)
                Lb[i * most_candidates + t] = at.L[i * most_candidates + order[t]];
        constexpr int group = vector_bytes == 64 ? 8 : 4, vectors = Thread::pack / wide;
        for (int first = 0; first < count; first += group) {
            // beyond `count` the numbers are arbitrary, and are not used
            for (int J = 0; J < p; J += Thread::pack) {
                Vec<double> sums[group][vectors] = {};
                for (int i = J; i < p; ++i) {
                    const double *m = M.row(i) + J, *l = Lb + i * most_candidates + first;
#pragma GCC unroll 8
                    for (int v = 0; v < vectors; ++v) {
                        const Vec<double> x = load(m + v * wide);
#pragma GCC unroll 8
                        for (int t = 0; t < group; ++t) sums[t][v] += l[t] * x;
                    }
                }
                for (int t = 0; t < group && first + t < count; ++t)
                    for (int v = 0; v < vectors; ++v)
                        store(at.rows + (first + t) * across + J + v * wide, sums[t][v]);
            }
        }
        for (int t = 0; t < count; ++t) {
            const int k = chosen[order[t]];
            double *next = M.row(p + t), *sum = at.rows + t * across;
            for (int u = 0; u < t; ++u) {
                const double r = at.S[order[u] * most_candidates + order[t]];
                const double *before = M.row(p + u);
                for (int i = 0; i <= p + u; ++i)
                    sum[i] = (i < p || u > i - p ? sum[i] : 0) + r * before[i];
            }
            const double pivot = 1 / at.S[order[t] * most_candidates + order[t]], y = steps[t];
            for (int i = 0; i < p + t; ++i) {
                next[i] = -pivot * sum[i];
                row.s[i] += y * next[i];
            }
            for (int i = p + t; i < M_t::length(p + t); ++i) next[i] = 0;
            next[p + t] = pivot;
            row.s[p + t] = y * pivot;
            row.y[p + t] = y;
            row.x[p + t] = start ? start[order[t]] : 0;
            row.passive[p + t] = k;
        }
        solver.p += count;
        solver.entered += count;
    }

    // Candidates enter, at most `most`: while there is one with a slope w above `least`, the
    // steepest; or in their order, from a start, with slopes at the minimiser on P. Returns how
    // many; rebuild: none, as M must be computed anew before the first may.
    int grow(const int *chosen, int q, double least, int most, const double *start, bool &rebuild) {
        if (q > 1)
            project(products(chosen, q));
        else
            project_precisely(chosen, q, 0);
        double *w = at.w, steps[most_candidates] = {};
        int order[most_candidates], count = 0;
        bool open[most_candidates];
        for (int c = 0; c < q; ++c) {
            open[c] = true;
            if (!start) continue;
            w[c] = (dot(concept_of(chosen[c]), row.X, a.p) - a.l1) * a.scale[chosen[c]];
            for (int i = 0; i < solver.p; ++i) w[c] -= at.L[i * most_candidates + c] * row.y[i];
        }
        const bool rough = sizeof(T) == 4;
        while (count < most) {
            int best = -1;
            double steepest = start ? -infinite : least;
            for (int c = 0; c < q && !(start && best >= 0); ++c)
                if (open[c] && w[c] > steepest) {
                    steepest = w[c];
                    best = c;
                }
            if (best < 0) break;
            open[best] = false;
            const double slope = at.values[best];
            if (!start) at.values[best] = -infinite;
            double *S = at.S + best * most_candidates;
            if (rough && S[best] < doubtful) {
                // a later step takes it
                if (count) at.values[best] = slope;
                if (count || start) continue;
                project_precisely(chosen, q, best);
                if (!(S[best] > a.rules.rank_tolerance) && !row.exact) {
                    rebuild = true;
                    return 0;
                }
            }
            if (!(S[best] > a.rules.rank_tolerance)) {
                bool alone = !start && count == 0;
                for (int c = 0; c < q; ++c) alone &= !(open[c] && w[c] > least);
                if (!alone) {
                    if (!start) refuse(chosen[best]);
                    continue;
                }
                // as if it were as far as that: a concept leaves for it, or it is refused next
                S[best] = a.rules.rank_tolerance;
                row.forced = chosen[best];
            }
            // S[best] becomes the row of the Cholesky factor
            const double distance = sqrt(S[best]), y = w[best] / distance;
            for (int c = 0; c < q; ++c) S[c] /= distance;
            for (int o = 0; o < q; ++o) {
                if (!open[o]) continue;
                double *other = at.S + o * most_candidates;
                for (int c = 0; c < q; ++c) other[c] -= S[o] * S[c];
                w[o] -= y * S[o];
            }
            steps[count] = y;
            order[count++] = best;
        }
        if (count) append(chosen, order, count, steps, start);
        return count;
    }

    void refuse(int k) {
        if (row.blocked_count < ActiveRow<T>::most_blocked) row.blocked[row.blocked_count++] = k;
    }

    // M, y and s anew from products in float64, on the same concepts but for those that depend on
    // others; x moves to the minimiser
    void rebuild() {
        const int before = solver.p;
        const M_t M = solver.M;
        int p = 0;
        for (int t = 0; t < before; ++t) {
            const int k = row.passive[t];
            const double x = row.x[t];
            for (int i = 0; i < p; ++i) at.h[i] = product(row.passive[i], k);
            team.multiply(M, p, at.h, at.l);
            double apart = 1, c = (dot(concept_of(k), row.X, a.p) - a.l1) * a.scale[k];
            for (int i = 0; i < p; ++i) {
                apart -= at.l[i] * at.l[i];
                c -= at.l[i] * row.y[i];
            }
            if (!(apart > a.rules.rank_tolerance)) continue;
            const double pivot = 1 / sqrt(apart), y = pivot * c;
            team.multiply_transposed(M, p, at.l, at.h);
            double *next = M.row(p);
            for (int i = 0; i < p; ++i) {
                next[i] = -pivot * at.h[i];
                row.s[i] += y * next[i];
            }
            for (int i = p; i < M_t::length(p); ++i) next[i] = 0;
            next[p] = pivot;
            row.s[p] = y * pivot;
            row.y[p] = y;
            row.x[p] = x;
            row.passive[p++] = k;
        }
        solver.p = p;
        solver.descend();
        row.exact = true;
        ++row.rebuilds;
    }

    // P ← the support of the start. P ← ∅ instead, as soon as too many of its concepts would have
    // to leave, as in nnls/solver.h
    void take_start() {
        const int given = row.p < a.rules.capacity ? row.p : a.rules.capacity;
        for (int t = 0; t < given; ++t) {
            at.chosen[t] = row.passive[t];
            at.values[t] = row.x[t];
        }
        solver.p = 0;
        int look = 32;
        bool unused = false;
        for (int t = 0; t < given; t += tile) {
            const int q = t + tile < given ? tile : given - t;
            grow(at.chosen + t, q, 0, q, at.values + t, unused);
            if (t + q < given && solver.p < look) continue;
            look *= 2;
            int wrong = 0;
            for (int i = 0; i < solver.p; ++i) wrong += !(row.s[i] > 0);
            if (wrong <= solver.p / 4 + 4) continue;
            solver.p = 0;
            return;
        }
        solver.descend();
    }

    void keep() {
        for (int i = 0; i < solver.p; ++i) {
            row.kept[i] = row.passive[i];
            row.kept_x[i] = row.x[i];
        }
        row.kept_p = solver.p;
        row.kept_worst = row.worst;
    }
    void restore() {
        for (int i = 0; i < row.kept_p; ++i) {
            row.passive[i] = row.kept[i];
            row.x[i] = row.kept_x[i];
        }
        solver.p = row.kept_p;
        row.worst = row.kept_worst;
        residual();
    }

    // W ← slopes of unit concepts, −∞ for P and for those that are refused; the largest of the
    // rest, of |W_P|, and of what is refused
    double scan(T *W, double &slack, double &refused) {
        slack = refused = 0;
        for (int i = 0; i < solver.p; ++i) {
            const int k = row.passive[i];
            const double curved = a.curvature ? double(a.curvature[k]) * row.x[i] * a.scale[k] : 0;
            slack = fmax(slack, fabs((double(W[k]) - a.l1 - curved) * a.scale[k]));
            W[k] = -T(infinite);
        }
        for (int i = 0; i < row.blocked_count; ++i) {
            const int k = row.blocked[i];
            refused = fmax(refused, (double(W[k]) - a.l1) * a.scale[k]);
            W[k] = -T(infinite);
        }
        constexpr int lanes = Simd<T>::lanes;
        const T l1 = T(a.l1);
        double most = 0;
        for (ptrdiff_t first = 0; first < a.K; first += stretch) {
            const ptrdiff_t last = first + stretch < a.K ? first + stretch : a.K;
            Vec<T> top = {};
            ptrdiff_t k = first;
            for (; k + lanes <= last; k += lanes) {
                const Vec<T> w = (load(W + k) - l1) * load(a.rounded + k);
                store(W + k, w);
                top = w > top ? w : top;
            }
            double steepest = 0;
            for (int l = 0; l < lanes; ++l) steepest = top[l] > steepest ? double(top[l]) : steepest;
            for (; k < last; ++k) {
                W[k] = (W[k] - l1) * a.rounded[k];
                steepest = W[k] > steepest ? double(W[k]) : steepest;
            }
            at.tops[first / stretch] = steepest;
            most = steepest > most ? steepest : most;
        }
        return most;
    }

    // chosen, values ← the steepest concepts, at most `most`, with a slope of at least `least`
    int choose(const T *W, double least, int most) {
        const int stretches = int((a.K + stretch - 1) / stretch);
        if (stretches > most) {
            // as many concepts as this are at least as steep as the last of their stretches
            for (int i = 0; i < stretches; ++i) at.values[i] = at.tops[i];
            partition(at.values, at.chosen, stretches, most);
            double low = infinite;
            for (int i = 0; i < most; ++i) low = fmin(low, at.values[i]);
            least = fmax(least, low);
        }
        int found = 0;
        for (int i = 0; i < stretches; ++i) {
            if (!(at.tops[i] >= least)) continue;
            const ptrdiff_t first = ptrdiff_t(i) * stretch;
            const ptrdiff_t last = first + stretch < a.K ? first + stretch : a.K;
            for (ptrdiff_t k = first; k < last; ++k)
                if (double(W[k]) >= least) {
                    at.values[found] = double(W[k]);
                    at.chosen[found++] = int(k);
                }
        }
        if (found > most) partition(at.values, at.chosen, found, most);
        return found < most ? found : most;
    }

    bool advance(T *W, T *E) {
        const bool going = !step(W);
        row.p = solver.p;
        if (going) for (ptrdiff_t j = 0; j < a.p; ++j) E[j] = T(row.e[j]);
        return !going;
    }

    // whether the row has ended; else e is the residual of its new x
    bool step(T *W) {
        if (!row.begun) {
            row.begun = true;
            double most = 0;
            for (ptrdiff_t k = 0; k < a.K; ++k) most = fmax(most, double(W[k]) * a.scale[k]);
            row.reference = most > 0 ? most : 1;
            if (row.warm && row.p) {
                take_start();
                residual();
                return false;
            }
        }
        double slack, refused;
        const double steepest = scan(W, slack, refused), now = objective();
        const double aim = a.rules.tolerance * row.reference / 2;
        row.worst = fmax(steepest, fmax(slack, refused)) / row.reference;
        if (!(now + row.reference + steepest + slack < infinite)) {
            row.worst = infinite;
            return end(fastnmf::nnls_floored);
        }
        if (steepest <= aim && slack > aim && row.refinements < most_refinements) {
            // M may be rough
            if (row.refinements++ == most_refinements / 2 && !row.exact) rebuild();
            refine();
            residual();
            return false;
        }
        if (row.worst <= a.rules.tolerance && steepest <= aim) return ended();
        // the objective rises only by rounding: that of x, where M is rough
        const double rounding = a.rules.tolerance / 1e4 * row.reference * row.reference;
        const bool rises = now > row.least * (1 + 1e-10) + rounding;
        if (rises && (steepest <= aim || row.stalls > 1 || now > 2 * row.least + rounding))
            return give_up();
        if (steepest <= aim) return ended();
        const bool falls = now < row.least * (1 - 1e-13);
        if (!falls && row.forced >= 0) refuse(row.forced);
        row.forced = -1;
        if (falls || steepest < 0.7 * row.lowest) {
            if (falls) row.blocked_count = 0;
            row.stalls = 0;
            row.lowest = steepest;
        } else if (++row.stalls > most_stalls) {
            return rises ? give_up() : ended();
        }
        if (rises && !row.exact) {
            rebuild();
            refine();
            residual();
            return false;
        }
        if (now < row.least) row.least = now;
        if (!row.beyond && !rises) {
            row.beyond = a.limit && solver.p >= a.limit;
            if (row.beyond) row.worst = slack / row.reference;
            keep();
        }
        if (row.steps >= a.rules.max_steps)
            return row.beyond ? give_up() : end(fastnmf::nnls_capped);
        return enter(W, steepest, fmax(slack, refused));
    }

    // Some of the steepest concepts enter, and others leave: first those that are steepest of all,
    // then, by slopes of their own, what is left of the `pool` that was chosen with them.
    bool enter(const T *W, double steepest, double others) {
        const double aim = a.rules.tolerance * row.reference / 2;
        const bool greedy = a.limit && !row.beyond;
        const int room = greedy ? 1 : a.K > many_concepts ? most_pool : most_candidates;
        const int pool = choose(W, fmax(aim, share_of_pool * steepest), room);
        const double precise = reprice(pool);
        if (precise <= aim) {
            row.worst = fmax(precise, others) / row.reference;
            return ended();
        }
        // P spans all concepts: slopes are rounding
        if (solver.p >= a.rules.capacity) return ended();
        // others may be as steep as the last of a full pool
        double least = fmax(aim, share_of_pool * precise);
        if (pool == room)
            for (int c = 0; c < pool; ++c)
                if (at.values[c] < least || c == 0) least = fmax(aim, at.values[c]);
        for (int blocks = 0, come = 0;; ++blocks) {
            const int vacant = a.rules.capacity - solver.p;
            const int most = greedy ? 1 : a.rules.block < vacant ? a.rules.block : vacant;
            if (blocks && (most < 1 || row.steps >= a.rules.max_steps)) break;
            const int room_q = pool > most_candidates ? tile : most_candidates;
            const int q = pool < room_q ? pool : room_q;
            if (q < pool) partition(at.values, at.chosen, pool, q);
            double top = 0;
            for (int c = 0; c < q; ++c) top = fmax(top, at.w[c] = at.values[c]);
            if (blocks && !(top > least)) break;
            bool rough = false;
            come = grow(at.chosen, q, fmax(aim, share * top), most, nullptr, rough);
            if (rough) {
                rebuild();
                refine();
                break;
            }
            if (!come) {
                // the refused are out of the way
                if (row.blocked_count < ActiveRow<T>::most_blocked) row.stalls = 0;
                break;
            }
            ++row.steps;
            row.refinements = 0;
            row.exact = sizeof(T) == 8 || (row.exact && q == 1);
            solver.descend();
            if (blocks == most_blocks || pool <= 1 || row.forced >= 0) break;
            residual();
            reprice(pool);
        }
        residual();
        return false;
    }

    // values ← the slopes of the pool, but for those that took part; the largest
    double reprice(int pool) {
        constexpr ptrdiff_t line = 64 / sizeof(T);
        double most = 0;
        for (int c = 0; c < pool; ++c) {
            if (c + 1 < pool)
                for (ptrdiff_t j = 0; j < a.p; j += line)
                    __builtin_prefetch(concept_of(at.chosen[c + 1]) + j);
            if (at.values[c] > -infinite)
                most = fmax(most, at.values[c] = slope(at.chosen[c], 0));
        }
        return most;
    }

    bool end(int status) {
        row.status = status;
        return true;
    }
    bool ended() {
        if (row.beyond && solver.p > a.limit) return give_up();
        using namespace fastnmf;
        return end(row.worst <= a.rules.tolerance ? nnls_solved : nnls_floored);
    }
    // with the best concepts so far
    bool give_up() {
        restore();
        using namespace fastnmf;
        return end(row.worst <= a.rules.tolerance ? nnls_solved : nnls_floored);
    }
};

template <class T> void begin(const ActiveSet<T> &a, ActiveRow<T> &row, T *E) {
    for (ptrdiff_t j = 0; j < a.p; ++j) {
        row.e[j] = double(row.X[j]);
        E[j] = row.X[j];
    }
    row.block = a.rules.block;
    row.blocked_count = row.steps = row.refinements = row.stalls = row.rebuilds = row.kept_p = 0;
    row.least = row.lowest = infinite;
    row.forced = -1;
    row.begun = row.beyond = false;
    row.exact = sizeof(T) == 8;
    row.worst = row.kept_worst = infinite;
    if (!row.warm) row.p = 0;
}

template <class T>
bool advance(const ActiveSet<T> &a, ActiveRow<T> &row, T *W, T *E, double *scratch) {
    return ActiveStep<T>(a, row, scratch).advance(W, E);
}

} // namespace

namespace fastnmf::FASTNMF_ISA {
const ActiveSetKernels<float> active_set_float32{most_blocks + 1, ActiveScratch<float>::size, begin<float>,
                                                 advance<float>};
const ActiveSetKernels<double> active_set_float64{most_blocks + 1, ActiveScratch<double>::size, begin<double>,
                                                  advance<double>};
} // namespace fastnmf::FASTNMF_ISA

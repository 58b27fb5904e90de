// The passive concepts of a row in flight: their factor, how others enter it, and the residual.
//
// M and what follows from it is in float64; products of float32 concepts are sums in float32 where
// that is enough. Such sums do not show how far a nearly dependent concept is from the support. So
// below `doubtful` its products are computed in float64, and if it still seems to depend on the
// support, M is computed anew. One that does depend enters only alone, and only if that lowers the
// objective; else it is left out until the objective falls.
#pragma once

#include "candidates.h"

namespace {

using fastnmf::ActiveRow;
using fastnmf::ActiveSet;

// squared distance from the support below which sums in float32 are too rough
constexpr double doubtful = 1e-3;
constexpr double infinite = HUGE_VAL;

// scratch of a thread; values, chosen and open are of candidates, at most K
template <class T> struct ActiveScratch {
    double *l, *h, *r, *w, *values, *tops, *wide;
    T *rough;
    int *moved, *chosen, *open;
    Block block;

    static ptrdiff_t size(const ActiveSet<T> &a) {
        const ptrdiff_t across = Block::padded(a.rules.capacity + a.rules.block);
        return 4 * across + Block::size(across) + together + 2 * a.K + a.K / stretch + 1 +
               2 * Block::padded(a.p);
    }
    ActiveScratch(const ActiveSet<T> &a, double *next) {
        const ptrdiff_t across = Block::padded(a.rules.capacity + a.rules.block);
        const auto take = [&](ptrdiff_t size) { return (next += size) - size; };
        for (double **vector : {&l, &h, &r}) *vector = take(across);
        moved = reinterpret_cast<int *>(take(across));
        block = Block(take(Block::size(across)), across);
        w = take(together);
        values = take(a.K);
        chosen = reinterpret_cast<int *>(take(a.K));
        open = chosen + a.K;
        tops = take(a.K / stretch + 1);
        wide = take(Block::padded(a.p));
        rough = reinterpret_cast<T *>(take(Block::padded(a.p)));
    }
};

template <class T> struct ActiveFactor {
    using M_t = Triangle<double, Thread::pack>;
    const ActiveSet<T> &a;
    ActiveRow<T> &row;
    const ActiveScratch<T> at;
    Thread team;
    NnlsRow<Thread, double, T> solver;

    ActiveFactor(const ActiveSet<T> &a, ActiveRow<T> &row, double *scratch)
        : a(a), row(row), at(a, scratch),
          solver{team, int(a.K), nullptr, 0, a.rules, vectors(), {nullptr, row.M, 0}, row.p} {}

    NnlsScratch<double> vectors() const {
        return {row.y,   row.x,   row.s,       at.l,     at.h,    at.r,
                nullptr, nullptr, row.passive, at.moved, nullptr, nullptr};
    }
    const T *concept_of(int k) const { return a.B + k * a.stride_b; }

    // slope of concept k, whose x is given, from the product with the residual
    double slope(int k, double x, double product) const {
        const double scale = a.scale[k];
        double found = product - a.l1;
        if (a.curvature) found -= double(a.curvature[k]) * x * scale;
        return found * scale;
    }
    // product of unit concepts i and k, in float64
    double product(int i, int k) const {
        return dot(concept_of(i), concept_of(k), a.p) * a.scale[i] * a.scale[k];
    }

    // h ← products of unit concept k with P's first n, in float64
    void precise_products(int k, int n) const {
        const T *from = concept_of(k);
        for (ptrdiff_t j = 0; j < a.p; ++j) at.wide[j] = double(from[j]) * a.scale[k];
        each_dot(
            n, a.p, at.wide, [&](int i) { return concept_of(row.passive[i]); },
            [&](int i, double product) { at.h[i] = product * a.scale[row.passive[i]]; });
    }

    // f(Count, z, b): the codes and features of the passive concepts, in groups of eight and of one
    template <class N, class F> void each_passive(F f) const {
        N z[8];
        const T *b[8];
        const auto take = [&](int i, int r) {
            b[r] = concept_of(row.passive[i]);
            z[r] = N(row.x[i] * a.scale[row.passive[i]]);
        };
        int i = 0;
        for (; i + 8 <= solver.p; i += 8) {
            for (int r = 0; r < 8; ++r) take(i + r, r);
            f(Count<8>{}, z, b);
        }
        for (; i < solver.p; ++i) {
            take(i, 0);
            f(Count<1>{}, z, b);
        }
    }
    template <int n> struct Count {
        static constexpr int value = n;
    };

    // e = X − Bᵀ z
    void residual() {
        for (ptrdiff_t j = 0; j < a.p; ++j) row.e[j] = double(row.X[j]);
        each_passive<double>([&](auto count, const double *z, const T *const *b) {
            subtract<decltype(count)::value>(int(a.p), row.e, z, b);
        });
    }
    // the same, summed in T: for slopes that only choose who enters
    void rough_residual() {
        for (ptrdiff_t j = 0; j < a.p; ++j) at.rough[j] = row.X[j];
        each_passive<T>([&](auto count, const T *z, const T *const *b) {
            subtract_concepts<decltype(count)::value>(a.p, at.rough, z, b);
        });
        for (ptrdiff_t j = 0; j < a.p; ++j) row.e[j] = double(at.rough[j]);
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
        each_dot(
            solver.p, a.p, row.e, [&](int i) { return concept_of(row.passive[i]); },
            [&](int i, double product) {
                at.h[i] = slope(row.passive[i], row.x[i], product);
                most = fmax(most, fabs(at.h[i]));
            });
        return most;
    }

    void refine() {
        passive_slopes();
        solver.refine();
        solver.descend();
    }

    // H ← products of the candidates with P, S ← with each other; zeros behind both
    void products(const int *chosen, int q) {
        const int p = solver.p;
        gather_products(row.passive, p, chosen, q, at.block.H);
        // rows of M are padded to whole packs
        for (int i = p; i % Thread::pack; ++i)
            for (int c = 0; c < together; ++c) at.block.H[i * together + c] = 0;
        gather_products(chosen, q, chosen, q, at.block.S);
        for (int c = 0; c < q; ++c) at.block.S[c * together + c] = 1;
        for (int c = q; c < Block::across(q); ++c)
            for (int v = 0; v < together; ++v) at.block.S[c * together + v] = 0;
    }

    // to (n, together) ← products of unit concepts `index` with the candidates
    void gather_products(const int *index, int n, const int *chosen, int q, double *to) const {
        const int across = Block::across(q);
        if (a.unit) {
            const T *g[together];
            for (int c = 0; c < across; ++c) g[c] = a.unit + chosen[c < q ? c : 0] * a.stride_unit;
            for (int i = 0; i < n; ++i, to += together) {
                const int k = index[i];
                for (int c = 0; c < across; ++c) to[c] = c < q ? double(g[c][k]) : 0;
            }
            return;
        }
        const T *x[tile_i], *y[together];
        double scale[together] = {};
        for (int c = 0; c < across; ++c) {
            y[c] = concept_of(chosen[c < q ? c : 0]);
            scale[c] = c < q ? a.scale[chosen[c]] : 0;
        }
        for (int i = 0; i < n; i += tile_i) {
            const int rows = n - i < tile_i ? n - i : tile_i;
            for (int r = 0; r < tile_i; ++r) x[r] = concept_of(index[i + (r < rows ? r : 0)]);
            for (int first = 0; first < across; first += tile_c) {
                T found[tile_i * tile_c];
                products_of(x, y + first, a.p, found);
                for (int r = 0; r < rows; ++r)
                    for (int c = 0; c < tile_c; ++c)
                        to[(i + r) * together + first + c] = double(found[r * tile_c + c]) *
                                                             a.scale[index[i + r]] *
                                                             scale[first + c];
            }
        }
    }

    // column c of L and row and column c of S, from products in float64
    void project_precisely(const int *chosen, int q, int c) {
        const int p = solver.p, k = chosen[c];
        const Block &block = at.block;
        precise_products(k, p);
        team.multiply(solver.M, p, at.h, at.l);
        for (int i = 0; i < p; ++i) block.L[i * together + c] = at.l[i];
        for (int o = 0; o < q; ++o) {
            double left = o == c ? 1 : product(chosen[o], k);
            for (int i = 0; i < p; ++i) left -= at.l[i] * block.L[i * together + o];
            block.S[o * together + c] = block.S[c * together + o] = left;
        }
    }

    // Candidates enter, at most `most`: while there is one with a slope w above `least`, the
    // steepest; or in their order, from a start, with slopes at the minimiser on P. Returns how
    // many; rebuild: none, as M must be computed anew before the first may.
    int grow(const int *chosen, int q, double least, int most, const double *start, bool &rebuild) {
        const Block &block = at.block;
        if (q > 1) {
            products(chosen, q);
            block.project(solver.M, solver.p, q);
        } else {
            project_precisely(chosen, q, 0);
        }
        double *w = at.w, steps[together] = {};
        int order[together], count = 0;
        bool open[together];
        for (int c = 0; c < q; ++c) {
            open[c] = true;
            if (!start) continue;
            w[c] = (dot(concept_of(chosen[c]), row.X, a.p) - a.l1) * a.scale[chosen[c]];
            for (int i = 0; i < solver.p; ++i) w[c] -= block.L[i * together + c] * row.y[i];
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
            double &apart = block.S[best * together + best];
            if (rough && apart < doubtful) {
                // a later step takes it
                if (count) at.values[best] = slope;
                if (count || start) continue;
                project_precisely(chosen, q, best);
                if (!(apart > a.rules.rank_tolerance) && !row.exact) {
                    rebuild = true;
                    return 0;
                }
            }
            if (!(apart > a.rules.rank_tolerance)) {
                bool alone = !start && count == 0;
                for (int c = 0; c < q; ++c) alone &= !(open[c] && w[c] > least);
                if (!alone) {
                    if (!start) refuse(chosen[best]);
                    continue;
                }
                // as if it were as far as that: a concept leaves for it, or it is refused next
                apart = a.rules.rank_tolerance;
                row.forced = chosen[best];
            }
            steps[count] = block.eliminate(best, q, open, w);
            order[count++] = best;
        }
        if (count) append(chosen, order, count, steps, start);
        return count;
    }

    // order[t], t < count, of the candidates become P's next members, with y from `steps`
    void append(const int *chosen, const int *order, int count, const double *steps,
                const double *start) {
        const int p = solver.p;
        at.block.append(solver.M, p, order, count, steps, row.s, row.y);
        for (int t = 0; t < count; ++t) {
            row.x[p + t] = start ? start[order[t]] : 0;
            row.passive[p + t] = chosen[order[t]];
        }
        solver.p += count;
        solver.entered += count;
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
            precise_products(k, p);
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
};

} // namespace

// Non-negative least squares of one row: min ½ xᵀ G x − cᵀ x over x ≥ 0, at any rank of G.
//
// Block Lawson–Hanson. For the passive concepts P (x > 0) the solver keeps an inverse Cholesky
// factor: M G_PP Mᵀ = I with M lower triangular, y = M c_P, and s = Mᵀ y, the minimiser on P. In
// each step the concepts with the steepest slopes w = c − G x enter. Then x moves towards s, and
// every concept that would become negative leaves.
//
// It terminates: a block of entering concepts has w·s > 0, so at least one of them has s > 0, and
// the objective strictly decreases; no P occurs twice, for any block and any rank of G. Rounding
// can break this, so a concept that enters without gain is refused until there is one. An entering
// concept costs 2 p² flops and no solve; a leaving one p (p − q) rotations, whose angles come from
// one column.
//
// A team solves a row: one thread (cpu/nnls.cpp), the lanes of a warp or a block (cuda/nnls.cu), or
// threads in place of lanes (tests). It provides
//   sync, leader                 a barrier; whether this lane does the work that is done once
//   each(n, f)                   f(i) for i < n, in any order; no barrier
//   sum, most(n, f)              sum and maximum of f(i) and 0; a barrier before and after
//   least(n, f, bound, &i)       the smallest f(i) < bound, or bound with i = −1; likewise
//   collect(n, f, out)           out ← the i < n with f(i), in order; returns their number;
//   likewise multiply, multiply_transposed(M, p, in, out), project(M, p, in, out, back), which does
//   both, combine, rotate   see lanes.h; a barrier after
//   most_together                concepts that it can let enter at once, or 1; then also
//   enter(row, k, count, start)  and order(k, count, x), which sorts them, polish(row, worst), which
//   solves a row whose start is near the solution, or not, price(row, k, count), and
//   steepest_first(k, count, w, most, least): see cpu/nnls_thread.h
// Every value that a branch depends on comes from these, so all lanes take the same branches.
#pragma once

#include <math.h>

#include "problem.h"
#include "triangle.h"

namespace {

using fastnmf::NnlsReport;
using fastnmf::NnlsRows;
using fastnmf::NnlsRules;

// concepts that may enter between two computations of all slopes, in so many blocks, where there
// are this many concepts
constexpr int pool_size = 40, pool_blocks = 6, pool_concepts = 768;

template <class Team, class T, class S> struct NnlsRow {
    using Entry = S;
    Team &team;
    const int K;
    const S *const G;
    const ptrdiff_t stride_g;
    const NnlsRules rules;
    const NnlsScratch<T> at;
    const Triangle<T, Team::pack> M;
    int p = 0, refused = 0, entered = 0, left = 0, steps = 0;

    // P ← P ∪ {k}, x_k = start. A k that depends on P is left out, unless it enters alone: then its
    // distance counts as rank_tolerance. Its step ends early because a concept leaves for it, or it
    // leaves a slope of no more than rank_tolerance · x_k, which `refine` removes
    FASTNMF_TEAM void enter(int k, T start, bool alone) {
        const S *row_g = G + k * stride_g;
        team.each(p, [&](int i) { at.h[i] = T(row_g[at.passive[i]]); });
#if !defined(FASTNMF_DROP_SYNC) // left out by a test, which must then find a data race
        team.sync();
#endif
        // r ← Mᵀ M h, with the row of M that gives an entry of l
        team.project(M, p, at.h, at.l, at.r);
        const T near = T(rules.rank_tolerance) * T(row_g[k]);
        T apart = T(row_g[k]) - team.sum(p, [&](int i) { return at.l[i] * at.l[i]; });
        if (!(apart > near)) {
            if (!alone) return;
            apart = near;
        }
        const T pivot = 1 / T(sqrt(apart));
        const T y = pivot * (at.c[k] - team.sum(p, [&](int i) { return at.l[i] * at.y[i]; }));
        T *row = M.row(p);
        team.each(p, [&](int i) {
            row[i] = -pivot * at.r[i];
            at.s[i] += y * row[i];
        });
        if (team.leader()) {
            for (int i = p + 1; i < M.length(p); ++i) row[i] = 0;
            row[p] = pivot;
            at.s[p] = y * pivot;
            at.y[p] = y;
            at.x[p] = start;
            at.passive[p] = k;
        }
        team.sync();
        ++p;
        ++entered;
    }

    // enter(k[t], …) in this order, from `start` or 0
    FASTNMF_TEAM void enter_all(const int *k, int count, const T *start, bool alone) {
        if constexpr (Team::most_together > 1)
            if (count > 1) return team.enter(*this, k, count, start);
        for (int t = 0; t < count; ++t) enter(k[t], start ? start[k[t]] : T(0), alone);
    }

    // P ← P without its member q: rotations of M's rows from q on empty column q
    FASTNMF_TEAM void leave(int q) {
        T *cosine = at.l, *sine = at.h;
        if (team.leader()) {
            T carried = M.row(q)[q], y = at.y[q];
            for (int i = q; i + 1 < p; ++i) {
                const T below = M.row(i + 1)[q], y_below = at.y[i + 1];
                const T length = T(sqrt(carried * carried + below * below));
                cosine[i] = below / length;
                sine[i] = carried / length;
                at.y[i] = cosine[i] * y - sine[i] * y_below;
                y = sine[i] * y + cosine[i] * y_below;
                carried = length;
            }
            at.y[p - 1] = y;
        }
        team.sync();
        // r ← the rest of the last row, without column q
        team.rotate(M, p, q, cosine, sine, at.r);
        const T y = at.y[p - 1];
        team.each(p - 1, [&](int i) {
            const int from = i < q ? i : i + 1;
            at.r[i] = at.s[from] - y * at.r[i];
            at.l[i] = at.x[from];
            at.moved[i] = at.passive[from];
        });
        team.sync();
        --p;
        ++left;
        team.each(p, [&](int i) {
            at.s[i] = at.r[i];
            at.x[i] = at.l[i];
            at.passive[i] = at.moved[i];
        });
        team.sync();
    }

    // move x towards s as far as x ≥ 0 allows; remove the concept that stops it; until x = s > 0
    FASTNMF_TEAM void descend() {
        for (;;) {
            int q;
            // 0 for a concept that has just entered with s ≤ 0
            const T step = team.least(
                p,
                [&](int i) {
                    return at.s[i] > 0 ? T(2) : at.x[i] > 0 ? at.x[i] / (at.x[i] - at.s[i]) : T(0);
                },
                T(2), q);
            team.each(p, [&](int i) {
                at.x[i] = q < 0 ? at.s[i] : i == q ? T(0) : at.x[i] + step * (at.s[i] - at.x[i]);
            });
            team.sync();
            if (q < 0) return;
            leave(q);
        }
    }

    // w = c − G x; h ← w_P. Then w < 0 marks passive and refused concepts. Returns the largest
    // |w_P|; left_out ← the largest w of a refused concept
    FASTNMF_TEAM T slope(T &left_out) {
        team.combine(at.c, G, stride_g, K, at.passive, at.x, p, at.w);
        left_out = team.most(refused, [&](int i) { return at.w[at.blocked[i]]; });
        team.each(p, [&](int i) {
            at.h[i] = at.w[at.passive[i]];
            at.w[at.passive[i]] = -1;
        });
        team.each(refused, [&](int i) { at.w[at.blocked[i]] = -1; });
        return team.most(p, [&](int i) { return at.h[i] < 0 ? -at.h[i] : at.h[i]; });
    }

    // one step of iterative refinement of s and y by the slopes h of P
    FASTNMF_TEAM void refine() {
        team.multiply(M, p, at.h, at.l);
        team.multiply_transposed(M, p, at.l, at.h);
        team.each(p, [&](int i) {
            at.y[i] += at.l[i];
            at.s[i] = at.x[i] + at.h[i];
        });
        team.sync();
    }

    // entering ← at most `most` of the steepest concepts, none less than half as steep as the first
    FASTNMF_TEAM int choose(T steepest, int most, T share = T(0.5)) {
        T low = most == 1 ? steepest : steepest * share, high = steepest;
        if (low < T(rules.tolerance)) low = T(rules.tolerance);
        const auto count = [&](T least) {
            return team.sum(K, [&](int k) { return at.w[k] >= least ? T(1) : T(0); });
        };
        if (most > 1 && count(low) > most)
            // six halvings are precise enough
            for (int halving = 0; halving < 6; ++halving) {
                const T middle = (low + high) / 2, found = count(middle);
                (found >= most ? low : high) = middle;
                if (found >= most && found <= most + most / 4) break;
            }
        const int found = team.collect(K, [&](int k) { return at.w[k] >= low; }, at.entering);
        return found < most ? found : most;
    }

    // P ← the support of the start in w. P ← ∅ instead, as soon as too many of its concepts would
    // have to leave: they cost about p² each, and finding P from nothing about p³ / 4
    FASTNMF_TEAM void take_start() {
        const int given = team.collect(K, [&](int k) { return at.w[k] > 0; }, at.entering);
        // the smallest, which are the likeliest to leave, last: that is quicker
        if constexpr (Team::most_together > 1) team.order(at.entering, given, at.w);
        int look = 32;
        for (int t = 0; t < given && p < rules.capacity; ++t) {
            if constexpr (Team::most_together > 1) {
                int count = given - t < Team::most_together ? given - t : Team::most_together;
                if (count > rules.capacity - p) count = rules.capacity - p;
                enter_all(at.entering + t, count, at.w, false);
                t += count - 1;
            } else {
                enter(at.entering[t], at.w[at.entering[t]], false);
            }
            if (t + 1 < given && p < look) continue;
            look *= 2;
            const T wrong = team.sum(p, [&](int i) { return at.s[i] > 0 ? T(0) : T(1); });
            if (wrong <= T(p / 4 + 4)) continue;
            p = 0;
            return;
        }
        descend();
    }

    // ‖y‖² = cᵀ s: twice the gain of P over x = 0
    FASTNMF_TEAM T gain() {
        return team.sum(p, [&](int i) { return at.y[i] * at.y[i]; });
    }

    // whether the gain is larger than `before` by more than rounding
    FASTNMF_TEAM bool rose(T before) {
        const T epsilon = sizeof(T) == 4 ? T(1e-7) : T(1e-15);
        return gain() > before * (1 + epsilon);
    }

    FASTNMF_TEAM void refuse(int k) {
        if (team.leader()) at.blocked[refused] = k;
        ++refused;
        team.sync();
    }

    // concepts of the next block, after `come` entered and `gone` left
    FASTNMF_TEAM int next_block(int block, int come, int gone) const {
        block = gone > come / 2 ? (block + 1) / 2 : gone <= come / 4 ? block * 2 : block;
        return block > rules.block ? rules.block : block;
    }

    // More blocks enter, of those that were the steepest beside the `found` of the last step, by
    // slopes of their own: those of all concepts take longer. Returns the size of the next block;
    // 1 after a block without gain
    int enter_more(T steepest, int found, int block) {
        for (int t = 0; t < found; ++t) at.w[at.entering[t]] = -1;
        int pool = choose(steepest, pool_size, T(0.25));
        const T share = steepest / 4, tolerance = T(rules.tolerance);
        const T least = share > tolerance ? share : tolerance;
        for (int more = 0; more < pool_blocks && block > 1; ++more) {
            const T top = team.price(*this, at.entering, pool);
            const int vacant = rules.capacity - p, most = block < vacant ? block : vacant;
            if (!(top > least) || most < 2 || steps >= rules.max_steps) break;
            const int come = team.steepest_first(at.entering, pool, at.w, most, top / 2);
            const T before = gain();
            const int in = entered, out = left;
            enter_all(at.entering, come, nullptr, false);
            descend();
            ++steps;
            if (!rose(before)) return 1;
            block = next_block(block, entered - in, left - out);
            pool -= come;
            for (int t = 0; t < pool; ++t) at.entering[t] = at.entering[come + t];
        }
        return block;
    }

    // from x = 0, or from the start in w if warm, for c scaled to a largest slope of about 1
    FASTNMF_TEAM NnlsReport solve(bool warm) {
        if constexpr (Team::most_together > 1) {
            double worst = 0;
            if (warm && team.polish(*this, worst))
                return {fastnmf::nnls_solved, p, steps, left, worst, double(gain())};
        }
        if (warm) take_start();
        const T tolerance = T(rules.tolerance);
        int block = rules.block, refinements = 0;
        bool capped = false;
        T slack, steepest, left_out;
        for (;; ++steps) {
            slack = slope(left_out);
            steepest = team.most(K, [&](int k) { return at.w[k]; });
            if (!(steepest > tolerance) && slack > tolerance / 2 && refinements < 3) {
                ++refinements;
                refine();
                descend();
                continue;
            }
            if (!(steepest > tolerance)) break;
            const int vacant = rules.capacity - p;
            // refinements do not count
            capped = steps - refinements >= rules.max_steps || vacant == 0;
            if (capped) break;
            const T before = gain();
            const int in = entered, out = left,
                      found = choose(steepest, block < vacant ? block : vacant);
            const bool alone = found == 1;
            enter_all(at.entering, found, nullptr, alone);
            const int only = at.entering[0];
            descend();
            if (rose(before)) {
                refused = 0;
                block = next_block(block, entered - in, left - out);
                if constexpr (Team::most_together > 1)
                    if (K >= pool_concepts) block = enter_more(steepest, found, block);
            } else {
                // rounding, or dependence: one at a time, and one without gain is refused until
                // there is a gain
                if (alone) refuse(only);
                block = 1;
            }
        }
        T worst = steepest > left_out ? steepest : left_out;
        if (slack > worst) worst = slack;
        using namespace fastnmf;
        const int status = capped ? nnls_capped : worst <= tolerance ? nnls_solved : nnls_floored;
        return {status, p, steps - refinements, left, double(worst), double(gain())};
    }
};

// 1 over the power of two below `steepest`: scaling a row by it changes exponents only
template <class T> FASTNMF_TEAM T unit_of(T steepest) {
    if (!(steepest > 0)) return 1;
    const int power = -ilogb(steepest), most = sizeof(T) == 4 ? 120 : 1000;
    return T(ldexp(T(1), power < most ? power : most));
}

// the number of concepts that row i may use
template <class S> FASTNMF_TEAM int concepts(const NnlsRows<S> &rows, ptrdiff_t i) {
    int K = rows.K;
    if (rows.index)
        while (K > 0 && rows.index[i * rows.K + K - 1] < 0) --K;
    return K;
}

// the Gram matrix (K, K) of the concepts that a row may use
template <class S> struct RowGram {
    const S *G;
    ptrdiff_t stride_g;
    int K;
};

// Row i of `rows` on the concepts of its `gram`, in scratch; sums ← ‖ΔF_i‖², ‖F_i‖² of these.
template <class Team, class T, class S>
FASTNMF_TEAM void nnls_row(Team &team, const NnlsRows<S> &rows, ptrdiff_t i, const RowGram<S> &gram,
                           NnlsScratch<T> at, Triangle<T, Team::pack> M, double *sums) {
    const int K = gram.K;
    const int32_t *index = rows.index ? rows.index + i * rows.K : nullptr;
    const auto F = [&](int k) -> S & {
        return rows.F.data[(index ? index[k] : k) * rows.F.stride_k + i * rows.F.stride_m];
    };
    const auto scale = [&](int k) { return T(rows.scale[index ? index[k] : k]); };
    team.each(K, [&](int k) {
        const S *C = rows.C.data + (index ? index[k] : k) * rows.C.stride_k + i * rows.C.stride_m;
        at.c[k] = scale(k) > 0 ? T(*C) * scale(k) : T(0);
    });
    team.sync();
    const T steepest = team.most(K, [&](int k) { return at.c[k]; });
    // 0, or NaN if any is not finite
    const T all = team.sum(K, [&](int k) { return at.c[k] * 0; });
    const T unit = unit_of(steepest);
    team.each(K, [&](int k) {
        at.c[k] *= unit;
        at.w[k] = scale(k) > 0 ? T(F(k)) * unit / scale(k) : T(0);
    });
    team.sync();
    NnlsRow<Team, T, S> row{team, K, gram.G, gram.stride_g, rows.rules, at, M};
    NnlsReport report = row.solve(rows.warm);
    report.gain /= double(unit) * double(unit);
    if (steepest > 0) report.slope /= double(steepest) * double(unit);
    // a NaN is lost in a maximum, but not in a sum
    const T strange = all + team.sum(K, [&](int k) { return at.w[k] * 0; }) +
                      team.sum(row.p, [&](int q) { return at.x[q] * 0; });
    if (!(strange == 0)) {
        report.slope = HUGE_VAL;
        if (report.status == fastnmf::nnls_solved) report.status = fastnmf::nnls_floored;
    }
    if (rows.rules.draft && report.status != fastnmf::nnls_solved) {
        if (team.leader()) rows.report[i] = report;
        return;
    }
    team.each(K, [&](int k) { at.w[k] = all; });
    team.sync();
    team.each(row.p, [&](int q) { at.w[at.passive[q]] = at.x[q] / unit; });
    team.sync();
    const auto updated = [&](int k) { return scale(k) > 0 ? S(at.w[k] * scale(k)) : F(k); };
    // squares of large data overflow in float32
    const double change = team.sum(K, [&](int k) {
        const double delta = double(updated(k)) - double(F(k));
        return delta * delta;
    });
    team.each(K, [&](int k) { F(k) = updated(k); });
    team.sync();
    const double norm = team.sum(K, [&](int k) { return double(F(k)) * double(F(k)); });
    if (!team.leader()) return;
    sums[0] = change;
    sums[1] = norm;
    rows.report[i] = report;
}

} // namespace

// Non-negative least squares of one row: min ½ xᵀ G x − cᵀ x over x ≥ 0, at any rank of G.
//
// Block Lawson–Hanson. Of the passive concepts P (x > 0) an inverse Cholesky factor is kept:
// M G_PP Mᵀ = I with M lower triangular, y = M c_P and s = Mᵀ y, the minimiser on P. A step enters
// the concepts with the steepest slopes w = c − G x; then x moves towards s, and each concept that
// would turn negative on the way leaves.
//
// It ends: for a block of entering concepts w·s > 0, so one of them at least has s > 0, and x
// strictly gains; P is never the same again, whatever the block and the rank of G. What rounding
// makes of this is caught: a concept without gain is refused until there is some. M costs p² flops
// twice for a concept that enters, no solve; a concept that leaves costs p (p − q) rotations, whose
// angles are those of one column.
//
// A team solves a row: one thread (cpu/nnls.cpp), the lanes of a warp or a block (cuda/nnls.cu), or
// threads that stand for lanes (tests). It gives
//   sync, leader                 a barrier; whether this lane does what is done once
//   each(n, f)                   f(i) for i < n, in any order; no barrier
//   sum, most(n, f)              over f(i), 0 if there are none or less; a barrier before and after
//   least(n, f, bound, &i)       the smallest f(i) < bound, or bound with i = −1; likewise
//   collect(n, f, out)           out ← the i < n with f(i), in order; returns how many; likewise
//   multiply, multiply_transposed(M, p, in, out), combine, rotate   see lanes.h; a barrier after
// Every value that is branched on comes from these, so all lanes take the same way.
#pragma once

#include <math.h>

#include "problem.h"

#if defined(__CUDACC__)
#define FASTNMF_TEAM __device__ __forceinline__
#define FASTNMF_EVERYWHERE __host__ __device__ __forceinline__
#else
#define FASTNMF_TEAM inline __attribute__((always_inline))
#define FASTNMF_EVERYWHERE FASTNMF_TEAM
#endif

namespace {

using fastnmf::NnlsReport;
using fastnmf::NnlsRows;
using fastnmf::NnlsRules;

// Lower triangle by rows, each filled with zeros to a multiple of `pack`. The first near_rows rows
// are in fast memory, if there is such.
template <class T, int pack> struct Triangle {
    T *near, *far;
    int near_rows;

    static FASTNMF_EVERYWHERE int length(int i) { return (i / pack + 1) * pack; }
    static FASTNMF_EVERYWHERE int64_t offset(int i) {
        const int64_t full = i / pack;
        return full * (full + 1) / 2 * (pack * pack) + (i - full * pack) * (full + 1) * pack;
    }
    FASTNMF_TEAM T *row(int i) const {
        return i < near_rows ? near + offset(i) : far + (offset(i) - offset(near_rows));
    }
};

// y, x, s, l, h, r, passive, moved: capacity, filled to a multiple of the pack; w, c, entering,
// blocked: K
template <class T> struct NnlsScratch {
    T *y, *x, *s, *l, *h, *r, *w, *c;
    int *passive, *moved, *entering, *blocked;
};

template <class Team, class T, class S> struct NnlsRow {
    Team &team;
    const int K;
    const S *const G;
    const ptrdiff_t stride_g;
    const NnlsRules rules;
    const NnlsScratch<T> at;
    const Triangle<T, Team::pack> M;
    int p = 0, refused = 0, entered = 0, left = 0, steps = 0;

    // P ← P ∪ {k}, x_k = start. If k depends on P nothing is done, unless it comes alone: then it
    // counts as rank_tolerance apart. Its step is cut short by a concept that leaves for it, or
    // leaves a slope of no more than rank_tolerance · x_k, which `refine` takes away
    FASTNMF_TEAM void enter(int k, T start, bool alone) {
        const S *row_g = G + k * stride_g;
        team.each(p, [&](int i) { at.h[i] = T(row_g[at.passive[i]]); });
#if !defined(FASTNMF_DROP_SYNC) // a test leaves it out, to see that its absence is found
        team.sync();
#endif
        team.multiply(M, p, at.h, at.l);
        const T near = T(rules.rank_tolerance) * T(row_g[k]);
        T apart = T(row_g[k]) - team.sum(p, [&](int i) { return at.l[i] * at.l[i]; });
        if (!(apart > near)) {
            if (!alone) return;
            apart = near;
        }
        const T pivot = 1 / T(sqrt(apart));
        const T y = pivot * (at.c[k] - team.sum(p, [&](int i) { return at.l[i] * at.y[i]; }));
        team.multiply_transposed(M, p, at.l, at.h);
        T *row = M.row(p);
        team.each(p, [&](int i) {
            row[i] = -pivot * at.h[i];
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
        // r ← what is left of the last row, with column q taken out
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

    // x towards s as far as x ≥ 0 allows, without the concepts in the way; ends with x = s > 0
    FASTNMF_TEAM void descend() {
        for (;;) {
            int q;
            // 0 for a concept that has just entered the wrong way
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

    // w = c − G x; h ← w_P. Passive and refused concepts are then marked by w < 0. Returns the
    // largest |w_P|, and in `left_out` the largest w of a refused concept
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

    // entering ← the steepest concepts, at most so many, none flatter than half the steepest
    FASTNMF_TEAM int choose(T steepest, int most) {
        T low = most == 1 ? steepest : steepest / 2, high = steepest;
        if (low < T(rules.tolerance)) low = T(rules.tolerance);
        const auto count = [&](T least) {
            return team.sum(K, [&](int k) { return at.w[k] >= least ? T(1) : T(0); });
        };
        if (most > 1 && count(low) > most)
            // six halvings are near enough
            for (int halving = 0; halving < 6; ++halving) {
                const T middle = (low + high) / 2, found = count(middle);
                (found >= most ? low : high) = middle;
                if (found >= most && found <= most + most / 4) break;
            }
        const int found = team.collect(K, [&](int k) { return at.w[k] >= low; }, at.entering);
        return found < most ? found : most;
    }

    // P ← the support of the start in w; or none of it, as soon as the concepts that would have to
    // leave, some p² each, cost about what finding P anew does, some p³ / 4
    FASTNMF_TEAM void take_start() {
        const int given = team.collect(K, [&](int k) { return at.w[k] > 0; }, at.entering);
        int look = 32;
        for (int t = 0; t < given && p < rules.capacity; ++t) {
            enter(at.entering[t], at.w[at.entering[t]], false);
            if (t + 1 < given && p < look) continue;
            look *= 2;
            const T wrong = team.sum(p, [&](int i) { return at.s[i] > 0 ? T(0) : T(1); });
            if (wrong <= T(p / 4 + 4)) continue;
            p = 0;
            return;
        }
        descend();
    }

    // ‖y‖² = cᵀ s: twice what P gains over x = 0
    FASTNMF_TEAM T gain() {
        return team.sum(p, [&](int i) { return at.y[i] * at.y[i]; });
    }

    FASTNMF_TEAM void refuse(int k) {
        if (team.leader()) at.blocked[refused] = k;
        ++refused;
        team.sync();
    }

    // from x = 0, or from the start in w if warm, for c scaled to a largest slope of about 1
    FASTNMF_TEAM NnlsReport solve(bool warm) {
        if (warm) take_start();
        const T tolerance = T(rules.tolerance), epsilon = sizeof(T) == 4 ? T(1e-7) : T(1e-15);
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
            const int room = rules.capacity - p;
            capped = steps >= rules.max_steps || room == 0;
            if (capped) break;
            const T before = gain();
            const int in = entered, out = left,
                      found = choose(steepest, block < room ? block : room);
            const bool alone = found == 1;
            for (int t = 0; t < found; ++t) enter(at.entering[t], 0, alone);
            const int only = at.entering[0];
            descend();
            if (gain() > before * (1 + epsilon)) {
                refused = 0;
                const int gone = left - out, come = entered - in;
                block = gone > come / 2 ? (block + 1) / 2 : gone <= come / 4 ? block * 2 : block;
                if (block > rules.block) block = rules.block;
            } else {
                // rounding, or dependence: one at a time, and those without gain wait for one
                if (alone) refuse(only);
                block = 1;
            }
        }
        T worst = steepest > left_out ? steepest : left_out;
        if (slack > worst) worst = slack;
        using namespace fastnmf;
        const int status = capped ? nnls_capped : worst > tolerance ? nnls_floored : nnls_solved;
        return {status, p, steps, left, double(worst), double(gain())};
    }
};

// 1 over the power of two below `steepest`: to scale a row by it changes no other bit
template <class T> FASTNMF_TEAM T unit_of(T steepest) {
    if (!(steepest > 0)) return 1;
    const int power = -ilogb(steepest), most = sizeof(T) == 4 ? 120 : 1000;
    return T(ldexp(T(1), power < most ? power : most));
}

// how many concepts row i may use
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
    // not finite if any is not
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
    if (rows.rules.draft && report.status != fastnmf::nnls_solved) {
        if (team.leader()) rows.report[i] = report;
        return;
    }
    team.each(K, [&](int k) { at.w[k] = all; });
    team.sync();
    team.each(row.p, [&](int q) { at.w[at.passive[q]] = at.x[q] / unit; });
    team.sync();
    const auto updated = [&](int k) { return scale(k) > 0 ? S(at.w[k] * scale(k)) : F(k); };
    // in float32 the squares of large data overflow
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

// Non-negative least squares of many rows at once: a row advances one step whenever the slopes of
// all concepts have been computed from its residual, which one product does for all rows in flight.
//
// In a step the steepest concepts are the candidates. They enter the support in blocks, one by one
// from the steepest: the steepest of a block enters, and the slopes of the others follow it
// (active_factor.h). Then concepts leave as in nnls/solver.h. The other candidates get their slopes
// from the residual of the new x, and the next block enters. Refused concepts count in the KKT
// residual.

#include <cstddef>
#include <cstdint>

#include "active_factor.h"

namespace {

// of the steepest slope: a candidate of a block enters while its own is above this share
constexpr double share = 0.3;
// of the steepest slope: a candidate of a step has at least this share
constexpr double share_of_pool = 0.1;
// candidates of a step, with few and many concepts, whose slopes take long; and blocks of a step
// after the first
constexpr int few_candidates = 32, many_candidates = 96, many_concepts = 1500, most_blocks = 7;
// candidates of a block: as many as a tile of `Block` has, or twice as many if this many entered
// in the last block
constexpr int many_enter = 7;
// of the bound of what rough slopes are off: they are of use down to this, as most are off less
constexpr double share_of_roughness = 0.25;
// the same bound for products in float32: of ties
constexpr double rounding_of_slopes = 1e-6;
constexpr int most_refinements = 8, most_stalls = 3, most_rebuilds = 2;

template <class T> struct ActiveStep : ActiveFactor<T> {
    using Base = ActiveFactor<T>;
    using Base::a, Base::row, Base::at, Base::solver;
    using Base::concept_of, Base::slope, Base::residual, Base::rough_residual, Base::objective;
    using Base::refine, Base::rebuild, Base::refuse, Base::grow, Base::passive_slopes;

    ActiveStep(const ActiveSet<T> &a, ActiveRow<T> &row, double *scratch) : Base(a, row, scratch) {}

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
        for (int t = 0; t < given; t += together) {
            const int q = t + together < given ? together : given - t;
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
        return scale_slopes(W, a.rounded, T(a.l1), a.K, at.tops);
    }

    bool advance(T *W, T *E) {
        const bool going = !step(W);
        row.p = solver.p;
        if (going)
            for (ptrdiff_t j = 0; j < a.p; ++j) E[j] = T(row.e[j]);
        return !going;
    }

    // how far slopes of unit concepts may be off
    double error() const {
        const double relative = row.rough ? a.roughness : sizeof(T) == 4 ? rounding_of_slopes : 0;
        return relative * sqrt(dot(row.e, row.e, a.p));
    }

    // the row needs the slopes of the same residual once more, in T
    bool again() {
        row.rough = false;
        return false;
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
        // as many concepts enter one by one as there may be
        const bool greedy = a.limit && !row.beyond;
        double slack, refused;
        const double steepest = scan(W, slack, refused), now = objective();
        const double aim = a.rules.tolerance * row.reference / 2;
        row.worst = fmax(steepest, fmax(slack, refused)) / row.reference;
        if (!(now + row.reference + steepest + slack < infinite)) {
            row.worst = infinite;
            return end(fastnmf::nnls_floored);
        }
        if (row.rough) {
            if (steepest <= fmax(aim, share_of_roughness * error())) return again();
            slack = 0;
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
            if (row.beyond) row.worst = (row.rough ? passive_slopes() : slack) / row.reference;
            keep();
        }
        if (row.steps >= a.rules.max_steps)
            return row.beyond ? give_up() : end(fastnmf::nnls_capped);
        const bool given_rough = row.rough, ends = enter(W, steepest, fmax(slack, refused), greedy);
        // one that was too close to others may be rough again
        if (greedy && !given_rough && !ends && a.roughness > 0) row.rough = true;
        return ends;
    }

    // Some of the steepest concepts enter, and others leave: first those that are steepest of all,
    // then, by slopes of their own, what is left of the `pool` that was chosen with them.
    bool enter(const T *W, double steepest, double others, bool greedy) {
        const double aim = a.rules.tolerance * row.reference / 2;
        const int room = greedy || a.K > many_concepts ? many_candidates : few_candidates;
        const double low = greedy ? steepest - 2 * error() : share_of_pool * steepest;
        int pool = steepest_concepts(W, at.tops, a.K, fmax(aim, low), room, at.chosen, at.values);
        // the steepest may be among those that were left out
        if (greedy && row.rough && pool == room) return again();
        const double precise = reprice(pool);
        if (precise <= aim) {
            if (row.rough) return again();
            row.worst = fmax(precise, others) / row.reference;
            return ended();
        }
        if (greedy) {
            partition(at.values, at.chosen, pool, 1);
            pool = 1;
        }
        // P spans all concepts: slopes are rounding
        if (solver.p >= a.rules.capacity) return ended();
        // others may be as steep as the last of a full pool
        double least = fmax(aim, share_of_pool * precise);
        if (!greedy && pool == room)
            for (int c = 0; c < pool; ++c)
                if (at.values[c] < least || c == 0) least = fmax(aim, at.values[c]);
        for (int blocks = 0, come = 0;; ++blocks) {
            const int vacant = a.rules.capacity - solver.p;
            const int most = greedy ? 1 : a.rules.block < vacant ? a.rules.block : vacant;
            if (blocks && (most < 1 || row.steps >= a.rules.max_steps)) break;
            const int q = pool < row.block ? pool : row.block;
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
            row.block = come < many_enter ? Block::pack : together;
            row.refinements = 0;
            row.exact = sizeof(T) == 8 || (row.exact && q == 1);
            solver.descend();
            if (blocks == most_blocks || pool <= 1 || row.forced >= 0) break;
            rough_residual();
            reprice(pool);
        }
        residual();
        return false;
    }

    // values ← the slopes of the pool, but for those that took part; the largest
    double reprice(int pool) {
        constexpr ptrdiff_t line = 64 / sizeof(T);
        int left = 0, *open = at.open;
        for (int c = 0; c < pool; ++c)
            if (at.values[c] > -infinite) open[left++] = c;
        double most = 0;
        const auto concept_at = [&](int i) {
            if (i + 4 < left)
                for (ptrdiff_t j = 0; j < a.p; j += line)
                    __builtin_prefetch(concept_of(at.chosen[open[i + 4]]) + j);
            return concept_of(at.chosen[open[i]]);
        };
        each_dot(left, a.p, row.e, concept_at, [&](int i, double product) {
            const int c = open[i];
            most = fmax(most, at.values[c] = slope(at.chosen[c], 0, product));
        });
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
    row.block = together;
    row.blocked_count = row.steps = row.refinements = row.stalls = row.rebuilds = row.kept_p = 0;
    row.least = row.lowest = infinite;
    row.forced = -1;
    row.begun = row.beyond = false;
    // a start is likely to be near the solution
    row.rough = a.roughness > 0 && !row.warm;
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
const ActiveSetKernels<float> active_set_float32{most_blocks + 1, ActiveScratch<float>::size,
                                                 begin<float>, advance<float>};
const ActiveSetKernels<double> active_set_float64{most_blocks + 1, ActiveScratch<double>::size,
                                                  begin<double>, advance<double>};
} // namespace fastnmf::FASTNMF_ISA

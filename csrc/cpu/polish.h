// A start whose support is nearly that of the solution, made exact: the factor of its Gram matrix
// in float32, which is several times as fast as M of nnls/solver.h in float64, and corrections by
// slopes in float64.
//
// L Lᵀ = G_PP + ridge I for the concepts P of the start, L lower triangular by columns. Concepts
// whose minimiser on P is not positive leave all at once, those with positive slopes enter. Neither
// is sure to lower the objective, but where no slope is above the tolerance the codes are the
// solution, whatever led to them. Where the factor is too coarse, or after some rounds, a row is
// left to the solver.
#pragma once

#include <math.h>

#include <cstddef>
#include <cstdint>

#include "simd.h"

namespace {

// The Cholesky factor of unit concepts, at most `most` of them; one that left keeps its place, as
// one that is orthogonal to all others.
struct SupportFactor {
    static constexpr int lanes = Simd<float>::lanes, most = 512, pad = 16;
    // what is added to squared norms, so that float32 is precise enough whatever the concepts; and
    // the squared distances to those before it, with the ridge, at which a concept is dependent,
    // and at which it cannot be told
    static constexpr float ridge = 3e-6f, dependent = ridge + 1e-6f, least = ridge / 2;
    float *L, *inverse, *v;
    int p = 0, stride;

    static ptrdiff_t padded(int n) { return (ptrdiff_t(n) + pad - 1) / pad * pad; }
    // entries for n concepts
    static ptrdiff_t size(int n) { return padded(n) * (padded(n) + 2); }

    // for n concepts
    SupportFactor(float *from, int n)
        : L(from + 2 * padded(n)), inverse(from), v(from + padded(n)), stride(int(padded(n))) {}

    float *column(int j) const { return L + ptrdiff_t(j) * stride; }

    // of the n concepts `index` of G; −1 in place of those that depend on the ones before them.
    // Returns how many do. n³ / 3 flops
    int factor(const float *G, ptrdiff_t stride_g, int *index, int n) {
        p = n;
        for (int first = 0; first < n; first += panel) {
            const int count = n - first < panel ? n - first : panel;
            const float *g[panel];
            float *to[panel];
            for (int c = 0; c < panel; ++c) {
                const int j = first + (c < count ? c : 0);
                g[c] = G + index[j] * stride_g;
                to[c] = column(j);
            }
            for (int i = first; i < n; ++i) {
                const int k = index[i];
                for (int c = 0; c < panel; ++c) to[c][i] = g[c][k];
            }
            for (int c = 0; c < count; ++c) {
                for (int i = n; i < stride; ++i) to[c][i] = 0;
                to[c][first + c] += ridge;
            }
        }
        int without = 0;
        for (int j = 0; j < n; j += panel) {
            subtract_products(j);
            without += finish_panel(j, n - j < panel ? n - j : panel, index);
        }
        return without;
    }

    // v ← L⁻¹ v
    void forward() const {
        int j = 0;
        for (; j + panel <= p; j += panel) {
            float y[panel];
            for (int c = 0; c < panel; ++c) {
                float rest = v[j + c];
                for (int b = 0; b < c; ++b) rest -= y[b] * column(j + b)[j + c];
                y[c] = rest * inverse[j + c];
            }
            const float *const l = column(j);
            for (int i = j / lanes * lanes; i < p; i += lanes) {
                Vec<float> rest = load(v + i);
#pragma GCC unroll 4
                for (int c = 0; c < panel; ++c) rest -= y[c] * load(l + c * ptrdiff_t(stride) + i);
                store(v + i, rest);
            }
            for (int c = 0; c < panel; ++c) v[j + c] = y[c];
        }
        for (; j < p; ++j) {
            const float y = v[j] * inverse[j];
            for (int i = j + 1; i < p; ++i) v[i] -= y * column(j)[i];
            v[j] = y;
        }
    }

    // v ← L⁻ᵀ v
    void backward() const {
        const int whole = p / panel * panel;
        for (int j = p - 1; j >= whole; --j) {
            float rest = v[j];
            for (int i = j + 1; i < p; ++i) rest -= column(j)[i] * v[i];
            v[j] = rest * inverse[j];
        }
        for (int j = whole - panel; j >= 0; j -= panel) {
            float y[panel];
            for (int c = 0; c < panel; ++c) {
                y[c] = v[j + c];
                v[j + c] = 0;
            }
            Vec<float> sums[panel] = {};
            const float *const l = column(j);
            for (int i = j / lanes * lanes; i < p; i += lanes) {
                const Vec<float> x = load(v + i);
#pragma GCC unroll 4
                for (int c = 0; c < panel; ++c) sums[c] += load(l + c * ptrdiff_t(stride) + i) * x;
            }
            for (int c = panel - 1; c >= 0; --c) {
                float rest = y[c] - float(sum<float>(sums[c]));
                for (int b = c + 1; b < panel; ++b) rest -= column(j + c)[j + b] * v[j + b];
                v[j + c] = rest * inverse[j + c];
            }
        }
    }

    // concept q leaves: its column is added to the factor of those behind it
    void leave(int q) const {
        for (int i = 0; i < p; ++i) v[i] = i > q ? column(q)[i] : 0;
        for (int i = p; i < stride; ++i) v[i] = 0;
        for (int j = 0; j < q; ++j) column(j)[q] = 0;
        for (int i = q / lanes * lanes; i < stride; ++i) column(q)[i] = 0;
        column(q)[q] = inverse[q] = 1;
        for (int j = q + 1; j < p; ++j) {
            if (v[j] == 0) continue;
            float *const l = column(j);
            const float length = sqrtf(l[j] * l[j] + v[j] * v[j]), one = 1 / length;
            const float cosine = l[j] * one, sine = v[j] * one;
            // upper entries of L and of v are zeros
            for (int i = j / lanes * lanes; i < p; i += lanes) {
                const Vec<float> own = load(l + i), other = load(v + i);
                store(l + i, cosine * own + sine * other);
                store(v + i, cosine * other - sine * own);
            }
            l[j] = length;
            inverse[j] = one;
            v[j] = 0;
        }
    }

    // a concept of norm² `square` enters behind the others, with products v with them; or not,
    // where its squared distance to them, with the ridge, is at most `nearest`
    bool enter(float square, float nearest) {
        forward();
        double apart = double(square) + ridge;
        for (int j = 0; j < p; ++j) apart -= double(v[j]) * v[j];
        if (!(apart > nearest)) return false;
        for (int j = 0; j < p; ++j) column(j)[p] = v[j];
        float *const own = column(p);
        for (int i = p / lanes * lanes; i < stride; ++i) own[i] = 0;
        own[p] = float(sqrt(apart));
        inverse[p] = 1 / own[p];
        ++p;
        return true;
    }

  private:
    // columns that are factored together, and vectors of their rows in registers
    static constexpr int panel = 4, tall = 3;

    // columns j … j + panel −= their products with the columns before
    void subtract_products(int j) const {
        int i = j / lanes * lanes;
        for (; i + (tall - 1) * lanes < p; i += tall * lanes) subtract_tile<tall>(i, j);
        if (i + lanes < p) {
            subtract_tile<2>(i, j);
            i += 2 * lanes;
        }
        if (i < p) subtract_tile<1>(i, j);
    }

    template <int vectors> void subtract_tile(int i, int j) const {
        Vec<float> sums[panel][vectors] = {};
        const float *l = L;
        for (int k = 0; k < j; ++k, l += stride) {
            Vec<float> x[vectors];
#pragma GCC unroll 4
            for (int b = 0; b < vectors; ++b) x[b] = load(l + i + b * lanes);
#pragma GCC unroll 4
            for (int c = 0; c < panel; ++c)
#pragma GCC unroll 4
                for (int b = 0; b < vectors; ++b) sums[c][b] += l[j + c] * x[b];
        }
        for (int c = 0; c < panel; ++c)
            for (int b = 0; b < vectors; ++b) {
                float *to = column(j + c) + i + b * lanes;
                store(to, load(to) - sums[c][b]);
            }
    }

    // columns j … j + count ← those of the factor; how many of them are left out
    int finish_panel(int j, int count, int *index) const {
        float *l[panel], factors[panel][panel] = {};
        int without = 0;
        for (int c = 0; c < count; ++c) l[c] = column(j + c);
        for (int c = 0; c < count; ++c) {
            float pivot = l[c][j + c];
            for (int b = 0; b < c; ++b) {
                float product = l[b][j + c];
                for (int a = 0; a < b; ++a) product -= factors[a][b] * factors[a][c];
                factors[b][c] = product * inverse[j + b];
                pivot -= factors[b][c] * factors[b][c];
            }
            if (pivot > dependent) {
                inverse[j + c] = 1 / sqrtf(pivot);
                continue;
            }
            ++without;
            index[j + c] = -1;
            inverse[j + c] = 1;
            for (int b = 0; b < c; ++b) factors[b][c] = 0;
            for (int k = 0; k < j + c; ++k) column(k)[j + c] = 0;
            for (int i = j; i < p; ++i) l[c][i] = 0;
        }
        for (int i = j / lanes * lanes; i < p; i += lanes)
            for (int c = 0; c < count; ++c) {
                Vec<float> x = load(l[c] + i);
                for (int b = 0; b < c; ++b) x -= factors[b][c] * load(l[b] + i);
                store(l[c] + i, inverse[j + c] * x);
            }
        // what vectors read above the diagonal are zeros
        for (int c = 0; c < count; ++c)
            for (int i = j / lanes * lanes; i < j + c; ++i) l[c][i] = 0;
        return without;
    }
};

// Scratch of `Polish`: a factor, and for each of its places the concept, or −1 if it left, its
// code, its slope, and what the start has.
struct Places {
    // concepts that may enter behind those of a start
    static constexpr int spare = 32;
    int most;
    double *x, *slope, *start;
    int *concept_at, *first, *leaving;
    float *factor;

    // of a row with so many concepts at most
    static int most_of(int capacity) {
        const int all = capacity + spare;
        return all < SupportFactor::most ? all : SupportFactor::most;
    }
    // in doubles
    static ptrdiff_t size(int capacity) {
        const int most = most_of(capacity);
        return 5 * SupportFactor::padded(most) + SupportFactor::size(most) / 2;
    }
    Places() : most(0) {}
    Places(double *from, int capacity) : most(most_of(capacity)) {
        const ptrdiff_t n = SupportFactor::padded(most);
        x = from;
        slope = x + n;
        start = slope + n;
        concept_at = reinterpret_cast<int *>(start + n);
        first = concept_at + n;
        leaving = first + n;
        factor = reinterpret_cast<float *>(start + 3 * n);
    }
};

// A row of nnls/solver.h on its way from the support of its start, in its vector w, to the
// solution.
template <class Row> class Polish {
    Row &row;
    const Places at;
    SupportFactor factor;
    int given = 0, left = 0, steps = 0;
    double slack = 0, steepest = 0;

    // concepts of a start from which this is the quicker way, concepts that enter at once, and
    // rounds and corrections at most
    static constexpr int fewest = 24, together = 16, rounds = 16, corrections = 3;
    // of the steepest slope, from which concepts enter with it
    static constexpr double share = 0.1;

  public:
    Polish(Row &row, const Places &at) : row(row), at(at), factor(at.factor, at.most) {}

    // whether the row is solved; else w is the start again
    bool operator()() {
        int *const index = row.at.entering;
        given = row.team.collect(row.K, [&](int k) { return row.at.w[k] > 0; }, index);
        if (given < fewest || given > row.rules.capacity || given + Places::spare > at.most)
            return false;
        // the smallest, which are the likeliest to leave, last: that is quicker
        sort(index);
        for (int i = 0; i < given; ++i) {
            at.concept_at[i] = at.first[i];
            at.start[i] = row.at.w[at.first[i]];
        }
        factor = SupportFactor(at.factor, given + Places::spare);
        const int without = factor.factor(row.G, row.stride_g, at.concept_at, given);
        if (without <= given / 4 && solves()) {
            keep();
            return true;
        }
        row.p = 0;
        for (int k = 0; k < row.K; ++k) row.at.w[k] = 0;
        for (int i = 0; i < given; ++i) row.at.w[at.first[i]] = at.start[i];
        return false;
    }

    double worst() const { return slack > steepest ? slack : steepest; }

  private:
    // first ← the concepts of the start, from the largest to the smallest but for an eighth
    void sort(const int *index) const {
        constexpr int buckets = 256, bits_of_step = 21;
        int begin[buckets + 1] = {};
        const auto bits = [&](double x) {
            const float narrow = float(x);
            uint32_t found;
            __builtin_memcpy(&found, &narrow, sizeof found);
            return found;
        };
        const uint32_t most = bits(row.team.most(row.K, [&](int k) { return row.at.w[k]; }));
        const auto bucket = [&](int k) {
            const uint32_t below = (most - bits(row.at.w[k])) >> bits_of_step;
            return int(below < buckets ? below : buckets - 1);
        };
        for (int i = 0; i < given; ++i) ++begin[bucket(index[i]) + 1];
        for (int b = 0; b < buckets; ++b) begin[b + 1] += begin[b];
        for (int i = 0; i < given; ++i) at.first[begin[bucket(index[i])]++] = index[i];
    }

    bool solves() {
        const double tolerance = row.rules.tolerance;
        int corrected = 0;
        // from x by its slopes, or from zero
        bool corrects = false;
        for (int round = 0; round < rounds; ++round) {
            minimise(corrects);
            const int gone = find_leaving();
            if (gone > factor.p / 4 + 4) return false;
            corrects = gone == 0;
            if (gone) {
                for (int t = 0; t < gone; ++t) {
                    at.concept_at[at.leaving[t]] = -1;
                    factor.leave(at.leaving[t]);
                }
                left += gone;
                continue;
            }
            for (int i = 0; i < factor.p; ++i) at.x[i] += factor.v[i];
            find_slopes();
            if (!(steepest > tolerance)) {
                if (slack <= tolerance / 2) return true;
                if (++corrected > corrections) return false;
            } else if (!(slack > steepest / 4)) {
                if (++steps > row.rules.max_steps || !enter()) return false;
            } else if (++corrected > corrections) {
                return false;
            }
        }
        return false;
    }

    // v ← the minimiser on the support, less x if it corrects x, which else becomes zero
    void minimise(bool corrects) {
        for (int i = 0; i < factor.p; ++i) {
            const int k = at.concept_at[i];
            factor.v[i] = k < 0 ? 0.0f : float(corrects ? at.slope[i] : row.at.c[k]);
            if (!corrects) at.x[i] = 0;
        }
        for (int i = factor.p; i < factor.stride; ++i) factor.v[i] = 0;
        factor.forward();
        factor.backward();
    }

    // leaving ← the places whose concepts have no positive minimiser, and their number
    int find_leaving() {
        return row.team.collect(
            factor.p,
            [&](int i) { return at.concept_at[i] >= 0 && !(at.x[i] + factor.v[i] > 0); },
            at.leaving);
    }

    // w ← c − G x, and −1 for the passive concepts
    void find_slopes() {
        int p = 0;
        for (int i = 0; i < factor.p; ++i) {
            if (at.concept_at[i] < 0) continue;
            row.at.passive[p] = at.concept_at[i];
            row.at.x[p++] = at.x[i];
        }
        row.p = p;
        for (int k = 0; k < row.K; ++k) row.at.w[k] = row.at.c[k];
        subtract_rows(p);
        slack = 0;
        for (int i = 0; i < factor.p; ++i) {
            const int k = at.concept_at[i];
            at.slope[i] = k < 0 ? 0 : row.at.w[k];
            if (k >= 0) row.at.w[k] = -1;
            const double size = fabs(at.slope[i]);
            // keeps a NaN
            if (!(size <= slack)) slack = size;
        }
        steepest = row.team.most(row.K, [&](int k) { return row.at.w[k]; });
    }

    // w −= G x: the products of a few rows of G are added up in float32, which has rounded the
    // entries of G by as much, and then all in float64
    void subtract_rows(int p) const {
        constexpr int some = 8, lanes = Simd<float>::lanes;
        int i = 0;
        for (; i + some <= p; i += some) {
            const float *g[some];
            float x[some];
            for (int r = 0; r < some; ++r) {
                g[r] = row.G + row.at.passive[i + r] * row.stride_g;
                x[r] = float(row.at.x[i + r]);
            }
            int k = 0;
            for (; k + lanes <= row.K; k += lanes) {
                Vec<float> sum = x[0] * load(g[0] + k);
#pragma GCC unroll 8
                for (int r = 1; r < some; ++r) sum += x[r] * load(g[r] + k);
                float own[lanes];
                store(own, sum);
                for (int l = 0; l < lanes; l += wide) {
                    double *w = row.at.w + k + l;
                    store(w, load(w) - widened(own + l));
                }
            }
            for (; k < row.K; ++k)
                for (int r = 0; r < some; ++r) row.at.w[k] -= double(x[r]) * double(g[r][k]);
        }
        for (; i < p; ++i) {
            const float *g = row.G + row.at.passive[i] * row.stride_g;
            const double x = float(row.at.x[i]);
            for (int k = 0; k < row.K; ++k) row.at.w[k] -= x * double(g[k]);
        }
    }

    // some of the steepest concepts enter, from x = 0, a dependent one only alone; whether any did
    bool enter() {
        const int count = row.choose(steepest, together, share), before = factor.p;
        if (before + count > given + Places::spare || row.p + count > row.rules.capacity)
            return false;
        for (int t = 0; t < count; ++t) {
            const int k = row.at.entering[t];
            const float *g = row.G + k * row.stride_g;
            for (int i = 0; i < factor.p; ++i)
                factor.v[i] = at.concept_at[i] < 0 ? 0 : g[at.concept_at[i]];
            const int place = factor.p;
            for (int i = place; i < factor.stride; ++i) factor.v[i] = 0;
            const bool alone = t == count - 1 && place == before;
            if (!factor.enter(g[k], alone ? factor.least : factor.dependent)) continue;
            at.concept_at[place] = k;
            at.x[place] = 0;
            at.slope[place] = row.at.w[k];
        }
        return factor.p > before;
    }

    // y with ‖y‖² = cᵀ x, in one entry
    void keep() {
        double gain = 0;
        for (int i = 0; i < row.p; ++i) gain += row.at.c[row.at.passive[i]] * row.at.x[i];
        for (int i = 0; i < row.p; ++i) row.at.y[i] = 0;
        if (row.p) row.at.y[0] = sqrt(gain > 0 ? gain : 0);
        row.left = left;
        row.steps = steps;
    }
};

} // namespace

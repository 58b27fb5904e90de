// The operations of solver.h for a team of lanes that share memory: one lane for each row, column
// or concept.
//
// Team provides width, lane(), sync(), and over all lanes, with a barrier before: total(x); top(x);
// lowest(x, i), which sets x to the smallest and i to its index; before(on, count), the number of
// lanes below this one with `on`, and in count that of all lanes.
#pragma once

#include "solver.h"

namespace {

template <class Team, class T> struct Lanes {
    static constexpr int pack = 1, most_together = 1;
    using M_t = Triangle<T, pack>;

    FASTNMF_TEAM const Team &team() const { return static_cast<const Team &>(*this); }
    FASTNMF_TEAM bool leader() const { return team().lane() == 0; }

    template <class F> FASTNMF_TEAM void each(int n, F f) const {
        for (int i = team().lane(); i < n; i += Team::width) f(i);
    }
    template <class F> FASTNMF_TEAM auto sum(int n, F f) const {
        team().sync();
        decltype(f(0)) part = 0;
        for (int i = team().lane(); i < n; i += Team::width) part += f(i);
        return team().total(part);
    }
    template <class F> FASTNMF_TEAM T most(int n, F f) const {
        team().sync();
        T part = 0;
        for (int i = team().lane(); i < n; i += Team::width) {
            const T value = f(i);
            part = part > value ? part : value;
        }
        return team().top(part);
    }
    template <class F> FASTNMF_TEAM T least(int n, F f, T bound, int &index) const {
        team().sync();
        index = -1;
        for (int i = team().lane(); i < n; i += Team::width) {
            const T value = f(i);
            if (value < bound) {
                bound = value;
                index = i;
            }
        }
        team().lowest(bound, index);
        return bound;
    }
    template <class F> FASTNMF_TEAM int collect(int n, F f, int *out) const {
        team().sync();
        int found = 0;
        for (int first = 0; first < n; first += Team::width) {
            const int i = first + team().lane();
            const bool on = i < n && f(i);
            int count;
            const int place = found + team().before(on, count);
            if (on) out[place] = i;
            found += count;
        }
        team().sync();
        return found;
    }

    FASTNMF_TEAM void multiply(M_t M, int p, const T *v, T *out) const {
        each(p, [&](int i) {
            const T *row = M.row(i);
            T dot = 0;
            for (int j = 0; j <= i; ++j) dot += row[j] * v[j];
            out[i] = dot;
        });
        team().sync();
    }
    FASTNMF_TEAM void multiply_transposed(M_t M, int p, const T *v, T *out) const {
        each(p, [&](int j) {
            T dot = 0;
            for (int i = j; i < p; ++i) dot += M.row(i)[j] * v[i];
            out[j] = dot;
        });
        team().sync();
    }
    FASTNMF_TEAM void project(M_t M, int p, const T *v, T *out, T *back) const {
        multiply(M, p, v, out);
        multiply_transposed(M, p, out, back);
    }
    template <class S>
    FASTNMF_TEAM void combine(const T *c, const S *G, ptrdiff_t stride, int K, const int *passive,
                              const T *x, int p, T *w) const {
        each(K, [&](int k) {
            T slope = c[k];
            for (int i = 0; i < p; ++i) slope -= x[i] * T(G[passive[i] * stride + k]);
            w[k] = slope;
        });
        team().sync();
    }

    // a lane for each remaining column. It reads an entry at, or to the right of, one that another
    // lane writes: so all lanes read some rows in advance, then all write
    FASTNMF_TEAM void rotate(M_t M, int p, int q, const T *cosine, const T *sine,
                             T *carried) const {
        constexpr int rows = 8;
        for (int first = 0; first + 1 < p; first += Team::width) {
            const int to = first + team().lane(), from = to < q ? to : to + 1;
            const bool mine = to + 1 < p;
            T carry = mine && from < q ? M.row(q)[from] : T(0);
            for (int i = q; i + 1 < p; i += rows) {
                T below[rows];
                for (int b = 0; b < rows; ++b) {
                    const int row = i + 1 + b;
                    below[b] = mine && row < p && from <= row ? M.row(row)[from] : T(0);
                }
                team().sync();
                for (int b = 0; b < rows && i + b + 1 < p; ++b) {
                    const int row = i + b;
                    if (mine && to <= row)
                        M.row(row)[to] = cosine[row] * carry - sine[row] * below[b];
                    carry = sine[row] * carry + cosine[row] * below[b];
                }
            }
            if (mine) carried[to] = carry;
        }
        team().sync();
    }
};

} // namespace

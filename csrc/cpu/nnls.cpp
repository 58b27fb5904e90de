// Non-negative least squares on the CPU: a thread solves a row at a time.
//
// nnls/solver.h on vectors, in float64 for every type of G. Both products with M take four rows
// at once, each filled with zeros to whole packs, so nothing is masked; G streams by eight rows at
// a time. Limited by loads: of M from L1 or L2, of G from where K² numbers fit.

#include <cstddef>
#include <cstdint>

#include "../nnls/solver.h"
#include "kernels.h"
#include "simd.h"

namespace {

constexpr int lanes = Simd<double>::lanes;

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
    for (; k + lanes <= K; k += lanes) {
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
            for (int b = 0; b < 8; b += lanes)
                sums[r][b / lanes % 2] += load(row[r] + j + b) * load(v + j + b);
    for (int r = 0; r < rows; ++r) out[r] = sum<double>(sums[r][0] + sums[r][1]);
}

// out += Σ_r v_r row_r
template <int rows>
inline void add_rows(const double *const *row, const double *v, int length, double *out) {
    for (int j = 0; j < length; j += lanes) {
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
            for (int j = 0; j < own; j += lanes)
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
        for (int j = 0; j < pack; j += lanes) turn(cosine, sine, carried + j, below + j, to + j);
    }
};

// the gathered G, eight vectors of the capacity, four of K, and the triangle
ptrdiff_t scratch_size(const NnlsRules &rules, int K, bool gathers) {
    const ptrdiff_t across = Triangle<double, 8>::length(rules.capacity);
    const ptrdiff_t gathered = gathers ? ptrdiff_t(K) * K : 0;
    return gathered + 8 * across + 4 * ptrdiff_t(K) +
           Triangle<double, 8>::offset(rules.capacity + 1);
}

// to (K, K) ← G on the concepts of a row, row by row, so that the hardware can prefetch
template <class S> void gather(S *to, const S *G, ptrdiff_t stride, const int32_t *index, int K) {
    for (int a = 0; a < K; ++a) {
        const S *row = G + index[a] * stride;
        for (int b = 0; b < K; ++b) to[ptrdiff_t(a) * K + b] = row[index[b]];
    }
}

template <class S> void solve(const NnlsRows<S> &rows, ptrdiff_t i, double *scratch, double *sums) {
    const ptrdiff_t across = Triangle<double, 8>::length(rows.rules.capacity);
    RowGram<S> gram{rows.G + i * rows.stride_row, rows.stride_g, concepts(rows, i)};
    double *next = scratch;
    const auto take = [&](ptrdiff_t size) { return (next += size) - size; };
    const auto whole = [&](ptrdiff_t size) { return reinterpret_cast<int *>(take(size)); };
    if (rows.index && !rows.stride_row) {
        S *own = reinterpret_cast<S *>(take(ptrdiff_t(rows.K) * rows.K));
        gather(own, gram.G, gram.stride_g, rows.index + i * rows.K, gram.K);
        gram = {own, gram.K, gram.K};
    }
    NnlsScratch<double> at;
    for (double **vector : {&at.y, &at.x, &at.s, &at.l, &at.h, &at.r}) *vector = take(across);
    for (double **vector : {&at.w, &at.c}) *vector = take(rows.K);
    for (int **vector : {&at.passive, &at.moved}) *vector = whole(across);
    for (int **vector : {&at.entering, &at.blocked}) *vector = whole(rows.K);
    Thread team;
    nnls_row<Thread, double, S>(team, rows, i, gram, at, {nullptr, next, 0}, sums);
}

} // namespace

namespace fastnmf::FASTNMF_ISA {
const NnlsKernels<float> nnls_float32{scratch_size, solve<float>};
const NnlsKernels<double> nnls_float64{scratch_size, solve<double>};
} // namespace fastnmf::FASTNMF_ISA

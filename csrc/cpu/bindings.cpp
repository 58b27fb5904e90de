// fastnmf._C: checks arguments, releases the GIL, and distributes tiles of columns over threads.
//
// Matrices come as views (view.h); nothing here needs torch. The caller keeps their memory alive.
// Kernels: hals.cpp, moments.cpp, updates.cpp, nnls.cpp, active_set.cpp, sparse.cpp,
// weighted.cpp, restricted.cpp.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "../nnls/arguments.h"
#include "../view.h"
#include "accelerated.h"
#include "active_rows.h"
#include "compressed.h"
#include "fused_pass.h"
#include "isa.h"
#include "kernels.h"
#include "restricted_pass.h"
#include "sparse_pass.h"
#include "threads.h"
#include "waits.h"
#include "weighted_pass.h"

namespace py = pybind11;
using namespace fastnmf;

namespace {

void check_threads(int threads) {
    if (threads < 1) refuse("threads = ", threads, ": at least 1 is needed");
}

// two numbers or more, of which two are added to
double *sums_of(const View &x) {
    return array<double>("sums", x, {x.dims == 1 && x.shape[0] > 2 ? x.shape[0] : 2});
}

// run(T{}, K, m, sums) for F (K, m) of T, unless it is empty
template <class Run> void on_factor(const View &F, const View *sums, int threads, Run run) {
    check_threads(threads);
    check_shape("F", F, {-1, -1});
    with_dtype("F", F, [&](auto zero) {
        double unread[2] = {}, *total = sums ? sums_of(*sums) : unread;
        if (F.shape[0] && F.shape[1]) run(zero, F.shape[0], F.shape[1], total);
    });
}

// HALS

template <bool bounded>
void hals_block(const View &F, const View &R, const View &G, const View &delta, const View &sums,
                int threads) {
    on_factor(F, &sums, threads, [&](auto zero, Size s, Size m, double *total) {
        using T = decltype(zero);
        const Matrix<const T> gram = row_matrix<const T>("G", G, s, s);
        const HalsBlock<T> a{matrix<T>("F", F, s, m),
                             matrix<const T>("R", R, s, m),
                             matrix<T>("delta", delta, s, m),
                             gram.data,
                             gram.stride_k,
                             s,
                             m,
                             bounded};
        py::gil_scoped_release released;
        const HalsKernels<T> &kernels = hals_kernels<T>();
        run_hals(kernels.block, kernels.tile_columns, a, 2 * s, double(m) * s * s, threads, total);
    });
}

template <bool bounded>
void hals_normal(const View &F, const View &C, const View &G, const View &sums, int threads,
                 Size sweeps) {
    if (sweeps < 0) refuse("sweeps = ", sweeps, " must not be negative");
    on_factor(F, &sums, threads, [&](auto zero, Size K, Size m, double *total) {
        using T = decltype(zero);
        if (sweeps == 0) return;
        const Matrix<const T> gram = row_matrix<const T>("G", G, K, K);
        const HalsNormal<T> a{matrix<T>("F", F, K, m),
                              matrix<const T>("C", C, K, m),
                              gram.data,
                              gram.stride_k,
                              K,
                              m,
                              sweeps,
                              bounded};
        py::gil_scoped_release released;
        const HalsKernels<T> &kernels = hals_kernels<T>();
        run_hals(kernels.normal, kernels.tile_columns, a, 3 * K, 2.0 * m * K * K * sweeps, threads,
                 total);
    });
}

template <bool bounded>
void hals_each(const View &F, const View &C, const View &G, const View &sums, int threads,
               Size sweeps) {
    if (sweeps < 0) refuse("sweeps = ", sweeps, " must not be negative");
    on_factor(F, &sums, threads, [&](auto zero, Size K, Size m, double *total) {
        using T = decltype(zero);
        if (sweeps == 0) return;
        const Size pairs = K * (K + 1) / 2;
        const HalsEach<T> a{matrix<T>("F", F, K, m), matrix<const T>("C", C, K, m),
                            row_matrix<const T>("G", G, pairs, m), K, m, sweeps, bounded};
        py::gil_scoped_release released;
        const HalsKernels<T> &kernels = hals_kernels<T>();
        run_hals(kernels.each, kernels.tile_columns, a, 3 * K + pairs, 2.0 * m * K * K * sweeps,
                 threads, total);
    });
}

// B, G, l1; swept, before, step, least; cross, gram, adds: see the documentation of hals_rows
using Fixed = std::tuple<View, View, double>;
using Extrapolation = std::tuple<View, View, double, double>;
using Statistics = std::tuple<View, View, bool>;

template <class T>
HalsRows<T> hals_rows_arguments(const View &F, const View &X, const Fixed &fixed, Size sweeps,
                                const std::optional<Extrapolation> &extrapolation) {
    const auto &G = std::get<1>(fixed);
    const Size K = F.shape[0], m = F.shape[1];
    check_shape("X", X, {m, -1});
    const Size p = X.shape[1];
    const Matrix<const T> data = data_matrix<T>("X", X, m, p);
    const Matrix<const T> gram = row_matrix<const T>("G", G, K, K);
    HalsRows<T> a{};
    a.F = matrix<T>("F", F, K, m);
    if (extrapolation) {
        const auto &[swept, before, step, least] = *extrapolation;
        a.swept = matrix<T>("swept", swept, K, m);
        a.before = matrix<T>("before", before, K, m);
        a.step = static_cast<T>(step);
        a.least = static_cast<T>(least);
    }
    a.X = data.data;
    a.G = gram.data;
    a.l1 = static_cast<T>(std::get<2>(fixed));
    a.stride_x = data.stride_k;
    a.stride_g = gram.stride_k;
    a.K = K;
    a.m = m;
    a.p = p;
    a.sweeps = sweeps;
    return a;
}

void hals_rows(const View &F, const View &X, const Fixed &fixed, Size sweeps, const View &sums,
               int threads, const std::optional<Extrapolation> &extrapolation,
               const std::optional<Statistics> &statistics) {
    const double l1 = std::get<2>(fixed);
    // the columns that fill up a tile would grow
    if (!(l1 >= 0)) refuse("l1 = ", l1, " must not be negative");
    if (sweeps < 0) refuse("sweeps = ", sweeps, " must not be negative");
    on_factor(F, &sums, threads, [&](auto zero, Size, Size, double *total) {
        using T = decltype(zero);
        if (sweeps == 0) return;
        auto a = hals_rows_arguments<T>(F, X, fixed, sweeps, extrapolation);
        const Matrix<const T> Bt = matrix<const T>("B", std::get<0>(fixed), a.p, a.K);
        const HalsKernels<T> &kernels = hals_kernels<T>();
        const Scratch<T> copy(kernels.packed_size(a.K, a.p));
        kernels.pack(a, {Bt.data, Bt.stride_m, Bt.stride_k}, copy.data);
        const double flops = 2.0 * a.m * a.K * (a.p + sweeps * a.K);
        if (statistics) {
            if (a.F.stride_k != 1)
                refuse("F has strides ", listed(F.strides, 2),
                       ": sums of codes need codes whose concepts are adjacent");
            const auto &[cross, gram, adds] = *statistics;
            const Sums<T> to{row_matrix<T>("cross", cross, a.K, a.p),
                             row_matrix<T>("gram", gram, a.K, a.K), adds};
            py::gil_scoped_release released;
            pass(a, to, 2 * flops, threads, total);
        } else {
            py::gil_scoped_release released;
            run_hals(kernels.rows, kernels.tile_columns, a, 4 * a.K + kernels.tile_features, flops,
                     threads, total);
        }
    });
}

void cross(const View &out, const View &X, const View &B, double l1, int threads) {
    on_factor(out, nullptr, threads, [&](auto zero, Size K, Size m, double *total) {
        using T = decltype(zero);
        check_shape("X", X, {m, -1});
        HalsRows<T> a{};
        a.F = matrix<T>("out", out, K, m);
        a.p = X.shape[1];
        const Matrix<const T> data = data_matrix<T>("X", X, m, a.p);
        a.X = data.data;
        a.B = array<const T>("B", B, {a.p, K});
        a.l1 = static_cast<T>(l1);
        a.stride_x = data.stride_k;
        a.K = K;
        a.m = m;
        py::gil_scoped_release released;
        const HalsKernels<T> &kernels = hals_kernels<T>();
        run_hals(kernels.cross, kernels.tile_columns, a, K + kernels.tile_features,
                 2.0 * m * K * a.p, threads, total);
    });
}

// l1, l2
using KktPenalty = std::tuple<double, double>;

void kkt(const View &out, const View &F, const View &C, const View &G, const KktPenalty &penalty,
         int threads) {
    on_factor(F, nullptr, threads, [&](auto zero, Size K, Size m, double *total) {
        using T = decltype(zero);
        const Matrix<const T> gram = row_matrix<const T>("G", G, K, K);
        T *residual = array<T>("out", out, {2, m});
        const Kkt<T> a{matrix<const T>("F", F, K, m),
                       matrix<const T>("C", C, K, m),
                       gram.data,
                       static_cast<T>(std::get<0>(penalty)),
                       static_cast<T>(std::get<1>(penalty)),
                       residual,
                       residual + m,
                       gram.stride_k,
                       K,
                       m};
        py::gil_scoped_release released;
        const HalsKernels<T> &kernels = hals_kernels<T>();
        run_hals(kernels.kkt, kernels.tile_columns, a, 3 * K, 2.0 * m * K * K, threads, total);
    });
}

// what sparse and dense data have in common: by Gram matrices or residuals, whether F is bounded
using WeightedWay = std::tuple<bool, bool>;

template <class T, class I>
void run_weighted(HalsWeighted<T, I> &a, Size sweeps, const WeightedWay &way, const View &sums,
                  int threads, double *total) {
    std::tie(a.grams, a.bounded) = way;
    a.sweeps = sweeps;
    a.measures = sums.shape[0] > 2;
    py::gil_scoped_release released;
    compute_hals_weighted(a, threads, total);
}

void hals_stored(const View &F, const WeightedRows &rows, const View &B,
                 const WeightedPenalty &penalty, Size sweeps, const WeightedWay &way,
                 const View &sums, int threads) {
    if (sweeps < 1) refuse("sweeps = ", sweeps, " must be at least 1");
    check_shape("B", B, {-1, F.shape[0]});
    on_factor(F, &sums, threads, [&](auto zero, Size, Size, double *total) {
        using T = decltype(zero);
        const auto run = [&](auto index) {
            auto a = hals_weighted_arguments<T, decltype(index)>(F, B, penalty);
            read_rows(a, rows);
            run_weighted(a, sweeps, way, sums, threads, total);
        };
        with_index(std::get<0>(rows), run);
    });
}

void hals_masked(const View &F, const View &X, const View &W, const View &B,
                 const WeightedPenalty &penalty, Size sweeps, const WeightedWay &way,
                 const View &sums, int threads) {
    if (sweeps < 1) refuse("sweeps = ", sweeps, " must be at least 1");
    check_shape("B", B, {-1, F.shape[0]});
    on_factor(F, &sums, threads, [&](auto zero, Size, Size, double *total) {
        using T = decltype(zero);
        auto a = hals_weighted_arguments<T, int32_t>(F, B, penalty);
        a.X = read_matrix<T>("X", X, a.m, a.p);
        if (std::strcmp(W.dtype, "uint8") == 0)
            a.mask = read_matrix<uint8_t>("W", W, a.m, a.p);
        else
            a.W = read_matrix<T>("W", W, a.m, a.p);
        a.longest = a.p;
        run_weighted(a, sweeps, way, sums, threads, total);
    });
}

// ZᵀA and ZᵀZ

void moments(const View &F, const View &X, const View &out, bool symmetric, bool adds,
             int threads) {
    check_threads(threads);
    check_shape("F", F, {-1, -1});
    check_shape("X", X, {F.shape[1], -1});
    const Size K = F.shape[0], m = F.shape[1], p = X.shape[1];
    if (symmetric && K != p) refuse("K = ", K, ", p = ", p, ": a symmetric result is square");
    with_dtype("F", F, [&](auto zero) {
        using T = decltype(zero);
        // without columns the result is zero
        if (K == 0 || p == 0) return;
        const Matrix<T> to = row_matrix<T>("out", out, K, p);
        const Matrix<const T> codes = matrix<const T>("F", F, K, m);
        if (K > 1 && codes.stride_k != 1)
            refuse("F has strides ", listed(F.strides, 2), ": its concepts must be adjacent");
        const Matrix<const T> data = data_matrix<T>("X", X, m, p);
        const Moments<T> a{codes.data, data.data, codes.stride_m, data.stride_k, K, m, p};
        py::gil_scoped_release released;
        compute_moments(a, symmetric, to, adds, threads);
    });
}

// mu, pgd, extrapolation: one pass over the elements

void mu_update(const View &F, const View &numerator, const View &denominator, const View &sums,
               int threads) {
    on_factor(F, &sums, threads, [&](auto zero, Size K, Size m, double *total) {
        using T = decltype(zero);
        const MuUpdate<T> a{matrix<T>("F", F, K, m), matrix<const T>("numerator", numerator, K, m),
                            matrix<const T>("denominator", denominator, K, m), K, m};
        py::gil_scoped_release released;
        const auto kernel = update_kernels<T>().mu;
        for_element_tiles(a.F, K, m, threads, total, [&](const Tile &t, double *partial) {
            kernel({t.of(a.F), t.of(a.numerator), t.of(a.denominator), t.concepts, t.columns},
                   partial);
        });
    });
}

void pgd_update(const View &F, const View &Y, const View &gradient, double step, double momentum,
                const View &sums, int threads) {
    on_factor(F, &sums, threads, [&](auto zero, Size K, Size m, double *total) {
        using T = decltype(zero);
        const PgdUpdate<T> a{matrix<T>("F", F, K, m),
                             matrix<T>("Y", Y, K, m),
                             matrix<const T>("gradient", gradient, K, m),
                             static_cast<T>(step),
                             static_cast<T>(momentum),
                             K,
                             m};
        py::gil_scoped_release released;
        const auto kernel = update_kernels<T>().pgd;
        for_element_tiles(a.F, K, m, threads, total, [&](const Tile &t, double *partial) {
            kernel(
                {t.of(a.F), t.of(a.Y), t.of(a.gradient), a.step, a.momentum, t.concepts, t.columns},
                partial);
        });
    });
}

// before, sums
using Change = std::tuple<View, View>;

void extrapolate(const View &F, const View &swept, double step, double least, int threads,
                 const std::optional<Change> &change) {
    const View *sums = change ? &std::get<1>(*change) : nullptr;
    on_factor(F, sums, threads, [&](auto zero, Size K, Size m, double *total) {
        using T = decltype(zero);
        Extrapolate<T> a{matrix<T>("F", F, K, m),
                         matrix<T>("swept", swept, K, m),
                         {},
                         static_cast<T>(step),
                         static_cast<T>(least),
                         K,
                         m};
        if (change) a.before = matrix<const T>("before", std::get<0>(*change), K, m);
        py::gil_scoped_release released;
        compute_extrapolation(a, threads, total);
    });
}

void measure(const View &D, const View &cross, const View &G, const View &gram, double total,
             const View &sums) {
    check_shape("D", D, {-1, -1});
    check_shape("G", G, {D.shape[0], D.shape[0]});
    double *to = array<double>("sums", sums, {std::max<Size>(3, sums.shape[0])});
    with_dtype("D", D, [&](auto zero) {
        using T = decltype(zero);
        const auto of_data = rows_of<T>("D", D, "cross", cross);
        const auto of_codes = rows_of<T>("G", G, "gram", gram);
        py::gil_scoped_release released;
        to[2] = squared_error(of_data, of_codes, total);
    });
}

bool moved(const View &F, const View &before, const View &norms, double most, const View &sums) {
    check_shape("F", F, {-1, -1});
    double *to = sums_of(sums);
    bool found = false;
    with_dtype("F", F, [&](auto zero) {
        using T = decltype(zero);
        const auto rows = rows_of<T>("F", F, "before", before);
        const T *old = array<const T>("norms", norms, {rows.K});
        py::gil_scoped_release released;
        found = have_moved(rows, old, most, to);
    });
    return found;
}

bool scales(const View &norms, const View &before, double most) {
    check_shape("norms", norms, {-1});
    bool found = false;
    with_dtype("norms", norms, [&](auto zero) {
        using T = decltype(zero);
        const Size K = norms.shape[0];
        T *to = array<T>("norms", norms, {K});
        found = turn_into_scales(to, array<const T>("before", before, {K}), K, most);
    });
    return found;
}

void rescale(const View &F, const View &swept, const View &scale, const View &before,
             const View &sums, int threads) {
    on_factor(F, &sums, threads, [&](auto zero, Size K, Size m, double *total) {
        using T = decltype(zero);
        const Rescale<T> a{matrix<T>("F", F, K, m),
                           matrix<T>("swept", swept, K, m),
                           array<const T>("scale", scale, {K}),
                           matrix<const T>("before", before, K, m),
                           K,
                           m};
        py::gil_scoped_release released;
        compute_rescale(a, threads, total);
    });
}

// products of a sparse matrix

template <class T, class I>
void sparse(const View &out, const Compressed &X, const View &dense, Size m, Size d, bool transposed,
            bool adds, int threads) {
    const Size K = out.shape[1];
    const auto to = row_matrix<T>("out", out, transposed ? d : m, K);
    // B may be the transpose of a matrix, Z not
    const bool turned = !transposed && d > 1 && dense.strides[0] == 1 && dense.strides[1] != 1;
    const auto from = turned ? matrix<const T>("dense", dense, d, K)
                             : data_matrix<T>("dense", dense, transposed ? m : d, K);
    const Entries<const T, I> entries(X, m);
    const SparseProduct<T, I> a{entries.crow, entries.col, entries.values, from, to, m, d, K, adds};
    py::gil_scoped_release released;
    compute_sparse_product(a, transposed, threads);
}

void sparse_product(const View &out, const Compressed &X, const View &dense, bool transposed,
                    bool adds, int threads) {
    check_threads(threads);
    check_shape("out", out, {-1, -1});
    check_shape("dense", dense, {-1, out.shape[1]});
    const Size m = transposed ? dense.shape[0] : out.shape[0];
    const Size d = transposed ? out.shape[0] : dense.shape[0];
    if (!out.shape[0] || !out.shape[1] || (!m && adds)) return;
    with_dtype("out", out, [&](auto zero) {
        with_index(std::get<0>(X), [&](auto index) {
            sparse<decltype(zero), decltype(index)>(out, X, dense, m, d, transposed, adds, threads);
        });
    });
}

// HALS restricted to few concepts of each row

// run(T{}, I{}) for the dtypes of values and of indices
template <class Run> void with_entries(const Compressed &X, Run run) {
    with_dtype("values", std::get<2>(X), [&](auto zero) {
        with_index(std::get<0>(X), [&](auto index) { run(zero, index); });
    });
}

// crow of the candidates, without their entries
void count_candidates(const View &S, const Compressed &codes, double bound, const View &crow,
                      int threads) {
    check_threads(threads);
    with_entries(codes, [&](auto zero, auto index) {
        using T = decltype(zero);
        using I = decltype(index);
        const auto a = candidates<T, I>(S, codes, bound);
        I *to = array<I>("crow", crow, {a.m + 1});
        py::gil_scoped_release released;
        compute_counts(a, to, threads);
    });
}

void fill_candidates(const View &S, const Compressed &codes, double bound, const Compressed &out,
                     int threads) {
    check_threads(threads);
    with_entries(codes, [&](auto zero, auto index) {
        using T = decltype(zero);
        using I = decltype(index);
        auto a = candidates<T, I>(S, codes, bound);
        take_candidates(a, out);
        py::gil_scoped_release released;
        compute_candidates(a, threads);
    });
}

void hals_candidates(const Compressed &codes, const View &E, const View &B,
                     const OfCandidates &penalty, Size sweeps, const View &sums, int threads) {
    check_threads(threads);
    if (sweeps < 1) refuse("sweeps = ", sweeps, " must be at least 1");
    with_entries(codes, [&](auto zero, auto index) {
        const auto a =
            hals_candidates_arguments<decltype(zero), decltype(index)>(codes, E, B, penalty, sweeps);
        double *total = sums_of(sums);
        py::gil_scoped_release released;
        compute_hals_candidates(a, threads, total);
    });
}

void hals_concepts(const View &F, const View &E, const Compressed &codes,
                   const std::optional<View> &curvature, bool bounded, const View &sums,
                   int threads) {
    check_threads(threads);
    with_entries(codes, [&](auto zero, auto index) {
        const auto a = hals_concepts_arguments<decltype(zero), decltype(index)>(F, E, codes,
                                                                               curvature, bounded);
        double *total = sums_of(sums);
        py::gil_scoped_release released;
        compute_hals_concepts(a, threads, total);
    });
}

// nnls

void nnls(const View &F, const View &C, const NnlsGram &gram, const NnlsLimits &limits,
          const View &report, const View &sums, int threads) {
    check_limits(limits);
    on_factor(F, &sums, threads, [&](auto zero, Size, Size, double *total) {
        using T = decltype(zero);
        if (concepts_of(F, gram) == 0) return;
        const NnlsRows<T> rows = nnls_rows<T>(F, C, gram, limits, report);
        py::gil_scoped_release released;
        const NnlsKernels<T> &kernels = nnls_kernels<T>();
        // a row costs some K² flops at least
        threads = threads_for(rows.m, double(rows.m) * rows.K * rows.K, threads);
        const Size scratch_size =
            kernels.scratch_size(rows.rules, rows.K, rows.index && !rows.stride_row);
        const Scratch<double> scratch(threads * scratch_size);
        for_tiles<4>(rows.m, threads, total, [&](Size i, int thread, double *partial) {
            kernels.solve(rows, i, scratch.data + thread * scratch_size, partial);
        });
    });
}

void on_supports(const View &X, const View &R, const View &G, const View &used,
                 const View &dependent, const std::tuple<int, double> &limits, int threads) {
    check_threads(threads);
    check_shape("X", X, {-1, -1});
    const int most = std::get<0>(limits);
    const Size n = X.shape[0], K = X.shape[1];
    if (most < 0 || most > K) refuse("most = ", most, " is not from 0 to K = ", K);
    with_dtype("X", X, [&](auto zero) {
        using T = decltype(zero);
        if (n == 0 || K == 0) return;
        const Matrix<T> to = row_matrix<T>("X", X, n, K);
        const Matrix<const T> from = row_matrix<const T>("R", R, n, K);
        const Matrix<const double> gram = row_matrix<const double>("G", G, K, K);
        const Matrix<const uint8_t> chosen = row_matrix<const uint8_t>("used", used, n, K);
        const Supports<T> a{to.data,
                            from.data,
                            gram.data,
                            chosen.data,
                            array<uint8_t>("dependent", dependent, {n}),
                            std::get<1>(limits),
                            to.stride_k,
                            from.stride_k,
                            gram.stride_k,
                            chosen.stride_k,
                            K};
        py::gil_scoped_release released;
        const NnlsKernels<T> &kernels = nnls_kernels<T>();
        threads = threads_for(n, double(n) * (K + double(most) * most * most / 3), threads);
        const Size scratch_size = kernels.support_scratch(most);
        const Scratch<double> scratch(threads * scratch_size);
        double unread[2] = {};
        for_tiles<16>(n, threads, unread, [&](Size i, int thread, double *) {
            kernels.on_support(a, i, most, scratch.data + thread * scratch_size);
        });
    });
}

std::unique_ptr<AnyActiveRows> rows_in_flight(const View &F, const View &X,
                                           const ActiveConcepts &concepts, const NnlsLimits &limits,
                                           const ActiveSearch &search, const View &report,
                                           const View &sums) {
    check_limits(limits);
    check_shape("F", F, {-1, -1});
    std::unique_ptr<AnyActiveRows> rows;
    with_dtype("F", F, [&](auto zero) {
        rows = std::make_unique<ActiveRows<decltype(zero)>>(F, X, concepts, limits, search, report,
                                                            sums);
    });
    return rows;
}

std::pair<Size, Size> step(AnyActiveRows &rows, const View &W, const View &E, int threads) {
    check_threads(threads);
    py::gil_scoped_release released;
    return rows.step(W, E, threads);
}

// accelerated iterations

void begin(const Accelerated &fit, double step, int threads) {
    check_threads(threads);
    py::gil_scoped_release released;
    fit.begin(step, threads);
}

void update(const Accelerated &fit, double step, int threads) {
    check_threads(threads);
    py::gil_scoped_release released;
    fit.update(step, threads);
}

bool end(const Accelerated &fit) {
    py::gil_scoped_release released;
    return fit.end();
}

void balance(const Accelerated &fit, int threads) {
    check_threads(threads);
    py::gil_scoped_release released;
    fit.balance(threads);
}

bool shorten(bool shorten, int threads) {
    check_threads(threads);
    py::gil_scoped_release released;
    return shorten_waits(shorten, threads);
}

} // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() =
        "CPU kernels of fastnmf. A matrix is a tuple (address, shape, strides in elements, dtype), "
        "dtype 'float32' or 'float64' as that of F. To sums (two float64 or more) are added the "
        "squared norms of the change of F and of the new F. Arguments that do not fit are "
        "ValueErrors.";
    module.def("hals_block", &hals_block<true>, py::arg("F"), py::arg("R"), py::arg("G"),
               py::arg("delta"), py::arg("sums"), py::arg("threads"),
               "F_k = max(0, F_k + R_k / G_kk), then R_i -= G_ik delta_k for i > k; k = 0 ... s-1."
               "\n\nF, R and delta (s, m) in any layout, G (s, s) with contiguous rows; delta "
               "may be R. A concept with G_kk below the smallest normal number keeps its "
               "row.");
    module.def("hals_block_free", &hals_block<false>, py::arg("F"), py::arg("R"), py::arg("G"),
               py::arg("delta"), py::arg("sums"), py::arg("threads"),
               "hals_block without the maximum: F of any signs.");
    module.def("hals_normal", &hals_normal<true>, py::arg("F"), py::arg("C"), py::arg("G"),
               py::arg("sums"), py::arg("threads"), py::arg("sweeps") = 1,
               "F_k = max(0, F_k + (C_k - G_k F) / G_kk); k = 0 ... K-1; `sweeps` times.\n\n"
               "F, C (K, m) in any layout, G (K, K) with contiguous rows. A concept with G_kk "
               "below the smallest normal number keeps its row.");
    module.def("hals_normal_free", &hals_normal<false>, py::arg("F"), py::arg("C"), py::arg("G"),
               py::arg("sums"), py::arg("threads"), py::arg("sweeps") = 1,
               "hals_normal without the maximum: F of any signs.");
    module.def("hals_each", &hals_each<true>, py::arg("F"), py::arg("C"), py::arg("G"),
               py::arg("sums"), py::arg("threads"), py::arg("sweeps") = 1,
               "hals_normal with a Gram matrix for each column: G (K (K + 1) / 2, m), rows "
               "contiguous, holds their lower triangles row by row.");
    module.def("hals_each_free", &hals_each<false>, py::arg("F"), py::arg("C"), py::arg("G"),
               py::arg("sums"), py::arg("threads"), py::arg("sweeps") = 1,
               "hals_each without the maximum: F of any signs.");
    module.def("cross", &cross, py::arg("out"), py::arg("X"), py::arg("B"), py::arg("l1"),
               py::arg("threads"),
               "out = B'X' - l1.\n\n"
               "out (K, m) in any layout, X (m, p) with contiguous rows, which may overlap, B (p, K) "
               "contiguous.");
    module.def("kkt", &kkt, py::arg("out"), py::arg("F"), py::arg("C"), py::arg("G"),
               py::arg("penalty"), py::arg("threads"),
               "out (2, m), contiguous: the KKT residual of each column of F >= 0 for C and G, and "
               "how many of its entries are positive.\n\n"
               "F, C (K, m) in any layout, G (K, K) symmetric with contiguous rows. penalty: (l1, "
               "l2), where C is minus l1, and l2 on the diagonal of G.");
    module.def(
        "hals_rows", &hals_rows, py::arg("F"), py::arg("X"), py::arg("fixed"), py::arg("sweeps"),
        py::arg("sums"), py::arg("threads"), py::arg("extrapolation") = py::none(),
        py::arg("statistics") = py::none(),
        "hals_normal with C = B'X' - l1, which is not kept.\n\n"
        "F (K, m) in any layout, X (m, p) with contiguous rows, which may overlap. fixed: (B, G, "
        "l1), B (p, K) in any layout, G (K, K) with contiguous rows, l1 >= 0. extrapolation: (swept, "
        "before, step, least), swept and before (K, m): before = F first, and after the sweeps "
        "swept, F = F, max(least F, F + step (F - swept)); sums are then of F - before and F. "
        "statistics: (cross, gram, adds), cross (K, p) and gram (K, K) with contiguous rows: then "
        "cross = F X and gram = F F', or += if adds; F has adjacent concepts.");
    module.def(
        "hals_stored", &hals_stored, py::arg("F"), py::arg("rows"), py::arg("B"), py::arg("penalty"),
        py::arg("sweeps"), py::arg("way"), py::arg("sums"), py::arg("threads"),
        "hals_normal for a sparse X (m, p) whose stored entries have weights, and no others: C = sum "
        "w x b and a Gram matrix G = sum w b b' for each column of F.\n\n"
        "F (K, m) in any layout. rows: (crow, col, values, weights), crow (m + 1), col (entries) "
        "int32 or int64, both the same; values, weights (entries), weights None for ones. Entries "
        "of col must be below p, which is not checked. B (p, K), contiguous rows. penalty: None or "
        "(l1, l2), l2 (K). way: (grams, bounded): by Gram matrices, or else by residuals, which has "
        "the same iterates; whether F >= 0. sums: with a third, sum w (x - b'f)^2 is added to it.");
    module.def(
        "hals_masked", &hals_masked, py::arg("F"), py::arg("X"), py::arg("W"), py::arg("B"),
        py::arg("penalty"), py::arg("sweeps"), py::arg("way"), py::arg("sums"), py::arg("threads"),
        "hals_stored for a dense X (m, p), finite where it has a weight. W (m, p): uint8, a mask, or "
        "weights in the dtype of F. X and W in any layout.");
    module.def("moments", &moments, py::arg("F"), py::arg("X"), py::arg("out"),
               py::arg("symmetric"), py::arg("adds"), py::arg("threads"),
               "out = F X, or out += F X if adds.\n\n"
               "F (K, m) with adjacent concepts; X (m, p) with contiguous rows, which may overlap; "
               "out (K, p) with contiguous rows. symmetric: the result is known to be; half of it "
               "is computed.");
    module.def(
        "mu_update", &mu_update, py::arg("F"), py::arg("numerator"), py::arg("denominator"),
        py::arg("sums"), py::arg("threads"),
        "F *= numerator / max(denominator, smallest normal number) where denominator > 0.\n\n"
        "All (K, m) in any layout.");
    module.def("pgd_update", &pgd_update, py::arg("F"), py::arg("Y"), py::arg("gradient"),
               py::arg("step"), py::arg("momentum"), py::arg("sums"), py::arg("threads"),
               "F_new = max(0, Y - step gradient); Y = F_new + momentum (F_new - F); F = F_new.\n\n"
               "All (K, m) in any layout.");
    module.def("extrapolate", &extrapolate, py::arg("F"), py::arg("swept"), py::arg("step"),
               py::arg("least"), py::arg("threads"), py::arg("change") = py::none(),
               "swept, F = F, max(least F, F + step (F - swept)).\n\n"
               "All (K, m) in any layout. change: (before, sums), sums of F - before and F then.");
    module.def("rescale", &rescale, py::arg("F"), py::arg("swept"), py::arg("scale"),
               py::arg("before"), py::arg("sums"), py::arg("threads"),
               "F, swept = scale F, scale swept; sums are of F - before and F then.\n\n"
               "F, swept, before (K, m) in any layout, scale (K) contiguous.");
    module.def("measure", &measure, py::arg("D"), py::arg("cross"), py::arg("G"), py::arg("gram"),
               py::arg("total"), py::arg("sums"),
               "sums[2] = total + <gram, G> - 2 <cross, D>: the squared error of Z D for "
               "cross = Z'A, gram = Z'Z, G = DD'.\n\n"
               "D, cross (K, d), G, gram (K, K), with contiguous rows.");
    module.def("moved", &moved, py::arg("F"), py::arg("before"), py::arg("norms"), py::arg("most"),
               py::arg("sums"),
               "sums = squared norms of F - before and of F; whether the norm of a row of F is off "
               "that in norms by more than the share `most`.\n\n"
               "F, before (K, d) with contiguous rows, norms (K) contiguous; rows of zeros are not.");
    module.def("scales", &scales, py::arg("norms"), py::arg("before"), py::arg("most"),
               "norms = norms / before, 1 where either is not positive; whether one is off 1 by more "
               "than `most`. Both (K), contiguous.");
    module.def("on_supports", &on_supports, py::arg("X"), py::arg("R"), py::arg("G"),
               py::arg("used"), py::arg("dependent"), py::arg("limits"), py::arg("threads"),
               "X_S = the solution of G_SS x = R_S on the support S of each row, zero elsewhere.\n\n"
               "X, R (n, K) with contiguous rows, G (K, K) float64, symmetric; used (n, K) uint8: "
               "the supports; dependent (n) uint8: 1 where the squared distance of a concept to "
               "those before it is at most the tolerance times its square, and X is zero. limits: "
               "(most, tolerance), most: concepts that a support has at most.");
    module.def(
        "nnls", &nnls, py::arg("F"), py::arg("C"), py::arg("gram"), py::arg("limits"),
        py::arg("report"), py::arg("sums"), py::arg("threads"),
        "F_i = argmin x'Gx / 2 - c'x over x >= 0, for every column i of F.\n\n"
        "F, C (K, m) in any layout. gram: (G, scale, index), G (K, K) of unit concepts with "
        "contiguous rows; scale (K) float64: 1 over the norms of the concepts, 0 for those that "
        "keep their values; index None, or (m, k) int32: the concepts that each column may use, -1 "
        "behind the last, and G may then be (m, k, k), that of each column's concepts. limits: "
        "(warm, tolerance, rank_tolerance, max_steps, capacity, block). report (m, 4) float64: 32 "
        "bytes a column, int32 status, support, steps, concepts that left; float64 slope, gain.");
    py::class_<Accelerated>(
        module, "Accelerated",
        "Iterations of HALS with extrapolation, F (K, m), D (K, p) >= 0, for X (m, p) of float32, in "
        "four calls, between which the caller computes products: begin; G = DD'; update; G = DD'; "
        "end; and where that returns true, now = the norms of the rows of D; balance. They compute "
        "what extrapolate, hals_rows, hals_normal, measure, moved, scales and rescale do.\n\n"
        "pair: (F, D); before: (swept, F, D, norms), those of F and D at the start of an iteration, "
        "and the norms (K) that concepts keep; products: (G, cross, gram, now), now (K) for "
        "norms. Concepts of F and swept are adjacent, all else has contiguous rows. sums (2, 4 or "
        "more): of F and of D, set: squared norms of the change and of the factor, and of D the "
        "squared error. rules: (least, most, total, sweeps of F, sweeps of D), most: the share by "
        "which a norm may change, total: the squared norm of X. The memory must live as long.")
        .def(py::init<const AcceleratedPair &, const View &, const AcceleratedBefore &,
                      const AcceleratedProducts &, const View &, const AcceleratedRules &>(),
             py::arg("pair"), py::arg("X"), py::arg("before"), py::arg("products"), py::arg("sums"),
             py::arg("rules"))
        .def("begin", &begin, py::arg("step"), py::arg("threads"), "Extrapolate D.")
        .def("update", &update, py::arg("step"), py::arg("threads"),
             "Sweep F, given G, extrapolate it, and sweep D.")
        .def("end", &end,
             "Sum the error and the changes, given G; whether the norm of a concept has changed.")
        .def("balance", &balance, py::arg("threads"),
             "Give concepts their old norm, given the new one.");
    py::class_<AnyActiveRows>(module, "ActiveRows",
                              "Rows of non-negative least squares in flight.")
        .def("step", &step, py::arg("W"), py::arg("E"), py::arg("threads"),
             "Advance each row, given W = E B'; the number of rows in flight now, 0 at the end, and of "
             "those among them, the first, whose W may be rough next.\n\n"
             "W (slots, K), E (slots, p), contiguous, the same in every call. The first call reads "
             "neither. Only the rows of W and E that are in flight are read and written.");
    module.def(
        "nnls_rows", &rows_in_flight, py::arg("F"), py::arg("X"), py::arg("concepts"),
        py::arg("limits"), py::arg("search"), py::arg("report"), py::arg("sums"),
        "F_i = argmin |X_i - F_i'B|^2 / 2 + l1 sum F_i + sum curvature F_i^2 / 2 over F_i >= 0, for "
        "every column i of F.\n\n"
        "F (K, m) in any layout, X (m, p) with contiguous rows. concepts: (B, scale, unit, l1, "
        "curvature), B (K, p) with contiguous rows, scale (K) float64: 1 over the norms of the "
        "concepts, of squares with their curvature, 0 for those that keep their values; unit None "
        "or (K, K), the Gram matrix of unit concepts; curvature None or (K). limits: as for nnls. "
        "search: (limit, slots, roughness), of which limit is 0, or how many concepts a row may "
        "have, slots the most rows in flight, and roughness 0, or how far rough slopes of unit "
        "concepts may be off, of the norm of a residual. report: as for nnls. sums (3): squares "
        "of the change, of F, and of the residual are added. The memory must live until the last "
        "step.");
    module.def(
        "sparse_product", &sparse_product, py::arg("out"), py::arg("X"), py::arg("dense"),
        py::arg("transposed"), py::arg("adds"), py::arg("threads"),
        "out (m, K) = X dense, dense (d, K), for a sparse X (m, d); or transposed out (d, K) = X' "
        "dense, += with `adds`, dense (m, K).\n\n"
        "X: (crow, col, values): crow (m + 1), col (entries) int32 or int64, both the same; values "
        "(entries). The entries of row i are those from crow[i] to crow[i + 1]; their columns must "
        "ascend and be below d, which is not checked. Rows of out and dense must be contiguous. "
        "The result does not depend on the number of threads.");
    module.def(
        "count_candidates", &count_candidates, py::arg("S"), py::arg("codes"), py::arg("bound"),
        py::arg("crow"), py::arg("threads"),
        "crow (m + 1) of the candidates of each row: the entries of the codes, and where else S is "
        "above the bound.\n\n"
        "S (m, K) with contiguous rows. codes: (crow, col, values) as X of sparse_product, (m, K).");
    module.def(
        "fill_candidates", &fill_candidates, py::arg("S"), py::arg("codes"), py::arg("bound"),
        py::arg("out"), py::arg("threads"),
        "The candidates themselves, out = (crow, col, values), given crow of count_candidates; "
        "values of those that are not entries of the codes are zero.");
    module.def(
        "hals_candidates", &hals_candidates, py::arg("codes"), py::arg("E"), py::arg("B"),
        py::arg("penalty"), py::arg("sweeps"), py::arg("sums"), py::arg("threads"),
        "z_k = max(0, z_k + (b_k'e - l1 - curvature_k z_k) inverse_k), then e -= delta b_k, for the "
        "entries z_k of each row of the codes in order, at most `sweeps` times.\n\n"
        "codes: (crow, col, values) as X of sparse_product, (m, K). E (m, p), B (K, p) with "
        "contiguous rows. penalty: (l1, curvature, inverse), both (K); a concept with inverse 0 keeps "
        "its codes. sums: of the change by all sweeps, and of the codes.");
    module.def(
        "hals_concepts", &hals_concepts, py::arg("F"), py::arg("E"), py::arg("codes"),
        py::arg("curvature"), py::arg("bounded"), py::arg("sums"), py::arg("threads"),
        "F_k = max(0, F_k + (E'z_k - curvature_k F_k) / (z_k'z_k + curvature_k)), then E -= z_k "
        "delta', for k = 0 ... K-1; without the maximum unless bounded.\n\n"
        "F (K, p), E (m, p) with contiguous rows. codes: (crow, row, values) as X of sparse_product, "
        "(K, m): of each concept the rows that have it. curvature (K), or None. A concept without "
        "codes keeps its row.");
    module.def("isa", [] { return isa().name; }, "The instruction set in use.");
    module.def(
        "isas",
        [] {
            py::dict usable;
            for (const Isa &one : isas()) usable[one.name] = one.usable;
            return usable;
        },
        "Every instruction set compiled in, worst first, and whether this CPU has it.");
    module.def("force_isa", &force_isa, py::arg("name"),
               "Use the named instruction set from now on, or the best with 'auto'. For tests.");
    module.def("shorten_waits", &shorten, py::arg("shorten"), py::arg("threads"),
               "Let threads of OpenMP that wait for others sleep soon, or spin as before. Returns "
               "whether they sleep soon: only those of libgomp, where a team of `threads` has one "
               "for every core.");
}

// fastnmf._C: checks arguments, releases the GIL and deals tiles of columns to kernels and threads.
//
// Matrices come as an address and strides in elements; nothing here knows torch. The caller keeps
// the memory alive and sees to its dtype. CPU kernels: cpu/hals.cpp, cpu/moments.cpp,
// cpu/updates.cpp, cpu/nnls.cpp.

#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../view.h"
#include "isa.h"
#include "kernels.h"
#include "../nnls/arguments.h"
#include "fused_pass.h"
#include "threads.h"

namespace py = pybind11;
using namespace fastnmf;

namespace {

// HALS

template <class T, class Arguments>
void run_hals(void (*kernel)(const Arguments &, Size, T *, double *), Size columns,
              const Arguments &a, Size held, Size m, double flops, int threads, double *sums) {
    const Size tiles = (m + columns - 1) / columns, scratch_size = held * columns;
    threads = threads_for(tiles, flops, threads);
    const Scratch<T> scratch(threads * scratch_size);
    for_tiles(tiles, threads, sums, [&](Size tile, int thread, double *partial) {
        kernel(a, tile * columns, scratch.data + thread * scratch_size, partial);
    });
}

void hals_block(const std::string &dtype, Address F, Size stride_fk, Size stride_fm, Address R,
                Size stride_r, Address G, Size stride_g, Address delta, Size stride_d, Size s,
                Size m, Address sums, int threads) {
    check_sizes("s", s, m, threads);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        double *total = pointer<double>("sums", sums);
        if (s == 0 || m == 0) return;
        const HalsBlock<T> a{view<T>("F", F, stride_fk, stride_fm, s, m),
                             view<const T>("R", R, stride_r, 1, s, m),
                             view<T>("delta", delta, stride_d, 1, s, m),
                             view<const T>("G", G, stride_g, 1, s, s).data,
                             stride_g,
                             s,
                             m};
        py::gil_scoped_release released;
        const HalsKernels<T> &kernels = hals_kernels<T>();
        run_hals(kernels.block, kernels.tile_columns, a, 2 * s, m, double(m) * s * s, threads,
                 total);
    });
}

void hals_normal(const std::string &dtype, Address F, Size stride_fk, Size stride_fm, Address C,
                 Size stride_ck, Size stride_cm, Address G, Size stride_g, Size K, Size m,
                 Address sums, int threads, Size sweeps) {
    check_sizes("K", K, m, threads);
    check_sizes("sweeps", sweeps, m, threads);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        double *total = pointer<double>("sums", sums);
        if (K == 0 || m == 0 || sweeps == 0) return;
        const HalsNormal<T> a{view<T>("F", F, stride_fk, stride_fm, K, m),
                              view<const T>("C", C, stride_ck, stride_cm, K, m),
                              view<const T>("G", G, stride_g, 1, K, K).data,
                              stride_g,
                              K,
                              m,
                              sweeps};
        py::gil_scoped_release released;
        const HalsKernels<T> &kernels = hals_kernels<T>();
        run_hals(kernels.normal, kernels.tile_columns, a, 3 * K, m, 2.0 * m * K * K * sweeps,
                 threads, total);
    });
}

void hals_rows(const std::string &dtype, Address F, Size stride_fk, Size stride_fm, Address X,
               Size stride_x, Address B, Address G, Size stride_g, double l1, Size K, Size m,
               Size p, Size sweeps, Address sums, int threads, Address swept, Size stride_sk,
               Size stride_sm, Address before, Size stride_bk, Size stride_bm, double step,
               double least, Address cross, Size stride_c, Address gram, Size stride_q,
               bool adds) {
    check_sizes("K", K, m, threads);
    check_sizes("p", p, sweeps, threads);
    // the columns that fill up a tile would grow
    if (!(l1 >= 0)) refuse("l1 = ", l1, " must not be negative");
    if (cross && (!gram || stride_fk != 1))
        refuse("sums of codes: both, of codes whose concepts are adjacent; gram = ", gram,
               ", stride_fk = ", stride_fk);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        double *total = pointer<double>("sums", sums);
        if (K == 0 || m == 0 || sweeps == 0) return;
        const HalsRows<T> a{view<T>("F", F, stride_fk, stride_fm, K, m),
                            swept ? view<T>("swept", swept, stride_sk, stride_sm, K, m) : View<T>{},
                            swept ? view<T>("before", before, stride_bk, stride_bm, K, m)
                                  : View<T>{},
                            read_rows<T>("X", X, stride_x, m),
                            view<const T>("B", B, K, 1, p, K).data,
                            view<const T>("G", G, stride_g, 1, K, K).data,
                            static_cast<T>(l1),
                            static_cast<T>(step),
                            static_cast<T>(least),
                            stride_x,
                            stride_g,
                            K,
                            m,
                            p,
                            sweeps};
        const double flops = 2.0 * m * K * (p + sweeps * K);
        if (cross) {
            const Sums<T> to{view<T>("cross", cross, stride_c, 1, K, p),
                             view<T>("gram", gram, stride_q, 1, K, K), adds};
            py::gil_scoped_release released;
            pass(a, to, 2 * flops, threads, total);
        } else {
            py::gil_scoped_release released;
            const HalsKernels<T> &kernels = hals_kernels<T>();
            run_hals(kernels.rows, kernels.tile_columns, a, 4 * K + kernels.in_hand, m, flops,
                     threads, total);
        }
    });
}

// ZᵀA and ZᵀZ

// features of which sums are made at a time, whole vectors of all kernels: the sums of a thread
// stay in its cache, and take no memory to speak of however many features there are
Size moments_features(Size feature_bytes) {
    constexpr Size sum_bytes = 1 << 20, vectors = 192;
    return std::max<Size>(1, sum_bytes / (feature_bytes * vectors)) * vectors;
}

void moments(const std::string &dtype, Address F, Size stride_f, Address X, Size stride_x,
             Address out, Size stride_o, Size K, Size m, Size p, bool symmetric, bool adds,
             int threads) {
    check_sizes("K", K, m, threads);
    check_sizes("p", p, m, threads);
    if (symmetric && K != p) refuse("K = ", K, ", p = ", p, ": a symmetric result is square");
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        if (K == 0 || p == 0) return;
        const Moments<T> a{view<const T>("F", F, 1, stride_f, K, m).data,
                           read_rows<T>("X", X, stride_x, m),
                           stride_f,
                           stride_x,
                           K,
                           m,
                           p};
        const View<T> to = view<T>("out", out, stride_o, 1, K, p);
        py::gil_scoped_release released;
        // a part for each thread, of whole cache lines of rows
        const Size parts = threads_for((m + 63) / 64, 2.0 * m * K * p, threads);
        const Size most = symmetric ? p : moments_features(K * sizeof(T));
        const Size width = moments_kernels<T>().padded(std::min(p, most));
        const Scratch<T> made(parts * K * width);
        for (Size first = 0; first < p; first += most)
            add_moments(a, symmetric, first, std::min(most, p - first), parts, made.data,
                        View<T>{at(to, 0, first), to.stride_k, 1}, adds);
        if (symmetric) mirror(to, K);
    });
}

// mu, pgd and what moves factors on

// work(k, i, concepts, columns, two doubles) for blocks of lines of up to 512 along what is
// contiguous: long enough for the prefetcher, and together as many squares as a sum in float32
// should have
template <class Work>
void for_blocks(Size K, Size m, bool concepts_adjacent, int threads, double *sums, Work work) {
    const Size along = std::min<Size>(512, concepts_adjacent ? K : m), lines = 8192 / along;
    const Size concepts = concepts_adjacent ? along : lines;
    const Size columns = concepts_adjacent ? lines : along;
    const Size across = (m + columns - 1) / columns;
    const Size tiles = across * ((K + concepts - 1) / concepts);
    // an element costs about what 8 flops do
    threads = threads_for(tiles, 8.0 * K * m, threads);
    for_tiles(tiles, threads, sums, [&](Size tile, int, double *partial) {
        const Size k = tile / across * concepts, i = tile % across * columns;
        work(k, i, std::min(concepts, K - k), std::min(columns, m - i), partial);
    });
}

template <class T> View<T> part(View<T> x, Size k, Size i) {
    return {at(x, k, i), x.stride_k, x.stride_m};
}

void mu_update(const std::string &dtype, Address F, Size stride_fk, Size stride_fm,
               Address numerator, Size stride_nk, Size stride_nm, Address denominator,
               Size stride_dk, Size stride_dm, Size K, Size m, Address sums,
               int threads) {
    check_sizes("K", K, m, threads);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        double *total = pointer<double>("sums", sums);
        if (K == 0 || m == 0) return;
        const MuUpdate<T> a{view<T>("F", F, stride_fk, stride_fm, K, m),
                            view<const T>("numerator", numerator, stride_nk, stride_nm, K, m),
                            view<const T>("denominator", denominator, stride_dk, stride_dm, K, m),
                            K,
                            m};
        py::gil_scoped_release released;
        const auto kernel = update_kernels<T>().mu;
        for_blocks(K, m, stride_fk == 1, threads, total,
                   [&](Size k, Size i, Size concepts, Size columns, double *partial) {
                       kernel({part(a.F, k, i), part(a.numerator, k, i), part(a.denominator, k, i),
                               concepts, columns},
                              partial);
                   });
    });
}

void pgd_update(const std::string &dtype, Address F, Size stride_fk, Size stride_fm, Address Y,
                Size stride_yk, Size stride_ym, Address gradient, Size stride_gk, Size stride_gm,
                double step, double momentum, Size K, Size m, Address sums, int threads) {
    check_sizes("K", K, m, threads);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        double *total = pointer<double>("sums", sums);
        if (K == 0 || m == 0) return;
        const PgdUpdate<T> a{view<T>("F", F, stride_fk, stride_fm, K, m),
                             view<T>("Y", Y, stride_yk, stride_ym, K, m),
                             view<const T>("gradient", gradient, stride_gk, stride_gm, K, m),
                             static_cast<T>(step),
                             static_cast<T>(momentum),
                             K,
                             m};
        py::gil_scoped_release released;
        const auto kernel = update_kernels<T>().pgd;
        for_blocks(K, m, stride_fk == 1, threads, total,
                   [&](Size k, Size i, Size concepts, Size columns, double *partial) {
                       kernel({part(a.F, k, i), part(a.Y, k, i), part(a.gradient, k, i), a.step,
                               a.momentum, concepts, columns},
                              partial);
                   });
    });
}

void extrapolate(const std::string &dtype, Address F, Size stride_fk, Size stride_fm, Address swept,
                 Size stride_sk, Size stride_sm, Address before, Size stride_bk, Size stride_bm,
                 double step, double least, Size K, Size m, Address sums, int threads) {
    check_sizes("K", K, m, threads);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        const bool measures = before || sums;
        double unread[2] = {}, *total = measures ? pointer<double>("sums", sums) : unread;
        if (K == 0 || m == 0) return;
        const Extrapolate<T> a{view<T>("F", F, stride_fk, stride_fm, K, m),
                               view<T>("swept", swept, stride_sk, stride_sm, K, m),
                               measures
                                   ? view<const T>("before", before, stride_bk, stride_bm, K, m)
                                   : View<const T>{},
                               static_cast<T>(step),
                               static_cast<T>(least),
                               K,
                               m};
        py::gil_scoped_release released;
        const auto kernel = update_kernels<T>().extrapolate;
        for_blocks(K, m, stride_fk == 1, threads, total,
                   [&](Size k, Size i, Size concepts, Size columns, double *partial) {
                       const auto begun = measures ? part(a.before, k, i) : a.before;
                       kernel({part(a.F, k, i), part(a.swept, k, i), begun, a.step, a.least,
                               concepts, columns},
                              partial);
                   });
    });
}

void rescale(const std::string &dtype, Address F, Size stride_fk, Size stride_fm, Address swept,
             Size stride_sk, Size stride_sm, Address scale, Address before, Size stride_bk,
             Size stride_bm, Size K, Size m, Address sums, int threads) {
    check_sizes("K", K, m, threads);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        double *total = pointer<double>("sums", sums);
        if (K == 0 || m == 0) return;
        const Rescale<T> a{view<T>("F", F, stride_fk, stride_fm, K, m),
                           view<T>("swept", swept, stride_sk, stride_sm, K, m),
                           pointer<const T>("scale", scale),
                           view<const T>("before", before, stride_bk, stride_bm, K, m),
                           K,
                           m};
        py::gil_scoped_release released;
        const auto kernel = update_kernels<T>().rescale;
        for_blocks(K, m, stride_fk == 1, threads, total,
                   [&](Size k, Size i, Size concepts, Size columns, double *partial) {
                       kernel({part(a.F, k, i), part(a.swept, k, i), a.scale + k,
                               part(a.before, k, i), concepts, columns},
                              partial);
                   });
    });
}

// nnls

void nnls(const std::string &dtype, Address F, Size stride_fk, Size stride_fm, Address C,
          Size stride_ck, Size stride_cm, Address G, Size stride_g, Size stride_row, Address scale,
          Address index, Size K, Size m, bool warm, double tolerance, double rank_tolerance, int max_steps,
          int capacity, int block, Address account, Address sums, int threads) {
    check_sizes("K", K, m, threads);
    check_rules(max_steps, capacity, block);
    with_dtype(dtype, [&](auto zero) {
        using T = decltype(zero);
        double *total = pointer<double>("sums", sums);
        if (K == 0 || m == 0) return;
        const auto rows = nnls_rows<T>(F, stride_fk, stride_fm, C, stride_ck, stride_cm, G,
                                       stride_g, stride_row, scale, index, K, m, warm, tolerance,
                                       rank_tolerance, max_steps, capacity, block, account);
        py::gil_scoped_release released;
        const NnlsKernels<T> &kernels = nnls_kernels<T>();
        // a row costs some K² flops at least
        threads = threads_for(m, double(m) * K * K, threads);
        const Size scratch_size = kernels.scratch_size(rows.rules, rows.K, index && !stride_row);
        const Scratch<double> scratch(threads * scratch_size);
        for_tiles<true>(m, threads, total, [&](Size i, int thread, double *partial) {
            kernels.solve(rows, i, scratch.data + thread * scratch_size, partial);
        });
    });
}

} // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "CPU kernels of fastnmf. Matrices are given as address and strides in elements; "
                   "dtype is 'float32' or 'float64'; to sums (two float64) are added the squared "
                   "norms of the change and of the updated F.";
    module.def(
        "hals_block", &hals_block, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"),
        py::arg("stride_fm"), py::arg("R"), py::arg("stride_r"), py::arg("G"), py::arg("stride_g"),
        py::arg("delta"), py::arg("stride_d"), py::arg("s"), py::arg("m"), py::arg("sums"),
        py::arg("threads"),
        "F_k = max(0, F_k + R_k / G_kk), then R_i -= G_ik delta_k for i > k; k = 0 ... s-1.\n\n"
        "F (s, m) in any layout, R and delta (s, m) and G (s, s) with contiguous rows; delta "
        "may be R. A concept with G_kk below the smallest normal number is left as it is.");
    module.def(
        "hals_normal", &hals_normal, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"),
        py::arg("stride_fm"), py::arg("C"), py::arg("stride_ck"), py::arg("stride_cm"),
        py::arg("G"), py::arg("stride_g"), py::arg("K"), py::arg("m"), py::arg("sums"),
        py::arg("threads"),
        py::arg("sweeps") = 1,
        "F_k = max(0, F_k + (C_k - G_k F) / G_kk); k = 0 ... K-1; so many times.\n\n"
        "F, C (K, m) in any layout, G (K, K) with contiguous rows. A concept with G_kk below "
        "the smallest normal number is left as it is.");
    module.def(
        "hals_rows", &hals_rows, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"),
        py::arg("stride_fm"), py::arg("X"), py::arg("stride_x"), py::arg("B"), py::arg("G"),
        py::arg("stride_g"), py::arg("l1"), py::arg("K"), py::arg("m"), py::arg("p"),
        py::arg("sweeps"), py::arg("sums"), py::arg("threads"), py::arg("swept") = 0,
        py::arg("stride_sk") = 0, py::arg("stride_sm") = 0, py::arg("before") = 0,
        py::arg("stride_bk") = 0, py::arg("stride_bm") = 0, py::arg("step") = 0.0,
        py::arg("least") = 0.0, py::arg("cross") = 0, py::arg("stride_c") = 0,
        py::arg("gram") = 0, py::arg("stride_q") = 0, py::arg("adds") = false,
        "hals_normal with C = B'X' - l1, so many times; C is not kept.\n\n"
        "F (K, m) in any layout, X (m, p) with contiguous rows, which may overlap, G (K, K) with "
        "contiguous rows, B (p, K) contiguous; l1 >= 0. With swept and before (K, m), before = F "
        "first, and then swept, F = F, max(least F, F + step (F - swept)); sums are of F - before "
        "and F then. With cross (K, p) and gram (K, K) of contiguous "
        "rows, then cross = F X and gram = F F', or with adds +=; F has contiguous columns.");
    module.def("moments", &moments, py::arg("dtype"), py::arg("F"), py::arg("stride_f"),
               py::arg("X"), py::arg("stride_x"), py::arg("out"), py::arg("stride_o"), py::arg("K"),
               py::arg("m"), py::arg("p"), py::arg("symmetric"), py::arg("adds"),
               py::arg("threads"),
               "out = F X, or with adds out += F X.\n\n"
               "F (K, m) with contiguous columns, stride_f apart; X (m, p) with contiguous rows, "
               "which may overlap; out (K, p) with contiguous rows. symmetric: the result is known "
               "to be; half of it is computed.");
    module.def(
        "mu_update", &mu_update, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"),
        py::arg("stride_fm"), py::arg("numerator"), py::arg("stride_nk"), py::arg("stride_nm"),
        py::arg("denominator"), py::arg("stride_dk"), py::arg("stride_dm"), py::arg("K"),
        py::arg("m"), py::arg("sums"), py::arg("threads"),
        "F *= numerator / max(denominator, smallest normal number) where denominator > 0.\n\n"
        "All (K, m) in any layout.");
    module.def("pgd_update", &pgd_update, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"),
               py::arg("stride_fm"), py::arg("Y"), py::arg("stride_yk"), py::arg("stride_ym"),
               py::arg("gradient"), py::arg("stride_gk"), py::arg("stride_gm"), py::arg("step"),
               py::arg("momentum"), py::arg("K"), py::arg("m"), py::arg("sums"), py::arg("threads"),
               "F_new = max(0, Y - step gradient); Y = F_new + momentum (F_new - F); F = F_new.\n\n"
               "All (K, m) in any layout.");
    module.def(
        "extrapolate", &extrapolate, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"),
        py::arg("stride_fm"), py::arg("swept"), py::arg("stride_sk"), py::arg("stride_sm"),
        py::arg("before"), py::arg("stride_bk"), py::arg("stride_bm"), py::arg("step"),
        py::arg("least"), py::arg("K"), py::arg("m"), py::arg("sums"), py::arg("threads"),
        "swept, F = F, max(least F, F + step (F - swept)).\n\n"
        "All (K, m) in any layout. sums are of F - before and F then, or 0, and before 0: none.");
    module.def(
        "rescale", &rescale, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"),
        py::arg("stride_fm"), py::arg("swept"), py::arg("stride_sk"), py::arg("stride_sm"),
        py::arg("scale"), py::arg("before"), py::arg("stride_bk"), py::arg("stride_bm"),
        py::arg("K"), py::arg("m"), py::arg("sums"), py::arg("threads"),
        "F, swept = scale F, scale swept; sums are of F - before and F then.\n\n"
        "F, swept, before (K, m) in any layout, scale (K) contiguous.");
    module.def(
        "nnls", &nnls, py::arg("dtype"), py::arg("F"), py::arg("stride_fk"), py::arg("stride_fm"),
        py::arg("C"), py::arg("stride_ck"), py::arg("stride_cm"), py::arg("G"), py::arg("stride_g"),
        py::arg("stride_row"), py::arg("scale"), py::arg("index"), py::arg("K"), py::arg("m"), py::arg("warm"),
        py::arg("tolerance"), py::arg("rank_tolerance"), py::arg("max_steps"), py::arg("capacity"),
        py::arg("block"), py::arg("account"), py::arg("sums"), py::arg("threads"),
        "F_i = argmin x'Gx / 2 - c'x over x >= 0, for every column i of F.\n\n"
        "F, C (K, m) in any layout; G (K, K) of unit concepts with contiguous rows; scale float64: 1 "
        "over the norms of the concepts, 0 for those that are left as they are. index: (m, K) int32, "
        "the concepts that each column may use, -1 behind the last; or 0: all. G is then gathered, "
        "or, with stride_row from one column's to the next, that of each column's concepts. account: "
        "32 bytes a column: int32 status, support, steps, concepts that left; float64 slope, gain.");
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
}

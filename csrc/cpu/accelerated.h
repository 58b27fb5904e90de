// Accelerated iterations, for bindings.cpp: extrapolation, the sums that watch it, and whole
// iterations of HALS in as few calls as the products leave that torch computes between them.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <tuple>
#include <vector>

#include "../view.h"
#include "fused_pass.h"
#include "isa.h"
#include "threads.h"

namespace fastnmf {

template <class T> void compute_extrapolation(const Extrapolate<T> &a, int threads, double *sums) {
    const auto kernel = update_kernels<T>().extrapolate;
    for_element_tiles(a.F, a.K, a.m, threads, sums, [&](const Tile &t, double *partial) {
        const auto before = a.before.data ? t.of(a.before) : a.before;
        kernel({t.of(a.F), t.of(a.swept), before, a.step, a.least, t.concepts, t.columns}, partial);
    });
}

template <class T> void compute_rescale(const Rescale<T> &a, int threads, double *sums) {
    const auto kernel = update_kernels<T>().rescale;
    for_element_tiles(a.F, a.K, a.m, threads, sums, [&](const Tile &t, double *partial) {
        kernel({t.of(a.F), t.of(a.swept), a.scale + t.k, t.of(a.before), t.concepts, t.columns},
               partial);
    });
}

// X and Y (K, m) of T
template <class T>
Rows<T> rows_of(const char *name, const View &X, const char *other, const View &Y) {
    const Size K = X.shape[0], m = X.shape[1];
    const auto x = row_matrix<const T>(name, X, K, m), y = row_matrix<const T>(other, Y, K, m);
    return {x.data, y.data, x.stride_k, y.stride_k, K, m};
}

// total + ⟨gram, G⟩ − 2 ⟨cross, D⟩; of_data: D and cross, of_codes: G and gram
template <class T>
double squared_error(const Rows<T> &of_data, const Rows<T> &of_codes, double total) {
    const auto inner = update_kernels<T>().inner;
    return inner(of_codes) + total - 2 * inner(of_data);
}

// sums ← ‖X − Y‖², ‖X‖²; whether the norm of a row of X is off that in norms (K) by more than `most`
template <class T>
bool have_moved(const Rows<T> &rows, const T *norms, double most, double *sums) {
    bool found = false;
    std::vector<double> squares(2 * rows.K);
    update_kernels<T>().change(rows, squares.data());
    sums[0] = sums[1] = 0;
    for (Size k = 0; k < rows.K; ++k) {
        const double norm = std::sqrt(squares[2 * k + 1]);
        sums[0] += squares[2 * k];
        sums[1] += squares[2 * k + 1];
        // what is not a number has not
        if (norm > 0 && norms[k] > 0) found |= !(std::abs(norm / norms[k] - 1) <= most);
    }
    return found;
}

// norms (K) ← norms / before, 1 where either is not positive; whether one is off 1 by more than `most`
template <class T> bool turn_into_scales(T *norms, const T *before, Size K, double most) {
    bool found = false;
    for (Size k = 0; k < K; ++k) {
        norms[k] = norms[k] > 0 && before[k] > 0 ? norms[k] / before[k] : 1;
        found |= std::abs(norms[k] - 1) > static_cast<T>(most);
    }
    return found;
}

// F, D; swept, F and D of the iteration before, norms; G, cross, gram, now; least, most, total, sweeps
// of F and of D: see the documentation of Accelerated
using AcceleratedPair = std::tuple<View, View>;
using AcceleratedBefore = std::tuple<View, View, View, View>;
using AcceleratedProducts = std::tuple<View, View, View, View>;
using AcceleratedRules = std::tuple<double, double, double, Size, Size>;

class Accelerated {
    using T = float;

    HalsRows<T> rows_{};
    Matrix<T> D_, D_before_;
    Sums<T> to_;
    const T *norms_;
    T *now_;
    double *of_codes_, *of_dictionary_, most_, total_;
    Size sweeps_;
    std::unique_ptr<Scratch<T>> copy_;

    // D and what it is compared with
    Rows<T> of(const Matrix<T> &other) const {
        return {D_.data, other.data, D_.stride_k, other.stride_k, rows_.K, rows_.p};
    }

  public:
    Accelerated(const AcceleratedPair &pair, const View &X, const AcceleratedBefore &before,
                const AcceleratedProducts &products, const View &sums,
                const AcceleratedRules &rules) {
        const auto &[F, D] = pair;
        const auto &[swept, F_before, D_before, norms] = before;
        const auto &[G, cross, gram, now] = products;
        check_shape("F", F, {-1, -1});
        check_shape("X", X, {F.shape[1], -1});
        const Size K = F.shape[0], m = F.shape[1], p = X.shape[1];
        if (K < 1 || m < 1 || p < 1) refuse("K = ", K, ", m = ", m, ", p = ", p, ": all must be positive");
        const auto data = data_matrix<T>("X", X, m, p);
        const auto fixed = row_matrix<const T>("G", G, K, K);
        rows_.F = matrix<T>("F", F, K, m);
        rows_.swept = matrix<T>("swept", swept, K, m);
        rows_.before = matrix<T>("before", F_before, K, m);
        if (rows_.F.stride_k != 1)
            refuse("F has strides ", listed(F.strides, 2), ": its concepts must be adjacent");
        rows_.X = data.data;
        rows_.G = fixed.data;
        rows_.stride_x = data.stride_k;
        rows_.stride_g = fixed.stride_k;
        rows_.K = K;
        rows_.m = m;
        rows_.p = p;
        D_ = row_matrix<T>("D", D, K, p);
        D_before_ = row_matrix<T>("before of D", D_before, K, p);
        to_ = {row_matrix<T>("cross", cross, K, p), row_matrix<T>("gram", gram, K, K), false};
        norms_ = array<const T>("norms", norms, {K});
        now_ = array<T>("now", now, {K});
        check_shape("sums", sums, {2, -1});
        of_codes_ = array<double>("sums", sums, {2, std::max<Size>(4, sums.shape[1])});
        of_dictionary_ = of_codes_ + sums.shape[1];
        double least;
        std::tie(least, most_, total_, rows_.sweeps, sweeps_) = rules;
        rows_.least = static_cast<T>(least);
        if (rows_.sweeps < 1 || sweeps_ < 1)
            refuse("sweeps = ", rows_.sweeps, ", ", sweeps_, " must be positive");
        copy_ = std::make_unique<Scratch<T>>(hals_kernels<T>().packed_size(K, p));
    }

    void begin(double step, int threads) const {
        double unread[2] = {};
        const T by = static_cast<T>(step);
        compute_extrapolation<T>({D_, D_before_, {}, by, rows_.least, rows_.K, rows_.p}, threads,
                                 unread);
    }

    void update(double step, int threads) const {
        const HalsKernels<T> &kernels = hals_kernels<T>();
        auto a = rows_;
        a.step = static_cast<T>(step);
        kernels.pack(a, {D_.data, D_.stride_k, 1}, copy_->data);
        std::fill(of_codes_, of_dictionary_, 0.0);
        // twice: the sums take as many as the codes
        pass(a, to_, 2 * (2.0 * a.m * a.K * (a.p + a.sweeps * a.K)), threads, of_codes_);
        const HalsNormal<T> half{D_, {to_.cross.data, to_.cross.stride_k, 1}, to_.gram.data,
                                 to_.gram.stride_k, a.K, a.p, sweeps_, true};
        double unread[2] = {};
        run_hals(kernels.normal, kernels.tile_columns, half, 3 * a.K,
                 2.0 * a.p * a.K * a.K * sweeps_, threads, unread);
    }

    bool end() const {
        const Rows<T> of_codes{rows_.G, to_.gram.data, rows_.stride_g, to_.gram.stride_k, rows_.K,
                               rows_.K};
        std::fill(of_dictionary_, of_dictionary_ + (of_dictionary_ - of_codes_), 0.0);
        of_dictionary_[2] = squared_error(of(to_.cross), of_codes, total_);
        // which is asked again by norms that may differ by as much as rounding
        return have_moved(of(D_before_), norms_, 0.999 * most_, of_dictionary_);
    }

    void balance(int threads) const {
        const Size K = rows_.K;
        if (!turn_into_scales(now_, norms_, K, most_)) return;
        of_codes_[0] = of_codes_[1] = 0;
        const Matrix<const T> before{rows_.before.data, rows_.before.stride_k,
                                     rows_.before.stride_m};
        compute_rescale<T>({rows_.F, rows_.swept, now_, before, K, rows_.m}, threads, of_codes_);
        for (Size k = 0; k < K; ++k) {
            T *row = at(D_, k, 0);
            for (Size j = 0; j < rows_.p; ++j) row[j] /= now_[k];
        }
        have_moved(of(D_before_), norms_, 0.999 * most_, of_dictionary_);
    }
};

} // namespace fastnmf

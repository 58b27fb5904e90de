// Rows of non-negative least squares in flight, for bindings.cpp: they advance together, one step
// whenever the caller has computed the slopes of all concepts, and a row that ends makes room for
// the next.
#pragma once

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "../nnls/arguments.h"
#include "../nnls/triangle.h"
#include "../view.h"
#include "isa.h"
#include "kernels.h"
#include "threads.h"

namespace fastnmf {

// B, scale, unit, l1, curvature: the fields of ActiveSet
using ActiveConcepts = std::tuple<View, View, std::optional<View>, double, std::optional<View>>;

// limit, slots, roughness: how many concepts a row may have, or 0; rows in flight; see ActiveSet
using ActiveSearch = std::tuple<int, int, double>;

struct AnyActiveRows {
    virtual ~AnyActiveRows() = default;
    // rows in flight, and how many of them, the first, take slopes that are rough
    virtual std::pair<Size, Size> step(const View &W, const View &E, int threads) = 0;
};

template <class T> class ActiveRows : public AnyActiveRows {
    // rows in flight are at most this many more than fit
    struct Slot {
        ActiveRow<T> row;
        std::unique_ptr<Scratch<double>> numbers, M;
        std::vector<int32_t> concepts;
        int32_t rows_of_M = 0;
        bool ended = false;
    };

    ActiveSet<T> set_;
    Matrix<T> F_;
    Matrix<const T> X_;
    Size m_, next_ = 0, active_ = 0;
    bool warm_, begun_ = false;
    NnlsReport *report_;
    double *sums_;
    std::vector<T> rounded_;
    std::vector<Slot> slots_;
    // ‖ΔF_i‖², ‖F_i‖², ‖e_i‖² of each row, added in their order at the end
    std::vector<double> squares_;

    // concepts that may enter in a step
    int32_t entering() const { return active_set_kernels<T>().blocks * set_.rules.block; }
    Size across() const { return (set_.rules.capacity + set_.rules.block + 15) / 8 * 8; }

    // memory for the rows of M up to `rows`
    void reserve(Slot &slot, int32_t rows) {
        using M_t = Triangle<double, 8>;
        if (rows <= slot.rows_of_M) return;
        const int32_t wanted = std::max(rows, slot.rows_of_M + slot.rows_of_M / 2 + 32);
        auto larger = std::make_unique<Scratch<double>>(M_t::offset(wanted + 8));
        if (slot.M)
            std::memcpy(larger->data, slot.M->data, M_t::offset(slot.row.p) * sizeof(double));
        slot.M = std::move(larger);
        slot.row.M = slot.M->data;
        slot.rows_of_M = wanted;
    }

    void allocate(Slot &slot) {
        const Size numbers = across();
        slot.numbers = std::make_unique<Scratch<double>>(4 * numbers + set_.p);
        slot.concepts.resize(2 * numbers);
        double *next = slot.numbers->data;
        for (double **vector : {&slot.row.y, &slot.row.x, &slot.row.s, &slot.row.kept_x}) {
            *vector = next;
            next += numbers;
        }
        slot.row.e = next;
        slot.row.passive = slot.concepts.data();
        slot.row.kept = slot.row.passive + numbers;
    }

    // the next row, if there is one
    bool begin(Slot &slot, T *E) {
        if (next_ == m_) return false;
        const Size i = next_++;
        if (!slot.numbers) allocate(slot);
        ActiveRow<T> &row = slot.row;
        row.X = X_.data + i * X_.stride_k;
        row.index = i;
        row.warm = warm_;
        row.p = 0;
        if (warm_)
            for (Size k = 0; k < set_.K && row.p < set_.rules.capacity; ++k) {
                const T z = F_.data[k * F_.stride_k + i * F_.stride_m];
                if (!(set_.scale[k] > 0) || !(z > 0)) continue;
                row.passive[row.p] = static_cast<int32_t>(k);
                row.x[row.p++] = double(z) / set_.scale[k];
            }
        const int32_t given = row.p;
        row.p = 0;
        reserve(slot, given + entering());
        row.p = given;
        slot.ended = false;
        active_set_kernels<T>().begin(set_, row, E);
        return true;
    }

    // the rows whose next slopes may be rough, first; returns their number
    Size rough_first(T *E) {
        Size first = 0, last = active_;
        for (;;) {
            while (first < last && slots_[first].row.rough) ++first;
            while (first < last && !slots_[last - 1].row.rough) --last;
            if (first == last) return first;
            --last;
            std::swap(slots_[first], slots_[last]);
            std::swap_ranges(E + first * set_.p, E + (first + 1) * set_.p, E + last * set_.p);
        }
    }

    // F_i and what is reported of it
    void finish(const ActiveRow<T> &row) {
        const Size i = row.index;
        T *F = F_.data + i * F_.stride_m;
        double *squares = &squares_[3 * i];
        const bool strange = !std::isfinite(row.worst);
        const T other = strange ? std::numeric_limits<T>::quiet_NaN() : T(0);
        double change = 0, norm = 0;
        // the change from what F_i was: of the passive concepts, then of those that become zero
        for (int q = 0; q < row.p && !strange; ++q) {
            T &before = F[row.passive[q] * F_.stride_k];
            const T z = T(row.x[q] * set_.scale[row.passive[q]]);
            change += (double(z) - double(before)) * (double(z) - double(before));
            norm += double(z) * double(z);
            before = 0;
        }
        for (Size k = 0; k < set_.K; ++k) {
            T &z = F[k * F_.stride_k];
            const double square = double(z) * double(z);
            if (set_.scale[k] > 0) {
                change += square;
                z = other;
            } else {
                norm += square;
            }
        }
        for (int q = 0; q < row.p && !strange; ++q)
            F[row.passive[q] * F_.stride_k] = T(row.x[q] * set_.scale[row.passive[q]]);
        squares[0] = change;
        squares[1] = norm;
        for (Size j = 0; j < set_.p; ++j) squares[2] += row.e[j] * row.e[j];
        report_[i] = {row.status, row.p, row.steps, 0, row.worst, 0};
    }

  public:
    ActiveRows(const View &F, const View &X, const ActiveConcepts &concepts,
               const NnlsLimits &limits, const ActiveSearch &search, const View &report,
               const View &sums) {
        const auto &[limit, slots, roughness] = search;
        const auto &[B, scale, unit, l1, curvature] = concepts;
        const auto &[warm, tolerance, rank_tolerance, max_steps, capacity, block] = limits;
        const Size K = F.shape[0];
        m_ = F.shape[1];
        check_shape("B", B, {K, -1});
        const Size p = B.shape[1];
        F_ = matrix<T>("F", F, K, m_);
        X_ = data_matrix<T>("X", X, m_, p);
        const auto fixed = data_matrix<T>("B", B, K, p);
        set_.B = fixed.data;
        set_.stride_b = fixed.stride_k;
        set_.unit = nullptr;
        if (unit) {
            const auto gram = row_matrix<const T>("unit", *unit, K, K);
            set_.unit = gram.data;
            set_.stride_unit = gram.stride_k;
        }
        set_.scale = array<const double>("scale", scale, {K});
        set_.curvature = curvature ? array<const T>("curvature", *curvature, {K}) : nullptr;
        set_.l1 = l1;
        set_.K = K;
        set_.p = p;
        set_.limit = limit;
        set_.roughness = roughness;
        set_.rules = {tolerance, rank_tolerance, max_steps, capacity, block};
        warm_ = warm;
        report_ = reinterpret_cast<NnlsReport *>(array<double>("report", report, {m_, 4}));
        sums_ =
            array<double>("sums", sums, {sums.dims == 1 && sums.shape[0] > 3 ? sums.shape[0] : 3});
        rounded_.assign(set_.scale, set_.scale + K);
        set_.rounded = rounded_.data();
        if (slots < 1 || limit < 0 || !(roughness >= 0))
            refuse("slots = ", slots, ", limit = ", limit, ", roughness = ", roughness,
                   ": at least 1, 0 and 0 are needed");
        slots_.resize(std::min<Size>(slots, m_));
        squares_.resize(3 * m_);
    }

    std::pair<Size, Size> step(const View &W, const View &E, int threads) override {
        const Size slots = slots_.size();
        T *w = array<T>("W", W, {slots, set_.K}), *e = array<T>("E", E, {slots, set_.p});
        const ActiveSetKernels<T> &kernels = active_set_kernels<T>();
        if (!begun_) {
            begun_ = true;
            while (active_ < slots && begin(slots_[active_], e + active_ * set_.p)) ++active_;
            return {active_, rough_first(e)};
        }
        // those with the largest supports first, so that no thread waits for one of them at the end
        std::vector<Size> order(active_);
        for (Size i = 0; i < active_; ++i) {
            order[i] = i;
            reserve(slots_[i], slots_[i].row.p + entering());
        }
        std::stable_sort(order.begin(), order.end(),
                         [&](Size i, Size j) { return slots_[i].row.p > slots_[j].row.p; });
        const Size scratch_size = (kernels.scratch_size(set_) + 7) / 8 * 8;
        threads = threads_for(active_, 1e5 * active_, threads);
        const Scratch<double> scratch(threads * scratch_size);
        double unread[2] = {};
        for_tiles<1>(active_, threads, unread, [&](Size t, int thread, double *) {
            Slot &slot = slots_[order[t]];
            const Size i = order[t];
            slot.ended = kernels.advance(set_, slot.row, w + i * set_.K, e + i * set_.p,
                                         scratch.data + thread * scratch_size);
            if (slot.ended) finish(slot.row);
        });
        for (Size i = 0; i < active_; ++i) {
            if (!slots_[i].ended || begin(slots_[i], e + i * set_.p)) continue;
            while (active_ > i && slots_[active_ - 1].ended &&
                   !begin(slots_[active_ - 1], e + (active_ - 1) * set_.p))
                --active_;
            if (active_ <= i) break;
            std::swap(slots_[i], slots_[active_ - 1]);
            std::memcpy(e + i * set_.p, e + (active_ - 1) * set_.p, set_.p * sizeof(T));
            --active_;
        }
        if (active_ == 0)
            for (Size i = 0; i < m_; ++i)
                for (int s = 0; s < 3; ++s) sums_[s] += squares_[3 * i + s];
        return {active_, rough_first(e)};
    }
};

} // namespace fastnmf

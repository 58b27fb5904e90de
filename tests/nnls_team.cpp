// The row solver on a team of lanes, which are threads here: .ci/sanitize runs it under the thread
// sanitizer, with every barrier in place and with one left out. Exits with the number of rows whose
// solution violates the KKT conditions.

#include <algorithm>
#include <barrier>
#include <cmath>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

#include "../csrc/nnls/lanes.h"

namespace {

constexpr int lanes = 4;

struct Shared {
    std::barrier<> barrier{lanes};
    double value[lanes];
    int index[lanes];
};

struct Threads : Lanes<Threads, double> {
    static constexpr int width = lanes;
    Shared *shared;
    int mine;

    Threads(Shared *shared, int mine) : shared(shared), mine(mine) {}
    int lane() const { return mine; }
    void sync() const { shared->barrier.arrive_and_wait(); }
    void show(double value, int index) const {
        sync();
        shared->value[mine] = value;
        shared->index[mine] = index;
        sync();
    }
    double total(double x) const {
        show(x, 0);
        double sum = 0;
        for (double one : shared->value) sum += one;
        return sum;
    }
    double top(double x) const {
        show(x, 0);
        return *std::max_element(shared->value, shared->value + lanes);
    }
    void lowest(double &x, int &i) const {
        show(x, i);
        for (int l = 0; l < lanes; ++l)
            if (shared->value[l] < x || (shared->value[l] == x && shared->index[l] < i)) {
                x = shared->value[l];
                i = shared->index[l];
            }
    }
    int before(bool on, int &count) const {
        show(0, on);
        count = 0;
        for (int one : shared->index) count += one;
        int below = 0;
        for (int l = 0; l < mine; ++l) below += shared->index[l];
        return below;
    }
};

// K unit concepts, some of them twice or zero, and a row of d features
struct Problem {
    int K;
    std::vector<double> G, c, scale, start;

    Problem(int K, int d, std::mt19937 &random) : K(K), G(K * K), c(K), scale(K), start(K) {
        std::normal_distribution<double> normal;
        std::vector<double> B(K * d), x(d);
        for (double &one : B) one = std::max(0.0, normal(random) - 0.3);
        for (double &one : x) one = std::max(0.0, normal(random));
        for (double &one : start) one = std::max(0.0, normal(random));
        for (int j = 0; j < d && K > 8; ++j) {
            B[5 * d + j] = B[4 * d + j];
            B[3 * d + j] = 0;
        }
        const auto dot = [&](const double *a, const double *b) {
            double sum = 0;
            for (int j = 0; j < d; ++j) sum += a[j] * b[j];
            return sum;
        };
        for (int k = 0; k < K; ++k) {
            const double square = dot(&B[k * d], &B[k * d]);
            scale[k] = square > 0 ? 1 / std::sqrt(square) : 0;
            c[k] = dot(&B[k * d], x.data());
        }
        for (int k = 0; k < K; ++k)
            for (int l = 0; l < K; ++l)
                G[k * K + l] = scale[k] * scale[l] * dot(&B[k * d], &B[l * d]);
    }

    double violation(const std::vector<double> &F) const {
        double worst = 0, most = 0;
        for (int k = 0; k < K; ++k) {
            if (scale[k] == 0) continue;
            double slope = c[k] * scale[k];
            most = std::max(most, slope);
            for (int l = 0; l < K; ++l)
                if (scale[l] > 0) slope -= G[k * K + l] * F[l] / scale[l];
            worst = std::max(worst, F[k] > 0 ? std::abs(slope) : slope);
        }
        return most > 0 ? worst / most : 0;
    }
};

std::vector<double> solve(Problem &problem, int capacity, bool warm) {
    const int K = problem.K, near_rows = capacity / 2;
    std::vector<double> F = problem.start, M(Triangle<double, 1>::offset(capacity + 1));
    std::vector<double> vectors(6 * capacity + 2 * K);
    std::vector<int> indices(2 * capacity + 2 * K);
    double *v = vectors.data();
    int *n = indices.data();
    NnlsScratch<double> at{v,
                           v + capacity,
                           v + 2 * capacity,
                           v + 3 * capacity,
                           v + 4 * capacity,
                           v + 5 * capacity,
                           v + 6 * capacity,
                           v + 6 * capacity + K,
                           n,
                           n + capacity,
                           n + 2 * capacity,
                           n + 2 * capacity + K};
    NnlsReport report;
    const NnlsRows<double> rows{{F.data(), 1, K}, {problem.c.data(), 1, K}, problem.G.data(), K, 0,
                                problem.scale.data(), nullptr, K, 1, warm,
                                {1e-12, 1e-11, 3 * K + 30, capacity, 8}, &report};
    double sums[2];
    Shared shared;
    std::vector<std::thread> team;
    for (int lane = 0; lane < lanes; ++lane)
        team.emplace_back([&, lane] {
            Threads one(&shared, lane);
            nnls_row<Threads, double, double>(
                one, rows, 0, {rows.G, K, K}, at,
                {M.data(), M.data() + Triangle<double, 1>::offset(near_rows), near_rows}, sums);
        });
    for (std::thread &one : team) one.join();
    return F;
}

} // namespace

int main() {
    std::mt19937 random(1);
    int bad = 0, rows = 0;
    for (int round = 0; round < 12; ++round) {
        const int d = 6 + random() % 30, K = 5 + random() % 60;
        Problem problem(K, d, random);
        for (bool warm : {false, true}) {
            const double worst = problem.violation(solve(problem, K, warm));
            ++rows;
            if (worst <= 1e-9) continue;
            ++bad;
            std::printf("K = %d, d = %d, %s: violation %g\n", K, d, warm ? "warm" : "cold", worst);
        }
    }
    std::printf("%d of %d rows are not solved\n", bad, rows);
    return bad;
}

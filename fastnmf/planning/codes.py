"""The cost model of exact codes for a fixed dictionary: sweeps that converge, or an exact solver
that builds up the support of each row.

No tensors and no devices here. Either ends at the optimum, so the choice is one of time only.
"""

from __future__ import annotations

from dataclasses import dataclass

from .hardware import Machine

# share of the features, and concepts, from which sweeps alone gain nothing: at K = d = 384 the KKT
# residual of half the rows was 3e-4 after 32 sweeps, and 1e-7 at K = 200 (residual stream)
_MANY, _MOST = 0.9, 600
# sweeps of a round, after which the rows that have converged are taken out: at K = 50 a check takes
# as long as six of them
SWEEPS = 8
# sweeps that find a start of the exact solver: 5 or 6 are quickest in all, K = d = 384
START_SWEEPS = 6
# sweeps between two line searches: they are needed from the second round on
BETWEEN = 4
# flops a second of the machine that the exact solver was measured on
_MEASURED_AT = 160e9
# calls of torch in a round, and the seconds of one
_CALLS, _CALL_SECONDS = 60, 5e-6
# entries that a line search and a check read and write, for each of K
_SEARCHED, _CHECKED = 30, 16


@dataclass(frozen=True)
class CodesCost:
    """Seconds of one thread for the codes of a row, K of them with d features, of itemsize bytes.

    The rates of the exact solver are measured on two cores with AVX-512: 0.8, 2.8, 6.6, 20, 103 and
    430 µs for supports of 6, 16, 30, 52, 118 and 199. With AVX2 a support of 29 takes 13 µs.
    """

    d: int
    K: int
    itemsize: int
    on: Machine

    @property
    def round_seconds(self) -> float:
        """A round of sweeps with line searches, and the check of its result."""
        K, on, single = self.K, self.on, 4 / self.itemsize
        searches = SWEEPS / BETWEEN
        flops = 2 * K * K * (SWEEPS / on.sweep + (searches + 1) / on.gemm) / single
        entries = (searches * _SEARCHED + _CHECKED) * K
        return flops + entries * self.itemsize / on.elementwise

    def exact_seconds(self, support: float) -> float:
        """The exact solver on a row of this support, a number or a tensor, from codes nearby."""
        steps = (0.4e-6 + 0.15e-6 * support) * _MEASURED_AT / self.on.gemm
        return steps + 10 * self.on.concept_seconds + 9.6 * support**3 / self.on.gemm

    @property
    def overhead(self) -> float:
        """The calls of a round, whatever the number of rows, in seconds of all threads."""
        concepts = SWEEPS * self.K * self.on.concept_seconds
        return (_CALLS * _CALL_SECONDS + concepts) * self.on.threads

    def sweeps_first(self, n: int) -> bool:
        """Whether n rows are swept before the exact solver takes those that did not converge: two
        rounds, on supports of half the concepts."""
        swept = 2 * (n * self.round_seconds + self.overhead)
        few = self.K < min(_MOST, _MANY * self.d)
        return few and swept < n * self.exact_seconds(self.K / 2)

    def sweeps_start(self, n: int) -> bool:
        """Whether n rows are swept START_SWEEPS times to find a start of the exact solver, which
        then takes all of them.

        Up to K = d a support after eight sweeps is nearly that of the solution: at K = d = 384 it
        has 10 of 207 concepts too many and 1 too few. At K = 500 it has 28 and 10 of 179, and the
        solver is as fast from zero.
        """
        swept = n * self.round_seconds + self.overhead
        return self.K <= self.d and swept < n * self.exact_seconds(self.K / 2) / 2

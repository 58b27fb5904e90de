"""Statistics of an iteration: ZᵀA, ZᵀZ, ‖ΔZ‖², ‖Z‖² and the loss, all of them sums over rows, to
which each tile and each process adds."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..backends.pointers import Sums
from ..backends.products import Matrix, Rebuilt, add_gram_, cross_
from ..backends.sparse import SparseMatrix
from ..data.dataset import Data
from ..data.sparse.codes import compressed
from ..data.storage import row_blocks
from ..distributed import Processes
from ..numerics import wide
from ..solvers.constraints import FREE
from ..solvers.half_step import Compute, Operations, ResidualData, centred_gram
from ..solvers.penalties import NO_PENALTY, Penalty

# multiplications of a dense product that take as long as the product of two active codes, which is
# added to one entry of ZᵀZ: 10 to 20 ns, and 25 to 50 GFLOP/s
_PAIR = 250
# bytes of data and codes that are widened at a time
_WIDENED_BYTES = 1 << 22
# of codes and dictionary
_NONE = (NO_PENALTY, NO_PENALTY)


class Statistics:
    """cross (K, d) = ZᵀA and gram (K, K) = ZᵀZ, computed by the operation moments_ where the
    dictionary half-step reads them, and float64 sums.

    sums (2, 4 or 5) has a row for the codes and one for the dictionary, also named `codes` and
    `dictionary`: ‖ΔF‖²; ‖F‖²; ‖A − Z D‖², for the codes only where the half-step computes it
    anyway; and, for the codes, the squared drift of a residual that was carried and is computed
    anew, for the dictionary, twice the penalties of both factors; and for the dictionary, where it
    is `signed` and the error a difference, the size of the numbers that it is the difference of.

    code_sums (K,): Σ Z over rows, in float64, for a dictionary with an offset, else None.

    splits: as in Plan. replicated: whether each of several processes computes all of the
    dictionary: rounding may differ between processors, and so may everything derived from it.
    """

    def __init__(
        self,
        D: Tensor,
        squared_norm: Tensor | float,
        processes: Processes,
        *,
        ops: Operations | None,
        penalties=_NONE,
        splits: bool = False,
        by_features: bool = False,
        signed: bool = False,
    ) -> None:
        """ops: the operations, where cross and gram are computed. by_features: whether cross is
        stored as (d, K), as products with sparse data have it.
        squared_norm: ‖A‖², with an offset ‖A − its mean row‖²."""
        K = len(D)
        self.sums = torch.zeros(2, 5 if signed else 4, dtype=torch.float64, device=D.device)
        self.codes, self.dictionary = self.sums
        # one that is on a device is not read
        on_host = D.device.type == "cpu"
        self.squared_norm = float(squared_norm) if on_host else squared_norm
        self._dtype = D.dtype
        self.replicated = ops is not None and not splits and not processes.alone
        self._ops, self._by_features = ops or {}, by_features
        self.cross = self.gram = None
        self._allocate(D)
        self.penalties = penalties
        # sum and sum of squares of the codes of each concept
        self._loads = self.sums.new_zeros(2, K)
        self.code_sums: Tensor | None = None
        self._active: Tensor | None = None
        self._processes, self._signed = processes, signed
        self._empty = True

    def _allocate(self, like: Tensor) -> None:
        (K, d), ops = like.shape, self._ops
        # one block of memory, with the sums of the codes if needed, so that one call sums all of it
        # over the processes
        sizes = K * d, K * K, len(self.codes) if self.replicated else 0
        self._moments = like.new_zeros(sum(sizes) if ops else 0)
        if ops:
            cross, gram, self._codes_summed = self._moments.split(sizes)
            self.cross = cross.view(d, K).T if self._by_features else cross.view(K, d)
            self.gram = gram.view(K, K)

    def widened(self) -> Statistics:
        """This, with cross and gram summed in the widest float: for a half-step that solves for the
        dictionary, and so magnifies their rounding by the condition of gram."""
        if self.cross is not None:
            self._allocate(self.cross.to(wide(self.cross.device)))
        return self

    def sum_codes(self) -> Statistics:
        """This, with code_sums from now on."""
        self.code_sums = torch.zeros_like(self._loads[0])
        return self

    def clear_(self) -> None:
        self.sums.zero_()
        if self._on_codes:
            self._loads.zero_()
        if self.code_sums is not None:
            self.code_sums.zero_()
        if self._active is not None:
            self._active.zero_()
        self._empty = True

    @property
    def _on_codes(self) -> Penalty:
        return self.penalties[0]

    @property
    def _on_dictionary(self) -> Penalty:
        return self.penalties[1]

    def count_active(self, counts: bool) -> None:
        """Count the codes that are not zero from now on, or do not."""
        self._active = self.sums.new_zeros(()) if counts else None

    @property
    def active(self) -> float | None:
        """How many codes are not zero, of all processes after `reduce_`; None where they are not
        counted. Synchronises."""
        return None if self._active is None else float(self._active)

    @property
    def moments(self) -> tuple[Tensor, Tensor, bool] | None:
        """(cross, gram, whether to add to them) for a half-step that computes them; None where they
        are not read."""
        return None if self.cross is None else (self.cross, self.gram, not self._empty)

    @property
    def overwritten(self) -> Sums:
        """What whole iterations of a backend write, of data on the host."""
        return Sums(self.cross, self.gram, self.sums, float(self.squared_norm))

    def add_(self, X: Matrix, Z: Tensor, *, made: bool = False, sparse: bool = False) -> None:
        """cross += ZᵀX, gram += ZᵀZ for a tile X (m, d) with codes Z (m, K), unless its half-step
        has `made` them, and the sums of the penalty of Z. 2 m K (d + K) flops; where codes are
        kept sparse, and few of these are active, only those of their products."""
        self.add_codes_(Z)
        if self.cross is None:
            return
        if sparse and isinstance(X, Tensor) and self._add_sparse_(X, Z):
            pass
        elif not made:
            self._add_products_(X, Z)
        self._empty = False

    def _add_products_(self, X: Matrix, Z: Tensor) -> None:
        if Z.dtype != (summed := self.gram.dtype):
            rows = max(1, _WIDENED_BYTES // (self.gram.itemsize * sum(self.cross.shape)))
            for part in row_blocks(len(Z), rows):
                self._add_products_(X[part].to(summed), Z[part].to(summed))
            return
        # the first overwrites
        cross_(self.cross, X, Z, self._ops["moments_"], adds=not self._empty)
        self._ops["moments_"](Z.T, None, self.gram, adds=not self._empty)
        self._empty = False

    def add_sparse_(self, X: Tensor, Z: Tensor | None, codes: SparseMatrix) -> None:
        """`add_` of codes that are not zero but for these; Z: the same dense, where they are. 2 nnz
        d flops, and those of pairs."""
        if self._on_codes.l1 or self.code_sums is not None:
            sums = codes.column_sums()
            self._loads[0] += sums
            if self.code_sums is not None:
                self.code_sums += sums
        if self._on_codes.l2:
            self._loads[1] += replace(codes, values=codes.values.square()).column_sums()
        if self._active is not None:
            self._active += codes.nnz
        if self.cross is not None:
            if self._too_many(codes.crow.diff(), codes.shape[1]):
                self._add_products_(X, codes.to_dense() if Z is None else Z)
            else:
                self._add_pairs_(X, codes)
            self._empty = False

    def add_codes_(self, Z: Tensor) -> None:
        """The part of `add_` that reads only codes."""
        if self._on_codes.l1:
            self._loads[0] += Z.sum(0, dtype=torch.float64)
        if self._on_codes.l2:
            self._loads[1] += torch.linalg.vector_norm(Z, dim=0).double().square()
        if self.code_sums is not None:
            self.code_sums += Z.sum(0)
        if self._active is not None:
            self._active += torch.count_nonzero(Z)

    def _add_sparse_(self, X: Tensor, Z: Tensor) -> bool:
        """cross += ZᵀX, gram += ZᵀZ by the active codes alone, if these are few; whether they
        were."""
        if self._too_many(torch.count_nonzero(Z, dim=1), Z.shape[1]):
            return False
        self._add_pairs_(X, compressed(Z))
        return True

    def _too_many(self, counts: Tensor, K: int) -> bool:
        """Whether dense products take less time, given the active codes of each row (m,)."""
        return float(counts.square().sum()) * _PAIR > len(counts) * K**2

    def _add_pairs_(self, X: Tensor, codes: SparseMatrix) -> None:
        if self._empty:
            self.cross.zero_()
            self.gram.zero_()
        self.cross += codes.to(self.cross.dtype).tdot(X.to(self.cross.dtype))
        add_gram_(self.gram, codes)

    def reduce_(self) -> None:
        """Sum what the dictionary half-step reads over the processes. A collective call."""
        if self._processes.alone:
            return
        if self._empty:
            self._moments.zero_()
        if self.replicated:
            self._codes_summed.copy_(self.codes)
        if self.cross is not None:
            self._processes.sum_(self._moments)
        if self.replicated:
            self.codes.copy_(self._codes_summed)
        if self._on_codes:
            self._processes.sum_(self._loads)
        if self.code_sums is not None:
            self._processes.sum_(self.code_sums)
        if self._active is not None:
            self._processes.sum_(self._active)

    def penalise_(self, D: Tensor) -> None:
        """Add twice the penalties of the codes and of D to the sums."""
        if self._on_codes:
            self.dictionary[3] += 2 * self._on_codes.l1 * self._loads[0].sum()
            self.dictionary[3] += self._on_codes.l2 * self._loads[1].sum()
        if self._on_dictionary:
            self.dictionary[3] += 2 * self._on_dictionary.value(D)

    def penalty_of_norms(self) -> Penalty:
        """The penalty of a dictionary half-step after which norms move from D into the codes: it
        majorises what the penalty of the codes becomes.

        That is Σ l1 ‖D_k‖ ΣZ_k + ½ l2 ‖D_k‖² ‖Z_k‖², and ‖D_k‖ ≤ ½ (1 + ‖D_k‖²), with equality at
        norm 1. Source: Marmin, Goulart & Févotte (2023), with the Euclidean norm.
        """
        if not self._on_codes:
            return self._on_dictionary
        weights = self._on_codes.l1 * self._loads[0] + self._on_codes.l2 * self._loads[1]
        return Penalty(l2=weights.to(self._dtype))

    def scale_codes_(self, scale: Tensor) -> None:
        """Turn the sums of the penalty into those of the codes Z · scale, scale (K,)."""
        self._loads.mul_(torch.stack((scale, scale.square())))

    def measure_error_(self, D: Tensor, cross: Tensor, G: Tensor) -> None:
        """‖A − Z D‖² = ‖A‖² − 2 ⟨ZᵀA, D⟩ + ⟨ZᵀZ, G⟩ for G = D Dᵀ, into the sums. D, cross: the
        features of this process where processes split them; the sums are then its part.

        A difference of large numbers: from float32 statistics accurate to about 1e-7 ‖A‖², and
        sometimes below zero. Where concepts of any signs cancel, to 1e-7 ⟨ZᵀZ, |G|⟩, which may be
        hundreds of times ‖A‖².
        """
        if self._signed:
            self.dictionary[4] = (self.gram * G.abs()).sum(dtype=torch.float64)
        once = self.squared_norm if self.replicated or self._processes.rank == 0 else 0
        D, G = D.to(cross.dtype), G.to(cross.dtype)
        self._ops["measure_"](self.dictionary, D, cross, G, self.gram, once)


def centre_(
    cross: Tensor, gram: Tensor, of_codes: Tensor, of_data: Tensor, n: int | Tensor
) -> None:
    """cross (K, d) = ZᵀA and gram (K, K) = ZᵀZ become those of Z and A minus their means, of_codes
    (K,) and of_data (d,), over n rows. Concepts whose codes do not vary get zeros."""
    of_codes = of_codes.to(gram)
    cross.addr_(of_codes * n, of_data.to(cross), alpha=-1)
    centred_gram(gram, of_codes, n)
    cross.mul_((gram.diagonal() > 0)[:, None])


class Offset:
    """The row b of A ≈ Z D + b in an iteration, in which chunks and tiles are A − b: the dictionary
    half is of codes and data minus their means, where the best b has no part, and b follows it.
    Without a row nothing is done."""

    def __init__(self, row: Tensor | None, data: Data, statistics: Statistics) -> None:
        """row: b (d,), written to in place. statistics: those of an iteration."""
        self.row, self._data, self._statistics = row, data, statistics
        self.rows = () if row is None else (row,)
        # the least of the numbers that an error is the difference of, unless that is ‖A‖²
        self.least = None if row is None else data.squared_spread
        if row is not None:
            statistics.sum_codes()
            self._mean = data.mean_row

    def _of_codes(self) -> Tensor:
        assert self._statistics.code_sums is not None
        return self._statistics.code_sums / self._data.n

    def centre_statistics_(self) -> None:
        """Make the statistics those of codes and data minus their means."""
        if self.row is not None:
            cross, gram = self._statistics.cross, self._statistics.gram
            centre_(cross, gram, self._of_codes(), self._mean - self.row, self._data.n)

    def of_dictionary(self, compute: Compute) -> Compute:
        """What its half-steps compute with: codes minus their means have any signs."""
        if self.row is None:
            return compute
        means = self._of_codes().to(self.row)[:, None]
        return replace(compute, fixed=FREE, means=means, rows=self._data.n)

    def of_residual(self, target: ResidualData) -> ResidualData:
        """The data of its half-step in residual form."""
        return target if self.row is None else replace(target, offset=self._mean.to(self.row))

    def follow_(self, D: Tensor) -> None:
        """b ← the mean row of A − Z D: the best one for both factors."""
        if self.row is not None:
            means = self._of_codes()
            self.row.copy_(self._mean - means @ D.to(means))

    def centre_(self, E: Tensor | None) -> None:
        """E ← E minus its mean row: the residual of the best b."""
        if self.row is not None and E is not None:
            total = E.sum(0, dtype=torch.float64)
            self._data.processes.sum_(total)
            E.sub_((total / self._data.n).to(E))


def squared_error(A: Matrix, Z: Tensor, D: Tensor, rows: int) -> Tensor:
    """‖A − Z D‖² from the residual, `rows` rows at a time: a float64 scalar. 2 n d K flops."""
    total, rebuilt = torch.zeros((), dtype=torch.float64, device=D.device), Rebuilt(D)
    for part in row_blocks(len(A), rows):
        total += rebuilt.squared_error(A[part], Z[part])
    return total

"""The cost model: flops and bytes of a half-step → the form, the block and the piece to compute it
in.

Pure Python: no tensors, no devices. The engine follows a Plan, benches compare it with what was
measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidInput
from .solvers import SOLVERS, pgd_momenta

FORMS = ("normal", "residual")
# concepts swept between two GEMMs
BLOCK = 128
# bytes of a piece of rows with its workspaces: it is swept while it is in the last-level cache
_PIECE_BYTES = 4 << 20
# rows below which products of matrices become slow, whatever the cache
_LEAST_ROWS = 512


@dataclass(frozen=True)
class Plan:
    """How one iteration is computed: a form for either half, concepts in a block, rows in a piece;
    and its flops."""

    codes: str
    dictionary: str
    block: int
    piece_rows: int
    flops: float

    @property
    def form(self) -> str:
        """'normal', 'residual', or both with a slash: codes first."""
        return self.codes if self.codes == self.dictionary else f"{self.codes}/{self.dictionary}"


def half_step_flops(solver: str, form: str, m: int, p: int, K: int, block: int, sweeps: int = 1):
    """Flops of one half-step on F (K, m) with B (K, p), or of `sweeps` of them with B unchanged."""
    steps = len(pgd_momenta()) if solver == "pgd" else 1
    if form == "normal":
        return 2 * m * p * K + 2 * p * K * K + sweeps * steps * 2 * m * K * K
    per_sweep = {"hals": 4 * m * p * K + 2 * m * K * block, "mu": 6 * m * p * K}
    setup = 2 * m * p * K + 2 * p * K * block if solver == "hals" else 0
    return setup + sweeps * per_sweep.get(solver, steps * 4 * m * p * K)


def choose(
    n: int,
    d: int,
    K: int,
    itemsize: int,
    solver: str,
    form: str = "auto",
    chunk_rows: int | None = None,
    learn: bool = True,
    sweeps: int = 1,
) -> Plan:
    """The cheapest Plan for A (n, d) and K concepts; form and chunk_rows are kept where they are
    given.

    learn: whether the dictionary is updated too. sweeps: code half-steps that one plan serves with
    the dictionary unchanged. Raises InvalidInput if the solver does not have the form.
    """
    block = min(BLOCK, K)
    forms = SOLVERS[solver].forms
    if form != "auto" and form not in forms:
        raise InvalidInput(
            f"form={form!r} does not exist for solver={solver!r}; it has: auto, {', '.join(forms)}"
        )

    def cheapest(m: int, p: int, sweeps: int) -> tuple[str, float]:
        costs = {f: half_step_flops(solver, f, m, p, K, block, sweeps) for f in forms}
        chosen = min(costs, key=costs.get) if form == "auto" else form
        return chosen, costs[chosen]

    codes, flops = cheapest(n, d, sweeps)
    dictionary = codes
    if learn:
        dictionary, more = cheapest(d, n, 1)
        # with both halves in residual form the second finds the residual fresh
        flops += more - (
            2 * n * d * K if solver == "hals" and codes == dictionary == "residual" else 0
        )
    width = d + (3 * K if codes == "normal" or solver == "pgd" else 2 * block)
    piece_rows = max(_LEAST_ROWS, _PIECE_BYTES // (width * itemsize))
    return Plan(codes, dictionary, block, min(piece_rows, chunk_rows or piece_rows, n), flops)

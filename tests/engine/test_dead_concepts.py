"""Dead concepts and near-duplicates are given rows of the data, and the loss never rises by it."""

from __future__ import annotations

import itertools

import pytest
import torch
from fits import SOLVERS_AND_FORMS, digits, idle_start, low_rank, method, nmf
from oracle import problem, relative_difference

from fastnmf import NMF, InvalidInput
from fastnmf.cli import main as cli
from fastnmf.data.dataset import Data
from fastnmf.data.storage import InMemory
from fastnmf.engine.dead_concepts import EVERY, Revival, due_checks, revive_
from fastnmf.engine.statistics import squared_error
from fastnmf.files import write_matrix
from fastnmf.planning.memory import Needs
from fastnmf.planning.plan import Problem as Sizes
from fastnmf.planning.plan import choose
from fastnmf.results.metrics import describe
from fastnmf.solvers.half_step import Compute, Workspace
from fastnmf.solvers.registry import SOLVERS


def patches(dtype=torch.float64):
    """2,000 patches of 8 × 8 pixels of a photograph."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    pytest.importorskip("PIL", reason="Pillow is not installed")
    photograph = torch.tensor(datasets.load_sample_image("flower.jpg") / 255.0).mean(2)
    all_of_them = photograph.unfold(0, 8, 8).unfold(1, 8, 8).reshape(-1, 64)
    return all_of_them[:: max(1, len(all_of_them) // 2000)].to(dtype)


def never_rises(info):
    errors = [iteration.relative_error for iteration in info.history]
    # of ‖A‖², where nothing is left but rounding
    noise = 1e-15
    return all(
        after**2 <= before**2 * (1 + 1e-9) + noise for before, after in itertools.pairwise(errors)
    )


def fit(A, K, **options):
    model = nmf(K, **{"seed": 0, "tol": 0, "max_iter": 60, **options})
    return *model.fit(A), model.fit_info_


# each solver and form, plain or accelerated; hals both
REVIVED = [
    ("hals", "normal", False),
    ("hals", "normal", True),
    ("hals", "residual", False),
    ("hals", "residual", True),
    ("mu", "normal", True),
    ("mu", "residual", False),
    ("pgd", "normal", False),
    ("pgd", "residual", True),
    ("anls", "normal", False),
    ("anls", "residual", True),
]


@pytest.mark.parametrize(("solver", "form", "accelerate"), REVIVED)
def test_idle_concepts_come_alive_and_the_loss_never_rises(solver, form, accelerate):
    A, K = low_rank(120, 40, 12) + 1e-3, 12
    options = {"solver": solver, "form": form, "accelerate": accelerate, "init": idle_start(A, K)}
    *_, without = fit(A, K, **options)
    assert without.dead_concepts == K // 3
    assert without.revived == 0
    *_, info = fit(A, K, revive=True, **options)
    assert (info.dead_concepts, info.near_duplicates) == (0, 0)
    assert info.revived >= K // 3
    assert never_rises(info)
    assert info.relative_error < 0.8 * without.relative_error
    assert f"{info.revived} revived" in str(info)
    assert "revived" not in str(without)


@pytest.mark.parametrize(
    ("form", "accelerate", "after"),
    [
        ("normal", False, 1),
        ("normal", True, 1),
        ("normal", True, 2),
        ("residual", False, 1),
        ("residual", False, 2),
        ("residual", True, 1),
        ("residual", True, 3),
    ],
)
def test_error_that_is_reported_is_that_of_the_factors(form, accelerate, after):
    A, K = low_rank(120, 40, 12) + 1e-3, 12
    options = {"form": form, "accelerate": accelerate, "init": idle_start(A, K)}
    *_, info = fit(A, K, revive=True, max_iter=EVERY + after, **options)
    assert info.revived > 0
    assert info.history[-1].relative_error == pytest.approx(info.relative_error, rel=1e-9)


@pytest.mark.parametrize(
    ("solver", "data", "share"),
    [("hals", digits, 0.8), ("hals", patches, 0.8), ("mu", digits, 0.9), ("pgd", patches, 0.8)],
)
def test_real_data_keep_less_error(solver, data, share):
    A, K = data(), 30
    options = {"solver": solver, "init": idle_start(A, K)}
    *_, without = fit(A, K, **options)
    *_, info = fit(A, K, revive=True, **options)
    assert without.dead_concepts == K // 3
    assert (info.dead_concepts, info.near_duplicates) == (0, 0)
    assert never_rises(info)
    assert info.relative_error < share * without.relative_error


# one row, one feature and one concept; more concepts than features and than rows, in every solver
# and form
ENDS = [
    ("hals", "normal", 1, 7, 3, "zero_concepts", torch.float32),
    ("hals", "residual", 1, 7, 3, "zero_rows", torch.float64),
    ("hals", "normal", 5, 1, 2, "zero_rows", torch.float64),
    ("hals", "residual", 5, 1, 2, "zero_concepts", torch.float32),
    ("hals", "normal", 9, 6, 1, "zero_concepts", torch.float64),
    ("mu", "normal", 1, 7, 3, "zero_rows", torch.float64),
    ("pgd", "normal", 5, 1, 2, "zero_concepts", torch.float32),
    ("anls", "normal", 9, 6, 1, "zero_rows", torch.float64),
]
ENDS += [(*case, 40, 13, 37, "zero_rows", torch.float64) for case in SOLVERS_AND_FORMS]
ENDS += [(*case, 7, 33, 20, "zero_concepts", torch.float32) for case in SOLVERS_AND_FORMS]


@pytest.mark.parametrize(("solver", "form", "n", "d", "K", "kind", "dtype"), ENDS)
def test_every_shape_ends_no_worse(solver, form, n, d, K, kind, dtype):
    A, Z0, D0 = (torch.tensor(M, dtype=dtype) for M in problem(n, d, K, kind=kind))
    D0[K // 2 :] = D0[-1].clone()
    options = {"solver": solver, "form": form, "max_iter": 2 * EVERY + 2}
    *_, without = fit(A, K, init=(Z0, D0), **options)
    Z, D, info = fit(A, K, init=(Z0, D0), revive=True, **options)
    for F in (Z, D):
        assert F.dtype == dtype
        assert F.isfinite().all()
        assert (F >= 0).all()
    if dtype == torch.float64:
        assert never_rises(info)
    # where concepts are many each fit ends in another minimum
    assert info.relative_error <= 1.05 * without.relative_error + 1e-3


def test_nothing_is_revived_where_all_is_explained():
    A = low_rank(30, 20, 3, torch.float32)
    Z, D = NMF(3, seed=0, tol=0, accelerate=False, max_iter=3000).fit(A)
    Z, D = torch.cat((Z, torch.zeros(30, 4)), 1), torch.cat((D, torch.zeros(4, 20)))
    A = Z @ D
    Z1, D1, info = fit(A, 7, init=(Z, D), revive=True)
    assert info.revived == 0
    assert info.dead_concepts == 4
    assert not Z1[:, 3:].any()
    assert not D1[3:].any()


def test_zero_data_give_zero_factors():
    Z, D, info = fit(torch.zeros(6, 4), 3, revive=True)
    assert not Z.any()
    assert not D.any()
    assert info.revived == 0


def test_all_concepts_may_be_dead():
    A = low_rank(50, 20, 8)
    init = torch.zeros(50, 8, dtype=A.dtype), torch.zeros(8, 20, dtype=A.dtype)
    *_, info = fit(A, 8, init=init, revive=True, max_iter=200)
    assert info.dead_concepts == 0
    assert info.relative_error < 0.05
    assert never_rises(info)


@pytest.mark.parametrize("solver", SOLVERS)
def test_without_idle_concepts_the_bits_are_the_same(solver):
    A = digits(torch.float32)[:300]
    Z, D, info = fit(A, 10, solver=solver, max_iter=25)
    Z1, D1, revived = fit(A, 10, solver=solver, max_iter=25, revive=True)
    assert info.dead_concepts == info.near_duplicates == revived.revived == 0
    assert torch.equal(Z, Z1)
    assert torch.equal(D, D1)


def test_codes_do_not_count_as_converged_while_concepts_are_idle():
    A = digits()
    Z, D = NMF(8, seed=0, max_iter=300).fit(A)
    Z, D = (torch.cat((F, torch.zeros_like(F[:4])), 0) for F in (Z.T, D))
    options = {"init": (Z.T.contiguous(), D), "tol": 1e-2, "max_iter": 300}
    *_, without = fit(A, 12, **options)
    assert without.iterations < EVERY
    *_, info = fit(A, 12, revive=True, **options)
    assert info.stopped_by == without.stopped_by == "tol"
    assert info.revived == 4
    assert info.dead_concepts == 0
    assert info.relative_error < 0.95 * without.relative_error
    assert never_rises(info)


class Factors:
    """A and factors that `revive_` may change, and what it needs of a fit."""

    tile_rows = 7

    def __init__(self, A, Z, D):
        self.A, self.Z, self.D = A, Z, D
        self.ops = method("hals", "auto").ops
        self.block = choose(Sizes(*A.shape, len(D), A.itemsize, SOLVERS["hals"])).block

    def loss(self):
        return float(squared_error(self.A, self.Z, self.D, 7))

    def revive_(self, *, fills=False, duplicates=True, least=0.0):
        compute = Compute(self.ops, self.block, Workspace(self.A.dtype, self.A.device))
        by = Revival(Data(self.A), compute, self.tile_rows, fills=fills)
        return revive_(InMemory(self.Z), self.D, by, duplicates=duplicates, least=least)


def idle_problem(K=9):
    A = low_rank(40, 20, 12)
    return Factors(A, *NMF(K, init=idle_start(A, K), max_iter=3, tol=0).fit(A))


def test_concepts_are_positive_residuals_of_the_worst_rows():
    some = idle_problem()
    Z, D = some.Z, some.D
    Z[:, 3:4], D[3] = 0, 0.5
    dead = [0, 1, 2, 3]
    E = (some.A - Z @ D).clamp(min=0)
    worst = E.norm(dim=1).argsort(descending=True)[: len(dead)]
    before, length = some.loss(), D[4:].norm(dim=1).mean()
    assert some.revive_(duplicates=False) == len(dead)
    assert some.loss() < before - float(E[worst[0]].square().sum()) * (1 - 1e-9)
    rays = E[worst] / E[worst].norm(dim=1, keepdim=True)
    assert torch.allclose(D[dead], rays * length)
    assert describe([Z], D).dead_concepts == 0


def test_weaker_of_two_that_are_alike_leaves_its_codes_to_the_other():
    some = idle_problem()
    Z, D = some.Z, some.D
    Z[:, :3] = 0
    D[4], D[5], Z[:, 5] = 3 * D[8], 0.5 * D[8], 1e-3 * Z[:, 8]
    energy = Z.norm(dim=0) * D.norm(dim=1)
    kept = max((4, 5, 8), key=lambda k: energy[k])
    product, used = Z @ D, Z[:, kept].clone()
    assert some.revive_() == 5
    assert describe([Z], D).near_duplicates == 0
    moved = sum(Z_k * D_k.norm() for Z_k, D_k in [(used, D[kept])])
    assert (Z[:, kept] * D[kept].norm() >= moved - 1e-12).all()
    others = [k for k in range(9) if k not in (0, 1, 2, *{4, 5, 8} - {kept})]
    assert torch.allclose(Z[:, others] @ D[others], product)


def test_alike_concepts_stay_where_their_codes_cost_more_than_a_row_saves():
    A = low_rank(40, 20, 6)
    Z, D = NMF(6, seed=0, tol=0, max_iter=2000).fit(A)
    D[5] = D[0] + 0.1 * D[1]
    D[5] *= D[0].norm() / D[5].norm()
    assert describe([Z], D).near_duplicates == 1
    before = Z.clone(), D.clone()
    exact = Factors(Z @ D + 1e-6 * torch.rand_like(A), Z, D)
    assert exact.revive_() == 0
    assert torch.equal(Z, before[0])
    assert torch.equal(D, before[1])
    # another pair, which costs nothing, is not kept from it
    Z, D = torch.cat((Z, Z[:, 2:3]), 1), torch.cat((D, D[2:3]))
    Z[:, [2, 6]] *= 0.5
    both = Factors(exact.A, Z, D)
    assert both.revive_() == 1
    assert torch.equal(D[5], before[1][5])


def test_factors_are_as_before_where_the_loss_falls_by_no_more_than_least():
    before = idle_problem()
    Z, D, loss = before.Z.clone(), before.D.clone(), before.loss()
    assert before.revive_() > 0
    fall = 1 - before.loss() / loss
    for least, revived in ((fall * (1 + 1e-9), False), (fall * (1 - 1e-9), True)):
        some = Factors(before.A, Z.clone(), D.clone())
        assert (some.revive_(least=least) > 0) == revived
        assert torch.equal(some.Z, Z) != revived
        assert torch.equal(some.D, D) != revived


def test_rows_that_are_alike_make_one_concept():
    A = low_rank(4, 30, 4).repeat_interleave(10, 0)
    some = Factors(A, torch.zeros(40, 6, dtype=A.dtype), torch.zeros(6, 30, dtype=A.dtype))
    some.revive_()
    assert describe([some.Z], some.D).near_duplicates == 0


def test_entries_of_revived_concepts_are_not_zero_where_they_would_stay_so():
    some = idle_problem()
    some.revive_(fills=True)
    assert (some.Z[:, :3] > 0).all()
    assert (some.D[:3] > 0).all()


def test_pairs_are_compared_seldom_where_concepts_are_many():
    def compared(n, K):
        return [i for i in range(1, 200) if all(due_checks(i, n, K))]

    assert compared(1000, 50)[:2] == [EVERY + 1, 2 * EVERY + 1]
    assert compared(2000, 10_000) == [71, 141]
    assert [i for i in range(1, 40) if due_checks(i, 2000, 10_000)[0]] == [11, 21, 31]


def to_be_left(solver, form, accelerate):
    """A, and the options of a fit of it that revives."""
    A = low_rank(60, 20, 12, torch.float32)
    options = {"solver": solver, "form": form, "accelerate": accelerate, "revive": True}
    return A, {"tol": 0, "seed": 0, "init": idle_start(A, 12), **options}


def never_left(*asked):
    A, options = to_be_left(*asked)
    return fit(A, 12, max_iter=30, **options)


# left before a look, after it, and later: in every solver, both forms of hals
LEFT = [
    ("hals", "normal", False, EVERY),
    ("hals", "normal", True, EVERY + 1),
    ("hals", "residual", False, EVERY + 1),
    ("hals", "residual", True, 25),
    ("mu", "normal", True, EVERY),
    ("mu", "residual", False, 25),
    ("pgd", "normal", True, EVERY + 1),
    ("anls", "residual", False, EVERY),
]


@pytest.mark.parametrize(("solver", "form", "accelerate", "left"), LEFT)
def test_resumed_fit_gives_the_same_bits(solver, form, accelerate, left, tmp_path):
    A, options = to_be_left(solver, form, accelerate)
    path = tmp_path / "fit.safetensors"
    Z, D, info = never_left(solver, form, accelerate)
    assert info.revived > 0
    nmf(12, max_iter=left, checkpoint_seconds=0, **options).fit(A, checkpoint=path)
    resumed = nmf(12, max_iter=30, **options)
    Z1, D1 = resumed.fit(A, checkpoint=path, resume=True)
    assert torch.equal(Z, Z1)
    assert torch.equal(D, D1)
    assert resumed.fit_info_.revived == info.revived
    other = nmf(12, **{**options, "revive": False})
    with pytest.raises(InvalidInput, match="revive=True there, False here"):
        other.fit(A, checkpoint=path, resume=True)


def test_revived_concepts_keep_their_size_while_factors_are_extrapolated():
    A, K = low_rank(120, 40, 12) + 1e-3, 12
    options = {"accelerate": True, "revive": True, "init": idle_start(A, K)}
    early, late = (fit(A, K, max_iter=times, **options)[1] for times in (EVERY + 1, 300))
    grown = late.norm(dim=1) / early.norm(dim=1)
    assert grown.min() > 0.97
    assert grown.max() < 1.03


@pytest.mark.parametrize(
    ("solver", "codes"),
    [
        ("hals", "memory"),
        ("hals", "a file"),
        ("mu", "memory"),
        ("pgd", "a file"),
        ("anls", "memory"),
    ],
)
@pytest.mark.usefixtures("small_budgets")
def test_data_that_are_read_in_passes_are_revived_as_those_in_memory(solver, codes, tmp_path):
    A, K = low_rank(400, 40, 12) + 1e-3, 12
    options = {"solver": solver, "init": idle_start(A, K), "revive": True, "accelerate": False}
    Z, D, info = fit(A, K, max_iter=25, **options)
    most = Needs(*A.shape, K, 8, codes, "given", revives=True).streamed(70)
    model = nmf(K, seed=0, tol=0, max_iter=25, max_memory=most, chunk_rows=70, **options)
    kept = "memory" if codes == "memory" else tmp_path / "Z.npy"
    Z1, D1 = model.fit(A.split(50), codes=kept)
    streamed = model.fit_info_
    assert streamed.chunk_rows == 70
    assert streamed.revived == info.revived > 0
    assert (streamed.dead_concepts, streamed.near_duplicates) == (0, 0)
    assert never_rises(streamed)
    assert relative_difference(D1, D) < 1e-9
    assert relative_difference(Z1, Z) < 1e-9


@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.usefixtures("small_budgets")
def test_streamed_fit_with_penalties_is_revived(unit_norm, tmp_path):
    A, K = low_rank(400, 40, 12) + 1e-3, 12
    options = {"init": idle_start(A, K), "revive": True, "alpha_Z": 1e-4, "unit_norm": unit_norm}
    _, D, info = fit(A, K, max_iter=25, **options)
    most = Needs(*A.shape, K, 8, "a file", "given", revives=True).streamed(70)
    model = NMF(K, seed=0, tol=0, max_iter=25, max_memory=most, **options)
    _, D1 = model.fit(A.split(50), codes=tmp_path / "Z.npy")
    assert model.fit_info_.revived == info.revived > 0
    assert relative_difference(D1, D) < 1e-9
    objectives = [iteration.relative_objective for iteration in model.fit_info_.history]
    assert all(after <= before * (1 + 1e-9) for before, after in itertools.pairwise(objectives))


def test_codes_must_be_kept():
    with pytest.raises(InvalidInput, match=r"codes=None keeps none; give revive=False"):
        NMF(3, revive=True).fit(torch.rand(40, 12).split(10), codes=None)


def test_entries_that_are_filled_are_those_of_all_rows():
    """They depended on the rows of a tile: a tenth of the mean in it."""
    whole, tiled = (idle_problem() for _ in range(2))
    tiled.tile_rows, whole.tile_rows = 3, 40
    assert whole.revive_(fills=True) == tiled.revive_(fills=True) > 0
    assert torch.allclose(whole.Z, tiled.Z, rtol=1e-9)


def test_command_line_reports_revived_concepts(tmp_path, capsys):
    """All but two rows of a start from rows are alike, so concepts are, and mu leaves them so."""
    A = torch.cat((torch.rand(1, 12).expand(40, 12), torch.rand(4, 12)))
    write_matrix(tmp_path / "A.npy", A.numpy())
    command = [
        *("fit", str(tmp_path / "A.npy"), "--concepts", "12", "--init", "rows", "--seed", "0"),
        *("--solver", "mu", "--tol", "0", "--max-iter", "30"),
        *("--out", str(tmp_path / "m.safetensors")),
    ]
    assert cli.main(command) == 0
    assert "revived" not in capsys.readouterr().out
    assert cli.main([*command, "--revive", "--force"]) == 0
    revived = NMF.load(tmp_path / "m.safetensors").fit_info_.revived
    assert revived > 0
    assert f"near-duplicates; {revived} revived" in capsys.readouterr().out

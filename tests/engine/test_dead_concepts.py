"""Dead concepts and near-duplicates are given rows of the data, and the loss never rises by it."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from half_steps import DTYPES, dtype_name
from oracle import SHAPES, WIDE, problem, relative_difference

from fastnmf import NMF, InvalidInput, Tuning
from fastnmf.backends.registry import select
from fastnmf.cli import main as cli
from fastnmf.data.arrays import Rows
from fastnmf.engine.dead_concepts import EVERY, looks, revive_
from fastnmf.engine.statistics import squared_error
from fastnmf.files import load_model, write_matrix
from fastnmf.init.start import start
from fastnmf.planning.memory import Needs
from fastnmf.planning.plan import choose
from fastnmf.results.metrics import describe
from fastnmf.solvers.half_step import Compute, Workspace
from fastnmf.solvers.registry import SOLVERS

FORMS = [(name, form) for name, solver in SOLVERS.items() for form in solver.forms]


def digits(dtype=torch.float64):
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    return torch.tensor(datasets.load_digits().data, dtype=dtype)


def patches(dtype=torch.float64):
    """2,000 patches of 8 × 8 pixels of a photograph."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    pytest.importorskip("PIL", reason="Pillow is not installed")
    photograph = torch.tensor(datasets.load_sample_image("flower.jpg") / 255.0).mean(2)
    all_of_them = photograph.unfold(0, 8, 8).unfold(1, 8, 8).reshape(-1, 64)
    return all_of_them[:: max(1, len(all_of_them) // 2000)].to(dtype)


def low_rank(n, d, rank, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    Z, D = (torch.rand(*s, generator=generator, dtype=dtype).pow(4) for s in ((n, rank), (rank, d)))
    return Z @ D


def idle_start(A, K):
    """A random start of which a third is dead and a sixth the last concept again."""
    Z, D = start(A, K, "random", torch.Generator().manual_seed(0))
    dead = K // 3
    Z[:, :dead] = 0
    D[:dead] = 0
    D[dead : dead + K // 6] = D[-1]
    Z[:, dead : dead + K // 6] = Z[:, -1:]
    return Z, D


def never_rises(info):
    errors = [iteration.relative_error for iteration in info.history]
    # of ‖A‖², where nothing is left but rounding
    noise = 1e-15
    return all(
        after**2 <= before**2 * (1 + 1e-9) + noise for before, after in itertools.pairwise(errors)
    )


def fit(A, K, **options):
    model = NMF(K, **{"seed": 0, "tol": 0, "max_iter": 60, **options})
    return *model.fit(A), model.fit_info_


@pytest.mark.parametrize(("solver", "form"), FORMS)
@pytest.mark.parametrize("accelerate", [False, True], ids=["plain", "accelerated"])
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


@pytest.mark.parametrize("form", ["normal", "residual"])
@pytest.mark.parametrize("accelerate", [False, True], ids=["plain", "accelerated"])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_error_that_is_told_is_that_of_the_factors(after, accelerate, form):
    A, K = low_rank(120, 40, 12) + 1e-3, 12
    options = {"form": form, "accelerate": accelerate, "init": idle_start(A, K)}
    *_, info = fit(A, K, revive=True, max_iter=EVERY + after, **options)
    assert info.revived > 0
    assert info.history[-1].relative_error == pytest.approx(info.relative_error, rel=1e-9)


@pytest.mark.parametrize("data", [digits, patches])
@pytest.mark.parametrize(
    ("solver", "share"), [("hals", 0.8), ("mu", 0.9), ("pgd", 0.8), ("anls", 0.8)]
)
def test_real_data_keep_less_error(data, solver, share):
    A, K = data(), 30
    options = {"solver": solver, "init": idle_start(A, K)}
    *_, without = fit(A, K, **options)
    *_, info = fit(A, K, revive=True, **options)
    assert without.dead_concepts == K // 3
    assert (info.dead_concepts, info.near_duplicates) == (0, 0)
    assert never_rises(info)
    assert info.relative_error < share * without.relative_error


@pytest.mark.parametrize(("solver", "form"), FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("kind", ["zero_rows", "zero_concepts"])
@pytest.mark.parametrize(("n", "d", "K"), [*SHAPES[:3], SHAPES[4], *WIDE], ids=str)
def test_every_shape_ends_no_worse(n, d, K, kind, dtype, solver, form):
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
    Z, D = start(A, 3, "random", torch.Generator().manual_seed(0))
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


def test_codes_do_not_count_as_settled_while_concepts_are_idle():
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


class Problem:
    """A and factors that `revive_` may change, and what it needs of a fit."""

    piece_rows = 7

    def __init__(self, A, Z, D):
        self.A, self.Z, self.D = A, Z, D
        _, ops = select("hals", A.device, "auto")
        plan = choose(*A.shape, len(D), A.itemsize, "hals")
        self.sweep = Compute(ops, plan.block, Workspace(A.dtype, A.device))

    def loss(self):
        return float(squared_error(Rows(self.A), self.Z, self.D, 7))

    def revive_(self, **options):
        options = {"duplicates": True, "fills": False, **options}
        return revive_(self.Z, self.D, Rows(self.A), self.sweep, self.piece_rows, **options)


def idle_problem(K=9):
    A = low_rank(40, 20, 12)
    return Problem(A, *NMF(K, init=idle_start(A, K), max_iter=3, tol=0).fit(A))


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
    assert describe(Z, D).dead_concepts == 0


def test_weaker_of_two_that_are_alike_leaves_its_codes_to_the_other():
    some = idle_problem()
    Z, D = some.Z, some.D
    Z[:, :3] = 0
    D[4], D[5], Z[:, 5] = 3 * D[8], 0.5 * D[8], 1e-3 * Z[:, 8]
    energy = Z.norm(dim=0) * D.norm(dim=1)
    kept = max((4, 5, 8), key=lambda k: energy[k])
    product, used = Z @ D, Z[:, kept].clone()
    assert some.revive_() == 5
    assert describe(Z, D).near_duplicates == 0
    moved = sum(Z_k * D_k.norm() for Z_k, D_k in [(used, D[kept])])
    assert (Z[:, kept] * D[kept].norm() >= moved - 1e-12).all()
    others = [k for k in range(9) if k not in (0, 1, 2, *{4, 5, 8} - {kept})]
    assert torch.allclose(Z[:, others] @ D[others], product)


def test_alike_concepts_stay_where_their_codes_cost_more_than_a_row_saves():
    A = low_rank(40, 20, 6)
    Z, D = NMF(6, seed=0, tol=0, max_iter=2000).fit(A)
    D[5] = D[0] + 0.1 * D[1]
    D[5] *= D[0].norm() / D[5].norm()
    assert describe(Z, D).near_duplicates == 1
    before = Z.clone(), D.clone()
    exact = Problem(Z @ D + 1e-6 * torch.rand_like(A), Z, D)
    assert exact.revive_() == 0
    assert torch.equal(Z, before[0])
    assert torch.equal(D, before[1])
    # another pair, which costs nothing, is not kept from it
    Z, D = torch.cat((Z, Z[:, 2:3]), 1), torch.cat((D, D[2:3]))
    Z[:, [2, 6]] *= 0.5
    both = Problem(exact.A, Z, D)
    assert both.revive_() == 1
    assert torch.equal(D[5], before[1][5])


def test_factors_are_as_before_where_the_loss_falls_by_no_more_than_least():
    before = idle_problem()
    Z, D, loss = before.Z.clone(), before.D.clone(), before.loss()
    assert before.revive_() > 0
    fall = 1 - before.loss() / loss
    for least, revived in ((fall * (1 + 1e-9), False), (fall * (1 - 1e-9), True)):
        some = Problem(before.A, Z.clone(), D.clone())
        assert (some.revive_(least=least) > 0) == revived
        assert torch.equal(some.Z, Z) != revived
        assert torch.equal(some.D, D) != revived


def test_rows_that_are_alike_make_one_concept():
    A = low_rank(4, 30, 4).repeat_interleave(10, 0)
    some = Problem(A, torch.zeros(40, 6, dtype=A.dtype), torch.zeros(6, 30, dtype=A.dtype))
    some.revive_()
    assert describe(some.Z, some.D).near_duplicates == 0


def test_entries_of_revived_concepts_are_not_zero_where_they_would_stay_so():
    some = idle_problem()
    some.revive_(fills=True)
    assert (some.Z[:, :3] > 0).all()
    assert (some.D[:3] > 0).all()


def test_pairs_are_compared_seldom_where_concepts_are_many():
    def compared(n, K):
        return [i for i in range(1, 200) if all(looks(i, n, K))]

    assert compared(1000, 50)[:2] == [EVERY + 1, 2 * EVERY + 1]
    assert compared(2000, 10_000) == [71, 141]
    assert [i for i in range(1, 40) if looks(i, 2000, 10_000)[0]] == [11, 21, 31]


def to_be_left(solver, form, accelerate):
    """A, and the options of a fit of it that revives."""
    A = low_rank(60, 20, 12, torch.float32)
    options = {"solver": solver, "form": form, "accelerate": accelerate, "revive": True}
    return A, {"tol": 0, "seed": 0, "init": idle_start(A, 12), **options}


@functools.cache
def never_left(*asked):
    A, options = to_be_left(*asked)
    return fit(A, 12, max_iter=30, **options)


@pytest.mark.parametrize(("solver", "form"), FORMS)
@pytest.mark.parametrize("accelerate", [False, True], ids=["plain", "accelerated"])
@pytest.mark.parametrize("left", [EVERY, EVERY + 1, 25])
def test_resumed_fit_gives_the_same_bits(left, accelerate, solver, form, tmp_path):
    A, options = to_be_left(solver, form, accelerate)
    path = tmp_path / "fit.safetensors"
    saved = {"checkpoint": path, "checkpoint_seconds": 0}
    Z, D, info = never_left(solver, form, accelerate)
    assert info.revived > 0
    NMF(12, max_iter=left, **saved, **options).fit(A)
    resumed = NMF(12, max_iter=30, **saved, **options)
    Z1, D1 = resumed.fit(A, resume=True)
    assert torch.equal(Z, Z1)
    assert torch.equal(D, D1)
    assert resumed.fit_info_.revived == info.revived
    other = NMF(12, **saved, **{**options, "revive": False})
    with pytest.raises(InvalidInput, match="revive=True there, False here"):
        other.fit(A, resume=True)


def test_revived_concepts_keep_their_size_while_factors_are_extrapolated():
    A, K = low_rank(120, 40, 12) + 1e-3, 12
    options = {"accelerate": True, "revive": True, "init": idle_start(A, K)}
    early, late = (fit(A, K, max_iter=times, **options)[1] for times in (EVERY + 1, 300))
    grown = late.norm(dim=1) / early.norm(dim=1)
    assert grown.min() > 0.97
    assert grown.max() < 1.03


@pytest.mark.parametrize("value", [1, "yes", None])
def test_revive_is_true_or_false(value):
    with pytest.raises(TypeError, match="True or False"):
        NMF(3, revive=value)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("codes", ["memory", "a file"])
@pytest.mark.usefixtures("small_budgets")
def test_data_that_are_read_in_passes_are_revived_as_those_in_memory(codes, solver, tmp_path):
    A, K = low_rank(400, 40, 12) + 1e-3, 12
    options = {"solver": solver, "init": idle_start(A, K), "revive": True, "accelerate": False}
    Z, D, info = fit(A, K, max_iter=25, **options)
    most = Needs(*A.shape, K, 8, codes, "given", revives=True).streamed(70)
    model = NMF(
        K, seed=0, tol=0, max_iter=25, max_memory=most, tuning=Tuning(chunk_rows=70), **options
    )
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
    """They depended on the rows in hand: a tenth of the mean of a piece."""
    whole, pieces = (idle_problem() for _ in range(2))
    pieces.piece_rows, whole.piece_rows = 3, 40
    assert whole.revive_(fills=True) == pieces.revive_(fills=True) > 0
    assert torch.allclose(whole.Z, pieces.Z, rtol=1e-9)


def test_command_line_tells_of_revived_concepts(tmp_path, capsys):
    """All but two rows of a start from rows are alike, so concepts are, and mu leaves them so."""
    A = torch.cat((torch.rand(1, 12).expand(40, 12), torch.rand(4, 12)))
    write_matrix(tmp_path / "A.npy", A.numpy())
    command = [
        *("fit", str(tmp_path / "A.npy"), "--concepts", "12", "--init", "rows", "--seed", "0"),
        *(
            "--solver",
            "mu",
            "--tol",
            "0",
            "--max-iter",
            "30",
            "--out",
            str(tmp_path / "m.safetensors"),
        ),
    ]
    assert cli.main(command) == 0
    assert "revived" not in capsys.readouterr().out
    assert cli.main([*command, "--revive"]) == 0
    revived = load_model(tmp_path / "m.safetensors").fit_info_.revived
    assert revived > 0
    assert f"{revived} revived on the way" in capsys.readouterr().out

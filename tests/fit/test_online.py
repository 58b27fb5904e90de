"""Online learning: what partial_fit learns, what it keeps, and what becomes of the model.

Several processes are in tests/data/test_shared.py.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from fits import nmf
from fits import rows_of_five_concepts as numbers
from half_steps import saved_and_loaded, strided
from oracle import TOLERANCES, relative_difference
from oracle import hals_half_step as oracle_hals

from fastnmf import NMF, FastnmfWarning, InvalidInput
from fastnmf.engine.codes import Encoder
from fastnmf.fit import online
from fastnmf.solvers.registry import SOLVERS


def learned(model, rows, **options):
    for batch in rows:
        model.partial_fit(batch, **options)
    return model


def batches(count, m=40, **options):
    return [numbers(m, seed=seed, **options) for seed in range(count)]


def error_of(model, A):
    Z = model.encode(A)
    return float((A - model.decode(Z)).norm() / A.norm())


def kept(model):
    """All that a later call can see."""
    return [model.D, model._gram, model._cross, model.fit_info_, model.online_info_, model.fitted]


def assert_same_bits(model, other):
    for mine, its in zip(kept(model)[:3], kept(other)[:3], strict=True):
        assert torch.equal(mine, its)
    mine, its = model.online_info_, other.online_info_
    assert (mine.rows, mine.batches) == (its.rows, its.batches)
    assert mine.relative_error == its.relative_error


@pytest.mark.parametrize("solver", SOLVERS)
def test_error_falls_over_batches(solver):
    held_out = numbers(200, seed=1000)
    model = NMF(5, solver=solver, seed=0)
    errors = [error_of(model.partial_fit(batch), held_out) for batch in batches(40)]
    assert errors[-1] < 0.6 * errors[0]
    assert all(after < 1.1 * before for before, after in itertools.pairwise(errors[::8]))


def test_one_pass_comes_close_to_a_fit_of_all_rows():
    """And nothing that was forgotten or dropped between batches is missed at the end."""
    A, held_out = torch.cat(batches(100)), numbers(200, seed=1000)
    whole = NMF(5, seed=0)
    whole.fit(A)
    passed = learned(NMF(5, seed=0), batches(100))
    assert error_of(passed, held_out) < 1.1 * error_of(whole, held_out)


@pytest.mark.parametrize("half_life", [30.0, math.inf])
def test_two_batches_give_the_statistics_and_the_dictionary_by_hand(half_life, monkeypatch):
    """In float64 and NumPy from the codes that were used: w = ½^(m / half_life), and two sweeps."""
    codes = []
    encode = Encoder.__call__

    def record(self, A, Z0=None):
        found = encode(self, A, Z0)
        codes.append(found[0].numpy().copy())
        return found

    monkeypatch.setattr(Encoder, "__call__", record)
    first, second = numbers(40, dtype=torch.float64), numbers(25, seed=1, dtype=torch.float64)
    model = NMF(6, seed=0).partial_fit(first, half_life=half_life)
    D = model.D.numpy().copy()
    model.partial_fit(second, half_life=half_life)
    w = 0.5 ** (25 / half_life)
    gram = w * codes[0].T @ codes[0] + codes[1].T @ codes[1]
    cross = w * codes[0].T @ first.numpy() + codes[1].T @ second.numpy()
    # the half-step on stacked codes and rows has these statistics
    Z = np.concatenate((w**0.5 * codes[0], codes[1]))
    A = np.concatenate((w**0.5 * first.numpy(), second.numpy()))
    expected = oracle_hals(oracle_hals(D, A.T, Z.T), A.T, Z.T)
    tolerance = TOLERANCES["hals", "float64"]
    assert relative_difference(model._gram, gram) < tolerance
    assert relative_difference(model._cross, cross) < tolerance
    assert relative_difference(model.D, expected) < tolerance
    before = np.linalg.norm(second.numpy() - codes[1] @ D) / np.linalg.norm(second.numpy())
    assert model.online_info_.relative_error == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize(
    ("solver", "m", "d", "K"),
    [
        # one row, one concept, one feature; more concepts than rows, and than features
        ("hals", 1, 12, 5),
        ("hals", 3, 12, 20),
        ("hals", 1, 1, 1),
        ("mu", 7, 12, 1),
        ("mu", 2, 1, 4),
        ("pgd", 1, 12, 5),
        ("pgd", 40, 12, 20),
        ("anls", 3, 12, 20),
        ("anls", 1, 1, 1),
    ],
)
def test_smallest_batches_and_many_concepts_work(solver, m, d, K):
    model = learned(NMF(K, solver=solver, seed=0), batches(6, m, d=d))
    assert torch.isfinite(model.D).all()
    assert (model.D >= 0).all()
    assert model.D.any()
    assert model.online_info_.rows == 6 * m


@pytest.mark.parametrize("solver", ["hals", "anls"])
def test_rows_one_at_a_time_lower_the_error_too(solver):
    """Where codes are exact, rounding decides among those of the first few rows: three streams."""
    held_out, ratios = numbers(200, seed=1000), []
    for seed in (3, 4, 5):
        rows = numbers(300, seed=seed)
        model = NMF(5, solver=solver, seed=0)
        learned(model, rows[:20].split(1))
        early = error_of(model, held_out)
        learned(model, rows[20:].split(1))
        ratios.append(error_of(model, held_out) / early)
        assert (model.online_info_.rows, model.online_info_.batches) == (300, 300)
    assert max(ratios) < 1
    assert sum(ratios) / 3 < 0.85


def test_half_life_counts_rows_and_not_batches():
    """The weight of a row that is 60 rows old is the same in batches of 20 and of 60."""
    first, later = numbers(40, dtype=torch.float64), torch.zeros(60, 12, dtype=torch.float64)
    small, large = (NMF(5, seed=0).partial_fit(first, half_life=20) for _ in range(2))
    before = small._gram.clone()
    learned(small, later.split(20), half_life=20)
    large.partial_fit(later, half_life=20)
    assert torch.allclose(small._gram, before / 8, rtol=1e-12)
    assert torch.allclose(large._gram, before / 8, rtol=1e-12)


def test_default_half_life_is_sixteen_rows_a_concept():
    model = NMF(5, seed=0).partial_fit(numbers())
    assert model.online_info_.half_life == 80
    assert NMF(5).partial_fit(numbers(), half_life=7).online_info_.half_life == 7


def test_fitted_dictionary_counts_as_rows_of_a_half_life_and_16_a_concept_at_most():
    """By the statistics of the first batch, which starts with it."""
    D = torch.rand(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    grams = []
    for half_life in (8, 80, math.inf):
        model = NMF(5).load_dictionary(D)
        model.partial_fit(numbers(dtype=torch.float64), half_life=half_life)
        grams.append(model._gram)
    off = grams[0] - torch.diag(grams[0].diagonal())
    rows = [(gram - off).diagonal() for gram in grams]
    assert torch.equal(rows[1], rows[2])
    # with the statistics of the batch w: g + 8 w and g + 80 w
    assert ((rows[1] - rows[0]) > 0).all()
    batch = rows[0] - (rows[1] - rows[0]) / 9
    assert torch.allclose((rows[1] - batch) / (rows[0] - batch), torch.full((5,), 10.0).double())


def test_data_that_change_are_followed_where_rows_are_forgotten():
    changed = [batch.flip(1) for batch in batches(30)]
    forgetting, never = (
        learned(NMF(5, seed=0), [*batches(30), *changed], half_life=half_life)
        for half_life in (None, math.inf)
    )
    held_out = numbers(200, seed=1000).flip(1)
    assert error_of(forgetting, held_out) < 0.5 * error_of(never, held_out)


@pytest.mark.parametrize(
    ("init", "m"), [("random", 3), ("rows", 3), ("spread", 3), ("nndsvda", 3), ("auto", 40)]
)
def test_every_start_works_with_fewer_rows_than_concepts(init, m):
    model = learned(NMF(8, init=init, seed=0), batches(40, m))
    assert error_of(model, numbers(200, seed=1000)) < 0.3


def test_given_start_is_used_and_not_changed():
    Z0, D0 = torch.rand(40, 5), torch.rand(5, 12)
    before = Z0.clone(), D0.clone()
    given = NMF(5, init=(Z0, D0)).partial_fit(numbers())
    assert torch.equal(Z0, before[0])
    assert torch.equal(D0, before[1])
    assert not torch.equal(given.D, NMF(5, init=(Z0, D0 * 2)).partial_fit(numbers()).D)
    with pytest.raises(InvalidInput, match=r"Z0.*\(39, 5\)"):
        NMF(5, init=(Z0, D0)).partial_fit(numbers(39))


@pytest.mark.parametrize("solver", SOLVERS)
def test_rows_of_zeros_change_nothing_and_stop_nothing(solver):
    zeros = torch.zeros(10, 12)
    model = learned(NMF(5, solver=solver, seed=0), [zeros, zeros])
    assert not model.D.any()
    assert model.online_info_.relative_error == 0
    learned(model, [*batches(10), zeros])
    assert model.online_info_.rows == 430
    plain = learned(NMF(5, solver=solver, seed=0), batches(10))
    held_out = numbers(200, seed=1000)
    assert error_of(model, held_out) < 1.05 * error_of(plain, held_out)


@pytest.mark.parametrize("solver", SOLVERS)
def test_concept_that_no_row_uses_stays_as_it_is(solver):
    D = torch.zeros(3, 12)
    D[:2, :6] = torch.rand(2, 6) + 0.1
    D[2, 6:] = 1
    batch = torch.zeros(40, 12)
    batch[:, :6] = torch.rand(40, 6)
    model = NMF(3, solver=solver, init=(torch.rand(40, 3) * torch.tensor([1, 1, 0]), D))
    learned(model, [batch, batch])
    assert torch.equal(model.D[2], D[2])
    assert model.online_info_.unused_concepts == 1
    assert not torch.equal(model.D[:2], D[:2])


@pytest.mark.parametrize(
    ("solver", "given", "computed"),
    [
        ("hals", torch.float16, torch.float32),
        ("mu", torch.bfloat16, torch.float32),
        ("anls", torch.float64, torch.float64),
    ],
)
def test_dtypes_are_computed_as_fit_computes_them(solver, given, computed):
    model = learned(NMF(5, solver=solver, seed=0), [batch.to(given) for batch in batches(3)])
    assert {M.dtype for M in kept(model)[:3]} == {computed}


def test_wider_batch_widens_what_is_kept():
    model = learned(NMF(5, seed=0), [numbers(), numbers(seed=1).double(), numbers(seed=2)])
    assert {M.dtype for M in kept(model)[:3]} == {torch.float64}


def test_batch_may_be_anything_that_fit_takes():
    expected = learned(NMF(5, seed=0), batches(2))
    kinds = (
        strided,
        lambda A: A.T.contiguous().T,
        lambda A: A.numpy(),
        lambda A: [A[:7], A[7:]],
        lambda A: torch.utils.data.DataLoader(torch.utils.data.TensorDataset(A), batch_size=9),
    )
    for kind in kinds:
        model = learned(NMF(5, seed=0), map(kind, batches(2)))
        assert torch.allclose(model.D, expected.D, rtol=1e-4, atol=1e-5)


def test_chunks_of_rows_do_not_change_what_is_learned():
    whole, chunked = (
        learned(nmf(5, seed=0, chunk_rows=rows), batches(3, dtype=torch.float64))
        for rows in (None, 7)
    )
    assert torch.allclose(whole.D, chunked.D, rtol=1e-9)


def bad_batch(kind):
    A = numbers()
    if kind == "wide":
        return torch.cat((A, A[:, :1]), 1)
    A[17, 4] = {"negative": -1.0, "nan": torch.nan, "inf": torch.inf, "huge": 1e30}[kind]
    return A


REFUSED = {
    "wide": (InvalidInput, "13 features, the dictionary has 12"),
    "negative": (InvalidInput, "row 17, column 4"),
    "nan": (InvalidInput, "row 17, column 4"),
    "inf": (InvalidInput, "row 17, column 4"),
    "huge": (ArithmeticError, "float64"),
}


@pytest.mark.parametrize(
    ("kind", "begun"), [*((kind, "online") for kind in REFUSED), ("nan", "fit"), ("huge", "fit")]
)
def test_refused_batch_leaves_the_model_as_it_was(kind, begun):
    model = NMF(5, seed=0, max_iter=3, tol=0)
    learned(model, batches(2)) if begun == "online" else model.fit(numbers())
    before, copied = kept(model), copy.deepcopy(kept(model)[:3])
    error, message = REFUSED[kind]
    with pytest.raises(error, match=message):
        model.partial_fit(bad_batch(kind))
    assert all(mine is its for mine, its in zip(kept(model), before, strict=True))
    for M, its in zip(before[:3], copied, strict=True):
        assert M is its is None or torch.equal(M, its)


@pytest.mark.parametrize("place", ["codes", "dictionary", "summary"])
def test_interrupted_batch_leaves_the_model_as_it_was(place, monkeypatch):
    model = learned(NMF(5, seed=0), batches(2))
    expected = copy.deepcopy(model).partial_fit(numbers(seed=7))
    before = kept(model)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    names = {
        "codes": (Encoder, "__call__"),
        "dictionary": (online, "learner"),
        "summary": (online, "OnlineInfo"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*names[place], interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.partial_fit(numbers(seed=7))
        with pytest.raises(KeyboardInterrupt):
            NMF(5).partial_fit(numbers(seed=7))
    assert all(mine is its for mine, its in zip(kept(model), before, strict=True))
    assert_same_bits(model.partial_fit(numbers(seed=7)), expected)


def test_first_batch_that_fails_leaves_the_model_unfitted():
    model = NMF(5)
    with pytest.raises(InvalidInput):
        model.partial_fit(-numbers())
    assert not model.fitted
    assert kept(model)[:5] == [None] * 5


@pytest.mark.parametrize("solver", SOLVERS)
def test_seed_gives_the_same_bits_twice(solver):
    first, second, other = (
        learned(NMF(5, solver=solver, seed=seed, init="random"), batches(4)) for seed in (3, 3, 4)
    )
    assert_same_bits(first, second)
    assert not torch.equal(first.D, other.D)


def test_seed_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    learned(NMF(5, seed=0), batches(2))
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("solver", "twin"),
    [
        ("hals", copy.deepcopy),
        ("mu", lambda model: pickle.loads(pickle.dumps(model))),
        ("hals", saved_and_loaded),
        ("anls", lambda model: copy.deepcopy(model).to("cpu")),
    ],
    ids=["deepcopy", "pickle", "torch.save", "to"],
)
def test_copy_goes_on_to_the_same_bits(solver, twin):
    model = learned(NMF(5, solver=solver, seed=0), batches(3))
    copied = twin(model)
    assert copied.online_info_ == model.online_info_
    later = [numbers(seed=seed) for seed in range(3, 6)]
    assert_same_bits(learned(copied, later), learned(model, later))


def test_to_moves_and_widens_all_that_is_kept():
    model = learned(NMF(5, seed=0), batches(2))
    assert {M.dtype for M in kept(model.double())[:3]} == {torch.float64}
    assert {M.device.type for M in kept(model.to("meta"))[:3]} == {"meta"}


def test_state_dict_holds_the_dictionary_only():
    model = learned(NMF(5, seed=0), batches(2))
    assert list(model.state_dict()) == ["D"]
    other = learned(NMF(5, seed=1), batches(2))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.D, model.D)
    assert other._gram is other._cross is other.online_info_ is None


def test_fit_starts_anew_and_drops_the_statistics():
    online_, plain = (NMF(5, seed=0, max_iter=5, tol=0) for _ in range(2))
    learned(online_, batches(2))
    D = plain.fit(numbers())[1]
    assert torch.equal(online_.fit(numbers())[1], D)
    assert online_._gram is online_._cross is online_.online_info_ is None
    assert online_.fit_info_ is not None


@functools.cache
def fit_of_many(solver):
    """A fitted model, to be copied, and its error on the rows that were held out."""
    model = NMF(5, solver=solver, seed=0, max_iter=200)
    model.fit(torch.cat(batches(20)))
    return model, error_of(model, numbers(200, seed=1000))


@pytest.mark.parametrize(
    ("solver", "m", "most", "before"),
    [
        ("hals", 1, 1.7, "fit"),
        ("hals", 4, 1.1, "load_dictionary"),
        ("hals", 40, 1.1, "fit"),
        ("mu", 4, 1.1, "fit"),
        ("mu", 1, 1.7, "load_dictionary"),
        ("pgd", 1, 1.7, "fit"),
        ("pgd", 40, 1.1, "load_dictionary"),
        ("anls", 1, 1.7, "load_dictionary"),
        ("anls", 4, 1.1, "fit"),
    ],
)
def test_learning_goes_on_from_a_dictionary_and_keeps_it(solver, m, most, before):
    """Without statistics of its own a fitted dictionary loses concepts to the first rows: after one
    row the error is 7 to 30 times what it was, after ten 3 to 6 times."""
    held_out = numbers(200, seed=1000)
    model, fitted = fit_of_many(solver)
    if before == "load_dictionary":
        model = NMF(5, solver=solver).load_dictionary(model.D)
    model = copy.deepcopy(model)
    D = model.D
    learned(model, batches(10, m))
    assert model.fit_info_ is None
    assert model.online_info_.batches == 10
    assert not torch.equal(model.D, D)
    assert error_of(model, held_out) < most * fitted


def test_partial_fit_returns_the_model_and_fits_it():
    model = NMF(5, seed=0)
    assert model.partial_fit(numbers()) is model
    assert model.fitted
    assert model.encode(numbers()).shape == (40, 5)
    assert model.get_dictionary() is model.D


def test_summary_is_true_and_readable():
    model = learned(NMF(5, seed=0), batches(3))
    info = model.online_info_
    assert (info.rows, info.batches, info.d, info.nb_concepts) == (120, 3, 12, 5)
    assert 0 < info.relative_error < 1
    assert info.seconds > 0
    for word in ("120 × 12", "3 batches", "half-life 80 rows", "hals", "relative error"):
        assert word in str(info)
    assert info.as_dict()["rows"] == 120
    never = learned(NMF(5, seed=0), batches(1), half_life=math.inf)
    assert "nothing is forgotten" in str(never.online_info_)


@pytest.mark.parametrize(
    ("half_life", "kind"),
    [(0, InvalidInput), (-1, InvalidInput), (math.nan, InvalidInput), ("1", TypeError)],
)
def test_bad_half_life_is_refused(half_life, kind):
    with pytest.raises(kind, match="half_life"):
        NMF(5).partial_fit(numbers(), half_life=half_life)


def test_host_waits_for_the_device_a_fixed_number_of_times(monkeypatch):
    """As few for many half-steps as for one: once for each batch, or each chunk."""
    reads = []
    for name in ("tolist", "item", "__float__", "__bool__", "__int__"):
        plain = getattr(torch.Tensor, name)
        counted = lambda self, plain=plain: (reads.append(self), plain(self))[1]  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, counted)
    model = NMF(5, seed=0, backend="torch").partial_fit(numbers())
    counts = []
    for half_steps in (1, 20):
        record = dataclasses.replace(SOLVERS["hals"], batch_half_steps=half_steps)
        monkeypatch.setitem(SOLVERS, "hals", record)
        reads.clear()
        model.partial_fit(numbers(seed=1))
        counts.append(len(reads))
    assert counts[0] == counts[1] <= 4


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("scale", "word"), [(1e-25, "small"), (1e25, "large")])
def test_batch_that_cannot_be_squared_is_refused(solver, scale, word):
    """It reported the error 0, or an overflow."""
    with pytest.raises(ArithmeticError, match=f"the largest entry of A .* too {word}"):
        NMF(3, solver=solver, seed=0).partial_fit(numbers() * scale)
    model = NMF(3, solver=solver).load_dictionary(numbers()[:3] * scale)
    with pytest.raises(ArithmeticError, match=f"the largest entry of the dictionary D .* {word}"):
        model.partial_fit(numbers())
    assert model.online_info_ is None


def test_batch_of_zeros_is_learned_whatever_the_scale():
    model = NMF(3).load_dictionary(numbers()[:3] * 1e-15)
    assert model.partial_fit(numbers() * 0).online_info_.relative_error == 0


def test_a_first_batch_that_is_large_learns_less_and_warns():
    generator = torch.Generator().manual_seed(0)
    A = torch.rand(4000, 8, generator=generator) @ torch.rand(8, 40, generator=generator)

    def error_of(model):
        return float((A - model.encode(A) @ model.D).norm() / A.norm())

    whole, parts = NMF(8, seed=0), NMF(8, seed=0)
    with pytest.warns(FastnmfWarning, match=r"in one step .* such as A.split\(128\)") as caught:
        whole.partial_fit(A)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in A.split(128):
            parts.partial_fit(batch)
        # what follows was seen before
        parts.partial_fit(A)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert error_of(parts) < error_of(whole)

"""Fits that begin with a fit of a sample: of which rows, with what options, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fits import rows_of_five_concepts
from oracle import relative_difference
from torch.utils.data import DataLoader, TensorDataset

from fastnmf import NMF, ConvexNMF, InvalidInput, SemiNMF, Tuning
from fastnmf.fit.starts import sample
from fastnmf.fit.starts.drawing import least_keys
from fastnmf.planning import memory

N, D, K = 1600, 12, 5
A = rows_of_five_concepts(N, D)
RUN = {"init": "sample", "seed": 4, "tol": 0, "max_iter": 3}
# the numbers of the rows that are held out, and of the sample
HELD_OUT, LEAST = 40, 200


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(sample, "HELD_OUT", HELD_OUT)
    monkeypatch.setattr(sample, "LEAST", LEAST)


@pytest.fixture
def one_size(monkeypatch):
    monkeypatch.setattr(sample, "SHARE", N // LEAST)


@pytest.fixture
def tight(monkeypatch):
    """A function that returns options of fits that are read in passes."""
    monkeypatch.setattr(memory, "_OVERHEAD", 0)
    monkeypatch.setattr(memory, "WORKSPACE_BYTES", 0)
    monkeypatch.setattr(memory, "LEAST_ROWS", 16)
    return {"max_memory": 190_000}


def fitted(rows=A, kind=NMF, concepts=K, run=None, **options):
    model = kind(concepts, **{**RUN, **options})
    Z, D = model.fit(rows, **(run or {}))
    return Z, D, model.fit_info_


def file_of(folder, rows=A):
    np.save(folder / "A.npy", rows.numpy())
    return str(folder / "A.npy")


def test_fit_is_the_composition_of_its_parts(one_size):
    """A fit of the rows that are drawn, codes of all rows, and a fit from these."""
    Z, D, info = fitted(accelerate=False, max_iter=4)
    numbers = torch.from_numpy(least_keys(4, 0, N, N)[0])[HELD_OUT : HELD_OUT + LEAST]
    first = NMF(K, seed=4, tol=0, max_iter=info.sample_iterations, accelerate=False)
    first.fit(A[numbers])
    codes = first.encode(A, method="sweeps", max_iter=20, tol=0)
    then = NMF(K, init=(codes, first.D), tol=0, max_iter=4, accelerate=False)
    expected = then.fit(A)
    assert relative_difference(D, expected[1]) <= 1e-5
    assert relative_difference(Z, expected[0]) <= 1e-4
    assert (info.init, info.seed, info.iterations, info.passes) == ("sample", 4, 4, 1)
    assert info.sample_rows == LEAST


def test_rows_held_out_are_not_in_the_sample(one_size, monkeypatch):
    seen = []
    whole = sample.Validation.measure

    def measured(validation, state):
        seen.append((validation.data.A, len(state.codes)))
        return whole(validation, state)

    monkeypatch.setattr(sample.Validation, "measure", measured)
    _, _, info = fitted()
    ((held_out, size),) = seen
    numbers = least_keys(4, 0, N, N)[0]
    assert torch.equal(held_out, A[numbers[:HELD_OUT]])
    assert (size, len(held_out)) == (LEAST, HELD_OUT)
    assert info.held_out_error == pytest.approx(info.relative_error, rel=0.2)


def test_samples_double_while_the_error_of_other_rows_falls(monkeypatch):
    _, _, doubled = fitted(concepts=10)
    assert doubled.sample_rows == 2 * LEAST
    monkeypatch.setattr(sample, "_GAIN", 0.5)
    # the second size tells that there is nothing to gain
    assert fitted(concepts=10)[2].sample_rows == 2 * LEAST
    monkeypatch.setattr(sample, "SHARE", 2)
    assert sample.sizes_of(N, N, 10) == [LEAST, 2 * LEAST, 4 * LEAST]
    assert fitted(concepts=10)[2].sample_rows == 2 * LEAST
    monkeypatch.setattr(sample, "_GAIN", -1.0)
    assert fitted(concepts=10)[2].sample_rows == 4 * LEAST


def test_sizes_follow_the_concepts_the_rows_and_what_was_drawn():
    assert sample.sizes_of(10_000, 10_000, 5) == [200, 400, 800, 1600]
    assert sample.sizes_of(10_000, 10_000, 400) == [1600]
    assert sample.sizes_of(500, 10_000, 5) == [200, 400]
    assert sample.sizes_of(500, 799, 5) == []
    assert sample.sizes_of(200, 10_000, 5) == []


def test_same_seed_same_bits_and_none_draws_one():
    first, again = fitted(), fitted()
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], fitted(seed=5)[1])
    _, D, info = fitted(seed=None)
    assert torch.equal(fitted(seed=info.seed)[1], D)


@pytest.mark.parametrize("kind", ["path", "loader", "batches", "map", "memory of 16 bits"])
def test_streams_draw_the_rows_of_memory(kind, tight, tmp_path):
    rows = A.half()
    sources = {
        "path": lambda: file_of(tmp_path, rows),
        "loader": lambda: DataLoader(TensorDataset(rows.float()), batch_size=250),
        "batches": lambda: list(rows.split(333)),
        "map": lambda: np.load(file_of(tmp_path, rows), mmap_mode="r"),
        "memory of 16 bits": lambda: rows,
    }
    codes = "memory" if kind == "memory of 16 bits" else str(tmp_path / "Z.npy")
    run = {"accelerate": False, "run": {"codes": codes}}
    _, D, info = fitted(sources[kind](), **tight, **run)
    assert info.chunk_rows < N
    # the checks, codes for all rows, the iterations, and the summary
    assert info.passes == 1 + 1 + 3 + 1
    expected = fitted(rows.float(), accelerate=False)
    assert info.held_out_error == pytest.approx(expected[2].held_out_error, rel=1e-3)
    assert info.sample_rows == expected[2].sample_rows
    assert relative_difference(D, expected[1]) <= 2e-3


def test_codes_that_are_not_kept_or_sparse(tight, tmp_path):
    _, _, info = fitted(file_of(tmp_path), **tight, run={"codes": None})
    assert (info.codes, info.passes) == ("not kept", 1 + 3 + 1)
    Z, _, other = fitted(run={"codes": "sparse"})
    assert Z.layout == torch.sparse_csr
    for each in (info, other):
        assert each.relative_error == pytest.approx(fitted()[2].relative_error, rel=0.02)


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd", "anls"])
@pytest.mark.parametrize("kind", [NMF, SemiNMF])
def test_every_solver_ends_where_auto_ends_or_below(solver, kind):
    rows = A if kind is NMF else A - A.mean()
    options = {"kind": kind, "solver": solver, "max_iter": 30}
    least = fitted(rows, **options, init="auto")[2].relative_error
    assert fitted(rows, **options)[2].relative_error <= 1.02 * least


@pytest.mark.parametrize(
    "options",
    [
        {"alpha_Z": 0.01, "l1_ratio": 0.5},
        {"alpha_Z": 0.01, "l1_ratio": 1.0, "unit_norm": True},
        {"top_k": 2},
        {"revive": True},
        {"concepts": 20, "accelerate": True},
        {"n_init": 3},
        {"device": "cpu", "stop": "error", "tol": 1e-3},
    ],
    ids=str,
)
def test_options_hold_on_the_sample_and_after_it(options):
    _, D, info = fitted(**{"max_iter": 40, **options})
    expected = fitted(**{"max_iter": 40, **options}, init="auto")[2]
    last = [each.history[-1].relative_objective for each in (info, expected)]
    assert last[0] <= 1.03 * last[1]
    assert info.init == "sample"
    if "unit_norm" in options:
        assert relative_difference(D.norm(dim=1), torch.ones(K)) < 1e-5
    if "top_k" in options:
        assert info.l0_most <= 2
    if "n_init" in options:
        assert (info.n_init, len(info.start_errors)) == (3, 3)


def test_target_continues_from_the_penalty_of_the_sample():
    _, _, info = fitted(target_l0=2.0, max_iter=40)
    assert info.reaches_target
    assert info.init == "sample"


def test_offset_continues_from_that_of_the_sample():
    _, _, info = fitted(A + 3, SemiNMF, offset=True, max_iter=10)
    expected = fitted(A + 3, SemiNMF, offset=True, max_iter=40, init="auto")[2]
    assert info.r_squared == pytest.approx(expected.r_squared, rel=0.02)
    assert info.history[0].relative_error <= 1.05 * expected.relative_error


def test_sparse_data_have_a_sparse_sample():
    rows = torch.where(A > A.mean(), A, 0)
    _, D, info = fitted(rows, accelerate=False)
    _, E, sparse = fitted(rows.to_sparse_csr(), accelerate=False)
    assert sparse.density is not None
    assert relative_difference(E, D) <= 1e-3
    assert sparse.held_out_error == pytest.approx(info.held_out_error, rel=1e-3)


def test_weights_of_rows_and_features_go_with_it_and_those_of_entries_do_not():
    weights = torch.linspace(0.5, 2, N)[:, None]
    _, _, info = fitted(max_iter=40, run={"weights": weights})
    expected = fitted(max_iter=40, init="auto", run={"weights": weights})[2]
    assert info.relative_error <= 1.03 * expected.relative_error
    with pytest.raises(InvalidInput, match=r"weights of entries, .* do not go with init='sample'"):
        fitted(run={"weights": torch.ones(N, D)})


def test_few_rows_begin_as_auto_does_and_say_so():
    rows = A[: 4 * LEAST - 1]
    Z, D, info = fitted(rows)
    expected = fitted(rows, init="auto")
    assert torch.equal(D, expected[1])
    assert torch.equal(Z, expected[0])
    assert (info.init, info.sample_rows, info.held_out_error) == ("nndsvda", 0, None)
    assert "none: too few rows" in str(info)
    assert expected[2].sample_rows is None
    assert "sample" not in expected[2].lines()


def test_summary_shows_the_sample():
    _, _, info = fitted()
    line = info.lines()["sample"]
    assert f"{info.sample_rows:,} rows, {info.sample_iterations} iterations" in line
    assert f"error {info.held_out_error:.6g} on rows held out" in line
    assert 0 < info.sample_seconds <= info.seconds


def test_resumed_fit_has_the_bits_and_the_record_of_one_that_was_not(tmp_path, tight):
    place = {"checkpoint": tmp_path / "fit.safetensors"}
    for rows, options in ((A, {}), (file_of(tmp_path), tight)):
        whole = fitted(rows, **options, max_iter=6)

        def leave(iteration):
            if iteration.iteration == 3:
                raise KeyboardInterrupt

        run = {**place, "callback": leave}
        saved = {"tuning": Tuning(checkpoint_seconds=0)}
        with pytest.raises(KeyboardInterrupt):
            fitted(rows, **options, **saved, max_iter=6, run=run)
        again = fitted(rows, **options, max_iter=6, run={**place, "resume": True})
        assert torch.equal(again[0], whole[0])
        assert torch.equal(again[1], whole[1])
        assert again[2].sample_rows == whole[2].sample_rows
        assert again[2].held_out_error == whole[2].held_out_error


def test_failed_fit_leaves_the_model_as_it_was(monkeypatch):
    model = NMF(K, **RUN)
    model.fit(A)
    before, info = model.D.clone(), model.fit_info_

    def fails(*given):
        raise ArithmeticError("as an overflow may")

    monkeypatch.setattr(sample.Validation, "measure", fails)
    with pytest.raises(ArithmeticError):
        model.fit(A + 1)
    assert torch.equal(model.D, before)
    assert model.fit_info_ is info


def test_max_seconds_ends_the_samples():
    _, _, info = fitted(concepts=10, run={"max_seconds": 1e-6})
    assert info.sample_rows == LEAST
    assert info.stopped_by == "max_seconds"


def test_what_has_no_sample_is_refused_with_the_reason():
    with pytest.raises(InvalidInput, match="partial_fit sees one batch at a time"):
        NMF(K, init="sample").partial_fit(A)
    with pytest.raises(InvalidInput, match="init"):
        ConvexNMF(K, init="sample")


def test_streams_with_several_starts_need_rows_for_a_sample(tight, tmp_path):
    _, _, info = fitted(file_of(tmp_path), **tight, n_init=3)
    assert (info.n_init, info.chunk_rows < N) == (3, True)
    few = file_of(tmp_path, A[: 2 * LEAST])
    with pytest.raises(InvalidInput, match="rows are too few"):
        fitted(few, max_memory=45_000, n_init=3)

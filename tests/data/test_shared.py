"""partial_fit shared by several processes is that of one which gets all their rows."""

from __future__ import annotations

import os

import pytest
import torch
from fits import nmf, rows_of_five_concepts
from oracle import relative_difference
from processes import begin, by_name
from shared_program import split
from spoiled import Dying, huge, in_batches, in_float64, negative, nothing, wider

from fastnmf.solvers.registry import SOLVERS

if not hasattr(os, "fork"):
    pytest.skip("os.fork: not here", allow_module_level=True)

d, K = 12, 5
WIDE = torch.float64


def stream(*rows, dtype=WIDE):
    return [rows_of_five_concepts(m, d, seed, dtype) for seed, m in enumerate(rows)]


PLAIN = {"nb_concepts": K, "seed": 0, "how": "uneven"}
D0 = rows_of_five_concepts(K, d, 77, WIDE)
Z0 = torch.rand(40, K, generator=torch.Generator().manual_seed(0), dtype=WIDE)
# four batches of different sizes, in the end one row
ROWS = 40, 25, 60, 1
STREAMS = {
    **{
        f"{solver}-even": (stream(*ROWS), {**PLAIN, "solver": solver, "how": "even"})
        for solver in SOLVERS
    },
    # the last has no rows of any batch; each in turn has all
    **{f"hals-{how}": (stream(*ROWS), {**PLAIN, "how": how}) for how in ("uneven", "turns")},
    "spread": (stream(*ROWS), {**PLAIN, "init": "spread"}),
    # statistics of a dictionary that was not learned online; anls has the dictionary by hals
    **{
        f"{solver} from a dictionary": (
            stream(*ROWS),
            {**PLAIN, "solver": solver, "how": "even", "given": D0},
        )
        for solver in ("hals", "anls")
    },
    "half-life": (stream(*ROWS), {**PLAIN, "half_life": 30, "how": "even"}),
    "many concepts": (stream(*ROWS), {**PLAIN, "nb_concepts": 20}),
    "zeros first": ([torch.zeros(9, d, dtype=WIDE), *stream(*ROWS)], PLAIN),
    "float32": (stream(*ROWS, dtype=torch.float32), PLAIN),
    "float16": (stream(40, 20, dtype=torch.float16), {**PLAIN, "how": "even"}),
    "read in passes": (stream(*ROWS), {**PLAIN, "chunk_rows": 7, "how": "even"}),
    "one feature": ([A[:, :1] for A in stream(*ROWS)], {**PLAIN, "nb_concepts": 2}),
}
FLOAT32 = ("float32", "float16")


BATCHES = stream(40, 25, 30)
NARROW = stream(40, 25, 30, dtype=torch.float32)
# what one makes of its rows of a batch, and what all say of it
SPOILED = {
    "negative": (negative, "entries, the first at row 0, column 0"),
    "wider": (wider, "13 features, the dictionary has 12"),
    "huge": (huge, "scale A"),
}
FAILING = {
    name: (BATCHES, {**PLAIN, "how": "even", "of": {1: {"spoiled": {1: spoil}}}})
    for name, (spoil, _) in SPOILED.items()
}
FAILING["negative at first"] = (
    BATCHES,
    {**PLAIN, "how": "even", "of": {1: {"spoiled": {0: negative}}}},
)
FAILING["no rows"] = (
    BATCHES,
    {**PLAIN, "how": "even", "of": {rank: {"spoiled": {1: nothing}} for rank in range(2)}},
)
FAILURES = {name: (1, message) for name, (_, message) in SPOILED.items()}
FAILURES |= {
    "negative at first": (0, SPOILED["negative"][1]),
    "no rows": (1, "A has no rows in any process"),
}
# what one of them has otherwise, and what all say in every batch
DIFFERING = {
    "half_life": (7, "half_life is None in process 0 and 7.0 in process 1"),
    "seed": (2, "seed is 0 in process 0 and 2 in process 1"),
    "given": (D0 * 2, "D is '5 × 12, checksum "),
    "alpha_Z": (1.0, "partial_fit has no penalties"),
}
ALL = STREAMS | FAILING
ALL |= {
    f"other {name}": (BATCHES[:1], {**PLAIN, "given": D0, "of": {1: {name: value}}})
    for name, (value, _) in DIFFERING.items()
}
ALL |= {
    "given pair": (
        stream(40, 25),
        {
            **PLAIN,
            "of": {
                rank: {"init": (Z0[split(40, 2, "uneven")[rank] :][: [40, 0][rank]], D0)}
                for rank in range(2)
            },
        },
    ),
    "no seed": (stream(40), {**PLAIN, "seed": None, "init": "random", "how": "even"}),
    "batches": (BATCHES, {**PLAIN, "how": "even", "of": {1: {"spoiled": {1: in_batches}}}}),
    "one in float64": (NARROW, {**PLAIN, "how": "even", "of": {1: {"spoiled": {1: in_float64}}}}),
    "after failures": (stream(*ROWS), PLAIN),
}
CASES = {2: list(ALL), 3: ["hals-even", "hals-turns"]}


@pytest.fixture(scope="module")
def shared(once):
    """shared(size): the results of every case, by name and process."""
    return by_name(once, "streams", ALL, CASES)


def alone(batches, options, left_out=()):
    """The model that one process makes of the batches, but for some."""
    options = {name: value for name, value in options.items() if name not in ("how", "of")}
    given = options.pop("given", None)
    half_life = options.pop("half_life", None)
    model = nmf(options.pop("nb_concepts"), **options)
    if given is not None:
        model.load_dictionary(given)
    for number, batch in enumerate(batches):
        if number not in left_out:
            model.partial_fit(batch, half_life=half_life)
    return model


def assert_is_that_of_one(results, model, bound):
    for result in results:
        assert torch.equal(result["D"], results[0]["D"])
        assert result["D"].dtype == model.D.dtype
        for name, M in (("D", model.D), ("gram", model._gram), ("cross", model._cross)):
            assert relative_difference(result[name], M) <= bound
        info = model.online_info_
        for name in ("rows", "batches", "d", "half_life", "unused_concepts", "dtype"):
            assert result["info"][name] == getattr(info, name)
        assert result["info"]["processes"] == len(results)
        assert result["info"]["relative_error"] == pytest.approx(info.relative_error, rel=1e-3)


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (size, name)
        for size in CASES
        for name in [*STREAMS, "after failures"]
        if name in CASES[size]
    ],
)
def test_stream_of_several_processes_is_that_of_one(size, name, shared):
    results = shared(size)[name]
    assert not any(error for result in results for error in result["errors"]), results
    assert_is_that_of_one(results, alone(*ALL[name]), 1e-5 if name in FLOAT32 else 1e-10)


@pytest.mark.parametrize("name", FAILURES)
def test_batch_that_one_cannot_use_is_an_error_in_all(name, shared):
    """And the models are as they were: what follows is learned as if it had not been."""
    results, (number, message) = shared(2)[name], FAILURES[name]
    for result in results:
        failed = [i for i, error in enumerate(result["errors"]) if error]
        assert failed == [number]
        assert message in result["errors"][number]
        assert result["seconds"] < 10
    assert_is_that_of_one(results, alone(*ALL[name], left_out=[number]), 1e-10)


@pytest.mark.parametrize("name", DIFFERING)
def test_models_must_be_alike(name, shared):
    for result in shared(2)[f"other {name}"]:
        assert DIFFERING[name][1] in result["errors"][0]
        assert result["info"] is None
    assert "InvalidInput" in shared(2)[f"other {name}"][0]["errors"][0]


def test_given_codes_are_those_of_the_rows_here(shared):
    batches, _ = ALL["given pair"]
    one = alone(batches, {**PLAIN, "init": (Z0, D0)})
    assert_is_that_of_one(shared(2)["given pair"], one, 1e-10)


def test_without_a_seed_all_draw_the_same(shared):
    first, other = shared(2)["no seed"]
    assert torch.equal(first["D"], other["D"])


def test_each_may_give_its_rows_otherwise(shared):
    assert_is_that_of_one(shared(2)["batches"], alone(BATCHES, PLAIN), 1e-10)
    first, second, third = NARROW
    one = alone([first, second.double(), third], PLAIN)
    assert_is_that_of_one(shared(2)["one in float64"], one, 1e-5)


def test_summary_tells_of_the_processes(shared):
    first, _ = shared(2)["hals-even"]
    assert "processes:      2" in first["text"].splitlines()
    assert "processes" not in str(alone(*ALL["hals-even"]).online_info_)


def test_process_that_dies_is_a_connection_error_in_the_others(tmp_path):
    """In the batch in which it does, in what follows, and at once where it is gone before a fit:
    that used to wait for the timeout, and to raise a RuntimeError."""
    dies = BATCHES, {**PLAIN, "how": "even", "of": {1: {"spoiled": {1: Dying}}}}
    fits = BATCHES[0], {"nb_concepts": K, "how": "even"}
    torch.save([dies, fits], tmp_path / "cases.pt")
    printed = begin(tmp_path, 2).communicate(timeout=60)[0].decode()
    result, fit = torch.load(tmp_path / "results-0.pt")
    first, *others = result["errors"]
    assert first is None, printed
    for error in (*others, fit["error"]):
        assert error.startswith("ConnectionError: process 0 of 2 cannot reach the others")
    assert result["info"]["batches"] == 1
    assert result["seconds"] + fit["seconds"] < 10

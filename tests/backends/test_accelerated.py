"""Whole accelerated iterations of the extension: the bits of single operations, and where they are
used."""

from __future__ import annotations

import pytest
import torch
from compiled import REASON
from fits import nmf
from views import changed

from fastnmf import NMF, SemiNMF
from fastnmf.backends.pointers import view

pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@pytest.fixture
def whole(monkeypatch):
    """A list that gets the step of each whole iteration."""
    from fastnmf.backends.accelerated import Accelerated

    iterate, steps = Accelerated.__call__, []

    def noted(self, step):
        steps.append(step)
        iterate(self, step)

    monkeypatch.setattr(Accelerated, "__call__", noted)
    return steps


def planted(n, d, K, seed=0):
    draw = torch.Generator().manual_seed(seed)
    Z, D = (torch.rand(shape, generator=draw) for shape in ((n, K), (K, d)))
    return Z @ D + torch.rand(n, d, generator=draw)


def fit(A, K, **options):
    model = NMF(K, seed=0, tol=0, **{"max_iter": 40, **options})
    Z, D = model.fit(A)
    history = model.fit_info_.history
    return Z, D, [(one.relative_change, one.relative_error) for one in history]


# n, d, K, options
CASES = [
    # a size of many fits at a time
    (1300, 512, 10, {"init": "random"}),
    # iterations that are taken back, and concepts that grow
    (500, 100, 20, {"max_iter": 150}),
    # one concept, features that fill no vector, as many concepts as features
    (300, 101, 1, {}),
    (300, 37, 37, {}),
    # fewer concepts than a vector has lanes, and some more
    (400, 300, 7, {}),
    (400, 64, 17, {}),
    # rows for both threads
    (3000, 384, 50, {"max_iter": 20}),
    # concepts that get rows of the data begin anew
    (500, 100, 20, {"revive": True}),
    (500, 100, 20, {"n_init": 3}),
]


@pytest.mark.parametrize(("n", "d", "K", "options"), CASES, ids=str)
def test_fits_have_the_bits_of_single_operations(extension, whole, monkeypatch, n, d, K, options):
    from fastnmf.backends import cpp

    A = planted(n, d, min(n, d) // 2)
    Z, D, history = fit(A, K, **options)
    assert len(whole) >= len(history)
    whole.clear()
    monkeypatch.delitem(cpp.OPERATIONS, "accelerated_")
    Z1, D1, history1 = fit(A, K, **options)
    assert not whole
    assert torch.equal(Z, Z1)
    assert torch.equal(D, D1)
    assert history == history1


def test_dead_and_empty_rows_have_the_bits_of_single_operations(extension, whole, monkeypatch):
    from fastnmf.backends import cpp

    A = planted(300, 60, 10)
    A[::7] = 0
    A[:, 3] = 0
    for data in (A, torch.zeros(300, 60)):
        found = fit(data, 12)
        assert whole
        with monkeypatch.context() as without:
            without.delitem(cpp.OPERATIONS, "accelerated_")
            expected = fit(data, 12)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        whole.clear()


def test_a_resumed_fit_has_the_bits_of_one_that_was_not_interrupted(whole, tmp_path):
    A, file = planted(300, 60, 10), tmp_path / "fit.safetensors"
    expected = NMF(8, seed=0, tol=0, max_iter=30).fit(A)
    half = nmf(8, seed=0, tol=0, checkpoint_seconds=0.0)
    half.fit(A, max_iter=13, checkpoint=file)
    found = nmf(8, seed=0, tol=0, checkpoint_seconds=0.0).fit(
        A, max_iter=30, checkpoint=file, resume=True
    )
    assert whole
    assert all(map(torch.equal, found, expected))


def test_threads_that_are_set_during_a_fit_end_whole_iterations_where_a_product_is_used(whole):
    """With too few rows for the tiles of all threads the codes' product is the vendor's."""
    threads, A = torch.get_num_threads(), planted(120, 60, 10)

    def callback(iteration):
        if iteration.iteration == 5:
            torch.set_num_threads(2)

    torch.set_num_threads(1)
    try:
        NMF(8, seed=0, tol=0, max_iter=10).fit(A, callback=callback)
    finally:
        torch.set_num_threads(threads)
    assert len(whole) == 5


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (lambda: NMF(8, accelerate=False, tol=0), torch.float32),
        (lambda: NMF(8, alpha_Z=0.01, tol=0), torch.float32),
        (lambda: NMF(8, unit_norm=True, tol=0), torch.float32),
        (lambda: NMF(8, solver="mu", tol=0), torch.float32),
        (lambda: NMF(8, tol=0), torch.float64),
        (lambda: NMF(8, backend="torch", tol=0), torch.float32),
        (lambda: nmf(8, chunk_rows=200, tol=0), torch.float32),
        (lambda: nmf(8, accelerate=True, form="residual", tol=0), torch.float32),
        (lambda: SemiNMF(8, tol=0), torch.float32),
        (lambda: SemiNMF(8, offset=True, tol=0), torch.float32),
        # of which some sums are torch's
        (lambda: NMF(150, tol=0), torch.float32),
    ],
    ids="plain penalty unit_norm mu float64 torch tiles residual semi offset many".split(),
)
def test_other_fits_are_computed_by_single_operations(whole, make, dtype):
    model = make()
    model.fit(planted(300, 200, 10).to(dtype), max_iter=3)
    assert model.fit_info_.iterations == 3
    assert not whole


def test_sparse_data_and_weights_are_computed_by_single_operations(whole):
    A = planted(300, 60, 10)
    # of fewer entries than pay for a dense copy
    sparse = pytest.importorskip("scipy.sparse", reason="scipy makes sparse data")
    X = sparse.random_array((3000, 2000), density=0.01, dtype="float32", rng=0)
    for data, options in ((X.tocsr(), {}), (A, {"weights": A > 1})):
        model = NMF(8, tol=0)
        model.fit(data, max_iter=3, **options)
        assert model.fit_info_.accelerated
    assert not whole


def arguments(K=4, m=30, p=20):
    drawn = torch.Generator().manual_seed(0)
    Z, D, X = (torch.rand(*s, generator=drawn) for s in ((m, K), (K, p), (m, p)))
    one = view(torch.ones(K))
    F, D, square = view(Z.T), view(D), view(torch.ones(K, K))
    kept = Z, D, X
    return kept, {
        "pair": (F, D),
        "X": view(X),
        "before": (F, F, D, one),
        "products": (square, D, square, one),
        "sums": view(torch.zeros(2, 4, dtype=torch.float64)),
        "rules": (0.0, 0.01, 1.0, 1, 1),
    }


@pytest.mark.parametrize(
    ("name", "index", "changes", "message"),
    [
        ("pair", 0, {"dtype": "float64"}, "F has dtype 'float64': 'float32' is needed"),
        ("pair", 0, {"strides": (30, 1)}, r"F has strides \(30, 1\): its concepts must be adjac"),
        ("pair", 1, {"shape": (4, 19)}, r"D has shape \(4, 19\): \(4, 20\) is needed"),
        ("before", 0, {"address": 0}, "swept is a null pointer"),
        ("before", 3, {"shape": (3,)}, r"norms has shape \(3\): \(4\) is needed"),
        ("products", 0, {"strides": (1, 4)}, r"G \(4, 4\) has strides \(1, 4\): its rows"),
        ("products", 1, {"shape": (4, 21)}, r"cross has shape \(4, 21\)"),
        ("products", 3, {"shape": (5,)}, r"now has shape \(5\): \(4\) is needed"),
        ("X", None, {"shape": (29, 20)}, r"X has shape \(29, 20\): \(30, -1\) is needed"),
        ("sums", None, {"shape": (2, 3)}, r"sums has shape \(2, 3\): \(2, 4\) is needed"),
        ("rules", None, (0.0, 0.01, 1.0, 0, 1), "sweeps = 0, 1 must be positive"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(checking, name, index, changes, message):
    kept, given = arguments()
    if isinstance(changes, tuple):
        given[name] = changes
    elif index is None:
        given = changed(given, {name: changes})
    else:
        some = list(given[name])
        some[index] = changed({"one": some[index]}, {"one": changes})["one"]
        given[name] = tuple(some)
    with pytest.raises(ValueError, match=message):
        checking.Accelerated(**given)
    assert len(kept) == 3


def test_at_least_one_thread_is_needed(checking):
    kept, given = arguments()
    whole = checking.Accelerated(**given)
    for call in (whole.begin, whole.update):
        with pytest.raises(ValueError, match="threads = 0: at least 1 is needed"):
            call(0.5, 0)
    with pytest.raises(ValueError, match="threads = 0: at least 1 is needed"):
        whole.balance(0)
    assert len(kept) == 3

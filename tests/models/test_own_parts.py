"""What Overcomplete's users replace: solvers as functions, functions of their own, starts of their
own; and what is said where these do not go together with an option."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from fastnmf import NMF, InvalidInput, SemiNMF, Tuning
from fastnmf.solvers.registry import SOLVERS

N, D_IN, K = 40, 9, 4
GENERATOR = torch.Generator().manual_seed(0)
A = torch.rand(N, D_IN, generator=GENERATOR)
Z0 = torch.rand(N, K, generator=GENERATOR)
D0 = torch.rand(K, D_IN, generator=GENERATOR)


def error(Z, D):
    return float((A - Z @ D).norm() / A.norm())


def multiplicative(
    A, Z, D, update_Z=True, update_D=True, max_iter=500, tol=1e-5, verbose=False, calls=None
):
    """A solver with the arguments of Overcomplete's."""
    for _ in range(max_iter):
        if update_Z:
            Z = Z * (A @ D.T) / (Z @ D @ D.T + 1e-10)
        if update_D:
            D = D * (Z.T @ A) / (Z.T @ Z @ D + 1e-10)
    return Z, D


class Mine(NMF):
    _SOLVERS = {**NMF._SOLVERS, "mine": multiplicative}  # noqa: RUF012

    def init_nndsvda(self, A):
        self.asked = "nndsvda"
        return Z0, D0

    def init_random_z(self, A):
        self.asked = "random"
        return torch.ones(len(A), self.nb_concepts)


class Plain(NMF):
    _SOLVERS = {"mine": multiplicative, "other name": NMF._SOLVERS["mu"]}  # noqa: RUF012


# solvers as functions


@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_of_the_class_is_a_function_as_overcompletes_is(solver):
    """It was a record, and could not be called."""
    function = NMF._SOLVERS[solver]
    before = Z0.clone(), D0.clone()
    Z, D = function(A, Z0, D0, max_iter=5)
    expected = NMF(K, solver=solver, init=(Z0, D0), tol=1e-5).fit(A, 5)
    assert torch.equal(Z, expected[0])
    assert torch.equal(D, expected[1])
    assert torch.equal(Z0, before[0])
    assert torch.equal(D0, before[1])
    assert error(*function(A.numpy(), Z0, D0, True, True, 200, 1e-6)) < error(Z0, D0)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solver_function_updates_one_factor_alone(solver):
    function, given = NMF._SOLVERS[solver], {"max_iter": 300, "tol": 1e-7}
    Z, D = function(A, Z0, D0, update_D=False, **given)
    assert torch.equal(D, D0)
    exact = NMF(K, solver="anls").load_dictionary(D0).encode(A)
    assert error(Z, D) <= error(exact, D0) * 1.001
    Z, D = function(A, Z0, D0, update_Z=False, **given)
    assert torch.equal(Z, Z0)
    exact = NMF(K, solver="anls").load_dictionary(Z0.T).encode(A.T).T
    assert error(Z, D) <= error(Z0, exact) * 1.001
    for F, same in zip(function(A, Z0, D0, False, False), (Z0, D0), strict=True):
        assert torch.equal(F, same)


def test_solver_function_refuses_what_it_cannot_use():
    function = NMF._SOLVERS["pgd"]
    with pytest.raises(TypeError, match=r"update_Z=0\.05 must be True or False"):
        function(A, Z0, D0, 5e-2)
    with pytest.raises(InvalidInput, match=r"D0 is .* shape \(4, 8\)"):
        function(A, Z0, D0[:, 1:])
    with pytest.raises(InvalidInput, match="negative"):
        function(A, Z0, -D0)


def test_model_has_its_solver_as_a_function():
    model = NMF(K, solver="mu")
    assert model.solver_fn is NMF._SOLVERS["mu"]
    assert repr(model.solver_fn) == "<solver 'mu' of fastnmf: (A, Z, D, …) → (Z, D)>"
    assert error(*model.solver_fn(A, Z0, D0, max_iter=50)) < error(Z0, D0)


# functions of the user's


def test_solver_of_a_subclass_fits_and_encodes_as_overcomplete_would():
    """It was refused as unknown."""
    model = Plain(K, solver="mine", seed=0, tol=1e-3)
    Z, D = model.fit(A, max_iter=30)
    expected = multiplicative(A, *NMF(K, seed=0).init_nndsvda(A), max_iter=30)
    assert torch.equal(Z, expected[0])
    assert torch.equal(D, expected[1])
    assert torch.equal(model.D, D)
    assert (model.fitted, model.fit_info_) == (True, None)
    codes = model.encode(A[:5], max_iter=20)
    start = NMF(K, seed=0).init_random_z(A[:5])
    assert torch.equal(codes, multiplicative(A[:5], start, D, True, False, 20)[0])
    assert model.encode(A[:4].reshape(2, 2, -1)).shape == (2, 2, K)
    assert "'mine'" in repr(model)


def test_function_is_called_with_overcompletes_arguments():
    seen = []

    def watched(*given, **named):
        seen.append((len(given), named))
        return given[1], given[2]

    model = NMF(K, tol=0.25)
    model.solver_fn = watched
    model.fit(A)
    model.encode(A, max_iter=7)
    model.encode(A, 8, 0.5, Z0=Z0)
    kept = {"update_Z": True, "update_D": False, "verbose": False}
    assert seen == [
        (3, {"max_iter": 500, "tol": 0.25}),
        (3, {"max_iter": 7, "tol": 0.25, **kept}),
        (3, {"max_iter": 8, "tol": 0.5, **kept}),
    ]


def test_function_assigned_to_a_model_is_used_copied_and_pickled():
    model = NMF(K, seed=0)
    model.solver_fn = multiplicative
    Z, _ = model.fit(A, 3)
    assert torch.equal(Z, multiplicative(A, *NMF(K, seed=0).init_nndsvda(A), max_iter=3)[0])
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.solver_fn is multiplicative
        assert torch.equal(again.encode(A), model.encode(A))
    model.solver_fn = None
    assert model.solver_fn is NMF._SOLVERS["hals"]
    model.fit(A, 3)
    assert model.fit_info_.iterations == 3


def test_function_that_is_differentiable_gives_the_gradient():
    model, X = Plain(K, solver="mine", seed=0).load_dictionary(D0), A.clone().requires_grad_()
    model.encode(X, max_iter=3, Z0=Z0).sum().backward()
    expected = A.clone().requires_grad_()
    multiplicative(expected, Z0, D0, True, False, 3)[0].sum().backward()
    assert torch.equal(X.grad, expected.grad)


def test_solver_of_fastnmf_under_another_name_is_that_solver():
    model = Plain(K, solver="other name", seed=0)
    Z, _ = model.fit(A, 5)
    assert torch.equal(Z, NMF(K, solver="mu", seed=0).fit(A, 5)[0])
    assert model.fit_info_.solver == "mu"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"alpha_Z": 0.1}, "alpha_Z=0.1"),
        ({"unit_norm": True}, "unit_norm=True"),
        ({"accelerate": True}, "accelerate=True"),
        ({"revive": True}, "revive=True"),
        ({"backend": "torch"}, "backend='torch'"),
        ({"max_memory": "1GB"}, "max_memory='1GB'"),
        ({"distributed": True}, "distributed=True"),
        ({"tuning": Tuning(block=2)}, "tuning=Tuning"),
        ({"stop": "error"}, "stop='error'"),
    ],
)
def test_option_that_a_function_does_not_know_is_refused_at_construction(options, named):
    with pytest.raises(InvalidInput, match=f"{named}.* does not go with the solver 'mine'"):
        Plain(K, solver="mine", **options)
    # a function that is assigned later
    model = NMF(K, **options)
    model.solver_fn = multiplicative
    with pytest.raises(InvalidInput, match="function of your own"):
        model.fit(A)


def test_what_a_function_cannot_do_is_refused(tmp_path):
    model = Plain(K, solver="mine").load_dictionary(D0)
    for call in (
        lambda: model.partial_fit(A),
        lambda: model.fit(A, codes=None),
        lambda: model.fit(A, codes=tmp_path / "Z.npy"),
        lambda: model.fit(A, callback=print),
        lambda: model.fit(A, max_seconds=3),
        lambda: model.fit(A, checkpoint=tmp_path / "a.safetensors"),
        lambda: model.encode(A, codes=tmp_path / "Z.npy"),
        lambda: Plain(K, solver="mine", init="rows").fit(A),
    ):
        with pytest.raises(InvalidInput, match="function of your own"):
            call()
    assert not list(tmp_path.iterdir())
    model.solver_fn = lambda A, Z, D, **_: Z
    with pytest.raises(InvalidInput, match=r"returned Tensor; it must return two tensors \(Z, D\)"):
        model.fit(A)
    model.solver_fn = lambda A, Z, D, **_: (Z, D.T)
    with pytest.raises(InvalidInput, match=r"shapes \(40, 4\) and \(4, 9\)"):
        model.fit(A)
    assert torch.equal(model.D, D0)
    with pytest.raises(InvalidInput, match=r"'cd' is unknown \(did you mean 'hals'\?\)"):
        NMF(K, solver="cd")
    with pytest.raises(InvalidInput, match="one of: mine, other name"):
        Plain(K)


@pytest.mark.parametrize("solver", ["hals", "mu", "pgd", "anls"])
def test_functions_of_overcomplete_itself_run(solver):
    theirs = pytest.importorskip(
        "overcomplete.optimization.nmf", reason="Overcomplete", exc_type=Exception
    )

    class Theirs(NMF):
        _SOLVERS = theirs.NMF._SOLVERS

    Z, D = Theirs(K, solver=solver, seed=0).fit(A, 20)
    assert error(Z, D) < error(*NMF(K, seed=0).init_nndsvda(A))


# starts of the user's


@pytest.mark.parametrize(
    ("data", "concepts", "init", "asked"),
    [
        (A, K, "auto", "nndsvda"),
        (A, K, "nndsvda", "nndsvda"),
        (A, K, "random", "random"),
        (A[:, :3], K, "auto", "random"),
        (A.split(10), K, "auto", "nndsvda"),
        (A, K, "rows", None),
        (A, K, (Z0, D0), None),
    ],
)
def test_start_of_a_subclass_is_taken(data, concepts, init, asked):
    """It was never called, without a word."""
    model = Mine(concepts, init=init, seed=0)
    Z, D = model.fit(data, max_iter=0)
    assert getattr(model, "asked", None) == asked
    if asked == "nndsvda":
        assert torch.equal(Z, Z0)
        assert torch.equal(D, D0)
    if asked == "random":
        assert torch.equal(Z, torch.ones(N, concepts))
        assert torch.equal(D, NMF(concepts, seed=0).init_random_d(torch.cat([*data]).view(N, -1)))
    assert model.fit_info_.init == ("given" if asked or init != "rows" else "rows")


def test_start_of_a_subclass_is_taken_by_all_that_starts():
    model = Mine(K)
    assert model.fit(A, max_iter=0, codes=None)[0] is None
    assert torch.equal(model.D, D0)
    model = Mine(K)
    model.partial_fit(A)
    assert model.asked == "nndsvda"
    assert torch.equal(model.D, NMF(K, init=(Z0, D0)).partial_fit(A).D)
    del model.asked
    model.partial_fit(A)
    assert not hasattr(model, "asked")
    model = Mine(K, solver="mine")
    model.fit(A, 2)
    assert torch.equal(model.D, multiplicative(A, Z0, D0, max_iter=2)[1])


@pytest.mark.parametrize("solver", ["hals", "mu", "mine"])
def test_codes_of_a_subclass_are_encoded_from(solver):
    model = Mine(K, solver=solver).load_dictionary(D0)
    expected = Plain if solver == "mine" else NMF
    expected = expected(K, solver=solver).load_dictionary(D0).encode(A, 3, Z0=torch.ones(N, K))
    assert torch.equal(model.encode(A, 3), expected)
    assert torch.equal(model.encode(A.split(7), 3), expected)
    X = A.clone().requires_grad_()
    model.encode(X, 3).sum().backward()
    assert X.grad.any()


def test_start_assigned_to_a_model_is_taken():
    model = NMF(K)
    model.init_nndsvda = lambda A: (Z0, D0)
    assert torch.equal(model.fit(A, 0)[0], Z0)


def test_start_of_a_subclass_is_checked_and_not_shared():
    class Wrong(NMF):
        def init_nndsvda(self, A):
            return Z0, -D0

    with pytest.raises(InvalidInput, match="D0 has 36 entries that are negative"):
        Wrong(K).fit(A)
    with pytest.raises(InvalidInput, match="Wrong has a start of its own"):
        Wrong(K, distributed=True).fit(A)


# options of the user's


class WithOption(NMF):
    def __init__(self, nb_concepts, beta=1.0, **options):
        super().__init__(nb_concepts, **options)
        self.beta = beta


class PassesOn(NMF):
    def __init__(self, nb_concepts, beta=1.0, **options):
        super().__init__(nb_concepts, beta=beta, **options)


def test_unknown_option_of_a_subclass_names_those_of_the_subclass():
    """NMF advised the very name that was given."""
    assert WithOption(K, beta=2.0, seed=1).beta == 2.0
    with pytest.raises(TypeError, match=r"no option 'betta'; did you mean 'beta'\?"):
        WithOption(K, betta=2.0)
    with pytest.raises(TypeError, match=r"'beta', which is one of PassesOn.*without beta"):
        PassesOn(K)


def test_subclass_may_have_parameters_named_as_elsewhere():
    class WithW(NMF):
        def __init__(self, nb_concepts):
            super().__init__(nb_concepts)
            self.register_buffer("W_scale", torch.ones(2))
            self.register_parameter("components_", torch.nn.Parameter(torch.ones(2)))

    assert WithW(K).components_.sum() == 2
    with pytest.raises(AttributeError, match=r"no 'W'; it is Z, which fit\(A\) returns here"):
        _ = WithW(K).W


# the same of SemiNMF

SIGNED = torch.randn(N, D_IN, generator=GENERATOR)


def semi_multiplicative(
    A, Z, D, update_Z=True, update_D=True, max_iter=500, tol=1e-5, verbose=False, l1_penalty=0.0
):
    """A solver with the arguments of Overcomplete's: least squares, and shrunk codes."""
    for _ in range(max_iter):
        if update_D:
            D = torch.linalg.lstsq(Z, A).solution
        if update_Z:
            Z = (torch.linalg.lstsq(D.T, A.T).solution.T - l1_penalty).clamp(min=1e-3)
    return Z, D


class MineOfSigns(SemiNMF):
    _SOLVERS = {**SemiNMF._SOLVERS, "mine": semi_multiplicative}  # noqa: RUF012

    def init_random_z(self, A):
        self.asked = len(A)
        return torch.ones(len(A), self.nb_concepts)


@pytest.mark.parametrize("solver", SemiNMF._SOLVERS)
@pytest.mark.parametrize("init", ["auto", "random"])
def test_codes_of_a_subclass_of_semi_nmf_start_its_fit_by_any_solver(solver, init):
    """With init='auto' they were not called, without a word; Overcomplete always calls them."""
    model = MineOfSigns(K, solver, init=init, seed=0)
    Z, D = model.fit(SIGNED, 0)
    assert model.asked == N
    assert torch.equal(Z, torch.ones(N, K))
    assert torch.allclose(Z @ D, SIGNED.mean(0).expand(N, -1), atol=1e-5)
    Z, _ = model.fit(SIGNED, 3)
    assert (SIGNED - model.encode(SIGNED) @ model.D).norm() < SIGNED.norm()
    assert model.partial_fit(SIGNED).asked == N


def test_start_that_overcomplete_does_not_have_is_not_replaced():
    model = MineOfSigns(K, init="svd", seed=0)
    Z, _ = model.fit(SIGNED, 0)
    assert torch.equal(Z, SemiNMF(K, init="svd", seed=0).fit(SIGNED, 0)[0])
    assert not hasattr(model, "asked")


def test_function_for_semi_nmf_is_called_with_overcompletes_arguments():
    seen = []

    def watched(*given, **named):
        seen.append((len(given), named))
        return given[1], given[2]

    model = SemiNMF(K, tol=0.25, l1_penalty=0.5)
    model.solver_fn = watched
    model.fit(SIGNED, 9)
    model.encode(SIGNED, max_iter=7)
    kept = {"update_Z": True, "update_D": False}
    assert seen == [
        (3, {"max_iter": 9, "tol": 0.25, "l1_penalty": 0.5, "verbose": False}),
        (3, {"max_iter": 7, "tol": 0.25, "l1_penalty": 0.5, **kept}),
    ]


def test_penalty_of_semi_nmf_reaches_a_function_as_l1_penalty_or_is_refused():
    """It was refused as alpha_Z, which the user had not given."""
    Z, _ = MineOfSigns(K, "mine", l1_penalty=0.1, seed=0).fit(SIGNED, 1)
    D = SemiNMF(K).init_random_d(SIGNED, torch.ones(N, K))
    expected = semi_multiplicative(SIGNED, torch.ones(N, K), D, max_iter=1, l1_penalty=0.1)[0]
    assert torch.allclose(Z, expected)
    with pytest.raises(InvalidInput, match=r"alpha_Z=0\.1 does not go with the solver 'mine'"):
        MineOfSigns(K, "mine", alpha_Z=0.1)
    with pytest.raises(InvalidInput, match="unit_norm=True does not go with the solver 'mine'"):
        MineOfSigns(K, "mine", l1_penalty=0.1, unit_norm=True)


@pytest.mark.parametrize("solver", ["hals", "pgd"])
def test_solver_function_of_semi_nmf_has_overcompletes_penalty(solver):
    """It had none."""
    Z, D = SemiNMF(K, seed=0).fit(SIGNED, 5)
    function = SemiNMF._SOLVERS[solver]
    codes = function(SIGNED, Z, D, update_D=False, max_iter=2000, tol=1e-8, l1_penalty=0.3)[0]
    model = SemiNMF(K, l1_penalty=0.3).load_dictionary(D)
    assert torch.allclose(codes, model.encode(SIGNED), atol=1e-4)
    assert not torch.allclose(codes, function(SIGNED, Z, D, update_D=False)[0], atol=1e-2)
    with pytest.raises(TypeError, match="'hals' has no argument 'l1_penalty'"):
        NMF._SOLVERS["hals"](A, Z0, D0, l1_penalty=0.1)


@pytest.mark.parametrize("solver", ["mu", "pgd"])
def test_functions_of_overcompletes_semi_nmf_run(solver):
    theirs = pytest.importorskip(
        "overcomplete.optimization.semi_nmf", reason="Overcomplete", exc_type=Exception
    )

    class Theirs(SemiNMF):
        _SOLVERS = theirs.SemiNMF._SOLVERS

    torch.manual_seed(0)
    model = Theirs(K, solver, seed=0)
    Z, D = model.fit(SIGNED, 200)
    assert (SIGNED - Z @ D).norm() < 0.9 * SIGNED.norm()
    assert model.encode(SIGNED[:5]).shape == (5, K)

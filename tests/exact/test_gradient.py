"""The gradient of exact codes: that of finite differences, for every solver, any number of times,
under autocast, in inference mode and after changes of the model; what has none says so."""

from __future__ import annotations

import pytest
import torch
from fits import nmf
from oracle import relative_difference
from torch.autograd import forward_ad

from fastnmf import NMF, InvalidInput, nnls
from fastnmf.backends.registry import select
from fastnmf.exact.gradient import solve_on_supports
from fastnmf.solvers.registry import SOLVERS

K, D_IN, N = 5, 9, 6
GENERATOR = torch.Generator().manual_seed(0)
D = torch.rand(K, D_IN, generator=GENERATOR, dtype=torch.float64)
A = torch.rand(N, D_IN, generator=GENERATOR, dtype=torch.float64) + 0.05
Z0 = torch.rand(N, K, generator=GENERATOR, dtype=torch.float64)
WEIGHTS = torch.randn(N, K, generator=GENERATOR, dtype=torch.float64)
OPS = select(SOLVERS["anls"].operations, torch.device("cpu"), "auto")[1]


def model(solver="hals", dtype=torch.float64, **options):
    return nmf(K, solver=solver, **options).load_dictionary(D.to(dtype))


def gradient(encoder, X=A, around=None, **options):
    """Of a weighted sum of codes; the backward pass runs in the context `around`."""
    X = X.detach().clone().requires_grad_()
    value = (encoder.encode(X, **options) * WEIGHTS.to(X.dtype)).sum()
    if around is None:
        return torch.autograd.grad(value, X)[0]
    with around:
        return torch.autograd.grad(value, X)[0]


def by_differences(encoder, **options):
    numeric, step = torch.empty_like(A), 1e-6
    for i, j in torch.cartesian_prod(torch.arange(N), torch.arange(D_IN)).tolist():
        shift = torch.zeros_like(A)
        shift[i, j] = step
        up, down = (encoder.encode(A + sign * shift, **options) for sign in (1, -1))
        numeric[i, j] = ((up - down) * WEIGHTS).sum() / (2 * step)
    return numeric


PENALTIES = [{}, {"alpha_Z": 0.01, "l1_ratio": 0.5}]
# K < d, on dense supports; K > d, on few concepts of many
SIZES = [(5, 9), (14, 6)]


def problem_of(K, d, seed=1):
    generator = torch.Generator().manual_seed(seed)
    D = torch.rand(K, d, generator=generator, dtype=torch.float64) ** 2
    return torch.rand(4, d, generator=generator, dtype=torch.float64) + 0.05, D


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("options", [{}, {"max_iter": 1}, {"max_iter": 0}], ids=str)
@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
def test_gradient_agrees_with_finite_differences(solver, options, penalties):
    """Without an iteration it is that of the start."""
    encoder = model(solver, **penalties)
    expected = by_differences(encoder, **options)
    assert expected.any()
    assert relative_difference(gradient(encoder, **options), expected) <= 1e-5


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
@pytest.mark.parametrize("method", ["auto", "exact"])
def test_first_and_second_derivatives_of_encode_are_right(solver, size, penalties, method):
    A, D = problem_of(*size)
    encoder = NMF(len(D), solver=solver, **penalties).load_dictionary(D)
    Z = encoder.encode(A)
    assert ((Z > 0).any(1) & (Z == 0).any(1)).any()
    A.requires_grad_()
    assert torch.autograd.gradcheck(lambda X: encoder.encode(X, method=method), A, atol=1e-6)
    # in a random direction, where the solver gives the start alone
    fast = (solver, method) != ("hals", "exact")
    assert torch.autograd.gradgradcheck(
        lambda X: encoder.encode(X, method=method).square(), A, atol=1e-6, fast_mode=fast
    )


def test_gradient_takes_memory_of_the_supports_alone():
    kept, encoder, X = [], model(dtype=torch.float32), A.float().requires_grad_()

    def pack(saved):
        kept.append(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
        encoder.encode(X)
    sizes = sorted(saved.numel() * saved.itemsize for saved in kept)
    # an entry of a support is a byte; and D
    assert sizes == [N * K, 4 * K * D_IN]


@pytest.mark.parametrize("penalties", PENALTIES, ids=str)
def test_gradient_on_many_concepts_is_that_of_each_row(penalties, monkeypatch):
    """Rows with supports of many sizes, solved in groups, with and without all of D Dᵀ."""
    generator = torch.Generator().manual_seed(0)
    D = torch.rand(120, 40, generator=generator, dtype=torch.float64) ** 3
    X = torch.rand(50, 40, generator=generator, dtype=torch.float64) ** 2
    X[3] = 0
    weights = torch.randn(50, 120, generator=generator, dtype=torch.float64)
    encoder = NMF(120, **penalties).load_dictionary(D)
    l2 = 40 * 0.005 if penalties else 0.0
    expected = torch.zeros_like(X)
    for i, z in enumerate(encoder.encode(X)):
        used = D[z > 0]
        system = used @ used.T + l2 * torch.eye(len(used), dtype=D.dtype)
        expected[i] = used.T @ torch.linalg.solve(system, weights[i, z > 0])
    for scratch in (1 << 22, 1):
        monkeypatch.setattr("fastnmf.backends.nnls.on_supports._SCRATCH", scratch)
        X.grad = None
        (encoder.encode(X.requires_grad_()) * weights).sum().backward()
        torch.testing.assert_close(X.grad, expected, rtol=1e-9, atol=1e-11)
        X = X.detach()


def test_gradient_where_concepts_in_use_depend_on_each_other_is_that_of_least_norm():
    used = torch.ones(3, 4, dtype=torch.bool)
    concepts = D[:4].clone()
    concepts[3] = concepts[1]
    R = WEIGHTS[:3, :4]
    found = solve_on_supports(R, concepts, used, 0.0, OPS)
    expected = R @ torch.linalg.pinv(concepts @ concepts.T, rtol=1e-10, hermitian=True)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradient_of_a_given_start_without_iterations_is_zero(solver):
    """The codes are constant then; torch raised."""
    assert not gradient(model(solver), Z0=Z0, max_iter=0).any()
    assert torch.equal(gradient(model(solver), Z0=Z0) != 0, gradient(model(solver)) != 0)


def test_sweeps_alone_have_no_gradient():
    with pytest.raises(InvalidInput, match="A requires a gradient, and method='sweeps' has none"):
        gradient(model(), method="sweeps")
    with torch.no_grad():
        model().encode(A.clone().requires_grad_(), method="sweeps")


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradient_is_not_computed_in_16_bits_under_autocast(solver, dtype):
    """Those of bfloat16 were up to 2 % off, and anls raised."""
    encoder, X = model(solver, dtype), A.to(dtype)
    expected = gradient(encoder, X)
    assert torch.equal(gradient(encoder, X, torch.autocast("cpu", torch.bfloat16)), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient(encoder, X), expected)


def test_gradient_of_decode_under_autocast_is_that_of_decode():
    expected, codes = None, Z0.float().requires_grad_()
    for context in (torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)):
        with context(), torch.enable_grad():
            B = model(dtype=torch.float32).decode(codes)
        (found,) = torch.autograd.grad(B.square().sum(), codes)
        expected = found if expected is None else expected
        assert torch.equal(found, expected)


@pytest.mark.parametrize("solver", SOLVERS)
def test_backward_refuses_a_dictionary_that_was_changed_in_place_since(solver):
    """The gradient was that of other codes than were returned: 60 % off."""
    encoder, X = model(solver), A.clone().requires_grad_()
    codes = encoder.encode(X)
    encoder.D.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        codes.sum().backward()


@pytest.mark.parametrize("solver", SOLVERS)
def test_gradient_does_not_change_with_a_start_or_data_that_are_written_to(solver):
    encoder, start, X = model(solver), Z0.clone(), A.clone().requires_grad_()
    given = X * 1
    codes = encoder.encode(given, Z0=start)
    start.mul_(2)
    given.detach().mul_(2)
    (codes * WEIGHTS).sum().backward()
    torch.testing.assert_close(X.grad, gradient(encoder))


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "change",
    [
        lambda encoder: encoder.load_state_dict({"D": D * 3}),
        lambda encoder: encoder.load_dictionary(D * 3),
        lambda encoder: encoder.fit(A, 2),
        lambda encoder: encoder.float(),
    ],
)
def test_gradient_is_that_of_the_dictionary_that_codes_were_computed_with(solver, change):
    encoder, X = model(solver, seed=0), A.clone().requires_grad_()
    expected = gradient(encoder)
    codes = encoder.encode(X)
    change(encoder)
    (codes * WEIGHTS).sum().backward()
    assert torch.equal(X.grad, expected)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["encode", "nnls", "Z0"])
def test_forward_mode_is_refused(solver, name):
    """The tangent was dropped without a word."""
    encoder = model(solver)
    with forward_ad.dual_level():
        X, start = (forward_ad.make_dual(F, torch.ones_like(F)) for F in (A, Z0))
        calls = {
            "encode": lambda: encoder.encode(X),
            "nnls": lambda: nnls(X, D),
            "Z0": lambda: encoder.encode(A, Z0=start),
        }
        with pytest.raises(InvalidInput, match=r"tangent.*backward\(\)"):
            calls[name]()


def test_decode_follows_forward_mode():
    with forward_ad.dual_level():
        codes = forward_ad.make_dual(Z0, torch.ones_like(Z0))
        tangent = forward_ad.unpack_dual(model().decode(codes)).tangent
    torch.testing.assert_close(tangent, torch.ones_like(Z0) @ D)


TRANSFORMS = {
    "vmap": lambda function: torch.func.vmap(function)(A[:, None]),
    "grad": lambda function: torch.func.grad(lambda X: function(X).sum())(A),
    "jacrev": lambda function: torch.func.jacrev(function)(A),
    "jvp": lambda function: torch.func.jvp(function, (A,), (A,)),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("call", ["encode", "nnls", "fit", "partial_fit", "Z0"])
def test_transforms_of_torch_func_are_refused(transform, call):
    encoder = model(seed=0)
    calls = {
        "encode": encoder.encode,
        "nnls": lambda X: nnls(X, D),
        "fit": lambda X: encoder.fit(X, 1)[0],
        "partial_fit": lambda X: encoder.partial_fit(X).D,
        "Z0": lambda X: encoder.encode(A, Z0=X[..., :K]),
    }
    with pytest.raises(InvalidInput, match=r"torch\.func.*torch\.autograd\.functional\.jacobian"):
        TRANSFORMS[transform](calls[call])


def test_transforms_of_torch_func_go_through_decode():
    decode = model().decode
    assert torch.equal(torch.func.vmap(decode)(Z0[:, None])[:, 0], Z0 @ D)
    expected = (torch.ones(N, D_IN, dtype=D.dtype) @ D.T).expand_as(Z0)
    torch.testing.assert_close(torch.func.grad(lambda F: decode(F).sum())(Z0), expected)
    jacobian = torch.func.jacrev(decode)(Z0[0])
    torch.testing.assert_close(jacobian, D.T)


def test_jacobian_by_autograd_is_right():
    """What the message of torch.func advises."""
    encoder = model("anls")
    jacobian = torch.autograd.functional.jacobian(encoder.encode, A[:2])
    expected = torch.zeros_like(jacobian)
    for i, j in ((0, 3), (1, 7)):
        shift = torch.zeros_like(A[:2])
        shift[i, j] = 1e-6
        expected = (encoder.encode(A[:2] + shift) - encoder.encode(A[:2] - shift)) / 2e-6
        torch.testing.assert_close(jacobian[:, :, i, j], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("which", ["D", "Z0"])
def test_encode_refuses_a_gradient_with_respect_to_anything_but_the_data(which):
    """It was dropped without a word."""
    encoder, start = model(), Z0.clone()
    (encoder.D if which == "D" else start).requires_grad_()
    with pytest.raises(InvalidInput, match=rf"{which} requires a gradient.*{which}\.detach\(\)"):
        encoder.encode(A, Z0=start)
    with torch.no_grad():
        assert not encoder.encode(A, Z0=start).requires_grad


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("top_k", [None, 2])
def test_first_and_second_derivatives_of_nnls_are_right_in_data_and_dictionary(size, signed, top_k):
    """They were refused."""
    A, D = problem_of(*size)
    if signed:
        A, D = A - 0.3, D - 0.2
    D[1] = 0
    given = A.requires_grad_(), D.requires_grad_()
    # a zero concept enters with any slope: it has no derivative
    alive = torch.ones(len(D), 1, dtype=D.dtype)
    alive[1] = 0
    function = lambda A, D: nnls(A, D * alive, top_k=top_k)  # noqa: E731
    assert torch.autograd.gradcheck(function, given, atol=1e-6)
    square = lambda A, D: function(A, D).square()  # noqa: E731
    assert torch.autograd.gradgradcheck(square, given, atol=1e-5, fast_mode=signed)
    for which in given:
        (one,) = torch.autograd.grad(function(*given).sum(), which)
        detached = [M if M is which else M.detach() for M in given]
        assert torch.equal(torch.autograd.grad(function(*detached).sum(), which)[0], one)


def test_nnls_gradient_has_the_dtype_of_what_it_is_of():
    half = A.half().requires_grad_()
    concepts = D.float().requires_grad_()
    nnls(half, concepts).sum().backward()
    assert half.grad.dtype == torch.float16
    wide = A.half().float().requires_grad_()
    nnls(wide, D.float().numpy()).sum().backward()
    torch.testing.assert_close(half.grad, wide.grad.half())
    assert concepts.grad.abs().sum() > 0
    with torch.no_grad():
        assert not nnls(half, concepts).requires_grad
    codes = nnls(wide, concepts)
    with torch.no_grad():
        concepts.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        codes.sum().backward()


def test_nnls_refuses_a_gradient_in_its_start():
    with pytest.raises(InvalidInput, match=r"Z0 requires a gradient.*Z0\.detach\(\)"):
        nnls(A, D, Z0.clone().requires_grad_())


@pytest.mark.parametrize(("dtype", "least"), [(torch.float32, 1e-2), (torch.float64, 1e-9)])
@pytest.mark.parametrize(("K", "d", "seed"), [(30, 60, 0), (20, 64, 1), (12, 20, 3), (10, 50, 4)])
def test_gradient_on_similar_concepts_is_that_of_the_optimum(K, d, seed, dtype, least):
    """Where that of sweeps was a tenth off."""
    generator = torch.Generator().manual_seed(seed)
    D = torch.rand(K, d, generator=generator)
    A = torch.rand(30, K, generator=generator) @ D + 0.05 * torch.rand(30, d, generator=generator)
    wide, codes = D.double(), nnls(A.double(), D.double())
    expected = torch.zeros_like(A, dtype=torch.float64)
    for i, z in enumerate(codes):
        used = wide[z > 0]
        expected[i] = used.T @ torch.linalg.solve(used @ used.T, 2 * z[z > 0])
    X = A.to(dtype).requires_grad_()
    NMF(K).load_dictionary(D.to(dtype)).encode(X).square().sum().backward()
    assert float((X.grad - expected).norm() / expected.norm()) < least

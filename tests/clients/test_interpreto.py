"""The calls that interpreto 0.5 makes of its copy of Overcomplete's models: explainers construct,
fit, encode, decode, move and measure a concept model."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

import fastnmf

pytest.importorskip(
    "interpreto",
    reason="interpreto is not installed: pip install 'fastnmf[clients]'",
    exc_type=ImportError,
)

K = 4
ACTIVATIONS = torch.rand(60, 12, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def made():
    """made(name, **options): an explainer of interpreto whose concept model is fastnmf's."""
    from interpreto import concepts

    fastnmf.patch_overcomplete()

    def make(name, **options):
        # what splits a language model: activations are given here
        splitter = mock.Mock(spec=concepts.splitters.base_splitter.BaseSplitter)
        return getattr(concepts, name)(splitter, nb_concepts=K, **options)

    try:
        yield make
    finally:
        fastnmf.unpatch_overcomplete()


def of_class(explainer):
    """The class of the concept model, and whether it is one of the copy's."""
    names = {f"{cls.__module__}.{cls.__name__}" for cls in type(explainer.concept_model).__mro__}
    vendored = "interpreto._vendor.overcomplete.base.BaseDictionaryLearning"
    ours = {"SemiNMFConcepts": fastnmf.SemiNMF, "ConvexNMFConcepts": fastnmf.ConvexNMF}
    ours = ours.get(type(explainer).__name__, fastnmf.NMF)
    return isinstance(explainer.concept_model, ours), vendored in names


@pytest.mark.parametrize("name", ["NMFConcepts", "Cockatiel"])
def test_explainer_is_fitted_by_fastnmf(made, name):
    explainer = made(name, device="cpu", seed=0)
    assert of_class(explainer) == (True, True)
    assert not explainer.concept_model.fitted
    explainer.fit(ACTIVATIONS)
    assert torch.equal(explainer.get_dictionary(), fastnmf.NMF(K, seed=0).fit(ACTIVATIONS)[1])
    codes = explainer.activations_to_concepts(ACTIVATIONS)
    rebuilt = explainer.concepts_to_activations(codes)
    assert (codes >= 0).all()
    assert rebuilt.shape == ACTIVATIONS.shape
    assert (rebuilt - ACTIVATIONS).norm() <= 0.5 * ACTIVATIONS.norm()


def test_signed_activations_are_fitted_by_semi_nmf(made):
    signed = ACTIVATIONS - 0.5
    explainer = made("SemiNMFConcepts", device="cpu", seed=0)
    assert of_class(explainer) == (True, True)
    assert not explainer.is_fitted
    explainer.fit(signed)
    assert explainer.is_fitted
    assert torch.equal(explainer.get_dictionary(), fastnmf.SemiNMF(K, seed=0).fit(signed)[1])
    codes = explainer.activations_to_concepts(signed)
    rebuilt = explainer.concepts_to_activations(codes)
    assert (codes >= 0).all()
    assert (rebuilt - signed).norm() <= 0.9 * signed.norm()
    # as concept_output_gradient does: codes are leaves, and the decoder is differentiated
    codes.requires_grad_()
    explainer.concepts_to_activations(codes).sum().backward()
    expected = explainer.get_dictionary().sum(1).expand(len(signed), -1)
    assert torch.allclose(codes.grad, expected, atol=1e-5)


def test_semi_nmf_takes_overcompletes_options(made):
    explainer = made("SemiNMFConcepts", solver="mu", tol=0, l1_penalty=0.0, verbose=False)
    explainer.fit(ACTIVATIONS - 0.5, max_iter=7)
    info = explainer.concept_model.fit_info_
    assert (info.solver, info.iterations) == ("mu", 7)


def test_mixtures_of_rows_are_fitted_by_convex_nmf(made):
    signed = ACTIVATIONS - 0.5
    # interpreto sets solver="mu"
    explainer = made("ConvexNMFConcepts", device="cpu", seed=0, strict_convex=True)
    assert of_class(explainer) == (True, True)
    explainer.fit(signed, max_iter=30)
    model = explainer.concept_model
    assert (model.fit_info_.solver, model.fit_info_.iterations) == ("mu", 30)
    dictionary = explainer.get_dictionary()
    assert torch.allclose(model.W @ signed, dictionary, atol=1e-5)
    assert torch.allclose(model.W.sum(1), torch.ones(K), atol=1e-5)
    codes = explainer.activations_to_concepts(signed)
    rebuilt = explainer.concepts_to_activations(codes)
    assert (codes >= 0).all()
    assert (rebuilt - signed).norm() <= 0.95 * signed.norm()
    codes.requires_grad_()
    explainer.concepts_to_activations(codes).sum().backward()
    assert torch.allclose(codes.grad, dictionary.sum(1).expand(len(signed), -1), atol=1e-5)


def test_options_of_the_model_and_of_fit_are_passed_on(made):
    explainer = made("NMFConcepts", solver="mu", tol=0)
    explainer.fit(ACTIVATIONS, max_iter=7)
    info = explainer.concept_model.fit_info_
    assert (info.solver, info.iterations) == ("mu", 7)


def test_negative_activations_are_refused_or_set_to_zero_by_interpreto(made):
    with pytest.raises(ValueError, match="force_relu"):
        made("NMFConcepts").fit(-ACTIVATIONS)
    explainer = made("NMFConcepts", force_relu=True, seed=0)
    explainer.fit(ACTIVATIONS - 0.5)
    expected = fastnmf.NMF(K, seed=0).fit((ACTIVATIONS - 0.5).relu())[1]
    assert torch.equal(explainer.get_dictionary(), expected)


def test_concept_model_is_moved_before_and_after_the_fit(made):
    explainer = made("NMFConcepts", seed=0)
    explainer.to("cpu")
    assert explainer.device == torch.device("cpu")
    explainer.fit(ACTIVATIONS)
    explainer.to("cpu")
    assert explainer.device == torch.device("cpu")
    assert explainer.activations_to_concepts(ACTIVATIONS).device.type == "cpu"


def test_metrics_of_interpreto_read_the_concept_model(made):
    from interpreto.concepts import metrics

    explainer = made("NMFConcepts", seed=0)
    explainer.fit(ACTIVATIONS)
    used = (explainer.activations_to_concepts(ACTIVATIONS) > 0).float().mean().item()
    assert metrics.Sparsity(explainer).compute(ACTIVATIONS) == pytest.approx(used)
    ratio = metrics.SparsityRatio(explainer).compute(ACTIVATIONS)
    assert ratio == pytest.approx(used / explainer.concept_model.nb_concepts)


def test_explainer_made_after_the_patch_is_taken_away_is_interpretos_own(made):
    fastnmf.unpatch_overcomplete()
    assert of_class(made("NMFConcepts")) == (False, True)
    assert of_class(made("SemiNMFConcepts")) == (False, True)

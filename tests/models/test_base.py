"""The dictionary as a buffer of a torch module: what load_state_dict refuses, and that it changes
nothing then; moves to the meta device."""

from __future__ import annotations

import pytest
import torch

from fastnmf import NMF, NotFitted

STATE = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
WRONG_STATES = {
    "negative": (-STATE, r"negative.*row 0, column 0"),
    "nan": (torch.full((3, 5), torch.nan), "nan or inf"),
    "inf": (torch.full((3, 5), torch.inf), "nan or inf"),
    "complex": (STATE.to(torch.complex64), "complex64"),
    "sparse": (STATE.to_sparse(), "sparse"),
    "meta": (STATE.to("meta"), "meta device"),
    "rows": (torch.rand(4, 5), r"D has 4 rows, and the model has 3 concepts"),
    "vector": (torch.rand(3), r"shape \(3,\)"),
    "three": (torch.rand(3, 2, 5), r"shape \(3, 2, 5\)"),
    "no features": (torch.rand(3, 0), "no features"),
    "no rows": (torch.rand(0, 5), "no rows"),
    "list": ([[1.0]], "list"),
}


class Parent(torch.nn.Module):
    def __init__(self, child):
        super().__init__()
        self.layer, self.child = torch.nn.Linear(2, 2), child


def learned():
    model = NMF(3, seed=0)
    model.fit(torch.rand(20, 5))
    return model.partial_fit(torch.rand(9, 5))


@pytest.mark.parametrize("wrong", WRONG_STATES)
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("made", [learned, lambda: NMF(3)], ids=["fitted", "new"])
def test_load_state_dict_refuses_what_load_dictionary_refuses_and_changes_nothing(
    wrong, assign, made
):
    """Most were accepted, and those that raised had replaced D already."""
    state, message = WRONG_STATES[wrong]
    model = made()
    before, kept = dict(vars(model)), None if model.D is None else model.D.clone()
    for load, given in (
        (model.load_state_dict, {"D": state}),
        (Parent(model).load_state_dict, Parent(NMF(3)).state_dict() | {"child.D": state}),
    ):
        with pytest.raises(RuntimeError, match=rf"(?s)D cannot be loaded.*{message}"):
            load(given, assign=assign)
        with pytest.raises(RuntimeError, match=message):
            load(given, strict=False, assign=assign)
    assert vars(model) == before
    assert kept is None or torch.equal(model.D, kept)


@pytest.mark.parametrize("given", [{"D": STATE, "other": STATE}, {"other": STATE}, {}])
def test_load_state_dict_with_wrong_keys_changes_nothing(given):
    model = learned()
    before, D = dict(vars(model)), model.D
    with pytest.raises(RuntimeError, match="other" if given else r'Missing key.*"D"') as raised:
        model.load_state_dict(given)
    assert ("Missing" in str(raised.value)) == ("D" not in given)
    assert vars(model) == before
    assert model.D is D
    result = model.load_state_dict(given, strict=False)
    assert result.unexpected_keys == (["other"] if given else [])
    assert torch.equal(model.D, STATE if "D" in given else D)


@pytest.mark.parametrize("made", [learned, lambda: NMF(3)], ids=["fitted", "new"])
def test_loaded_state_is_a_copy_and_assigned_state_is_itself(made):
    model, D = made(), STATE.double()
    assert model.load_state_dict({"D": D}) == ([], [])
    fitted = made().D is not None
    # torch keeps the dtype that the module has
    assert model.D.dtype == (torch.float32 if fitted else torch.float64)
    assert model.D.data_ptr() != D.data_ptr()
    assert (model.fitted, model.online_info_, model.fit_info_) == (True, None, None)
    assert model._gram is None
    model.load_state_dict({"D": D}, assign=True)
    assert model.D.data_ptr() == D.data_ptr()


def test_state_loads_into_the_child_of_another_module():
    model, parent = learned(), Parent(NMF(3))
    parent.load_state_dict(Parent(model).state_dict())
    assert torch.equal(parent.child.D, model.D)
    assert parent.child.fitted
    assert list(parent.state_dict()) == ["layer.weight", "layer.bias", "child.D"]


def test_subclass_with_parameters_of_its_own_loads_them_beside_the_dictionary():
    class Mine(NMF):
        def __init__(self, nb_concepts):
            super().__init__(nb_concepts)
            self.weight = torch.nn.Parameter(torch.zeros(2))
            self.layer = torch.nn.Linear(2, 2)

    model, other = Mine(3).load_dictionary(STATE), Mine(3)
    model.weight.data += 1
    other.load_state_dict(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


def test_model_on_meta_has_no_dictionary_until_values_are_assigned():
    """It called itself fitted, with values that were never set."""
    model = NMF(3).load_dictionary(STATE).to("meta")
    for call in (lambda: model.encode(STATE), lambda: model.decode(STATE[:, :3]), model.save):
        with pytest.raises(NotFitted, match=r"meta device.*assign=True"):
            call("m.safetensors") if call == model.save else call()
    with pytest.raises(RuntimeError, match=r"meta device.*assign=True"):
        model.load_state_dict({"D": STATE})
    model.load_state_dict({"D": STATE}, assign=True)
    assert model.encode(STATE).device.type == "cpu"
    assert torch.device(model.device).type == "cpu"


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize("first", ["cpu", "meta"])
def test_model_without_values_is_not_fitted(parent, first):
    """to_empty leaves what was in the memory."""
    if parent and first == "cpu":
        pytest.skip("a parent gives its children no sign of it")
    model = learned().to(first)
    (Parent(model) if parent else model).to_empty(device="cpu")
    assert not model.fitted
    with pytest.raises(NotFitted):
        model.encode(STATE)
    model.load_state_dict({"D": STATE})
    assert torch.equal(model.get_dictionary(), STATE)

"""The patch: which names it binds and restores, which classes are instances of which, and how
patched models are copied and saved.

Most tests use a small package written here in the place of Overcomplete; a few use the real one
where it is installed.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import io
import logging
import pickle
import sys
import textwrap
import threading

import pytest
import torch

import fastnmf
from fastnmf import is_patched, patch_overcomplete, unpatch_overcomplete

PACKAGES = ("overcomplete", "interpreto", "their_code", "their_late_code")

SOURCES = {
    "__init__.py": "from .optimization import NMF, ConvexNMF, SemiNMF",
    "base.py": """
        from abc import ABC, abstractmethod
        from torch import nn

        class BaseDictionaryLearning(ABC, nn.Module):
            constructed = 0

            def __init__(self, nb_concepts, device="cpu"):
                super().__init__()
                type(self).constructed += 1
                self.nb_concepts, self.device = nb_concepts, device
                self.fitted, self._fitted_info = False, {}

            @abstractmethod
            def fit(self, x): ...

        class BaseOptimDictionaryLearning(BaseDictionaryLearning):
            pass
        """,
    "optimization/__init__.py": """
        from ..base import BaseOptimDictionaryLearning
        from .convex_nmf import ConvexNMF
        from .nmf import NMF
        from .semi_nmf import SemiNMF
        """,
    "optimization/convex_nmf.py": """
        import torch
        from ..base import BaseOptimDictionaryLearning

        def slow(A, Z, W, **given):
            return Z, W

        class ConvexNMF(BaseOptimDictionaryLearning):
            _SOLVERS = {"mu": slow, "pgd": print}

            def __init__(
                self, nb_concepts, device="cpu", tol=1e-4, strict_convex=False, solver="pgd",
                verbose=False, l1_penalty=0.0,
            ):
                super().__init__(nb_concepts, device)
                self.solver, self.solver_fn = solver, self._SOLVERS[solver]
                self.tol, self.verbose, self.l1_penalty = tol, verbose, l1_penalty
                self.strict_convex = strict_convex

            def fit(self, A):
                self.register_buffer("W", torch.eye(self.nb_concepts, len(A)))
                self.register_buffer("D", self.W @ A)
                self.fitted = True
        """,
    "optimization/nmf.py": """
        from ..base import BaseOptimDictionaryLearning

        def slow(A, Z, D):
            return Z, D

        class NMF(BaseOptimDictionaryLearning):
            _SOLVERS = {"hals": slow, "mu": slow, "pgd": slow, "anls": slow}

            def __init__(self, nb_concepts, device="cpu", solver="hals", tol=1e-4, verbose=False):
                super().__init__(nb_concepts, device)
                self.solver, self.solver_fn = solver, self._SOLVERS[solver]
                self.tol, self.verbose = tol, verbose
                self.register_buffer("D", None)

            def fit(self, A):
                self.D = A[: self.nb_concepts].clone()
                self.fitted = True
        """,
    "optimization/semi_nmf.py": """
        import torch
        from ..base import BaseOptimDictionaryLearning

        def slow(A, Z, D):
            return Z, D

        class SemiNMF(BaseOptimDictionaryLearning):
            _SOLVERS = {"mu": slow, "pgd": print}

            def __init__(
                self, nb_concepts, solver="mu", device="cpu", tol=1e-4, l1_penalty=0.0,
                verbose=False,
            ):
                super().__init__(nb_concepts, device)
                self.solver_fn, self.l1_penalty = self._SOLVERS[solver], l1_penalty
                self.tol, self.verbose = tol, verbose
                self.register_buffer("D", None)

            def fit(self, A):
                self.D = A[: self.nb_concepts].clone()
                self.fitted = True
        """,
}


def write(folder, sources):
    for name, source in sources.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An import folder before all others, with nothing of PACKAGES imported yet."""

    def ours(name):
        return name.partition(".")[0] in PACKAGES

    kept = {name: module for name, module in sys.modules.items() if ours(name)}
    for name in kept:
        del sys.modules[name]
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    unpatch_overcomplete()
    for name in list(filter(ours, sys.modules)):
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.fixture
def library(site):
    write(site / "overcomplete", SOURCES)
    write(
        site,
        {
            "their_code.py": """
                from overcomplete import ConvexNMF as Mixed, NMF as OcNMF, SemiNMF as Signed
                """,
            "their_late_code.py": """
                import torch
                from overcomplete.optimization.nmf import NMF
                from overcomplete.optimization.semi_nmf import SemiNMF

                class Mine(NMF):
                    pass

                class Own(SemiNMF):
                    _SOLVERS = {**SemiNMF._SOLVERS, "mine": len}

                    def __init__(self, name, weight=0.5, solver="mine"):
                        super().__init__(3, solver)
                        self.name = name
                        self.register_buffer("counts", torch.ones(2))
                        self.head = torch.nn.Linear(2, 1)
                """,
        },
    )
    import overcomplete

    return overcomplete


@pytest.fixture
def interpreto_folder(site):
    folder = site / "interpreto"
    write(folder / "_vendor/overcomplete", SOURCES)
    write(folder, {"__init__.py": "from interpreto._vendor.overcomplete import optimization"})
    return folder


@pytest.fixture
def real():
    try:
        import overcomplete
    except (ImportError, AttributeError) as error:
        pytest.skip(f"Overcomplete cannot be imported here: {error}")
    yield overcomplete
    unpatch_overcomplete()


def fitted_model(library, name="NMF", **options):
    model = getattr(library, name)(3, **options)
    model.fit(torch.rand(12, 6, generator=torch.Generator().manual_seed(0)))
    return model


MODELS = [fastnmf.NMF, fastnmf.SemiNMF, fastnmf.ConvexNMF]
NAMES = [model.__name__ for model in MODELS]
# of the real library
OF_THE_LIBRARY = [
    *(f"overcomplete.{name}" for name in NAMES),
    *(f"overcomplete.optimization.{name}" for name in NAMES),
    "overcomplete.optimization.nmf.NMF",
    "overcomplete.optimization.semi_nmf.SemiNMF",
    "overcomplete.optimization.convex_nmf.ConvexNMF",
]
OF_THEIRS = ["their_code.OcNMF", "their_code.Signed", "their_code.Mixed"]
EVERYWHERE = sorted([*OF_THE_LIBRARY, *OF_THEIRS])
each_model = pytest.mark.parametrize("ours", MODELS, ids=NAMES)


def lookup(names):
    pairs = [name.rpartition(".") for name in names]
    return [getattr(sys.modules[module], name) for module, _, name in pairs]


def test_patch_binds_every_name_and_unpatch_restores_it(library):
    import their_code  # noqa: F401

    before = lookup(EVERYWHERE)
    assert sorted(patch_overcomplete()) == EVERYWHERE
    assert is_patched()
    assert set(lookup(EVERYWHERE)) == {getattr(library, name) for name in NAMES}
    for cls, model in zip(lookup(OF_THEIRS), MODELS, strict=True):
        assert issubclass(cls, model)
    assert set(before).isdisjoint(lookup(EVERYWHERE))
    assert sorted(unpatch_overcomplete()) == EVERYWHERE
    assert not is_patched()
    assert lookup(EVERYWHERE) == before


def test_patch_imports_the_library_itself(site):
    write(site / "overcomplete", SOURCES)
    assert "overcomplete" not in sys.modules
    assert "overcomplete.NMF" in patch_overcomplete()


def test_patch_and_unpatch_twice_are_as_once(library):
    original = library.NMF
    first = patch_overcomplete()
    stand_in = library.NMF
    assert patch_overcomplete() == first
    assert library.NMF is stand_in
    unpatch_overcomplete()
    assert unpatch_overcomplete() == []
    assert library.NMF is original
    patch_overcomplete()
    assert library.NMF is stand_in


def test_unpatch_without_patch_does_nothing(library):
    original = library.NMF
    assert unpatch_overcomplete() == []
    assert library.NMF is original


def test_second_patch_finds_what_has_come_since(library):
    original = library.NMF
    patch_overcomplete()
    import their_code

    their_code.Hidden = original
    assert "their_code.Hidden" in patch_overcomplete()
    unpatch_overcomplete()
    assert their_code.Hidden is original


def test_code_imported_after_the_patch_gets_the_fast_class_and_loses_it(library):
    original = library.NMF
    patch_overcomplete()
    import their_late_code

    assert issubclass(their_late_code.NMF, fastnmf.NMF)
    assert issubclass(their_late_code.SemiNMF, fastnmf.SemiNMF)
    unpatch_overcomplete()
    assert their_late_code.NMF is original
    assert not issubclass(their_late_code.SemiNMF, fastnmf.SemiNMF)


@each_model
def test_library_imported_anew_gets_the_fast_class(library, ours):
    patch_overcomplete()
    for name in list(sys.modules):
        if name.partition(".")[0] == "overcomplete":
            del sys.modules[name]
    again = importlib.import_module("overcomplete")
    assert again is not library
    name = ours.__name__
    assert issubclass(getattr(again, name), ours)
    assert getattr(again.optimization, name) is getattr(again, name)
    unpatch_overcomplete()
    assert not issubclass(getattr(again, name), ours)


def test_library_without_a_module_is_patched_but_for_that(site):
    older = {"optimization/__init__.py": "from .nmf import NMF", "__init__.py": ""}
    sources = {name: text for name, text in SOURCES.items() if "semi" not in name}
    write(site / "overcomplete", {**sources, **older})
    assert sorted(patch_overcomplete()) == [
        "overcomplete.optimization.NMF",
        "overcomplete.optimization.nmf.NMF",
    ]
    assert fastnmf.overcomplete.SemiNMF is fastnmf.SemiNMF


@each_model
def test_patched_class_is_one_of_theirs(library, ours):
    name = ours.__name__
    original = getattr(library, name)
    patch_overcomplete()
    stand_in = getattr(library, name)
    model = stand_in(3)
    for cls in (
        ours,
        original,
        library.base.BaseDictionaryLearning,
        library.base.BaseOptimDictionaryLearning,
        torch.nn.Module,
    ):
        assert isinstance(model, cls)
    others = [getattr(library, other) for other in NAMES if other != name]
    assert not any(isinstance(model, other) for other in others)
    assert list(stand_in._SOLVERS) == ["hals", "mu", "pgd", "anls"]
    assert f"{stand_in.__module__}.{stand_in.__qualname__}" == f"fastnmf.overcomplete.{name}"
    assert stand_in.stands_in_for is original
    assert stand_in.__doc__ == ours.__doc__


@each_model
def test_models_made_before_are_left_alone_and_still_count(library, ours):
    name = ours.__name__
    original, before = getattr(library, name), getattr(library, name)(3)

    class Theirs(original):
        pass

    patch_overcomplete()
    assert type(before) is original
    stand_in = getattr(library, name)
    for model in (before, Theirs(3)):
        assert isinstance(model, stand_in)
        assert not isinstance(model, ours)
    assert not isinstance(ours(3), stand_in)

    class Later(stand_in):
        pass

    assert not isinstance(before, Later)
    assert isinstance(Later(3), ours)


def test_patched_semi_nmf_is_constructed_by_fastnmf_alone(library):
    patch_overcomplete()
    model = library.SemiNMF(3, "mu", "cpu", 1e-3, 0.25, True, max_iter=7)
    assert (model.nb_concepts, model.device, model.solver) == (3, "cpu", "mu")
    assert (model.tol, model.verbose, model.max_iter, model.fitted) == (1e-3, True, 7, False)
    assert model.l1_penalty == pytest.approx(0.25)
    assert library.SemiNMF.constructed == 0
    with pytest.raises(TypeError, match="no option 'max_itr'"):
        library.SemiNMF(3, max_itr=7)


def test_patched_model_is_constructed_by_fastnmf_alone(library):
    patch_overcomplete()
    model = library.NMF(3, "cpu", "mu", 1e-3, True, max_iter=7)
    assert (model.nb_concepts, model.device, model.solver) == (3, "cpu", "mu")
    assert (model.tol, model.verbose, model.max_iter, model.fitted) == (1e-3, True, 7, False)
    assert library.NMF.constructed == 0
    assert dict(model.named_buffers()) == {}
    with pytest.raises(TypeError, match="no option 'max_itr'"):
        library.NMF(3, max_itr=7)


@each_model
def test_patched_model_fits_and_encodes(library, ours):
    patch_overcomplete()
    A = torch.rand(12, 6, generator=torch.Generator().manual_seed(0))
    A = A - 0.5 if ours.constraint.signed else A
    model = getattr(library, ours.__name__)(3, seed=0)
    expected = ours(3, seed=0)
    Z, D = model.fit(A)
    assert torch.equal(Z, expected.fit(A)[0])
    assert torch.equal(D, model.get_dictionary())
    assert model.encode(A).shape == (12, 3)


@pytest.mark.parametrize(
    "travel",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("patched", [True, False], ids=["patched", "unpatched"])
@each_model
def test_patched_model_is_copied_whole(library, travel, patched, ours):
    patch_overcomplete()
    model = fitted_model(library, ours.__name__)
    if not patched:
        unpatch_overcomplete()
    again = travel(model)
    assert type(again) is type(model)
    assert torch.equal(again.D, model.D)
    assert again.fitted


def test_subclass_of_the_patched_class_pickles(library):
    patch_overcomplete()
    import their_late_code

    model = their_late_code.Mine(3)
    model.fit(torch.rand(12, 6))
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is their_late_code.Mine
    assert torch.equal(again.D, model.D)


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ("", "fastnmf.overcomplete True"),
        ("import fastnmf; fastnmf.patch_overcomplete()", "fastnmf.overcomplete True"),
        ("import sys; sys.modules['overcomplete'] = None", "fastnmf.models.{module} False"),
    ],
    ids=["unpatched", "patched", "without-overcomplete"],
)
@pytest.mark.parametrize("ours", [fastnmf.SemiNMF, fastnmf.NMF])
def test_saved_model_loads_in_a_fresh_process(library, site, before, expected, ours, fresh):
    patch_overcomplete()
    model = fitted_model(library, ours.__name__)
    expected = expected.format(module=ours.__module__.rpartition(".")[2])
    torch.save(model, site / "model.pt")
    code = f"""
        {before}
        import torch
        model = torch.load({str(site / "model.pt")!r}, weights_only=False)
        theirs = any(cls.__module__ == "overcomplete.base" for cls in type(model).__mro__)
        shape = tuple(model.encode(torch.rand(2, 6)).shape)
        print(type(model).__module__, theirs, shape, model.D.sum().item())
        """
    done = fresh(textwrap.dedent(code), paths=[site])
    assert done.stdout == f"{expected} (2, 3) {model.D.sum().item()}\n", done


def test_model_saved_by_the_library_loads_as_the_patched_class(library):
    model = fitted_model(library, solver="mu", tol=1e-3)
    fresh = library.NMF(4)
    saved = pickle.dumps([model.eval(), fresh])
    patch_overcomplete()
    again, fresh = pickle.loads(saved)
    assert type(again) is library.NMF
    assert (again.nb_concepts, again.solver, again.tol, again.training) == (3, "mu", 1e-3, False)
    assert torch.equal(again.D, model.D)
    assert again.encode(torch.rand(2, 6)).shape == (2, 3)
    assert not fresh.fitted
    assert fresh.D is None


def test_semi_nmf_saved_by_the_library_loads_as_the_patched_class(library):
    """It stores the function of its solver alone, not the name."""
    model = fitted_model(library, "SemiNMF", solver="pgd", l1_penalty=0.3, tol=1e-3)
    saved = pickle.dumps([model, library.SemiNMF(4)])
    patch_overcomplete()
    again, fresh = pickle.loads(saved)
    assert type(again) is library.SemiNMF
    assert (again.nb_concepts, again.solver, again.tol) == (3, "pgd", 1e-3)
    assert again.l1_penalty == pytest.approx(0.3)
    assert torch.equal(again.D, model.D)
    assert again.encode(-torch.rand(2, 6)).shape == (2, 3)
    assert (fresh.fitted, fresh.D, fresh.solver) == (False, None, "mu")


def test_convex_nmf_saved_by_the_library_loads_as_the_patched_class(library):
    model = fitted_model(library, "ConvexNMF", solver="mu", tol=1e-3, strict_convex=True)
    saved = pickle.dumps([model, library.ConvexNMF(4)])
    patch_overcomplete()
    again, fresh = pickle.loads(saved)
    assert type(again) is library.ConvexNMF
    assert (again.nb_concepts, again.solver, again.strict_convex) == (3, "mu", True)
    assert torch.equal(again.D, model.D)
    assert torch.equal(again.W, model.W)
    assert (fresh.fitted, fresh.D, fresh.solver) == (False, None, "pgd")


def test_patched_convex_nmf_has_a_dense_mixture_that_is_saved(library, tmp_path):
    """As Overcomplete's users read it: (W >= 0).all(), W.sum(1)."""
    patch_overcomplete()
    A = torch.rand(12, 6, generator=torch.Generator().manual_seed(0))
    model = library.ConvexNMF(3, "cpu", 1e-4, True, "mu", max_iter=20)
    _, D = model.fit(A)
    assert (model.W >= 0).all()
    assert torch.allclose(model.W.sum(1), torch.ones(3), atol=1e-5)
    assert torch.allclose(model.W @ A, D, atol=1e-5)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again.W, model.W)
    model.save(tmp_path / "model.safetensors")
    ours = fastnmf.ConvexNMF.load(tmp_path / "model.safetensors")
    assert ours.W.is_sparse
    assert torch.equal(ours.W.to_dense(), model.W)
    fresh = library.ConvexNMF(3)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.W, model.W)


def own_solver(A, Z, D, **given):
    return Z, D


def test_function_of_a_model_saved_by_the_library_is_kept(library):
    """The solver that its name means ran instead."""
    models = [fitted_model(library, name) for name in ("NMF", "SemiNMF")]
    for model in models:
        model.solver_fn = own_solver
    saved = pickle.dumps(models)
    patch_overcomplete()
    for again in pickle.loads(saved):
        assert again.solver_fn is own_solver
        assert torch.equal(again.encode(torch.rand(2, 6), Z0=torch.ones(2, 3)), torch.ones(2, 3))


def test_subclass_of_the_library_saved_loads_whole(library, fresh, site):
    """Its constructor was called with the arguments of NMF's, and what it has beside was lost."""
    import their_late_code

    model = their_late_code.Own("mine", weight=2.0)
    model.fit(torch.rand(12, 6))
    torch.save(model, site / "model.pt")
    code = f"""
        import fastnmf; fastnmf.patch_overcomplete()
        import torch
        model = torch.load({str(site / "model.pt")!r}, weights_only=False)
        print(type(model).__name__, isinstance(model, fastnmf.SemiNMF), model.name, model.solver)
        print(model.solver_fn is len, model.counts.tolist(), model.D.sum().item())
        print(model.head.weight.sum().item(), len(list(model.parameters())))
        """
    done = fresh(textwrap.dedent(code), paths=[site])
    assert done.stdout == (
        f"Own True mine mine\nTrue [1.0, 1.0] {model.D.sum().item()}\n"
        f"{model.head.weight.sum().item()} 2\n"
    ), done


def test_import_of_fastnmf_imports_nothing_of_theirs(fresh):
    code = """
        import fastnmf, fastnmf.overcomplete, sys
        print([name for name in sys.modules if name in ("overcomplete", "interpreto")])
        """
    done = fresh(textwrap.dedent(code))
    assert done.stdout == "[]\n", done


@each_model
def test_interpretos_copy_is_patched_on_its_own_bases(library, interpreto_folder, ours):
    import interpreto

    vendored, name = interpreto.optimization, ours.__name__
    original = getattr(vendored, name)
    names = patch_overcomplete()
    assert f"interpreto._vendor.overcomplete.optimization.{name}" in names
    assert f"overcomplete.optimization.{name}" in names
    stand_in = getattr(vendored, name)
    assert stand_in.__qualname__ == f"Interpreto{name}"
    model = stand_in(3)
    assert isinstance(model, vendored.BaseOptimDictionaryLearning)
    assert isinstance(model, original)
    assert not isinstance(model, getattr(library, name))
    assert type(pickle.loads(pickle.dumps(model))) is stand_in
    unpatch_overcomplete()
    assert getattr(vendored, name) is original


def test_interpretos_copy_is_patched_when_it_is_imported_later(library, interpreto_folder):
    patch_overcomplete()
    assert "interpreto" not in sys.modules
    import interpreto

    vendored = sys.modules["interpreto._vendor.overcomplete"]
    for module in (vendored, interpreto.optimization):
        assert issubclass(module.NMF, fastnmf.NMF)
        assert issubclass(module.SemiNMF, fastnmf.SemiNMF)
    unpatch_overcomplete()
    for module in (vendored, interpreto.optimization):
        assert not issubclass(module.NMF, fastnmf.NMF)
        assert not issubclass(module.SemiNMF, fastnmf.SemiNMF)


def test_interpretos_copy_is_not_patched_when_unpatched_before_the_import(
    library, interpreto_folder
):
    patch_overcomplete()
    unpatch_overcomplete()
    import interpreto

    assert not issubclass(interpreto.optimization.NMF, fastnmf.NMF)


@pytest.fixture
def without_overcomplete(site):
    sys.modules["overcomplete"] = None


@pytest.fixture
def without_interpreto(site):
    sys.modules["interpreto"] = None


def test_patch_says_what_to_install(without_overcomplete, without_interpreto):
    with pytest.raises(ImportError, match=r"pip install .* 'matplotlib<3.9'.*fastnmf.NMF"):
        patch_overcomplete()
    assert not is_patched()


def test_patch_refuses_an_interpreto_without_a_copy(without_overcomplete, site):
    write(site / "interpreto", {"__init__.py": ""})
    with pytest.raises(ImportError, match="not installed"):
        patch_overcomplete()


def test_patch_does_with_interpretos_copy_alone(without_overcomplete, interpreto_folder, caplog):
    assert patch_overcomplete() == []
    assert "interpreto's copy of Overcomplete only: overcomplete is not installed" in caplog.text
    import interpreto

    assert issubclass(interpreto.optimization.NMF, fastnmf.NMF)
    assert len(patch_overcomplete()) == 3 * len(MODELS)


def test_patch_names_the_pin_when_the_library_does_not_import(site, without_interpreto):
    write(site / "overcomplete", {**SOURCES, "__init__.py": "import math; math.get_cmap"})
    with pytest.raises(ImportError, match=r"get_cmap.*matplotlib<3\.9"):
        patch_overcomplete()
    assert not is_patched()


def test_patch_says_what_is_missing_inside_the_library(site, without_interpreto):
    write(site / "overcomplete", {"__init__.py": "import absent_dependency"})
    with pytest.raises(ImportError, match=r"cannot be imported: No .*'absent_dependency'"):
        patch_overcomplete()


def test_patch_logs_the_names(library, caplog):
    with caplog.at_level(logging.INFO, logger="fastnmf"):
        patch_overcomplete()
        unpatch_overcomplete()
    stands_in, is_back = caplog.messages
    assert "stands in" in stands_in
    assert "overcomplete.optimization.nmf.NMF" in stands_in
    assert "are back at" in is_back


def test_patch_does_not_load_lazy_modules(library, site, monkeypatch):
    write(site, {"their_lazy_code.py": "raise RuntimeError('loaded')"})
    spec = importlib.util.find_spec("their_lazy_code")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "their_lazy_code", module)
    spec.loader.exec_module(module)
    patch_overcomplete()
    unpatch_overcomplete()


def test_patch_from_many_threads_leaves_one_class(library):
    original = library.NMF
    begin = threading.Barrier(4)

    def turn(last):
        begin.wait()
        patch_overcomplete()
        unpatch_overcomplete()
        last()

    for last in (patch_overcomplete, unpatch_overcomplete):
        threads = [threading.Thread(target=turn, args=(last,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last()
        patched = last is patch_overcomplete
        assert is_patched() is patched
        assert (library.NMF is original) is not patched
        assert sys.meta_path.count(fastnmf.overcomplete._PatchOnImport) == patched


def test_unknown_attribute_of_the_module_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'SkNMF'"):
        _ = fastnmf.overcomplete.SkNMF


@each_model
def test_real_overcomplete_is_patched_and_restored(real, ours):
    from overcomplete.base import BaseDictionaryLearning
    from overcomplete.optimization import BaseOptimDictionaryLearning

    before, original = lookup(OF_THE_LIBRARY), getattr(real, ours.__name__)
    assert set(OF_THE_LIBRARY) <= set(patch_overcomplete())
    stand_in = getattr(real, ours.__name__)
    model = stand_in(nb_concepts=3, device="cpu", solver="pgd")
    Z, D = model.fit(torch.rand(20, 8))
    for cls in (BaseDictionaryLearning, BaseOptimDictionaryLearning, original, ours):
        assert isinstance(model, cls)
    assert [name for name in NAMES if isinstance(model, getattr(real, name))] == [ours.__name__]
    assert (Z.shape, D.shape) == ((20, 3), (3, 8))
    assert set(original._SOLVERS) <= set(stand_in._SOLVERS)
    unpatch_overcomplete()
    assert lookup(OF_THE_LIBRARY) == before


@each_model
def test_model_saved_by_real_overcomplete_loads_as_the_patched_class(real, ours):
    A = torch.rand(20, 8, generator=torch.Generator().manual_seed(0))
    model = getattr(real, ours.__name__)(3, solver="mu")
    model.fit(A)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    patch_overcomplete()
    again = torch.load(file, weights_only=False)
    assert isinstance(again, ours)
    assert (again.solver, again.tol) == ("mu", model.tol)
    assert torch.equal(again.D, model.D)
    assert again.encode(A).shape == (20, 3)


@each_model
def test_arguments_are_in_the_order_of_the_real_library(real, ours):
    theirs = list(inspect.signature(getattr(real, ours.__name__).__init__).parameters)[1:-1]
    mine = list(inspect.signature(ours).parameters)
    assert mine[: len(theirs)] == theirs

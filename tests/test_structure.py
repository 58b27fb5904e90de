"""What tests/structure.py counts and must be zero."""

from __future__ import annotations

import ast

import structure


def test_no_internal_function_has_more_than_eight_parameters():
    assert structure.functions_with_many_parameters() == []


def test_no_module_is_longer_than_300_lines():
    assert structure.long_modules() == []


def test_no_function_is_longer_than_50_lines():
    assert structure.long_functions() == []


def test_code_outside_the_solvers_holds_no_name_of_a_solver():
    assert structure.solver_names_elsewhere() == []


def test_exceptions_exist():
    names = {name for name, _ in structure.functions()}
    assert {*structure.PUBLIC_SIGNATURES, *structure.LONG_FUNCTIONS} <= names


def test_every_module_says_what_lives_there():
    for module, path in structure.MODULES.items():
        if path.stem != "__init__" and module != "fastnmf._version":
            assert ast.get_docstring(structure.tree(module)), module


def test_at_most_14_types_lie_between_fit_and_the_kernel():
    types, up = structure.traced()
    assert len(types) <= 14
    assert up == []


def test_report_is_a_table_of_every_module():
    report = structure.report()
    for module, path in structure.MODULES.items():
        if path.stem not in ("__init__", "__main__", "_version"):
            assert f"| `{module.removeprefix('fastnmf.')}` |" in report


def test_counts_see_what_they_count(tmp_path, monkeypatch):
    code = 'class A:\n    """hals"""\n    def f(self, a, b, c, d, e, *, f, g, h, i):\n        """'
    code += "x\n" * 200 + '"""\n        if a == "hals":\n            return "mu!"\n' + "# \n" * 300
    code += '\ndef solve(solver="mu"):\n    def inner():\n' + "        solve()\n" * 51
    (tmp_path / "a.py").write_text(code)
    monkeypatch.setattr(structure, "MODULES", {"fastnmf.a": tmp_path / "a.py"})
    structure.tree.cache_clear()
    assert structure.functions_with_many_parameters() == ["fastnmf.a.A.f (9)"]
    assert structure.long_modules() == [f"fastnmf.a ({4 + 300 + 3 + 51})"]
    assert structure.long_functions() == ["fastnmf.a.solve (53)", "fastnmf.a.solve.inner (52)"]
    assert [place.split()[1] for place in structure.solver_names_elsewhere()] == ["'hals'"]
    structure.tree.cache_clear()


# modules without a test file of their own → where they are tested
TESTED_IN = {
    "__main__": "cli/test_main.py",
    "errors": "models/test_drop_in.py",
    "backends.cpp": "backends/test_cpp.py",
    "backends.nnls.compiled": "backends/test_nnls_rows.py",
    "backends.nnls.active_sets": "solvers/test_anls.py",
    "backends.nnls.reference": "solvers/test_anls.py",
    "backends.nnls.result": "fit/test_nnls.py",
    "backends.nnls.supports": "solvers/test_anls.py",
    "backends.pointers": "backends/test_cpp.py",
    "backends.torch": "solvers/test_iterates.py",
    "backends.triton": "kernels/test_interpreted.py",
    "cli.arguments.choices": "cli/test_usage.py",
    "cli.arguments.fit": "cli/test_usage.py",
    "cli.arguments.machine": "cli/test_usage.py",
    "cli.arguments.models": "cli/test_usage.py",
    "cli.arguments.selection": "cli/commands/test_selection.py",
    "cli.arguments.shared": "cli/test_usage.py",
    "cli.arguments.texts": "cli/test_usage.py",
    "cli.commands.machine": "cli/test_main.py",
    "cli.commands.models": "cli/test_main.py",
    "cli.commands.registry": "cli/test_main.py",
    "cli.parser": "cli/test_usage.py",
    "cli.summary": "cli/test_main.py",
    "data.opening.first_pass": "data/test_sources.py",
    "data.opening.opened": "data/test_dataset.py",
    "data.shards": "data/test_sources.py",
    "data.sparse.whole": "data/test_tables.py",
    "models.shown": "models/test_show_concepts.py",
    "results.concepts.concepts": "models/test_show_concepts.py",
    "results.concepts.gather": "models/test_show_concepts.py",
    "results.concepts.page": "models/test_show_concepts.py",
    "results.concepts.script": "results/pages/test_browser.py",
    "results.fitted": "fit/test_batch.py",
    "results.lines.special": "results/test_info.py",
    "results.pages.charts": "results/test_report.py",
    "results.pages.skeleton": "results/test_report.py",
    "results.cautions": "engine/test_stopping.py",
    "data.summary": "data/test_sources.py",
    "engine.codes": "engine/test_loop.py",
    "engine.history": "engine/test_loop.py",
    "engine.iteration": "engine/test_loop.py",
    "engine.state": "engine/test_loop.py",
    "engine.statistics": "engine/test_loop.py",
    "fit.options": "models/test_nmf.py",
    "fit.starts.plan": "fit/test_batch.py",
    "fit.refusals": "fit/test_batch.py",
    "fit.rows": "fit/test_encode.py",
    "init.drawn": "init/test_start.py",
    "init.factors": "init/test_start.py",
    "models.factorization": "models/test_nmf.py",
    "solvers.constraints": "models/test_semi_nmf.py",
    "planning.cards": "planning/test_gpu.py",
    "planning.hardware": "planning/test_plan.py",
    "planning.beside": "planning/test_memory.py",
    "planning.inner": "planning/test_plan.py",
    "models.hints": "models/test_nmf.py",
    "sklearn.base": "sklearn/test_estimator.py",
    "sklearn.batches": "sklearn/test_minibatch.py",
    "solvers.base": "solvers/test_toy_solver.py",
    "solvers.half_step": "solvers/test_iterates.py",
    "solvers.registry": "solvers/test_toy_solver.py",
}


def test_every_module_has_its_tests():
    tests = structure.ROOT / "tests"
    untested = []
    for module, path in structure.MODULES.items():
        name = module.removeprefix("fastnmf.")
        if path.stem in ("__init__", "_version"):
            continue
        *packages, last = name.split(".")
        own = tests.joinpath(*packages, f"test_{last}.py")
        if not own.exists() and not (tests / TESTED_IN.get(name, "none")).is_file():
            untested.append(name)
    assert untested == []

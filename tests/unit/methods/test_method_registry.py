"""The registry, presets as data, and MergeKit's dialect as facts of release 0.1.5."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest

from cuvee.errors import RecipeError
from cuvee.methods import registry
from cuvee.methods.contract import Method, rows_of
from cuvee.methods.parameters import each

OURS = (
    "breadcrumbs",
    "breadcrumbs_ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "ram",
    "ramplus_tl",
    "sce",
    "task_arithmetic",
    "task_negation",
    "ties",
)
TASK_VECTORS = {"weight", "density", "normalize", "rescale", "lambda", "int8_mask"}
# name: (parameters there, normalize, rescale) of MergeKit 0.1.5
MERGEKIT = {
    "task_arithmetic": (TASK_VECTORS, False, None),
    "ties": (TASK_VECTORS, True, False),
    "dare_linear": (TASK_VECTORS, False, True),
    "dare_ties": (TASK_VECTORS, False, True),
    "breadcrumbs": (TASK_VECTORS | {"gamma"}, False, False),
    "breadcrumbs_ties": (TASK_VECTORS | {"gamma"}, False, False),
    "della": (TASK_VECTORS | {"epsilon"}, True, True),
    "della_linear": (TASK_VECTORS | {"epsilon"}, False, True),
}


@pytest.fixture
def plugins(monkeypatch):
    """Install entry points for one test."""

    def install(*entries):
        found = [EntryPoint(name, value, registry.GROUP) for name, value in entries]
        monkeypatch.setattr(registry.plugins, "may_declare", lambda group: True)
        monkeypatch.setattr("importlib.metadata.entry_points", lambda group: found)
        registry._plugins.cache_clear()
        registry._load.cache_clear()

    yield install
    monkeypatch.undo()
    registry._plugins.cache_clear()
    registry._load.cache_clear()


def test_names_are_listed_without_importing_torch_or_numpy():
    code = (
        "import sys; from cuvee.methods import registry; names = registry.names(); registry.stages();"
        "[registry.parameters_for(registry.get(n)) for n in names];"
        "assert not {'torch', 'numpy'} & set(sys.modules); print(*names)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(OURS) <= set(found.stdout.split())


def test_a_misspelt_name_is_an_error_with_a_suggestion():
    with pytest.raises(RecipeError, match="no method `tise`") as caught:
        registry.get("tise")
    assert caught.value.diagnostics[0].hint == "did you mean `ties`?"
    assert caught.value.diagnostics[0].code == "CV-R060"
    with pytest.raises(RecipeError, match="CV-R061: there is no stage `elct`") as caught:
        registry.stage("elct")
    assert caught.value.diagnostics[0].hint == "did you mean `elect`?"
    with pytest.raises(RecipeError, match=r"\\u202e"):
        registry.get("ti\u202ees")


@pytest.mark.parametrize(
    ("find", "name", "told"),
    [
        (registry.stage, "ties", "the method `ties` is the chain `trim` → `elect` → `scale`"),
        (registry.stage, "dare", "the method `dare_linear` is the chain `drop` → `weighted_sum` → `scale`"),
        (registry.get, "trim", "`trim` is a stage; stages are given as a list, `[trim, …]`"),
        (registry.stage, "", None),
    ],
)
def test_a_method_among_stages_and_a_stage_as_method_are_told_apart(find, name, told):
    with pytest.raises(RecipeError) as caught:
        find(name)
    hint = caught.value.diagnostics[0].hint
    assert hint is None if told is None else hint.startswith(told)


def test_registered_items_are_found_until_they_are_removed():
    mine = replace(registry.get("ties"), name="my_ties")
    remove = registry.register(mine)
    try:
        assert registry.get("my_ties") is mine
        assert "my_ties" in registry.names()
        with pytest.raises(RecipeError, match="CV-R062"):
            registry.register(mine)
    finally:
        remove()
    assert "my_ties" not in registry.names()
    with pytest.raises(RecipeError, match="CV-R062: `trim` is registered already"):
        registry.register(registry.stage("trim"))


def test_plugins_are_listed_unimported_and_loaded_when_asked_for(plugins):
    plugins(("theirs", "nowhere.at_all:THEIRS"), ("stage.fine", "cuvee.methods.conditions.trim:trim"))
    assert "theirs" in registry.names() and "fine" in registry.stages()
    with pytest.raises(
        RecipeError, match=r"CV-R063: plug-in `theirs` cannot be loaded from `nowhere.at_all:THEIRS`"
    ):
        registry.get("theirs")
    with pytest.raises(RecipeError, match=r"CV-R063: plug-in `stage.fine` is not a stage of that name"):
        registry.stage("fine")


def test_a_plugin_may_not_take_a_name_that_is_taken(plugins):
    plugins(("ties", "somewhere:TIES"))
    with pytest.raises(RecipeError, match="CV-R062: `ties` is defined twice"):
        registry.names()
    plugins(("stage.trim", "somewhere:trim"))
    with pytest.raises(RecipeError, match=r"CV-R062: `stage.trim` is defined twice"):
        registry.stages()
    plugins(("trim", "somewhere:METHOD"))  # a method may be named like a stage
    assert "trim" in registry.names()
    plugins(("new", "a:B"), ("new", "c:D"))
    with pytest.raises(RecipeError, match="the second time by `c:D`"):
        registry.names()


@pytest.mark.parametrize("name", OURS)
def test_presets_are_complete(name):
    method = registry.get(name)
    assert method.name == name and method.base == "required" and method.inputs == (1, None)
    assert method.summary and not method.summary.endswith(".")
    assert method.paper and method.paper in method.doc
    assert method.steps[-1].stage in ("scale", "negate")
    for step in method.steps:
        known = {p.name for p in registry.stage(step.stage).parameters}
        assert {*step.defaults, *step.fixed, *step.names} <= known
    for parameter in registry.parameters_for(method).values():
        assert parameter.help
        assert parameter.required or parameter.problem(parameter.default) is None


def test_a_parameter_named_twice_reaches_the_step_it_is_meant_for():
    method = registry.get("dare_ties")
    parameters = registry.parameters_for(method)
    assert parameters["density"].default == 0.5 and parameters["trim_after"].default == 1.0
    assert "window_size" not in parameters
    drop, trim, _, scale = registry.arguments_for(method, {"density": 0.1, "trim_after": 0.2, "lambda": 3.0})
    assert drop == {"density": 0.1, "rescale": "inverse_p"}
    assert trim == {"density": 0.2, "scope": "tensor", "count": "exact", "rescale": "none"}
    assert scale == {"lam": 3.0}
    drop, trim, _, _ = registry.arguments_for(method, {"rescale": "l1"})
    assert drop["rescale"] == "l1" and trim["rescale"] == "none"  # the step fixes its own


def test_one_name_shared_by_two_steps_sets_both():
    trim, elect, _ = registry.arguments_for(registry.get("ties"), {"scope": "tensor"})
    assert trim["scope"] == elect["scope"] == "tensor"


@pytest.mark.parametrize("name", MERGEKIT)
def test_mergekit_dialect_of_task_vector_methods(name):
    legal, normalize, rescale = MERGEKIT[name]
    dialect = registry.get(name).dialects["mergekit"]
    assert set(dialect.names) == legal
    assert dialect.base == "required" and dialect.inputs == (0, None) and dialect.missing == "skip"
    assert [s.name for s in dialect.parameters if s.required] == ["weight"]
    scopes = {s.name: s.scope for s in dialect.parameters if s.scope != "shared"}
    assert scopes == dict.fromkeys(legal & {"weight", "density", "gamma", "epsilon"}, "expert")
    elects = any(step.stage == "elect" for step in registry.get(name).steps)
    ours = {"merge": "mean" if normalize else "sum"} if elects else {"normalize": normalize}
    ours |= {"lambda": 1.0}
    ours |= {"density": 1.0, "rescale": "l1" if rescale else "none"} if rescale is not None else {}
    ours |= {n: v for n, v in {"gamma": 0.01, "epsilon": 0.15}.items() if n in legal}
    assert ours.items() <= dialect.defaults.items()


def test_mergekit_dialect_of_the_others():
    sce = registry.get("sce").dialects["mergekit"]
    assert set(sce.names) == {"select_topk", "int8_mask"}
    assert sce.defaults == {"select_topk": 1.0, "mask_scope": "all", "guard": "mergekit"}
    assert registry.get("ram").dialects["mergekit"].defaults == {"epsilon": 1e-5}
    plus = registry.get("ramplus_tl").dialects["mergekit"]
    assert plus.defaults == {"epsilon": 1e-5, "r": 0.1, "alpha": 0.2, "scope": "tensor"}
    assert "mergekit" not in registry.get("task_negation").dialects


@pytest.mark.parametrize("name", [n for n in OURS if n != "task_negation"])
def test_a_dialect_speaks_only_of_parameters_the_method_has(name):
    method = registry.get(name)
    known = registry.parameters_for(method)
    dialect = method.dialects["mergekit"]
    for ours, value in dialect.defaults.items():
        assert known[ours].problem(value) is None, ours
    for spelling in dialect.parameters:
        assert spelling.ours is None or spelling.ours in known
        if spelling.ours and not spelling.values:
            assert known[spelling.ours].per_expert == (spelling.scope != "shared")


def test_a_dialect_translates_values():
    dialect = registry.get("ties").dialects["mergekit"]
    found = dialect.translate({"weight": 0.3, "normalize": False, "rescale": True, "int8_mask": True})
    assert found["weight"] == 0.3 and found["merge"] == "sum" and found["rescale"] == "l1"
    assert found["scope"] == "tensor" and "int8_mask" not in found
    assert dialect.spelling("lambda").default == 1.0 and dialect.spelling("lam") is None
    with pytest.raises(KeyError):
        dialect.translate({"densty": 0.3})


def test_small_rules():
    assert each(2.0, 3) == [2.0] * 3 and each([1, 2], 2) == [1, 2]
    assert rows_of(()) == (1, 1) and rows_of((5,)) == (1, 5) and rows_of((4, 3, 2, 2)) == (4, 12)
    assert isinstance(registry.get("ties"), Method)


def test_one_bibtex_key_is_one_paper() -> None:
    import re

    papers: dict[str, set[str]] = {}
    for name in registry.names():
        entry = registry.get(name).bibtex
        if entry:
            key = re.match(r"@\w+\{([^,]+),", entry)
            assert key is not None, name
            papers.setdefault(key[1], set()).add(entry)
    assert {key for key, entries in papers.items() if len(entries) > 1} == set()


def test_stages_of_reconstructed_methods_alone_are_known():
    found = registry.reconstructed_stages()
    assert {"stf", "resm", "seme", "slack", "layer_top", "metric_mean", "keep_near", "decoupled"} <= found
    assert not {"tsv_m", "scale", "linear", "weighted_sum", "restore_expert"} & found

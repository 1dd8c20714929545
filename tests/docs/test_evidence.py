"""The table of evidence: what counts as naming a method, how passes are counted, and that no method goes without."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from doc_snippets import ROOT

from cuvee.methods import registry
from cuvee.recipe.layouts import LAYOUTS

SOURCE = """
import oracles_of_the_test as oracle
from somewhere import run_method

NAMES = ["ties", "slerp"]


def helper(name):
    return oracle.of(name)


@pytest.mark.parametrize("name", NAMES)
def test_calculated(name):
    assert helper(name)


def test_law():
    assert run_method("della", {"merge": "linear", "pull": "average"}) == 1


def test_whole():
    cuvee.merge(a, method="karcher", vote="star")
    verify("version: 1, merge: {method: sce, form: swa}")


def test_beside():
    model.add_weighted_adapter(["x"], combination_type="knots")
    run_method("lora_svd")


def unused():
    run_method("dus")
"""


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    yield


def test_what_names_a_method_and_as_what(tmp_path: Path) -> None:
    from evidence import evidence

    folder = tmp_path / "methods"
    folder.mkdir()
    (folder / "test_it.py").write_text(SOURCE)
    names = {
        "ties",
        "slerp",
        "della",
        "linear",
        "average",
        "karcher",
        "star",
        "sce",
        "swa",
        "knots",
        "lora_svd",
        "dus",
    }
    found = {
        n: {k: [f.test for f in v] for k, v in kinds.items()}
        for n, kinds in evidence(tmp_path, names).items()
    }
    assert found["ties"] == found["slerp"] == {"calculation": ["test_calculated"]}
    assert found["della"] == {"property": ["test_law"]}
    assert found["karcher"] == found["sce"] == {"model": ["test_whole"], "property": ["test_whole"]}
    assert found["lora_svd"] == {"peer": ["test_beside"], "property": ["test_beside"]}
    assert not any(found[n] for n in ("linear", "average", "star", "swa", "knots", "dus"))


def test_tests_about_other_things_than_results_are_no_evidence(tmp_path: Path) -> None:
    from evidence import evidence

    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "test_it.py").write_text(SOURCE)
    assert evidence(tmp_path, {"ties", "della"}) == {"della": {}, "ties": {}}


def test_every_method_is_compared_with_something() -> None:
    """By its own name or through its stages; presets that arrange layers are tested in plans."""
    from evidence import ORACLE, PEER, evidence
    from reference_methods import TESTS, _speaking

    tests = evidence(TESTS, {*registry.names(), *registry.stages(), *LAYOUTS})
    without = []
    for name in registry.names():
        steps = [step.stage for step in registry.get(name).steps]
        if not any(_speaking(tests, name, steps, kind) for kind in (ORACLE, PEER)):
            without.append(name)
    assert without in ([], ["module_donor"])  # which copies: there is nothing to calculate


@pytest.mark.parametrize(
    ("name", "passes", "access", "lazy", "decomposes"),
    [
        ("linear", 1, "element", True, False),
        ("slerp", 2, "element", True, False),
        ("ties", 3, "element", True, False),
        ("della", 1, "row", True, False),
        ("tsv_m", 1, "tensor", True, True),
        ("mergelock", 1, "tensor", False, False),
    ],
)
def test_costs_come_from_traits(name: str, passes: int, access: str, lazy: bool, decomposes: bool) -> None:
    from costs import cost_of

    found = cost_of(registry.get(name))
    assert (found.passes, found.access, found.lazy, found.decomposes) == (passes, access, lazy, decomposes)


def test_answers_of_official_code_count_for_their_method() -> None:
    from evidence import OFFICIAL, evidence
    from reference_methods import TESTS

    found = evidence(TESTS, {"ties"})["ties"][OFFICIAL]
    assert {"prateeky2806/ties-merging", "yule-BUAA/MergeLM"} <= {one.file for one in found}


def test_measurements_are_read_from_every_catalogue_and_the_largest_size_is_told(tmp_path: Path) -> None:
    import json

    from measured import cells, memory

    row = {"method": "star", "peak": 5e6, "bound": 4e6, "read": 3, "read_said": 2}
    small, large = row | {"size": "small"}, row | {"size": "large", "peak": 3e6}
    failed = {"method": "ties", "size": "large", "failed": "killed"}
    for name, rows in (("catalogue", [small, failed]), ("catalogue-large", [large])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"results": rows}))
    found = memory(tmp_path)
    assert set(found) == {"star"}
    assert cells("star", "star", found, {}) == ["star", "0.72 GB", "3 MB", "4 MB", "1.50", "", ""]
    (tmp_path / "catalogue-large.json").unlink()
    assert "5 MB (over)" in cells("star", "star", memory(tmp_path), {})
    assert cells("ties", "ties", found, {"ties": {"tuned": "9.0"}}) == ["ties", "", "", "", "", "", "9.0"]


def test_scores_are_read_from_the_leaderboard_of_all(tmp_path: Path) -> None:
    from measured import scores

    page = tmp_path / "every.md"
    page.write_text(
        "# Board\n\n| group | method | normalised |\n| --- | --- | --- |\n| – | base | 89.0 |\n"
        "| 1 | wudi (budget 5) | 95.9 |\n| 1 | stf (untuned), reconstructed | 94.0 |\n"
        "| 2 | wudi (untuned) | 95.1 |\n\n| what | method |\n| --- | --- |\n"
        "| costs | ties (untuned) |\n"
    )
    assert scores(page) == {
        "base": {"": "89.0"},
        "wudi": {"tuned": "95.9", "untuned": "95.1"},
        "stf": {"untuned": "94.0"},
    }


def test_every_method_was_measured_on_a_sharded_checkpoint() -> None:
    from measured import memory

    found = memory()
    assert not set(registry.names()) - found.keys()
    assert not [name for name, one in found.items() if one.peak > one.bound]

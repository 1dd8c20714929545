"""A merge is planned the way it is run: within a budget, or from an earlier output; from Python as by the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import cuvee
from cuvee.api.blend import Blend
from cuvee.api.budget import make_catalogue
from cuvee.cli.app import app
from cuvee.engine.options import RunOptions
from cuvee.errors import UsageError

BLOCK = 1 << 19  # elements of bfloat16
SIZES = {"small": 4096, "wide": 3 * BLOCK}
OPTIONS = RunOptions(threads=1)


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = {name: torch.randn(size).bfloat16() for name, size in SIZES.items()}
    save("base", base)
    for folder, size in (("one", 0.1), ("two", 0.001)):
        save(folder, {n: (t.float() + size * torch.randn(t.shape)).bfloat16() for n, t in base.items()})
    catalogued()
    Path("r.yaml").write_text(
        "version: 1\nbase: ./base\nexperts: {one: ./one, two: ./two}\nmerge: {method: task_arithmetic}\n"
    )


def save(folder: str, tensors: dict[str, torch.Tensor]) -> None:
    Path(folder).mkdir(exist_ok=True)
    save_file(tensors, Path(folder, "model.safetensors"))


def catalogued() -> None:
    make_catalogue(["./one", "./two"], "./base", anchor=Path(), offline=True)


def changed() -> None:
    """Another middle block of the wide tensor of one expert."""
    tensors = load_file("one/model.safetensors")
    tensors["wide"][BLOCK + 7] += 1
    save("one", tensors)
    catalogued()


def blend() -> Blend:
    return cuvee.load("r.yaml")


def weights(folder: str) -> bytes:
    return Path(folder, "model.safetensors").read_bytes()


def command(*words: str) -> str:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_what_an_earlier_output_saves_is_planned() -> None:
    blend().save("first", run=OPTIONS, lineage=True)
    changed()
    told = json.loads(command("plan", "r.yaml", "--from", "first", "--json"))
    # Three inputs of a block, and a copied tensor.
    reads = 3 * 2 * BLOCK + 2 * SIZES["small"]
    assert told["cost"]["reads"] == reads
    assert (told["cost"]["copied"], told["cost"]["merged"]) == (1, 1)
    # The earlier output is looked at first, then two blocks are copied.
    assert told["prediction"]["bytes_read"] == reads + 2 * sum(SIZES.values()) + 2 * 2 * BLOCK
    assert [note["code"] for note in told["notes"]].count("CV-P281") == 1

    saved = blend().save("second", run=OPTIONS, earlier="first")
    assert saved.finished.read_bytes == reads
    blend().save("whole", run=OPTIONS)
    assert weights("second") == weights("whole") != weights("first")


def test_a_merge_shows_what_it_will_really_read() -> None:
    blend().save("first", run=OPTIONS, lineage=True)
    changed()
    result = CliRunner().invoke(app, ["merge", "r.yaml", "-o", "second", "--from", "first"])
    assert result.exit_code == 0
    assert "reads 3.2 MB" in result.stderr and "1 merged · 1 copied" in result.stderr
    assert "reads 3.2 MB" in str(blend().plan(run=OPTIONS, earlier="first"))
    assert "reads 9.5 MB" in str(blend().plan(run=OPTIONS))


def test_a_budget_from_python_is_that_of_the_command() -> None:
    saved = blend().save("one_way", run=OPTIONS, read_budget="60%")
    command("merge", "r.yaml", "-o", "other_way", "--read-budget", "60%", "--quiet")
    blend().save("whole", run=OPTIONS)
    assert weights("one_way") == weights("other_way") != weights("whole")
    (row,) = saved.finished.figures["read_budget"]
    assert 0 < row["bound"] < 0.1 and row["read"] <= 0.6 * row["of"]
    assert "of the experts are read" in str(blend().plan(read_budget="60%"))


def test_what_excludes_each_other_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UsageError) as caught:
        blend().save("out", read_budget="50%", lineage=True)
    assert caught.value.diagnostics[0].code == "CV-U001"
    with pytest.raises(UsageError) as caught:
        blend().plan(max_deviation=0.1, earlier="first")
    assert caught.value.diagnostics[0].code == "CV-U001"
    assert not Path("out").exists()


def test_a_saved_plan_holds_no_earlier_output() -> None:
    blend().save("first", run=OPTIONS, lineage=True)
    result = CliRunner().invoke(app, ["plan", "r.yaml", "--from", "first", "-o", "plan.json"])
    assert isinstance(result.exception, UsageError)
    assert not Path("plan.json").exists()

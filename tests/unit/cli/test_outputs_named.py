"""Commands about outputs: what is not there is said with a suggestion, what is there is answered from it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import cuvee
from cuvee.errors import CuveeError, UsageError

RECIPE = (
    "version: 1\nbase: ./base\nexperts: {math: ./math, code: ./code}\nmerge: {method: ties, density: 0.5}\n"
)


@pytest.fixture
def blend(here: Path, cli: Any) -> Path:
    (here / "r.yaml").write_text(RECIPE)
    assert cli("merge", "r.yaml", "-o", "blend", "-q").code == 0
    return here / "blend"


@pytest.mark.parametrize("command", [["verify"], ["reproduce"], ["card"], ["push"]])
def test_a_path_with_nothing_there_is_a_mistake_with_a_suggestion(
    command: list[str], blend: Path, cli: Any
) -> None:
    more = ["me/x"] if command == ["push"] else []
    outcome = cli(*command, "bland", *more, "--json")
    assert outcome.code == 2
    (found,) = json.loads(outcome.err)["diagnostics"]
    assert (found["code"], found["hint"]) == ("CV-U100", "did you mean `blend`?")


def test_a_weight_file_that_is_gone_is_damage(here: Path, cli: Any) -> None:
    assert cli("quick", "linear", "./math", "-o", "one.safetensors", "-q").code == 0
    (here / "one.safetensors").unlink()
    assert cli("verify", "one.safetensors").code == 3  # its manifest is there


def test_recipes_that_are_not_there_are_suggested(blend: Path, cli: Any) -> None:
    outcome = cli("plan", "rr.yaml")
    assert outcome.code == 2
    assert "hint: did you mean `r.yaml`?" in outcome.err
    assert "did you mean" not in cli("plan", "something.yaml").err  # a suffix makes no two names alike


def test_the_card_of_an_output_needs_nothing_but_the_output(blend: Path, cli: Any) -> None:
    planned = cli("card", "r.yaml", "--name", "blend").out
    for model in ("base", "math", "code", "r.yaml"):
        (blend.parent / model).unlink()
    outcome = cli("card", "blend")
    assert outcome.code == 0
    rows = [line.replace("llama, ", "") for line in planned.splitlines()]
    assert outcome.out.splitlines() == rows


def test_the_card_of_one_file_comes_from_its_manifest(here: Path, cli: Any) -> None:
    assert cli("quick", "linear", "./math", "./code", "-o", "one.safetensors", "-q").code == 0
    text = cli("card", "one.safetensors").out
    assert "./math" in text
    assert "method: linear" in text
    shutil.copy(here / "one.safetensors", here / "alone.safetensors")
    assert "CV-U009" in cli("card", "alone.safetensors").err


def test_a_lock_that_holds_says_so(blend: Path, cli: Any) -> None:
    assert cli("lock", "r.yaml").code == 0
    outcome = cli("lock", "r.yaml", "--check")
    assert (outcome.code, outcome.out) == (0, "r.yaml: its sources are as locked in cuvee.lock\n")
    assert cli("lock", "r.yaml", "--check", "-q").out == ""
    outcome = cli("lock", "r.yaml", "--check", "-o", "cuvee.lok")
    assert outcome.code == 2
    assert "did you mean `cuvee.lock`?" in outcome.err
    outcome = cli("merge", "r.yaml", "-o", "out", "--locked", "cuvee.lok")
    assert outcome.code == 2
    assert "there is no lock at `cuvee.lok`" in outcome.err and "did you mean `cuvee.lock`?" in outcome.err


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.pth", "x.gguf"])
def test_merges_are_not_written_as_other_files(name: str, blend: Path, cli: Any) -> None:
    outcome = cli("merge", "r.yaml", "-o", name)
    assert outcome.code == 2
    assert "CV-U101" in outcome.err
    assert not Path(name).exists()
    if name != "x.gguf":
        assert "CV-U101" in cli("convert", "./base", "-o", name).err
    with pytest.raises(UsageError, match="CV-U101"):
        cuvee.load("r.yaml").save(name)


@pytest.mark.parametrize(
    "option", [["--memory", "1GB"], ["--threads", "1"], ["--non-finite", "warn"], ["--shard-size", "1GB"]]
)
def test_options_without_effect_on_gguf_are_refused(option: list[str], here: Path, cli: Any) -> None:
    outcome = cli("convert", "./base", "-o", "x.gguf", *option)
    assert outcome.code == 2
    assert f"`{option[0]}` has no effect on a GGUF file" in outcome.err
    assert not Path("x.gguf").exists()


def test_conversions_keep_a_recipe_that_reproduces_them(here: Path, cli: Any) -> None:
    assert cli("convert", "./base", "-o", "half", "--dtype", "float16", "-q").code == 0
    text = (here / "half" / "cuvee.yaml").read_text()
    assert "method: passthrough" in text
    assert "dtype: float16" in text
    assert cli("reproduce", "half").code == 0
    assert cli("merge", "half/cuvee.yaml", "-o", "again", "-q").code == 0
    assert (here / "again" / "model.safetensors").read_bytes() == (
        here / "half" / "model.safetensors"
    ).read_bytes()


def test_errors_in_python_carry_their_hint() -> None:
    with pytest.raises(CuveeError) as caught:
        cuvee.merge([{}, {}], method="tise")
    assert str(caught.value).endswith("\nhint: did you mean `ties`?")


def test_every_command_says_how_it_is_resumed(here: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cuvee.cli.running.save", stopped)
    for command in (["quick", "linear", "./math", "-o", "out"], ["convert", "./math", "-o", "out"]):
        outcome = cli(*command)
        assert outcome.code == 130
        assert f"resume with: cuvee {' '.join(command)}\n" in outcome.err

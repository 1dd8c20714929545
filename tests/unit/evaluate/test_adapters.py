"""Scores by other programs: commands that print JSON, task pools, lm-eval and inspect-ai by the shapes they give."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from linear_track import WEIGHT, Track

from cuvee.errors import CuveeError, EvaluationError
from cuvee.evaluate.adapters import command, harness, inspection, outcome
from cuvee.evaluate.adapters.pools import TrackPool, scored

GOOD = {
    "scores": {"maths": {"acc": 0.5, "f1": 0.25}},
    "items": {"maths": [1, 0, 1, 0]},
    "versions": {"mine": "2"},
}


def program(tmp_path: Path, body: str) -> list[str]:
    path = tmp_path / "program.py"
    path.write_text(f"import json, sys, time\n{body}\n")
    return [sys.executable, str(path), "{model}"]


def test_a_command_gets_the_model_and_its_json_is_kept(tmp_path: Path) -> None:
    body = f"print('hello'); print(json.dumps({{**{GOOD!r}, 'prompts': {{'maths': sys.argv[1]}}}}))"
    found = command.run(program(tmp_path, body), "./a model")
    assert (
        found.scores == GOOD["scores"] and found.items == GOOD["items"] and found.versions == GOOD["versions"]
    )
    assert found.prompts == {"maths": "./a model"}  # one argument, no shell between
    assert "{model}" in found.settings["command"] and found.seconds > 0


@pytest.mark.parametrize(
    ("printed", "scores"),
    [
        ('{"a": 0.5, "b": 1}', {"a": {"score": 0.5}, "b": {"score": 1}}),
        ('{"a": {"acc": 0.5}}', {"a": {"acc": 0.5}}),
        ('{\n "a": 0.5\n}', {"a": {"score": 0.5}}),
        ('noise {}\n{"a": 2}\n', {"a": {"score": 2}}),
    ],
)
def test_json_is_taken_whole_or_from_the_last_line(tmp_path: Path, printed: str, scores: Any) -> None:
    assert command.run(program(tmp_path, f"print({printed!r})"), "m").scores == scores


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        ("print('no json')", "CV-B312", "no JSON object"),
        ("print('[1]')", "CV-B312", "no JSON object"),
        ("print('{}')", "CV-B312", "gave no score"),
        ("print('{\"a\": NaN}')", "CV-B312", "nan"),
        ('print(\'{"a": "high"}\')', "CV-B312", "'high'"),
        ("print('{\"a\": true}')", "CV-B312", "True"),
        ("print(json.dumps({'scores': {'a': 1}, 'items': [1]}))", "CV-B312", "`items`"),
        (
            "print('first', file=sys.stderr); sys.exit('the \\x1b[31mlast line')",
            "CV-B311",
            "ended with code 1: the ",
        ),
        ("time.sleep(60)", "CV-B311", "longer than 1 s"),
        ("print('{\"a\": 1' + '0' * 400 + '}')", "CV-B312", "1000"),
        ("print('[' * 100_000)", "CV-B312", "no JSON object"),
        ("print(json.dumps({'a': {}, 'b': 1}))", "CV-B312", "gave no score"),
        ("print(json.dumps({'scores': {'a': 1}, 'items': {'a': ['x']}}))", "CV-B312", "items of `a`"),
        (
            "print(json.dumps({'scores': {'a': 1}, 'items': {'a': [1, float('nan')]}}))",
            "CV-B312",
            "items of `a`",
        ),
        ("print(json.dumps({'scores': {'a': 1}, 'items': {'a': 3}}))", "CV-B312", "items of `a`"),
    ],
)
def test_programs_that_fail_are_told_with_their_last_words(
    tmp_path: Path, body: str, code: str, said: str
) -> None:
    with pytest.raises(EvaluationError) as caught:
        command.run(program(tmp_path, body), "m", timeout=1 if "sleep" in body else 60)
    found = caught.value.diagnostics[0]
    assert found.code == code and said in found.message and "\x1b" not in found.message


@pytest.mark.parametrize(("given", "code"), [("nosuch_program {model}", "CV-B311"), ("true", "CV-U311")])
def test_commands_that_cannot_run_are_refused(given: str, code: str) -> None:
    with pytest.raises(CuveeError) as caught:
        command.run(given, "m")
    assert caught.value.diagnostics[0].code == code


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_program_that_prints_without_end_is_ended(
    stream: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_MOST", 1 << 20)
    endless = f"while True: sys.{stream}.write('x' * 65536)"
    began = time.monotonic()
    with pytest.raises(EvaluationError, match="printed more than 1 MiB") as caught:
        command.run(program(tmp_path, endless), "m", timeout=60)
    assert caught.value.diagnostics[0].code == "CV-B312" and time.monotonic() - began < 30
    with pytest.raises(EvaluationError, match="printed more than"):
        command.run(program(tmp_path, f"sys.{stream}.write('x' * (1 << 21))"), "m", timeout=60)


def test_a_line_that_cannot_be_split_is_refused() -> None:
    with pytest.raises(CuveeError) as caught:
        command.run("python 'x {model}", "m")
    assert caught.value.diagnostics[0].code == "CV-U311"


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_timeout_is_a_time(seconds: float) -> None:
    with pytest.raises(CuveeError) as caught:
        command.run("true {model}", "m", timeout=seconds)
    assert caught.value.diagnostics[0].code == "CV-U390"


def test_what_a_slow_program_started_ends_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    line = f"import time; time.sleep(2); open({str(mark)!r}, 'w')"
    body = f"import subprocess; subprocess.run([sys.executable, '-c', {line!r}])"
    with pytest.raises(EvaluationError, match="longer than"):
        command.run(program(tmp_path, body), "m", timeout=1)
    time.sleep(3)
    assert not mark.exists()


def test_a_program_that_reads_is_given_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()  # what a terminal is: nothing comes, and it does not end
    before = os.dup(0)
    os.dup2(reading, 0)
    try:
        found = command.run(program(tmp_path, "sys.stdin.read(); print('{\"a\": 1}')"), "m", timeout=20)
    finally:
        os.dup2(before, 0)
        for opened in (before, reading, writing):
            os.close(opened)
    assert found.scores == {"a": {"score": 1}}


def test_items_that_are_no_numbers_do_not_spoil_the_report() -> None:
    spoiled: Any = [{"a": ["x", "y"]}, {"a": [float("nan"), 1.0]}, {"a": 3}, {"a": [[1], [2, 3]]}]
    for items in spoiled:
        shown: Any = outcome.section([outcome.Outcome("command", "m", {"a": {"acc": 0.5}}, items)])
        assert shown.parts[1].rows[0][4] == "0.5"


def test_outcomes_are_kept_and_shown_with_intervals(tmp_path: Path) -> None:
    one = outcome.Outcome("command", "m", GOOD["scores"], GOOD["items"], GOOD["versions"])  # type: ignore[arg-type]
    place = one.keep(tmp_path)
    assert outcome.kept(tmp_path) == [one]
    assert json.loads(place.read_text())["made_with"]["torch"]
    shown: Any = outcome.section([one])
    first, second = shown.parts[1].rows
    assert first[4].startswith("0.5 (0 … 1") and second[4] == "0.25" and first[5] == "mine 2"
    assert outcome.section([]) is None
    place.write_text("{}")
    with pytest.raises(EvaluationError, match="not a result of this version"):
        outcome.kept(tmp_path)


def test_the_command_line_scores_keeps_and_reports(tmp_path: Path, cli: Any) -> None:
    from cuvee.evaluate.bench import run
    from cuvee.evaluate.cells import Grid, Store
    from cuvee.evaluate.contender import Contender

    bench = tmp_path / "bench"
    run(Grid("linear", (Contender("average"),), budget=0), lambda n, s: Track(), Store(bench))
    line = " ".join(program(tmp_path, f"print({json.dumps(GOOD)!r})"))
    done = cli("bench", "score", str(tmp_path), "--command", line, "-o", str(bench))
    assert done.code == 0 and "maths  acc" in done.out
    assert "Scores by other programs" in cli("bench", "report", str(bench)).out
    nothing = cli("bench", "score", str(tmp_path))
    assert (nothing.code, "CV-U312" in nothing.err) == (2, True)
    missing = cli("bench", "score", str(tmp_path / "model"), "--command", line)
    assert (missing.code, "CV-U100" in missing.err) == (2, True)


def test_what_one_program_said_is_kept_where_the_next_fails(tmp_path: Path, cli: Any) -> None:
    line = " ".join(program(tmp_path, f"print({json.dumps(GOOD)!r})"))
    words = ["--command", line, "--inspect", "nosuch.py", "-o", str(tmp_path / "b")]
    done = cli("bench", "score", str(tmp_path), *words)
    assert done.code != 0 and len(outcome.kept(tmp_path / "b")) == 1


def test_a_recipe_is_merged_before_it_is_scored(tmp_path: Path, cli: Any) -> None:
    from safetensors.torch import save_file

    for i, name in enumerate(("one", "two")):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((2, 2), float(i))}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text("{}")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"version: 1\nexperts:\n  a: {tmp_path / 'one'}\n  b: {tmp_path / 'two'}\nmerge: {{method: average}}\n"
    )
    body = "from pathlib import Path\nfound = [p for p in Path(sys.argv[1]).iterdir() if p.suffix == '.safetensors']"
    body += "\nprint(json.dumps({'files': len(found)}))"
    done = cli("bench", "score", str(recipe), "--command", " ".join(program(tmp_path, body)), "--json")
    assert done.json["outcomes"][0]["scores"] == {"files": {"score": 1}}


def test_a_task_pool_is_read_and_a_track_is_one() -> None:
    track = Track()
    report = TrackPool(track).evaluate({WEIGHT: track.truth["a"]})
    assert set(report) == {"a", "b", "c", "average"} and report["a"] == {"accuracy": 1.0}
    assert report["average"]["score"] == pytest.approx(np.mean([report[n]["accuracy"] for n in "ab"]))
    module = torch.nn.Module()
    module.register_parameter(WEIGHT, torch.nn.Parameter(track.truth["a"]))
    assert TrackPool(track).evaluate(module) == report

    class Theirs:
        def evaluate(self, model: Any) -> Any:
            return {
                "svhn": {"accuracy": 0.5, "loss": 1.25, "name": "x"},
                "model_info": {"trainable_params": 3, "all_params": 4},
                "average": {"accuracy": 0.5},
            }

    assert scored(Theirs(), None).scores == {"svhn": {"accuracy": 0.5, "loss": 1.25}}
    with pytest.raises(EvaluationError, match="no score"):
        scored(SimpleNamespace(evaluate=lambda model: {"average": {"accuracy": 1.0}}), None)


def test_results_of_lm_eval_are_read() -> None:
    found = {
        "results": {
            "mine": {
                "alias": "mine",
                "acc,none": 0.5,
                "acc_stderr,none": "N/A",
                "acc_norm,none": 0.75,
                "sample_len": 2,
            }
        },
        "versions": {"mine": 1.0},
        "samples": {
            "mine": [
                {"doc_id": 1, "acc": 1.0, "arguments": {"gen_args_0": {"arg_0": "Q2", "arg_1": " a"}}},
                {"doc_id": 0, "acc": 0.0, "arguments": {"gen_args_0": {"arg_0": "Q1", "arg_1": " a"}}},
            ]
        },
    }
    real, harness.installed = harness.installed, lambda name: "0"  # type: ignore[assignment]
    try:
        read = harness._outcome(found, "m", {"limit": 2}, 1.0)
    finally:
        harness.installed = real
    assert read.scores == {"mine": {"acc": 0.5, "acc_norm": 0.75}}
    assert read.items == {"mine": [0.0, 1.0]} and read.prompts == {"mine": "Q2"}
    assert read.versions == {"lm-eval": "0", "task mine": 1.0}


def test_programs_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.evaluator", None)
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    for call in (lambda: harness.evaluate("m", ["t"]), lambda: inspection.evaluate("m", "t.py")):
        with pytest.raises(EvaluationError, match="cannot be imported") as caught:
            call()
        assert caught.value.diagnostics[0].code == "CV-B313"


def test_what_programs_raise_is_told_as_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that does not exist was shown as a bug of ours."""

    def unknown(*_: Any, **__: Any) -> None:
        assert not counted.HF_UPDATE_DOWNLOAD_COUNTS, "its makers would be told"
        raise KeyError("Spec 'nosuch' is not a registered task")

    def ends(*_: Any, **__: Any) -> None:
        raise SystemExit("no tasks were found\nat these paths")

    parts = SimpleNamespace(HFLM=unknown, TaskManager=unknown, simple_evaluate=unknown)
    for name in ("lm_eval.evaluator", "lm_eval.tasks", "lm_eval.models.huggingface"):
        monkeypatch.setitem(sys.modules, name, parts)
    for name in ("lm_eval", "lm_eval.models", "datasets"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    counted = SimpleNamespace(HF_UPDATE_DOWNLOAD_COUNTS=True)
    monkeypatch.setitem(sys.modules, "datasets.config", counted)
    monkeypatch.setitem(sys.modules, "inspect_ai", SimpleNamespace(eval=ends))
    models = SimpleNamespace(get_model=lambda *_, **given: given, GenerateConfig=dict)
    monkeypatch.setitem(sys.modules, "inspect_ai.model", models)
    for call, said in (
        (lambda: harness.evaluate("m", ["nosuch"]), "`lm-eval` failed: .*is not a registered task"),
        (lambda: inspection.evaluate("m", "nosuch"), "`inspect-ai` failed: no tasks were found"),
    ):
        with pytest.raises(EvaluationError, match=said) as caught:
            call()
        assert caught.value.diagnostics[0].code == "CV-B311"
    assert counted.HF_UPDATE_DOWNLOAD_COUNTS


def test_inspect_ai_is_given_a_new_model_that_draws_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Models of the same arguments were taken from memory, and a task's own settings made answers drawn ones."""
    asked: list[dict[str, Any]] = []

    def judged(tasks: Any, **given: Any) -> None:
        asked.append({"tasks": tasks, **given})
        raise ValueError("enough")

    program = SimpleNamespace(eval=judged)
    models = SimpleNamespace(get_model=lambda name, **given: {"name": name, **given}, GenerateConfig=dict)
    monkeypatch.setitem(sys.modules, "inspect_ai", program)
    monkeypatch.setitem(sys.modules, "inspect_ai.model", models)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.py").write_text("x = 1\n")
    for greedy in (True, False):
        with pytest.raises(EvaluationError, match="enough"):
            inspection.evaluate("m", [str(tmp_path / "t.py@one"), "name"], tokens=7, limit=3, greedy=greedy)
    folder = {"model_path": "m", "tokenizer_path": "m", "device": "cuda:0"}
    made = {"name": "hf/local", "memoize": False, "config": {"seed": 0}, **folder}
    assert asked[0]["model"] == {**made, "do_sample": False} and asked[1]["model"] == made
    assert (asked[0]["top_k"], asked[1]["top_k"]) == (1, None)
    for one in asked:
        assert (one["seed"], one["max_tokens"], one["limit"]) == (0, 7, 3)
        assert one["tasks"] == ["t.py@one", "name"]


def test_task_files_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "inspect_ai.model", SimpleNamespace())
    (tmp_path / "broken.py").write_text("def x(:\n")
    for name, said in (
        ("nosuch.py", "cannot be read: No such file"),
        ("broken.py", "is no Python: invalid syntax"),
    ):
        with pytest.raises(EvaluationError, match=said) as caught:
            inspection.evaluate("m", str(tmp_path / name))
        assert caught.value.diagnostics[0].code == "CV-B311" and name in str(caught.value)


def test_a_folder_of_tasks_must_be_there(cli: Any, tmp_path: Path) -> None:
    done = cli("bench", "score", str(tmp_path), "--lm-eval", "x", "--include", str(tmp_path / "nosuch"))
    assert done.code == 2 and "nosuch" in done.err and "does not exist" in done.err

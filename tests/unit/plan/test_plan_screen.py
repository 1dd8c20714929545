"""The plan's screen: values over the layers, predictions, adapters, vocabularies, each note once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.errors import OutOfSpace
from cuvee.plan import cost as costs
from cuvee.plan.cost import Outlook, Prediction, Rates, predict
from cuvee.plan.explain import duration, explain_text, graph
from cuvee.plan.reads import Reads


def models(count: int, *, layers: int = 3, dtype: torch.dtype = torch.float32) -> list[dict[str, Any]]:
    out = []
    for seed in range(count):
        torch.manual_seed(seed)
        out.append(
            {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(30, 20).to(dtype) for i in range(layers)}
        )
    return out


def head(blend: Any) -> str:
    return str(blend.plan()).splitlines()[0].split("method  ")[1]


def test_the_head_line_shows_ranges_and_leaves_defaults_out() -> None:
    base, a, b = models(3)
    curve = cuvee.merge([a, b], base=base, method="ties", density=cuvee.curve([0.2, 0.8]))
    assert head(curve) == "ties, density 0.2…0.8 by layer"
    rules = {"*.0.*": 0.1, "default": 0.5}
    both = cuvee.merge([a, b], base=base, method="ties", density=rules, weight=[0.3, 0.7])
    assert head(both) == "ties, density 0.1…0.5 by tensor, weight 0.3/0.7"
    votes = {"*.0.*": "unweighted", "default": "weighted"}
    assert head(cuvee.merge([a, b], base=base, method="ties", vote=votes)) == "ties, vote varies"
    assert head(cuvee.merge([a, b], base=base, method="ties")) == "ties"


@dataclass(frozen=True)
class Budget:
    memory: int = 1 << 20
    threads: int = 1


def test_the_prediction_counts_repeated_passes_and_whole_tensors() -> None:
    tensors = models(3, dtype=torch.bfloat16)
    inputs = 3 * 3 * 30 * 20 * 2
    once = cuvee.merge(tensors, method="linear").build()
    assert predict(once, Budget(), Rates()).bytes_read == inputs
    twice = cuvee.merge(tensors[1:], base=tensors[0], method="ties", density=0.5).build()
    found = predict(twice, Budget(), Rates(1000.0))
    thresholds = (
        2 * 2 * 2 * inputs // 3
    )  # of each of two experts beside the base, in two passes; then the merge
    assert found.bytes_read == inputs + thresholds
    assert found.bytes_written == twice.layout.total_bytes
    # passes over what the machine remembers do not pass the device again
    assert found.passing == inputs + found.bytes_written
    assert found.seconds == pytest.approx(found.passing / 1000)
    apart = cuvee.merge(tensors[1:], base=tensors[0], method="ties", density=0.5, scope="tensor").build()
    assert (
        predict(apart, Budget(), Rates()).bytes_read == inputs
    )  # a tensor's inputs are kept for both passes
    tight = predict(apart, Budget(inputs // 4), Rates())
    assert tight.bytes_read == inputs + thresholds  # unless they do not fit
    whole = cuvee.merge(tensors[:2], method="nuslerp", flatten=False, axis="first").build()
    one, two = (predict(whole, Budget(1, threads), Rates()).peak_memory - costs.PROGRAM for threads in (1, 2))
    assert one > 4 * 30 * 20 * 2
    assert two == one  # whole tensors that do not fit the budget wait for each other


def test_memory_stays_within_the_budget_where_blocks_will_do() -> None:
    plan = cuvee.merge(models(2), method="linear").build()
    assert predict(plan, Budget(1000), Rates()).peak_memory == costs.PROGRAM + 1000
    assert predict(plan, Budget(1 << 30), Rates()).peak_memory < costs.PROGRAM + (1 << 20)


def test_the_cost_line_says_what_is_known() -> None:
    plan = cuvee.merge(models(2), method="linear").build()
    ahead = Outlook(Prediction(10**9, 10**8, 2 * 10**9, 150.0), Rates(9e8, measured=True), 53 * 10**9)
    line = explain_text(plan, ahead, notes=False).splitlines()[-1]
    assert "(1.0 GB with repeated passes)" in line
    assert "peak memory up to 2.0 GB" in line
    assert "about 2 min at the 900.0 MB/s of earlier runs" in line
    assert line.endswith("free disk 53.0 GB")
    assert "assumed" in explain_text(plan, Outlook(ahead.prediction, Rates()))
    assert "free disk" not in explain_text(plan, Outlook(ahead.prediction, Rates()))


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "under 1 s"), (40, "about 40 s"), (600, "about 10 min"), (9000, "about 2 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_rate_of_large_runs_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cuvee.api import outlook

    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    assert not outlook.known_rates().measured
    outlook.remember(Prediction(10**6, 10**6, 0, 0.0), 1.0)  # small: the time was Python's
    assert not outlook.known_rates().measured
    outlook.remember(Prediction(9 * 10**8, 10**8, 0, 0.0), 2.0)
    assert outlook.known_rates() == Rates(5e8, measured=True)
    outlook.remember(Prediction(9 * 10**8, 10**8, 0, 0.0), 1.0)
    assert outlook.known_rates() == Rates(7.5e8, measured=True)
    for damaged in ("{", '{"bytes_per_second": -1}', '{"bytes_per_second": "fast"}', "[]"):
        (tmp_path / "cache" / "rates.json").write_text(damaged)
        assert outlook.known_rates() == Rates()


def test_runs_that_compute_for_long_say_nothing_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuvee.api import outlook

    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    computes = Prediction(9 * 10**8, 10**8, 0, 0.0, arithmetic=10.0)
    outlook.remember(computes, 10.0)
    assert outlook.known_rates() == Rates(4e8, measured=True)  # a quarter of the run, at least
    outlook.remember(Prediction(9 * 10**8, 10**8, 0, 0.0), 1.0)
    known = outlook.known_rates()
    outlook.remember(computes, 10.0)
    assert outlook.known_rates() == known


@pytest.mark.parametrize(("device", "seconds"), [(10.0, 11 + 1 / 3), (4.0, 5 + 1 / 3), (1.0, 4 + 1 / 3)])
def test_the_shorter_of_waiting_and_computing_is_hidden_in_part(device: float, seconds: float) -> None:
    run = Prediction(900, 100, 0, 0.0, arithmetic=4.0, copied=0.5)
    floor = max(device, 0.5) + min(device, 0.5) / 3
    assert costs.taken(run, floor) == pytest.approx(seconds)
    assert costs.floor_of(run, seconds) == pytest.approx(floor)


def test_a_floor_that_only_copies_waits_for_nothing() -> None:
    run = Prediction(900, 100, 0, 0.0, arithmetic=4.0, copied=0.5)
    assert costs.taken(run, 0.5) == costs.taken(run, 0.1) == 4.0
    assert costs.floor_of(run, 3.0) == pytest.approx(0.5)


def test_passes_before_the_first_byte_written_are_a_run_of_their_own() -> None:
    run = Prediction(1800, 100, 0, 0.0, arithmetic=8.0, moved=1000, ahead=900)
    # nine of ten seconds of waiting, and half the computing; the rest behind it
    assert costs.taken(run, 10.0) == pytest.approx(9.0 + 4.0 / 3 + 4.0 + 1.0 / 3)
    assert costs.floor_of(run, costs.taken(run, 10.0)) == pytest.approx(10.0)


def test_what_the_machine_does_not_remember_passes_the_device_again() -> None:
    plan = cuvee.merge(models(2), method="linear").build()
    before = Reads(1000, 1000)
    once = predict(plan, Budget(), Rates(), costs.Means(before=before, remembered=1 << 40)).passing
    assert predict(plan, Budget(), Rates(), costs.Means(before=before, remembered=0)).passing == once + 1000


def test_a_cache_that_cannot_be_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cuvee.api import outlook

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "file" / "cache"))
    outlook.remember(Prediction(9 * 10**8, 10**8, 0, 0.0), 1.0)
    assert outlook.known_rates() == Rates()


def adapter(folder: Path, base: dict[str, Any], ranks: tuple[int, int]) -> Path:
    """A LoRA of two layers with these ranks."""
    folder.mkdir()
    tensors = {}
    for layer, rank in enumerate(ranks):
        name = f"base_model.model.model.layers.{layer}.mlp.up_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, 20)
        tensors[f"{name}.lora_B.weight"] = torch.randn(30, rank)
    save_file(tensors, folder / "adapter_model.safetensors")
    pattern = {"layers.1.mlp.up_proj": ranks[1]}
    config = {"peft_type": "LORA", "r": ranks[0], "rank_pattern": pattern, "lora_alpha": 4}
    config |= {"target_modules": ["up_proj"], "base_model_name_or_path": "base"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def test_adapters_show_ranks_size_and_how_much_they_change(tmp_path: Path) -> None:
    base, other = models(2)
    save_file(base, tmp_path / "base.safetensors")
    path = adapter(tmp_path / "math-lora", base, (2, 4))
    blend = cuvee.merge({"math": f"{tmp_path}/base.safetensors+{path}", "b": other}, method="linear")
    line = next(line for line in str(blend.plan()).splitlines() if "lora" in line and "→" in line)
    stored = 4 * (2 + 4) * (20 + 30)
    assert f"+ math-lora: lora r=2/4, {stored / 1000:.1f} kB → 2 tensors changed" in line
    plan = blend.build()
    assert costs.cost(plan).reads == 2 * 3 * 30 * 20 * 4 + stored


def test_python_recipes_and_command_lines_are_told_apart(here: Path, cli: Any) -> None:
    assert str(cuvee.merge(["./math", "./code"], method="linear").plan()).startswith(
        "recipe   (in Python)   "
    )
    quick = cli("quick", "linear", "./math", "./code", "-o", "out")
    assert "recipe   (from the command line) (sha256 " in quick.err
    convert = cli("convert", "./math", "-o", "half", "--dtype", "float16")
    assert "recipe   (from the command line) (sha256 " in convert.err
    (here / "r.yml").write_text("merge_method: linear\nmodels: [{model: ./math, parameters: {weight: 1}}]\n")
    assert "recipe   r.yml (sha256 " in cli("mergekit-yaml", "r.yml", "mk").err


def test_what_is_planned_to_be_written_is_what_was_written(here: Path, cli: Any) -> None:
    for out in ("folder", "file.safetensors"):
        err = cli("quick", "linear", "./math", "./code", "-o", out, "--shard-size", "2kB").err
        planned = err.split("writes ")[1].split(" ·")[0]
        assert f"wrote {planned} in" in err
        files = [here / out] if out.endswith("s") else list((here / out).glob("model*.safetensors*"))
        real = sum(file.stat().st_size for file in files)
        assert planned == f"{real / 1000:.1f} kB"
    summary = cli("quick", "linear", "./math", "./code", "-o", "third", "--json").lines[-1]
    assert summary["weight_bytes"] == (here / "third" / "model.safetensors").stat().st_size
    assert summary["written_bytes"] < summary["weight_bytes"]


def test_every_note_is_told_once(here: Path, cli: Any) -> None:
    (here / "r.yml").write_text(
        "merge_method: linear\nmodels: [{model: ./math, parameters: {weight: 1}}]\nparameters: {t: 0.5}\n"
    )
    for command in (["plan", "r.yml"], ["merge", "r.yml", "-o", "out"], ["mergekit-yaml", "r.yml", "mk"]):
        outcome = cli(*command)
        assert outcome.code == 0
        assert (outcome.out + outcome.err).count("come from the first model") == 1, command


def test_seconds_of_the_floor_are_told(here: Path, cli: Any) -> None:
    (here / "r.yml").write_text(
        "merge_method: linear\nmodels: [{model: ./math, parameters: {weight: 1}}]\nparameters: {weight: 1}\n"
    )
    found = cli("plan", "r.yml", "--json").json["prediction"]
    assert found["moved"] == found["bytes_read"] + found["bytes_written"]
    assert found["floor"] == pytest.approx(found["moved"] / found["bytes_per_second"])
    assert found["seconds"] >= found["floor"] > 0


def test_a_failed_write_of_the_rate_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from cuvee.api import outlook

    tried: list[Any] = []

    def full(*given: Any, **_: Any) -> None:
        tried.append(given)
        raise OutOfSpace("CV-E001", "full")

    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path))
    monkeypatch.setattr(outlook, "write_file", full)
    outlook.remember(Prediction(9 * 10**8, 10**8, 0, 0.0), 1.0)
    assert len(tried) == 1
    assert not outlook.known_rates().measured


def test_spaces_are_drawn_and_count_as_whole_tensors() -> None:
    base, a, b = models(3, layers=1)
    plan = cuvee.merge([a, b], base=base, method="knots_ties", density=0.5).build()
    assert costs.cost(plan).largest_whole > 4 * 30 * 20
    (tensor,) = plan.tensors
    drawn = "\n".join(graph(tensor.node))
    for words in ("into the space `knots`", "coordinates of input 2", "back from the space `knots`"):
        assert words in drawn

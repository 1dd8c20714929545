"""Merging again: what is the same is taken from an earlier output, only what changed is read, with the same bytes."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from cuvee.cli.app import app
from cuvee.core.digests import bytes_digest, canonical_json

NAMES = [f"layers.{i}.weight" for i in range(4)]
RECIPE = (
    "version: 1\nbase: ./base\nexperts:\n  a: {{source: ./a, weight: {weight}}}\n  b: ./b\n"
    "merge: {{method: {method}}}\n"
)


@pytest.fixture(autouse=True)
def models(tmp_path, monkeypatch):
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = {name: torch.randn(32, 48).bfloat16() for name in NAMES}
    save("base", base)
    for folder in "ab":
        save(folder, {n: (t.float() + 0.1 * torch.randn(t.shape)).bfloat16() for n, t in base.items()})
    command("catalog", "a", "b", "--base", "base")


def save(folder, tensors):
    Path(folder).mkdir(exist_ok=True)
    save_file(tensors, Path(folder, "model.safetensors"))


def command(*words, code=0):
    result = CliRunner().invoke(app, list(words), catch_exceptions=bool(code))
    assert result.exit_code == code, result.output
    return result


def recipe(name="r.yaml", method="task_arithmetic", weight=0.5):
    Path(name).write_text(RECIPE.format(method=method, weight=weight))
    return name


def weights(folder):
    return Path(folder, "model.safetensors").read_bytes()


def changed_expert():
    """`b` with another second layer, catalogued."""
    tensors = load_file("b/model.safetensors")
    tensors[NAMES[1]] = tensors[NAMES[1]] * 2
    save("b", tensors)
    command("catalog", "b", "--base", "base")


def summary(result):
    return json.loads(result.stdout.splitlines()[-1])


def test_after_one_tensor_of_one_expert_changed_only_its_inputs_are_read() -> None:
    command("merge", recipe(), "-o", "one", "--lineage")
    changed_expert()
    result = command("merge", "r.yaml", "-o", "two", "--from", "one", "--json")
    command("merge", "r.yaml", "-o", "full")
    assert weights("two") == weights("full") != weights("one")
    assert "3 of 4 tensors" in result.stdout
    one = 32 * 48 * 2
    assert (
        summary(result)["read_bytes"] == 3 * one + 3 * one
    )  # three copies, and three inputs of the other one
    manifests = [json.loads(Path(f, "cuvee-manifest.json").read_text()) for f in ("two", "full")]
    assert set(manifests[0].pop("lineage")) == set(NAMES)
    assert [m.pop("digest") for m in manifests]
    assert manifests[0] == manifests[1]
    command("verify", "two")


def test_a_threshold_of_the_whole_model_depends_on_all_of_it() -> None:
    command("merge", recipe(method="ties"), "-o", "one", "--lineage")
    changed_expert()
    result = command("merge", "r.yaml", "-o", "two", "--from", "one", "--json")
    assert "0 of 4 tensors" in result.stdout
    command("merge", "r.yaml", "-o", "full")
    assert weights("two") == weights("full")


@pytest.mark.parametrize("method", ["task_arithmetic", "{NAME}, density: 0.5, scope: tensor"])
def test_another_weight_makes_everything_anew_and_the_same_one_nothing(method) -> None:
    method = method.replace("{NAME}", "ties")
    command("merge", recipe(method=method), "-o", "one", "--lineage")
    same = command("merge", "r.yaml", "-o", "two", "--from", "one", "--json")
    assert "4 of 4 tensors" in same.stdout
    assert weights("two") == weights("one")
    other = command("merge", recipe("o.yaml", method, 0.25), "-o", "three", "--from", "one", "--json")
    assert "0 of 4 tensors" in other.stdout
    command("merge", "o.yaml", "-o", "full")
    assert weights("three") == weights("full")


def test_a_damaged_output_is_found_out() -> None:
    command("merge", recipe(), "-o", "one", "--lineage")
    data = bytearray(weights("one"))
    data[-5] ^= 1
    Path("one/model.safetensors").write_bytes(bytes(data))
    result = command("merge", "r.yaml", "-o", "two", "--from", "one", code=1)
    assert "CV-E281" in str(result.exception.diagnostics)
    assert not Path("two").exists()


def test_a_manifest_that_says_what_it_does_not_list_gives_nothing() -> None:
    command("merge", recipe(), "-o", "one", "--lineage")
    manifest = Path("one/cuvee-manifest.json")
    content = json.loads(manifest.read_text())
    del content["digest"]
    content["tensors"]["other"] = content["tensors"].pop(NAMES[1])
    manifest.write_bytes(canonical_json({**content, "digest": bytes_digest(canonical_json(content))}))
    result = command("merge", "r.yaml", "-o", "two", "--from", "one", "--json")
    assert "3 of 4 tensors" in result.stdout
    assert weights("two") == weights("one")


@pytest.mark.parametrize("words", [["--read-budget", "50%"], ["--workers", "2"]])
def test_ways_of_running_that_do_not_go_together_are_refused(words) -> None:
    result = command("merge", recipe(), "-o", "one", "--lineage", *words, code=1)
    assert result.exception.diagnostics[0].code == ("CV-U213" if "--workers" in words else "CV-U001")
    assert not Path("one").exists()


def test_what_is_not_known_is_refused() -> None:
    command("merge", recipe(), "-o", "one")
    result = command("merge", "r.yaml", "-o", "two", "--from", "one", code=1)
    assert "CV-U281" in str(result.exception.diagnostics)
    save("b", {n: t + 1 for n, t in load_file("b/model.safetensors").items()})
    result = command("merge", "r.yaml", "-o", "two", "--lineage", code=1)
    assert "CV-U280" in str(result.exception.diagnostics)


@pytest.mark.parametrize("words", [(), ("--no-catalog",)], ids=["thresholds known", "thresholds looked for"])
def test_thresholds_of_the_whole_model_count_what_is_copied(words) -> None:
    """Another weight in one layer changes no threshold: the others are copied, and still say what is kept in it."""
    changed_expert()
    for name, weight in (("one", 1.0), ("two", 0.25)):
        Path(f"{name}.yaml").write_text(
            "version: 1\nbase: ./base\nexperts: {a: ./a, b: ./b}\n"
            f'merge: {{method: ties, density: 0.3, merge: sum, weight: {{"layers.1.*": {weight}, default: 1.0}}}}\n'
        )
    command("catalog", "a", "b", "--base", "base")
    command("merge", "one.yaml", "-o", "one", "--lineage")
    result = command("merge", "two.yaml", "-o", "two", "--from", "one", "--json", *words)
    assert "3 of 4 tensors" in result.stdout
    command("merge", "two.yaml", "-o", "full")
    assert weights("two") == weights("full") != weights("one")

"""The full text of every screen, byte for byte. `pytest tests/golden --update-golden` writes the files anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cuvee.cli.app import COMMANDS
from cuvee.cli.commands.init import TEMPLATES

TIES = """\
merge_method: ties
base_model: ./base
models:
  - model: ./math
    parameters: {weight: 0.5, density: [0.2, 0.8]}
  - model: ./code
    parameters:
      weight: 0.5
      density:
        - {filter: mlp, value: 0.3}
        - {value: 0.6}
parameters: {lambda: 0.9}
dtype: float32
out_dtype: bfloat16
"""
OWN = """\
version: 1
base: ./base
experts:
  math: {source: ./math, weight: 0.7}
  code: ./code
  mean: {arithmetic: 0.5 * (chat + extra)}
  chat: ./chat
sources:
  extra: ./code
merge:
  - trim: {density: [{role: mlp, value: 0.3}, {layers: 1, value: 0.4}, {value: 0.5}]}
  - elect
  - scale: {lambda: {curve: cosine, points: [0.5, 1]}}
layers:
  - {from: {math: [0, 1], code: [1, 2], mean: [0, 1], chat: [0, 1]}, base: base}
  - {from: [math, code, mean, chat], range: [1, 2]}
"""
GRADIENT = """\
merge_method: slerp
base_model: ./base
models: [{model: ./base}, {model: ./math}]
parameters:
  t:
    - {filter: self_attn, value: [0, 0.5, 0.3, 0.7, 1]}
    - {value: 0.5}
dtype: bfloat16
tokenizer_source: base
"""


@pytest.fixture
def recipes(here: Path) -> Path:
    (here / "ties.yml").write_text(TIES)
    (here / "own.cuvee.yaml").write_text(OWN.replace("layers:\n", "").split("  - {from")[0])
    (here / "slerp.yml").write_text(GRADIENT.replace("tokenizer_source: base\n", ""))
    return here


@pytest.mark.parametrize("name", ["", *COMMANDS, "import mergekit", "extract lora"])
def test_help(name: str, cli: Any, golden: Any) -> None:
    outcome = cli(*name.split(), "--help")
    assert outcome.code == 0
    golden(f"help/{name.replace(' ', '_') or 'cuvee'}", outcome.text)


SCREENS = {
    "version": ["--version"],
    "methods": ["methods"],
    "methods_stages": ["methods", "--stages"],
    "methods_ties": ["methods", "ties"],
    "methods_slerp": ["methods", "slerp"],
    "methods_dare_linear": ["methods", "dare_linear"],
    "methods_model_stock": ["methods", "model_stock"],
    "methods_layer_swap": ["methods", "layer_swap"],
    "methods_stage_trim": ["methods", "trim"],
    "methods_ties_json": ["methods", "ties", "--json"],
    "explain_code": ["explain", "CV-R004"],
    "explain_method": ["explain", "linear"],
    "explain_all": ["explain"],
    "plan_ties": ["plan", "ties.yml"],
    "plan_own": ["plan", "own.cuvee.yaml"],
    "plan_slerp": ["plan", "slerp.yml"],
    "plan_tensor": ["plan", "ties.yml", "--tensor", "*.1.*up_proj*"],
    "plan_tensor_curve": ["plan", "slerp.yml", "--tensor", "*q_proj*"],
    "plan_tensor_own": ["plan", "own.cuvee.yaml", "--tensor", "model.layers.*.mlp.up_proj.weight"],
    "plan_graph": ["plan", "ties.yml", "--graph"],
    "plan_graph_own": ["plan", "own.cuvee.yaml", "--graph", "--tensor", "lm_head.weight"],
    "plan_dot": ["plan", "ties.yml", "--graph", "--dot"],
    "plan_set": ["plan", "ties.yml", "--set", "lambda=0.25", "--dtype", "float16", "--shard-size", "2kB"],
    "check_right": ["check", "ties.yml", "own.cuvee.yaml"],
    "check_github": ["check", "--format", "github", "ties.yml"],
    "inspect": ["inspect", "./base"],
    "inspect_all": ["inspect", "./deep", "--all"],
    "inspect_tensor": ["inspect", "./base", "--tensor", "*norm*"],
    "diff": ["diff", "./base", "./math"],
    "diff_same": ["diff", "./base", "./base"],
    "diff_structure": ["diff", "./base", "./deep", "--structure"],
    "import_ties": ["import", "mergekit", "ties.yml"],
    "import_slerp": ["import", "mergekit", "slerp.yml"],
    "quick_dry": ["quick", "ties", "./math", "./code", "--base", "./base", "-p", "density=0.3",
                  "-p", "weight=[0.6,0.4]", "-o", "out", "--dry-run"],
    "config": ["config"],
    "completions_unknown": ["completions", "tcsh"],
    "usage_command": ["mrege"],
    "usage_option": ["merge", "ties.yml", "--ouput", "x"],
    "usage_missing": ["merge", "ties.yml"],
    "usage_size": ["plan", "ties.yml", "--shard-size", "many"],
    "usage_rule": ["plan", "ties.yml", "--no-rule", "collapse_cast"],
    "usage_dtype": ["plan", "ties.yml", "--dtype", "int8"],
    "usage_set": ["plan", "ties.yml", "--set", "lamda=1"],
    "usage_set_form": ["plan", "ties.yml", "--set", "lambda"],
    "usage_explain": ["explain", "CV-R0004"],
    "usage_quick_parameter": ["quick", "ties", "./math", "-p", "density", "-o", "out"],
    "usage_quick_count": ["quick", "linear", "./math", "./code", "-p", "weight=[1]", "-o", "out"],
    "usage_sample": ["verify", "./base", "--sample", "200%"],
    "verify_no_manifest": ["verify", "./base"],
    "plan_unmatched": ["plan", "ties.yml", "--tensor", "model.layer.*"],
    "reproduce_no_recipe": ["reproduce", "./base"],
    "no_file": ["plan", "nothing.yaml"],
    "safe_serialization": ["mergekit-yaml", "ties.yml", "out", "--no-safe-serialization"],
}  # fmt: skip


@pytest.mark.parametrize("name", SCREENS)
def test_screen(name: str, recipes: Path, cli: Any, golden: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (
        "CUVEE_CACHE",
        "HF_HOME",
        "TMPDIR",
        "XDG_CACHE_HOME",
        "HF_ENDPOINT",
        "HF_TOKEN",
        "SOURCE_DATE_EPOCH",
        "NO_COLOR",
    ):
        monkeypatch.delenv(variable, raising=False)
    golden(f"screens/{name}", cli(*SCREENS[name]).text)


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates(template: str, here: Path, cli: Any, golden: Any) -> None:
    """The text of each template; all but the one with an adapter are right for folders of these names."""
    outcome = cli("init", "r.yaml", "--from", template)
    golden(f"templates/{template}", outcome.text + "--- r.yaml\n" + (here / "r.yaml").read_text())
    assert cli("init", "r.yaml").code == 2
    expected = {"lora": 2, "layers": 2}  # ./math-lora is not there; the models have two layers
    assert cli("check", "r.yaml").code == expected.get(template, 0)
    assert cli("check", "--syntax-only", "r.yaml").code == 0


@pytest.mark.parametrize("language", ["recipe", "mergekit"])
def test_schema(language: str, cli: Any, golden: Any) -> None:
    content = cli("schema", language).json
    if language == "recipe":  # of the methods and stages two are enough
        merge = content["properties"]["merge"]
        merge["oneOf"] = [one for one in merge["oneOf"] if _about(one) in ("slerp", "dus")]
        content["$defs"] = {
            n: d for n, d in content["$defs"].items() if n != "source" and not n.startswith("value")
        }
    golden(f"schema_{language}", json.dumps(content, indent=2))


def _about(entry: dict[str, Any]) -> str:
    """The method that an entry of the schema is about."""
    return str(entry.get("properties", {}).get("method", {}).get("const", ""))


def test_doctor_keys(cli: Any, golden: Any) -> None:
    def keys(value: Any) -> Any:
        return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else type(value).__name__

    facts = cli("doctor", "--json").json
    golden(
        "doctor_keys",
        json.dumps({k: keys(v) if k != "optional" else list(v) for k, v in facts.items()}, indent=1),
    )


def test_merge_and_its_files(recipes: Path, cli: Any, golden: Any) -> None:
    outcome = cli("merge", "ties.yml", "-o", "out")
    assert outcome.code == 0
    golden("runs/merge", outcome.text)
    golden("runs/merge_files", "\n".join(sorted(p.name for p in (recipes / "out").iterdir())))
    golden("runs/card", (recipes / "out" / "README.md").read_text())
    golden("runs/exists", cli("merge", "ties.yml", "-o", "out").text)
    golden("runs/verify", cli("verify", "out").text)
    golden("runs/reproduce", cli("reproduce", "out").text)
    golden(
        "runs/mergekit_yaml",
        cli("mergekit-yaml", "ties.yml", "mk", "--cuda", "--no-cuda", "--low-cpu-memory").text,
    )
    golden("runs/lock", cli("lock", "ties.yml").text)


def _damage(out: Path, what: str) -> None:
    weights = out / "model.safetensors"
    if what == "value":
        data = bytearray(weights.read_bytes())
        data[-3] ^= 1
        weights.write_bytes(data)
    elif what == "header":
        data = bytearray(weights.read_bytes())
        data[9] ^= 1
        weights.write_bytes(data)
    elif what == "short":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif what == "missing":
        (out / "config.json").unlink()
    elif what == "renamed":
        weights.rename(out / "weights.safetensors")
    elif what == "extra":
        (out / "pytorch_model.bin").write_bytes(b"x")
    elif what == "side":
        (out / "README.md").write_text("mine\n")
    elif what == "manifest":
        path = out / "cuvee-manifest.json"
        path.write_text(path.read_text().replace("blake3", "blake2", 1))
    elif what == "newer":
        path = out / "cuvee-manifest.json"
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"cuvee_manifest": 99}))
    else:
        weights.unlink()
        weights.mkdir()


@pytest.mark.parametrize(
    "what", ["value", "header", "short", "missing", "renamed", "extra", "side", "manifest", "newer", "folder"]
)
def test_verify_failures(what: str, recipes: Path, cli: Any, golden: Any) -> None:
    assert cli("merge", "ties.yml", "-o", "out", "-q").code == 0
    _damage(recipes / "out", what)
    outcome = cli("verify", "out")
    assert outcome.code == 3
    golden(f"verify/{what}", outcome.text)


def test_saved_plans_and_locks_that_no_longer_hold(
    recipes: Path, cli: Any, golden: Any, make_llama: Any
) -> None:
    assert cli("plan", "ties.yml", "-o", "plan.json", "-q").code == 0
    assert cli("lock", "ties.yml", "-o", "lock").code == 0
    assert cli("merge", "ties.yml", "-o", "out", "-q").code == 0
    assert cli("lock", "ties.yml", "-o", "hashed", "--sha256").code == 0
    assert cli("lock", "ties.yml", "--check", "-o", "hashed").code == 0
    (recipes / "code").unlink()
    make_llama(recipes / "code", 77)
    assert cli("lock", "ties.yml", "--check", "-o", "hashed").code == 3  # only the hash sees other values
    config = recipes / "code" / "config.json"
    config.write_text(config.read_text().replace('"hidden_size"', '"rope_theta": 1.0, "hidden_size"'))
    golden("runs/plan_changed", cli("merge", "plan.json", "-o", "out2").text)
    golden("runs/lock_changed", cli("merge", "ties.yml", "-o", "out2", "--locked", "lock").text)
    golden("runs/reproduce_changed", cli("reproduce", "out").text)
    (recipes / "other.json").write_text("{}")
    golden("runs/not_a_plan", cli("merge", "other.json", "-o", "out2").text)
    golden("runs/not_a_lock", cli("merge", "ties.yml", "-o", "out2", "--locked", "other.json").text)
    assert cli("lock", "ties.yml", "--check", "-o", "lock").code == 3

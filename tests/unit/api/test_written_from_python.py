"""Outputs saved from Python keep their recipe: it reads back as the same, makes the same again, and tells no secret."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file, save_file

import cuvee
from cuvee.api.writing import text_of


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    out = []
    for seed, name in enumerate(("base", "one", "two")):
        draw = torch.Generator().manual_seed(seed)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text('{"model_type": "nothing_known"}')
        save_file({"w": torch.randn(6, 5, generator=draw)}, folder / "model.safetensors")
        out.append(folder)
    return out


def recorded(out: Path) -> str:
    return str(json.loads((out / "cuvee-manifest.json").read_bytes())["recipe"]["text"])


CALLS: list[dict[str, Any]] = [
    {"method": "ties", "density": 0.5, "weight": [1.0, 0.4]},
    {"method": "dare_ties", "density": 0.5, "seed": 7},
    {"method": "task_arithmetic", "weight": 0.3, "out_dtype": "bfloat16"},
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call["method"])
def test_the_recipe_is_kept_and_makes_the_same_again(
    models: list[Path], tmp_path: Path, cli: Any, call: dict[str, Any]
) -> None:
    base, *experts = models
    cuvee.merge(experts, base=base, **call).save(tmp_path / "out")
    text = (tmp_path / "out" / "cuvee.yaml").read_text()
    assert f"method: {call['method']}" in text and f"method: {call['method']}" in recorded(tmp_path / "out")
    assert str(tmp_path) not in recorded(tmp_path / "out")
    assert "cuvee reproduce ." in (tmp_path / "out" / "README.md").read_text()
    assert cli("merge", str(tmp_path / "out" / "cuvee.yaml"), "-o", str(tmp_path / "again"), "-q").code == 0
    first, second = (load_file(tmp_path / out / "model.safetensors")["w"] for out in ("out", "again"))
    assert torch.equal(first, second)
    assert cli("reproduce", str(tmp_path / "out"), "-q").code == 0


def test_chains_are_kept_too(models: list[Path], tmp_path: Path, cli: Any) -> None:
    base, *experts = models
    stages: list[Any] = [
        ("trim", {"density": [0.3, 0.6]}),
        ("drop", {"density": 0.5}),
        {"elect": {"weight": [1.0, 0.4]}},
        "scale",
    ]
    cuvee.merge(experts, base=base, method=stages, seed=3).save(tmp_path / "out")
    written = YAML(typ="safe").load((tmp_path / "out" / "cuvee.yaml").read_text())
    assert written["merge"] == ["trim", {"drop": {"density": 0.5}}, "elect", "scale"]
    assert [one["trim.density"] for one in written["experts"].values()] == [0.3, 0.6]
    assert cli("merge", str(tmp_path / "out" / "cuvee.yaml"), "-o", str(tmp_path / "again"), "-q").code == 0
    first, second = (load_file(tmp_path / out / "model.safetensors")["w"] for out in ("out", "again"))
    assert torch.equal(first, second)


def test_a_merge_of_models_in_memory_promises_no_recipe(models: list[Path], tmp_path: Path) -> None:
    live = [load_file(one / "model.safetensors") for one in models[:2]]
    cuvee.merge([*live, models[2]], method="average").save(tmp_path / "out")
    assert recorded(tmp_path / "out") == "" and not (tmp_path / "out" / "cuvee.yaml").exists()
    cuvee.merge([models[0], live[1]], method="average").save(tmp_path / "other")
    for readme in tmp_path.glob("o*/README.md"):
        assert "cuvee merge" not in readme.read_text() and "cuvee verify ." in readme.read_text()


@pytest.mark.parametrize(
    "address", ["https://me:word@host.example/m.safetensors", "https://host.example/m.safetensors?X-Sig=abc"]
)
def test_addresses_that_may_hold_secrets_are_not_written(address: str) -> None:
    assert text_of(cuvee.merge([address, "plain"], method="average").recipe) == ""
    assert "hf://org/model@v1" in text_of(
        cuvee.merge(["hf://org/model@v1", "plain"], method="average").recipe
    )


@pytest.mark.parametrize("names", ["union", "intersection"])
def test_what_the_language_cannot_say_is_not_written(names: str) -> None:
    """A text that reads back as another merge would be worse than none."""
    blend = cuvee.merge(["one", "two"], method="average")
    assert text_of(blend.recipe) != "" and text_of(blend.with_(names=names).recipe) == ""

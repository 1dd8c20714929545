"""The same bytes whatever the run's settings: threads, memory, block size, plan rules, interruption (PROMISES 9–11)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.engine.options import RunOptions
from cuvee.methods.registry import get, names, parameters_for
from cuvee.plan.build import PlanOptions

REQUIRED = {"t": 0.3, "scale": 0.5}
SETTINGS: dict[str, RunOptions] = {
    "two threads": RunOptions(threads=2),
    "small blocks": RunOptions(block=1024),
    "odd blocks": RunOptions(block=7 * 1024, threads=2),
    "little memory": RunOptions(memory=1 << 16),
}


def checkpoint(path: Path, seed: int, base: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Named tensors of every rank and several types, some larger than a block."""
    torch.manual_seed(seed)
    shapes = {
        "embed.weight": (120, 50),
        "layers.0.w": (96, 130),
        "layers.1.w": (96, 130),
        "norm": (37,),
        "s": (),
    }
    tensors = {}
    for i, (name, shape) in enumerate(shapes.items()):
        dtype = (torch.bfloat16, torch.float32, torch.float16)[i % 3]
        noise = torch.randn(shape)
        tensors[name] = (noise if base is None else base[name].float() + 0.05 * noise).to(dtype)
    tensors["steps"] = torch.tensor([3, 4])
    save_file(tensors, path)
    return tensors


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Path]]:
    folder = tmp_path_factory.mktemp("models")
    paths = [folder / f"{name}.safetensors" for name in ("base", "a", "b", "c")]
    base = checkpoint(paths[0], 0)
    for seed, path in enumerate(paths[1:], 1):
        checkpoint(path, seed, base)
    yield paths


def blend(method: str, models: list[Path]) -> cuvee.Blend:
    """The method on as many of the models as it takes, with a value for what it requires."""
    found = get(method)
    base, *experts = models
    most = found.inputs[1]
    values = {n: REQUIRED[n] for n, p in parameters_for(found).items() if p.required}
    return cuvee.merge(
        experts[: most or 3], base=base if found.base != "ordinary" else None, method=method, **values
    )


def digest(made: cuvee.Blend, out: Path, options: RunOptions) -> str:
    made.save(out, run=options, overwrite=True)
    return hashlib.sha256(out.read_bytes()).hexdigest()


@pytest.mark.parametrize("method", names())
def test_settings_do_not_change_a_byte(method: str, models: list[Path], tmp_path: Path) -> None:
    made = blend(method, models)
    expected = digest(made, tmp_path / "out.safetensors", RunOptions())
    for name, options in SETTINGS.items():
        assert digest(made, tmp_path / "out.safetensors", options) == expected, name


@pytest.mark.parametrize("rule", ["copy_passthrough", "collapse_casts"])
def test_rules_do_not_change_a_byte(rule: str, models: list[Path], tmp_path: Path) -> None:
    made = blend("passthrough", models).with_(settings={})
    expected = digest(made, tmp_path / "a.safetensors", RunOptions())
    off = cuvee.Blend(made.recipe, made.anchor, options=PlanOptions(rules_off=(rule,)))
    assert digest(off, tmp_path / "b.safetensors", RunOptions()) == expected


def test_masks_do_not_depend_on_which_other_tensors_and_experts_are_merged(models: list[Path]) -> None:
    def merged(tensors: list[str], experts: list[str]) -> dict[str, torch.Tensor]:
        opened = {n: cuvee.open(p) for n, p in zip(("base", "a", "b", "c"), models, strict=True)}
        cut: dict[str, Any] = {n: {t: c.tensor(t) for t in tensors} for n, c in opened.items()}
        base = cut.pop("base")
        chosen = {n: cut[n] for n in experts}
        return cuvee.merge(chosen, base=base, method="dare_linear", density=0.5, weight=1.0).load()

    alone = merged(["layers.1.w"], ["a"])["layers.1.w"]
    beside = merged(["embed.weight", "layers.0.w", "layers.1.w"], ["a"])["layers.1.w"]
    assert torch.equal(alone, beside)
    both, other = (
        merged(["layers.1.w"], ["a", "b"])["layers.1.w"],
        merged(["layers.1.w"], ["b", "a"])["layers.1.w"],
    )
    assert torch.allclose(both.float(), other.float(), atol=1e-2)


def test_equal_shapes_get_unrelated_masks(models: list[Path]) -> None:
    zeros = {"x": torch.zeros(64, 64), "y": torch.zeros(64, 64)}
    ones = {name: torch.ones(64, 64) for name in zeros}
    out = cuvee.merge([ones], base=zeros, method="dare_linear", density=0.5).load()
    kept_x, kept_y = out["x"] != 0, out["y"] != 0
    agreement = float((kept_x == kept_y).float().mean())
    assert abs(agreement - 0.5) < 0.05  # 4096 fair coins: five standard deviations are 0.04

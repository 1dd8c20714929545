"""The same bytes whatever the run's settings: threads, memory, block size, plan rules, interruption (PROMISES 9–11)."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.core.disk import RealDisk
from cuvee.engine.events import Event, Progress
from cuvee.engine.options import RunOptions, parse_bytes
from cuvee.methods.registry import get, names
from cuvee.plan.build import PlanOptions
from cuvee.plan.rules import RULES
from cuvee.testing.sample_values import sample_values

FOLDER = Path(__file__).parents[1] / "settings"


@dataclass(frozen=True)
class Setting:
    """One file of `tests/settings`: how a run goes, which must not change a byte. A new file tests everything again."""

    run: RunOptions = field(default_factory=RunOptions)
    rules_off: tuple[str, ...] = ()
    interrupted: bool = False

    @classmethod
    def read(cls, path: Path) -> Setting:
        told = tomllib.loads(path.read_text())
        off, interrupted = tuple(told.pop("rules_off", ())), told.pop("interrupted", False)
        if "memory" in told:
            told["memory"] = parse_bytes(told["memory"])
        return cls(RunOptions(**told), off, interrupted)


SETTINGS = {path.stem: Setting.read(path) for path in sorted(FOLDER.glob("*.toml"))}


class Cut(Exception):
    """The run is to die here."""


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


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of runs need not wait for the device: what survives a power cut is tested elsewhere."""
    monkeypatch.setattr(RealDisk, "sync", lambda self, handle: None)
    monkeypatch.setattr(RealDisk, "sync_folder", lambda self, folder: None)


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
    values = sample_values(found, most or 3)
    return cuvee.merge(
        experts[: most or 3], base=base if found.base != "ordinary" else None, method=method, **values
    )


def digest(made: cuvee.Blend, out: Path, setting: Setting) -> str:
    off = setting.rules_off
    blend = cuvee.Blend(made.recipe, made.anchor, options=PlanOptions(rules_off=off)) if off else made
    while True:
        written: set[str] = set()

        def listen(event: Event, written: set[str] = written) -> None:
            if setting.interrupted and isinstance(event, Progress):
                written.add(event.tensor)
                if len(written) == 3:  # one of two threads has finished a tensor
                    raise Cut

        try:
            blend.save(out, run=setting.run, overwrite=True, listener=listen)
        except Cut:
            continue
        return hashlib.sha256(out.read_bytes()).hexdigest()


def test_there_is_a_setting_without_each_rule() -> None:
    assert {rule for setting in SETTINGS.values() for rule in setting.rules_off} == set(RULES)


@pytest.mark.parametrize("method", names())
def test_settings_do_not_change_a_byte(method: str, models: list[Path], tmp_path: Path) -> None:
    made = blend(method, models)
    expected = digest(made, tmp_path / "out.safetensors", Setting())
    for name, setting in SETTINGS.items():
        assert digest(made, tmp_path / "out.safetensors", setting) == expected, name


@pytest.mark.parametrize("rule", RULES)
def test_rules_do_not_change_a_byte(rule: str, models: list[Path], tmp_path: Path) -> None:
    made = blend("passthrough", models).with_(settings={})
    expected = digest(made, tmp_path / "a.safetensors", Setting())
    assert digest(made, tmp_path / "b.safetensors", Setting(rules_off=(rule,))) == expected


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

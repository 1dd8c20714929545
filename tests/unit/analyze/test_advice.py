"""Each rule speaks at its threshold and is silent short of it; what it recommends exists."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cuvee import analyze
from cuvee.analyze.forecast import HIGH, INDEPENDENT, LOW
from cuvee.methods import registry

GENERATOR = torch.Generator().manual_seed(0)


def noise(scale: float = 1.0, shape: tuple[int, ...] = (80, 80)) -> torch.Tensor:
    return scale * torch.randn(shape, generator=GENERATOR)


BASE = noise()


def advice(changes: dict[str, torch.Tensor], **options: Any) -> dict[str, Any]:
    found = analyze.models({"w": BASE}, {n: {"w": BASE + c} for n, c in changes.items()}, **options)
    for one in found.advice:
        assert all(registry.get(name) for name in one.methods)
    return {one.rule: one for one in found.advice}


def test_a_stranger_is_not_to_be_merged_and_no_method_is_suggested() -> None:
    found = advice({"fine": noise(0.05), "stranger": noise() - BASE})
    assert "do not merge `stranger`" in found["no_common_base"].text
    assert not any(
        one.methods for one in found.values() if one.kind == "suggest" and one.rule.endswith("opposition")
    )


def test_nothing_is_said_of_how_to_merge_a_stranger() -> None:
    """`analyze` said not to merge it, and then to give it a smaller weight."""
    changes = {"fine": noise(0.05), "stranger": noise() - BASE, "twin": noise() - BASE}
    found = analyze.models({"w": BASE}, {n: {"w": BASE + c} for n, c in changes.items()})
    stopped = {"stranger", "twin"}
    assert [one.rule for one in found.advice if any(n in one.text for n in stopped)] == ["no_common_base"] * 2
    near = advice({"fine": noise(0.05), "large": noise(0.2), "stranger": noise() - BASE})
    assert "`large`" in near["unequal_norms"].text  # the others are still compared


def test_too_little_in_common_is_no_common_base() -> None:
    experts = {
        "half": {"w": BASE + noise(0.01), "v": torch.ones(6401)},
        "whole": {"w": BASE, "v": torch.ones(6400)},
    }
    found = analyze.models({"w": BASE, "v": torch.ones(6400)}, experts)
    assert [one.rule for one in found.advice if "`half`" in one.text] == ["no_common_base"]
    assert any("too little of it can be compared" in one.text for one in found.advice)


@pytest.mark.parametrize(
    ("rule", "speaks", "silent"),
    [
        ("unchanged", {"a": torch.zeros(80, 80)}, {"a": noise(1e-4)}),
        ("far_from_base", {"a": noise(0.35)}, {"a": noise(0.25)}),
        ("unequal_norms", {"a": noise(0.01), "b": noise(0.04)}, {"a": noise(0.01), "b": noise(0.02)}),
    ],
)
def test_rules_of_size(rule: str, speaks: dict[str, torch.Tensor], silent: dict[str, torch.Tensor]) -> None:
    assert rule in advice(speaks)
    assert rule not in advice(silent)


def test_an_expert_without_changes_spoils_no_report(cli: Any, tmp_path: Path) -> None:
    changed = {"same": {"w": BASE.clone()}, "other": {"w": BASE + noise(0.01)}}
    for name, tensors in {"base": {"w": BASE}, **changed}.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    paths = [str(tmp_path / f"{n}.safetensors") for n in ("base", "same", "other")]
    outcome = cli("analyze", *paths, "--spectra", "--merge", paths[0], "-o", str(tmp_path / "r.html"))
    assert outcome.code == 0 and "it equals the base" in outcome.out
    assert "nan" not in outcome.out.split() + (tmp_path / "r.html").read_text().split()


def test_rules_of_direction() -> None:
    one = noise(0.05)
    assert "same_change" in advice({"a": one, "b": one * 1.5})
    near = advice({"a": one + noise(0.02), "b": one + noise(0.02)})
    assert "nearer_ancestor" in near and "same_change" not in near
    assert "nearer_ancestor" not in advice({"a": one + noise(0.05), "b": one + noise(0.05)})


def test_rules_of_spectra() -> None:
    left, right = noise(0.1, (80, 8)), noise(0.1, (8, 80))
    thin = advice({"a": left @ right, "b": (left * 1.1) @ noise(0.1, (8, 8)) @ right}, spectra=True)
    assert {"thin_changes", "shared_directions"} <= thin.keys()
    wide = advice({"a": noise(0.05), "b": noise(0.05)}, spectra=True)
    assert not {"shared_directions"} & wide.keys()


def test_the_forecast_of_known_changes() -> None:
    a, b = noise(0.05), noise(0.05)
    mask = torch.rand(80, 80, generator=GENERATOR) < 0.5

    def forecast(x: torch.Tensor, y: torch.Tensor) -> Any:
        return analyze.models({"w": torch.zeros(80, 80)}, {"x": {"w": x}, "y": {"w": y}}).forecast

    assert forecast(a, b).mean == pytest.approx(1 / math.pi, abs=0.02)  # E|x| E|y| / 2 of normal numbers
    assert (forecast(a, b).band, forecast(a * mask, b * ~mask).band, forecast(a, -a).band) == (
        "moderate",
        "low",
        "high",
    )
    assert forecast(a * mask, b * ~mask).mean == 0
    assert forecast(a, -a).mean == pytest.approx(1.0)
    assert forecast(a, 2 * a).mean == pytest.approx(0.0, abs=1e-12)
    assert LOW < INDEPENDENT < HIGH
    assert forecast(a, -a).experimental
    assert forecast(a, torch.zeros(80, 80)).band == "none"
    assert np.isnan(forecast(a, torch.zeros(80, 80)).mean)


@pytest.mark.parametrize(
    ("names", "said"), [(("one",), "1 of 1"), (("one", "none"), "1 of 2"), (("none",), "0 of 1")]
)
def test_one_changed_model_is_nothing_to_merge(names: tuple[str, ...], said: str) -> None:
    changes = {"one": noise(0.05), "none": torch.zeros(80, 80)}
    found = advice({name: changes[name] for name in names})
    assert found["nothing_to_merge"].kind == "stop" and found["nothing_to_merge"].reason.startswith(said)
    assert not any(one.methods for one in found.values())


def test_two_changed_models_are_something_to_merge() -> None:
    assert "nothing_to_merge" not in advice({"one": noise(0.05), "two": noise(0.05)})

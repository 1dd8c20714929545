"""Values of single models for parameters that several stages of a chain have, through both doors."""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.recipe.chains import own_names

torch.set_num_threads(1)
BASE = {"w": torch.zeros(20)}
EXPERTS = {
    name: {"w": torch.randn(20, generator=torch.Generator().manual_seed(i))} for i, name in enumerate("ab")
}
TRIM, BAND, SECOND = [0.9, 0.5], [0.5, 1.0], [0.2, 0.1]


def kept(tau: numpy.ndarray, density: float, gamma: float = 0.0) -> numpy.ndarray:
    """The entries between the `gamma` largest and the smallest, `density` of all in number."""
    top, count = int(gamma * tau.size), int(density * tau.size)
    order = numpy.argsort(-numpy.abs(tau), kind="stable")
    out = numpy.zeros_like(tau)
    chosen = order[top : top + count]
    out[chosen] = tau[chosen]
    return out


def expected(second: list[float] | None = None) -> numpy.ndarray:
    total = numpy.zeros(20)
    for i, expert in enumerate(EXPERTS.values()):
        tau = kept(kept(expert["w"].double().numpy(), TRIM[i]), BAND[i])
        total += kept(tau, second[i]) if second else tau
    return total


def chain(*more: object) -> list[object]:
    band = ("band", {"density": BAND, "gamma": 0.0})
    return [("trim", {"density": TRIM}), band, *more, "weighted_sum"]


def test_a_list_with_each_stage_is_that_stages_own() -> None:
    found = cuvee.merge(EXPERTS, base=BASE, method=chain()).load()["w"]
    numpy.testing.assert_allclose(found.double(), expected(), atol=1e-6)


def test_a_stage_that_stands_twice() -> None:
    found = cuvee.merge(EXPERTS, base=BASE, method=chain(("trim", {"density": SECOND}))).load()["w"]
    numpy.testing.assert_allclose(found.double(), expected(SECOND), atol=1e-6)


def recipe(folder: Path, own: list[str]) -> Path:
    for name, tensors in {"base": BASE, **EXPERTS}.items():
        save_file(tensors, folder / f"{name}.safetensors")
    experts = [f"  {n}: {{source: ./{n}.safetensors, {o}}}" for n, o in zip(EXPERTS, own, strict=True)]
    merge = "merge: [trim, band: {gamma: 0}, weighted_sum]"
    text = "\n".join(["version: 1", "base: ./base.safetensors", "experts:", *experts, merge, ""])
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def test_a_model_names_the_stage(tmp_path: Path) -> None:
    own = [f"trim.density: {t}, band.density: {b}" for t, b in zip(TRIM, BAND, strict=True)]
    found = cuvee.load(recipe(tmp_path, own)).load()["w"]
    numpy.testing.assert_allclose(found.double(), expected(), atol=1e-6)


def test_a_name_that_several_stages_have_is_refused_with_what_to_write(tmp_path: Path) -> None:
    with pytest.raises(cuvee.CuveeError, match=r"(?s)CV-R007: `density` .*`band.density` or `trim.density`"):
        cuvee.load(recipe(tmp_path, ["density: 0.5", "density: 0.5"])).plan()


def test_names() -> None:
    short = own_names(["trim", "drop", "weighted_sum"])
    assert (short[0]["density"], short[0]["scope"], short[1]["density"]) == (
        "trim.density",
        "scope",
        "drop.density",
    )
    assert [names["density"] for names in own_names(["trim", "trim"])] == ["0.trim.density", "1.trim.density"]

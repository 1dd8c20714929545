"""The generic engine against the plain meaning of each method (`testing.stages.run_method`), bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import cuvee
from cuvee.engine.options import RunOptions
from cuvee.methods.registry import get, names
from cuvee.testing.sample_values import sample_values
from cuvee.testing.stages import run_method

SHAPES: dict[str, tuple[int, ...]] = {
    "cube": (3, 5, 7),
    "empty": (0, 4),
    "long": (2051,),
    "matrix": (67, 33),
    "one": (1,),
    "row": (1, 1500),
    "scalar": (),
    "thin": (1500, 1),
}
SETTINGS = {
    "whole": RunOptions(kernels=False),
    "tiny blocks": RunOptions(kernels=False, block=1024),
    "two threads": RunOptions(kernels=False, block=1024, threads=2, memory=1 << 12),
    "kernels": RunOptions(),
}


def tensors(seed: int, start: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return noise if start is None else {name: start[name] + 0.1 * x for name, x in noise.items()}


BASE = tensors(0)
EXPERTS = [tensors(seed, BASE) for seed in (1, 2, 3)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Products of matrices depend on torch's threads; the engine gives each worker one, so the oracle has one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("method", names())
def test_the_engine_gives_what_the_method_means(method: str, setting: str) -> None:
    found = get(method)
    experts = EXPERTS[: found.inputs[1] or 3]
    values = sample_values(found, len(experts))
    base = None if found.base == "ordinary" else BASE
    chosen = {str(i): expert for i, expert in enumerate(experts)}  # the names that the oracle gives them
    merged = cuvee.merge(chosen, base=base, method=method, seed=4, **values).load(SETTINGS[setting])
    expected = run_method(found, experts, base, values, seed=4)
    assert isinstance(expected, dict)
    assert merged.keys() == SHAPES.keys()
    for name, value in expected.items():
        assert merged[name].shape == SHAPES[name]
        assert torch.equal(merged[name], value), f"{method} {name}"


def test_float64_stays_float64_and_narrow_types_are_rounded_once() -> None:
    a, b = torch.tensor([1.0 + 2**-40, 3.0]).double(), torch.tensor([1.0 + 2**-38, 5.0]).double()
    assert torch.equal(cuvee.merge([{"w": a}, {"w": b}]).load()["w"], (a + b) / 2)
    x, y = torch.tensor([1.0, 1.0078125]).bfloat16(), torch.tensor([1.0078125, 1.015625]).bfloat16()
    found = cuvee.merge([{"w": x}, {"w": y}]).load()["w"]
    assert torch.equal(found, ((x.double() + y.double()) / 2).bfloat16())
    mixed = cuvee.merge([{"w": x}, {"w": y.double()}]).load()["w"]
    assert torch.equal(mixed, (x.double() + y.double()) / 2)


def test_tensors_without_floats_are_copied_from_the_base_else_from_the_first() -> None:
    kinds = [torch.int64, torch.int8, torch.uint8, torch.bool]
    one = {str(kind): torch.tensor([[1, 0], [1, 1]]).to(kind) for kind in kinds}
    two = {name: 1 - value.to(torch.int8) for name, value in one.items()}
    other = {name: value.to(one[name].dtype) for name, value in two.items()}
    for models, base, expected in (([one, other], None, one), ([one, other], other, other)):
        method = "linear" if base is None else "task_arithmetic"
        found = cuvee.merge(models, base=base, method=method).load()
        assert all(
            torch.equal(found[name], value) and found[name].dtype == value.dtype
            for name, value in expected.items()
        )


@pytest.mark.parametrize("setting", ["whole", "tiny blocks", "kernels"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_read_and_written(dtype: torch.dtype, setting: str) -> None:
    a, b = (x["matrix"].to(dtype) for x in EXPERTS[:2])
    found = cuvee.merge([{"w": a}, {"w": b}]).load(SETTINGS[setting])["w"]
    assert found.dtype == torch.bfloat16 if found.dtype != dtype else True
    exact = (a.double() + b.double()) / 2
    assert torch.equal(found.float(), exact.to(found.dtype).float())


def test_a_nested_recipe_is_merged_as_if_it_had_been_written_and_read() -> None:
    half = [{n: t.bfloat16() for n, t in expert.items()} for expert in EXPERTS]
    base = {n: t.bfloat16() for n, t in BASE.items()}
    inner = cuvee.merge({"0": half[0], "1": half[1]}, base=base, method="ties", density=0.4)
    step = inner.load()
    tree = cuvee.merge({"in": inner, "2": half[2]}, method="slerp", t=0.5).load(SETTINGS["tiny blocks"])
    steps = cuvee.merge({"in": step, "2": half[2]}, method="slerp", t=0.5).load()
    assert all(torch.equal(tree[name], value) for name, value in steps.items())

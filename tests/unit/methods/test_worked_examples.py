"""The worked examples of the methods' cards, each a few numbers by hand, through the whole method in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cuvee.methods.contract import Place
from cuvee.recipe.load import parse_recipe
from cuvee.testing.stages import run_method

torch.set_num_threads(1)


def of(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def diagonal(*values: float) -> list[list[float]]:
    return torch.diag(of(values)).tolist()


ON_ZERO: list[tuple[str, dict[str, Any], list[Any], Any]] = [  # method, parameters, experts (base 0), result
    ("task_arithmetic", {"lambda": 0.5}, [[4, 2], [2, -6]], [3, -2]),
    ("task_negation", {"lambda": 0.5}, [[4, 2]], [-2, -1]),
    ("ties", {"density": 0.5}, [[4, -1, 2, 0.5], [-3, 0.5, 1, -0.1]], [4, 0, 1.5, 0]),
    ("breadcrumbs", {"density": 0.7, "gamma": 0.1}, [range(10)], [0, 0, *range(2, 9), 0]),
    ("breadcrumbs", {"density": 0.7, "gamma": 0.0}, [range(10)], [0, 0, 0, *range(3, 10)]),
    (
        "consensus",
        {"strength": 0.4, "agree": 2},
        [[1, 0.1, -1], [0.1, 1, 1.2]],
        [0, 0, 0.2],
    ),
    ("emr", {}, [[2, -1], [1, 3]], [2, 3]),
    ("emr_expert", {"restore": [True, False]}, [[2, -1], [1, 3]], [3, 0]),
    ("emr_expert", {"restore": [False, True]}, [[2, -1], [1, 3]], [1.6, 2.4]),
    ("magmax", {"lambda": 1.0}, [[2, -1, 3], [-2.5, 0.5, -3]], [-2.5, -1, -3]),
    ("ram", {}, [[1, 2, 0], [0, 4, 3]], [1, 3, 3]),
    ("ramplus_tl", {}, [[1, 2, 0], [0, 4, 3]], [1.02, 3, 3.06]),
    ("nearswap", {"t": 0.1}, [[0.05, 0.2, -0.4]], [0.05, 0.1, -0.1]),
    ("metagpt", {}, [[1, 2], [3, 1]], [7 / 3, 4 / 3]),
    ("onebit_task_vector", {}, [[1, -3]], [2, -2]),
    ("model_stock", {}, [[2, 0], [1, math.sqrt(3)]], [1, 1 / math.sqrt(3)]),
    ("cabs", {"n": 1, "m": 2}, [[1, 2, 5, 3], [9, 8, 1, 7]], [9, 2, 5, 7]),
    ("multislerp", {}, [[2, 0], [0, 2]], [math.sqrt(2), math.sqrt(2)]),
    ("star", {"eta": 80}, [diagonal(5, 3, 1, 1)], diagonal(6.25, 3.75, 0, 0)),
    ("tsv_m", {}, [diagonal(2, 0), diagonal(0, 3)], diagonal(2, 3)),
    ("iso_c", {}, [diagonal(3, 1)], diagonal(2, 2)),
    ("stf", {}, [diagonal(2, 0), diagonal(0, 3)], diagonal(2, 3)),
    ("wudi", {"tensors": "matrices"}, [[[2, 0], [0, 0]], [[0, 0], [0, 3]]], diagonal(2, 3)),
]


@pytest.mark.parametrize(("method", "params", "experts", "wanted"), ON_ZERO)
def test_examples_on_a_base_of_zeros(
    method: str, params: dict[str, Any], experts: list[Any], wanted: Any
) -> None:
    given = [of(list(e) if isinstance(e, range) else e) for e in experts]
    found = run_method(method, given, torch.zeros_like(given[0]), params, dtype=torch.float64)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, of(wanted), rtol=1e-7, atol=1e-9)


WITHOUT_BASE: list[tuple[str, dict[str, Any], list[Any], Any]] = [
    ("linear", {"weight": [1.0, 3.0]}, [[1, 3], [3, 7]], [2.5, 6]),
    ("slerp", {"t": 0.5}, [[2, 0], [0, 1]], [math.sqrt(2), math.sqrt(0.5)]),
    ("karcher", {}, [[1, 0, 0], [0, 2, 0], [0, 0, 3]], [2 / math.sqrt(3)] * 3),
    ("pma_wma", {}, [[3, 0], [0, 3]], [1, 2]),
    ("pma_ema", {"alpha": 1.0}, [[3, 0], [0, 3]], [0, 3]),
    ("ema", {"decay": 0.5}, [[8, 0, 0], [0, 8, 0], [0, 0, 8]], [2, 2, 4]),
    ("lawa", {"last": 2}, [[9, 9], [1, 2], [3, 4]], [2, 3]),
    ("wsm", {"decay": "1 - x"}, [[3, 0, 0], [0, 3, 0], [0, 0, 3]], [1, 1, 1]),
    ("mwa", {"metric": [1.0, 0.5], "penalty": 1.0}, [[3, 0], [0, 3]], [1, 2]),
]


@pytest.mark.parametrize(("method", "params", "experts", "wanted"), WITHOUT_BASE)
def test_examples_without_a_base(
    method: str, params: dict[str, Any], experts: list[Any], wanted: Any
) -> None:
    found = run_method(method, [of(e) for e in experts], None, params, dtype=torch.float64)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, of(wanted), rtol=1e-7, atol=1e-9)


def test_lines_of_three_blocks() -> None:
    """α 0.2 and β 0.8: the blocks keep 0.2, 0.6 and all of the change, what stands outside of them 0.2."""
    names = {"embed": None, "layers.0.w": 0, "layers.1.w": 1, "layers.2.w": 2}
    places = {n: Place(n, "q" if i is not None else "embeddings", i, 3) for n, i in names.items()}
    one, zero = dict.fromkeys(names, of([1.0])), dict.fromkeys(names, of([0.0]))
    found = run_method("lines", [one], zero, {"alpha": 0.2, "beta": 0.8}, dtype=torch.float64, places=places)
    assert isinstance(found, dict)
    assert [round(v.item(), 12) for v in found.values()] == [0.2, 0.2, 0.6, 1.0]


@pytest.mark.parametrize(
    ("layers", "drop", "runs"),
    [(32, 8, [(0, 24), (8, 32)]), (4, 2, [(0, 2), (2, 4)]), (3, 0, [(0, 3), (0, 3)])],
)
def test_depth_up_scaling_stacks_the_first_and_the_last_layers(
    layers: int, drop: int, runs: list[tuple[int, int]]
) -> None:
    text = f"version: 1\nexperts: {{one: ./one}}\nmerge: {{method: dus, layers: {layers}, drop: {drop}}}"
    slices = parse_recipe(text).modules["*"].slices
    assert [part.inputs[0].layers for part in slices] == runs

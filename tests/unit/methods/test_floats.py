"""Functions of single numbers against NumPy's of the same names, and that a merge with coefficients needs no NumPy."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import save_file

from cuvee.methods import floats

EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-320, 1e300, -3.7, math.inf, -math.inf, math.nan]


def same(found: float, expected: Any) -> bool:
    """Equal to one unit in the last place; NaN and the sign of 0 too."""
    expected = float(expected)
    if math.isnan(expected) or expected == 0 or math.isinf(expected):
        return repr(found) == repr(expected)
    return abs(found - expected) <= math.ulp(expected)


@pytest.mark.parametrize("name", ["sqrt", "sin", "cos", "arccos", "absolute"])
def test_functions_are_those_of_numpy(name: str) -> None:
    draw = numpy.random.default_rng(0)
    values = [*EDGES, *draw.uniform(-1, 1, 2000).tolist(), *draw.normal(0, 9, 500).tolist()]
    with numpy.errstate(all="ignore"):
        for x in values:
            assert same(getattr(floats, name)(x), getattr(numpy, name)(numpy.float64(x))), x


def test_quotients_and_bounds_are_those_of_numpy() -> None:
    with numpy.errstate(all="ignore"):
        for a, b in itertools.product(EDGES, EDGES):
            assert same(floats.divide(a, b), numpy.divide(numpy.float64(a), numpy.float64(b))), (a, b)
        for x in EDGES:
            assert same(floats.clip(x, -1, 1), numpy.clip(numpy.float64(x), -1, 1)), x
            assert same(floats.clip(x, 1e-7, None), numpy.clip(numpy.float64(x), 1e-7, None)), x
            assert same(floats.clip(x, None, 0.5), numpy.clip(numpy.float64(x), None, 0.5)), x


def test_choice_list_and_mean() -> None:
    assert [floats.where(x, 1.0, 2.0) for x in (True, False)] == [1.0, 2.0]
    values = numpy.random.default_rng(1).normal(size=7).tolist()
    assert floats.mean(floats.stack(values), 0) == numpy.mean(values)


@pytest.mark.parametrize("method", ["slerp", "nuslerp", "model_stock"])
def test_a_merge_with_coefficients_imports_neither_library(method: str, tmp_path: Path) -> None:
    models = []
    for name in ("base", "one", "two"):
        save_file({"w": torch.randn(40, 60)}, tmp_path / f"{name}.safetensors")
        models.append({"model": f"./{name}.safetensors"})
    recipe: dict[str, Any] = {"merge_method": method, "base_model": models[0]["model"]}
    recipe["models"] = models[1:2] if method == "slerp" else models[1:]
    recipe["parameters"] = {"t": 0.3} if method == "slerp" else {"weight": 0.4} if method == "nuslerp" else {}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    code = (
        "import sys\nfrom cuvee.cli import main\ntry:\n    main()\nfinally:\n"
        "    print('HEAVY', sorted({'torch', 'numpy'} & set(sys.modules)))"
    )
    arguments = ["merge", "r.yaml", "-o", "out.safetensors", "--quiet", "--offline"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("HEAVY ")[1].strip() == "[]"

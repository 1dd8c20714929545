"""Rows that are ranked some at a time, where what is left of all would be too much: the same bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.engine.fused import rows
from cuvee.engine.kernels import kernels

pytestmark = pytest.mark.skipif(kernels() is None, reason="no kernels")
SHAPES = {"a": (64, 896), "b": (9, 4864), "c": (3001,), "d": (600, 48)}


@pytest.mark.parametrize("rescale", ["l1", "none", "inverse_q"])
@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_some_rows_at_a_time(
    method: str, rescale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(5)
    paths = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for path in paths:
        save_file(
            {name: torch.randn(shape, generator=draw).bfloat16() for name, shape in SHAPES.items()}, path
        )
    values = {"density": 0.4, "epsilon": 0.2, "weight": 0.5, "rescale": rescale}
    blend = cuvee.merge(paths[1:], base=paths[0], method=method, **values)
    blend.save(tmp_path / "all.safetensors")
    for bits in (0, 8000):  # of no stage, and of some
        monkeypatch.setattr(rows, "_BITS", bits)
        monkeypatch.setattr(rows, "_ROOM", 3000)
        blend.save(tmp_path / f"some{bits}.safetensors")
        assert (tmp_path / f"some{bits}.safetensors").read_bytes() == (
            tmp_path / "all.safetensors"
        ).read_bytes()

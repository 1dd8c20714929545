"""Rows that are ranked some at a time, where what is left of all would be too much: the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.engine.fused import rows
from cuvee.engine.kernels import kernels
from cuvee.engine.options import RunOptions

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
    parts: list[int] = []
    genuine = rows._sweep

    def swept(*given: Any) -> None:
        parts.extend([given[4][0]] if given[3] else [])
        genuine(*given)

    monkeypatch.setattr(rows, "_sweep", swept)
    blend.save(tmp_path / "all.safetensors")
    assert not any(parts)
    for bits in (0, 8000):  # of no stage, and of some
        parts.clear()
        monkeypatch.setattr(rows, "_BITS", bits)
        monkeypatch.setattr(rows, "_ROOM", 3000)
        blend.save(tmp_path / f"some{bits}.safetensors")
        assert any(parts)
        assert (tmp_path / f"some{bits}.safetensors").read_bytes() == (
            tmp_path / "all.safetensors"
        ).read_bytes()


def test_rows_that_end_with_no_tile_before_the_tensor_does_are_left_to_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What would be left of all of them is more than a worker may hold."""
    made: list[int] = []
    genuine = rows._Rows.__init__

    def counted(self: Any, *given: Any, **rest: Any) -> None:
        made.append(1)
        genuine(self, *given, **rest)

    monkeypatch.setattr(rows, "_MOST", 1 << 14)
    monkeypatch.setattr(rows._Rows, "__init__", counted)
    draw = torch.Generator().manual_seed(6)
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path in paths:
        save_file({"a": torch.randn(40, 501, generator=draw).bfloat16()}, path)
    blend = cuvee.merge(paths[1:], base=paths[0], method="della", density=0.4, rescale="inverse_q")
    blend.save(tmp_path / "here.safetensors")
    assert not made
    blend.save(tmp_path / "torch.safetensors", run=RunOptions(kernels=False))
    assert (tmp_path / "here.safetensors").read_bytes() == (tmp_path / "torch.safetensors").read_bytes()

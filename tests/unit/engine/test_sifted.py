"""Bits of what lies above a threshold, left by the pass that looks for it: the same selection as without them."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.engine.kernels import kernels, library
from cuvee.engine.kernels.operations import TILE, Code
from cuvee.engine.options import RunOptions

pytestmark = pytest.mark.skipif(library.kernels() is None, reason=f"no kernels: {library.state().reason}")

SHAPE = (160, 1030)  # large enough for a sample; tiles, and a rest


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """A base and four experts, in types of which one is read by single operations; many variances are equal."""
    folder = tmp_path_factory.mktemp("sifted")
    draw = torch.Generator().manual_seed(8)
    base = torch.randn(SHAPE, generator=draw)
    paths: dict[str, list[Path]] = {"bfloat16": [], "float16": [], "steps": []}
    for expert in range(5):
        some = torch.rand(SHAPE, generator=draw) > 1 / 3
        change = torch.randn(SHAPE, generator=draw) * some * (expert > 0)
        for name in paths:
            paths[name].append(folder / f"{name}{expert}.safetensors")
            tensor = change.round() if name == "steps" else base + change * 0.1
            save_file(
                {"w": tensor.to(torch.float16 if name == "float16" else torch.bfloat16)}, paths[name][-1]
            )
    return paths


def saved(models: list[Path], out: Path, options: RunOptions, **values: Any) -> bytes:
    blend = cuvee.merge(models[1:], base=models[0], method="sce", **values)
    blend.save(out / "o.safetensors", run=options, overwrite=True, resume=False)
    return (out / "o.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("kind", "experts"), [("bfloat16", 3), ("bfloat16", 4), ("float16", 2), ("steps", 3)]
)
@pytest.mark.parametrize("share", [0.1, 0.95])
def test_variances_are_made_once_where_bits_have_room(
    kind: str,
    experts: int,
    share: float,
    models: dict[str, list[Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, values = models[kind][: experts + 1], {"select_topk": share}
    generic = saved(given, tmp_path, RunOptions(kernels=False, threads=1), **values)
    codes: list[int] = []
    settled: list[int] = []
    stream, settle = library.Kernels.stream, library.Kernels.settle

    def told(kernels: Any, ops: Any, *given: Any) -> Any:
        codes.extend(op.code for op in ops)
        return stream(kernels, ops, *given)

    def told_settled(kernels: Any, *given: Any) -> None:
        settled.append(1)
        settle(kernels, *given)

    monkeypatch.setattr(library.Kernels, "stream", told)
    monkeypatch.setattr(library.Kernels, "settle", told_settled)
    assert saved(given, tmp_path, RunOptions(threads=1), **values) == generic
    assert codes.count(Code.SIFT) > 0
    assert len(settled) == 1
    codes.clear()
    assert saved(given, tmp_path, RunOptions(threads=1, memory=4096), **values) == generic
    assert Code.SIFT not in codes
    assert len(settled) == 1


@pytest.mark.parametrize("experts", [2, 3, 4])
def test_a_variance_that_is_not_a_number_is_the_largest(experts: int, tmp_path: Path) -> None:
    """Changes of opposite sign that float32 cannot subtract: the sign of NaN, where it has one, counts nowhere."""
    draw = torch.Generator().manual_seed(experts)
    changes = torch.randn((experts + 1, 4, 1024), generator=draw)
    changes[0] = 0
    changes[1, 1, 5], changes[2, 1, 5] = 3e38, -3e38
    changes[1, 2, 7], changes[2, 2, 7] = -3e38, 3e38
    paths = [tmp_path / f"{number}.safetensors" for number in range(experts + 1)]
    for path, change in zip(paths, changes, strict=True):
        save_file({"w": change.bfloat16()}, path)
    ways = [RunOptions(kernels=way, threads=1, non_finite="allow") for way in (False, True)]
    generic, compiled = (saved(paths, tmp_path, way, select_topk=0.3) for way in ways)
    assert compiled == generic


@pytest.mark.parametrize("ties", [0, 7, 1 << 62])
def test_what_is_open_is_settled_by_its_magnitudes(ties: int) -> None:
    machine = kernels()
    assert machine is not None
    draw = torch.Generator().manual_seed(ties % 100)
    tiles, cut = 3, 12
    sure, open_ = (torch.rand((2, tiles * TILE), generator=draw) < torch.tensor([[0.2], [0.3]])).unbind()
    open_ &= ~sure
    keys = torch.randint(5, 20, (int(open_.sum()),), generator=draw, dtype=torch.int32)
    tied = (keys == cut).nonzero().reshape(-1)[:ties]
    kept = keys > cut
    kept[tied] = True
    expected = sure.clone()
    expected[open_] = kept

    def bits(truths: torch.Tensor) -> Any:
        eights = truths.reshape(-1, 8).int() << torch.arange(8)
        return (ctypes.c_uint8 * (tiles * TILE // 8))(*eights.sum(1).tolist())

    found, behind = bits(sure), bits(open_)
    held = (ctypes.c_uint32 * len(keys))(*keys.tolist())
    machine.settle(ctypes.addressof(found), ctypes.addressof(behind), tiles, held, cut, ties)
    assert bytes(found) == bytes(bits(expected))

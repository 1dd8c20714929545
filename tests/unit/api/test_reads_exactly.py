"""The system is asked not to read ahead where a plan leaves something out, and only there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cuvee.api.blend import Blend
from cuvee.api.budget import budgeted, make_catalogue, running
from cuvee.api.execute import save
from cuvee.engine.kernels import kernels
from cuvee.engine.options import RunOptions
from cuvee.formats.bytes_file import ByteFile
from cuvee.recipe.load import parse_recipe

OPTIONS = RunOptions(threads=1)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[int]]:
    """By weight file, what the system was asked to do when it is read."""
    found: dict[str, set[int]] = {}
    real = os.posix_fadvise

    def advise(number: int, offset: int, count: int, advice: int) -> None:
        path = Path(f"/proc/self/fd/{number}").readlink()
        if path.name == "model.safetensors":
            found.setdefault(path.parent.name, set()).add(advice)
        real(number, offset, count, advice)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="descriptors have no names here")
def test_nothing_is_read_ahead_within_a_budget(
    asked: dict[str, set[int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels() is None:
        pytest.skip("the general path has its own")
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(ByteFile, "read_exactly", lambda self: None)  # the general path's
    for seed, name in enumerate(("base", "one", "two")):
        torch.manual_seed(seed)
        (tmp_path / name).mkdir()
        tensors = {f"{i}.weight": torch.randn(1024, 600).bfloat16() for i in range(4)}
        save_file(tensors, tmp_path / name / "model.safetensors")
    make_catalogue(["./one", "./two"], "./base", anchor=tmp_path, offline=True)
    text = f"base: {tmp_path}/base\nexperts: {{a: {tmp_path}/one, b: {tmp_path}/two}}\n"
    plan = Blend(parse_recipe(f"version: 1\n{text}merge: {{method: task_arithmetic}}\n")).build()
    save(plan, tmp_path / "full", RunOptions(threads=1, catalogue=False))
    assert not any(os.POSIX_FADV_RANDOM in advice for advice in asked.values())
    lighter = budgeted(plan, "50%", None, OPTIONS)
    save(lighter.plan, tmp_path / "less", OPTIONS, runner=running(lighter))
    assert {name for name, advice in asked.items() if os.POSIX_FADV_RANDOM in advice} >= {
        "base",
        "one",
        "two",
    }
    plan.close()

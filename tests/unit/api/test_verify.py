"""`cuvee.verify` takes folders and single files, and says in its own errors what it cannot look at."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.errors import RunError, UsageError


@pytest.fixture
def merged(tmp_path: Path) -> Any:
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((4, 3), float(number))}, tmp_path / name / "model.safetensors")
    return cuvee.merge([str(tmp_path / "a"), str(tmp_path / "b")], method="linear", weight=0.5)


@pytest.mark.parametrize("name", ["blend", "blend.safetensors"])
def test_both_kinds_of_output_are_verified(name: str, merged: Any, tmp_path: Path) -> None:
    out = tmp_path / name
    merged.save(out)
    assert cuvee.verify(out) == []
    assert cuvee.verify(str(out), sample=0.5) == []
    weights = out if out.is_file() else out / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert [one.code for one in cuvee.verify(out)] == ["CV-V006"]
    weights.unlink()
    assert "CV-V003" in [one.code for one in cuvee.verify(out)]


def test_a_file_without_a_manifest_is_no_output(merged: Any, tmp_path: Path) -> None:
    assert [one.code for one in cuvee.verify(tmp_path / "a" / "model.safetensors")] == ["CV-V001"]


@pytest.mark.parametrize("name", ["bland", "bland.safetensors", "none/such"])
def test_nothing_there_is_an_error_of_ours(name: str, merged: Any, tmp_path: Path) -> None:
    merged.save(tmp_path / "blend")
    with pytest.raises(UsageError) as caught:
        cuvee.verify(tmp_path / name)
    (found,) = caught.value.diagnostics
    assert (found.code, found.hint) == ("CV-U100", None if "/" in name else "did you mean `blend`?")


def test_a_folder_that_cannot_be_read_is_an_error_of_ours(
    merged: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, **given: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    merged.save(tmp_path / "blend")
    monkeypatch.setattr("cuvee.api.outputs.verify_folder", refuse)
    with pytest.raises(RunError, match="permission denied") as caught:
        cuvee.verify(tmp_path / "blend")
    assert caught.value.diagnostics[0].code == "CV-E005"

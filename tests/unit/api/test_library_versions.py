"""The versions that a manifest records are those that the installed libraries' metadata tell."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from cuvee.api.record import _version, libraries


@pytest.mark.parametrize("name", ["torch", "numpy", "safetensors", "click", "blake3"])
def test_the_name_of_the_folder_tells_what_the_metadata_do(name: str) -> None:
    assert _version(name) == metadata.version(name)


def test_the_first_on_the_path_counts_and_a_library_that_only_begins_alike_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("a/torch-model-1.0.dist-info", "b/torch-1.2.3+cpu.dist-info", "c/torch-9.dist-info"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / name) for name in ("missing", "a", "b", "c")])
    assert _version("torch") == "1.2.3+cpu"
    assert _version("numpy") is None


def test_torch_and_numpy_are_recorded() -> None:
    assert libraries() == {name: metadata.version(name) for name in ("torch", "numpy")}

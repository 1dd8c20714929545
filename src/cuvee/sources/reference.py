"""How people name a checkpoint: the one grammar of sources.

    path                         a folder or a weight file, relative to the recipe (`~` is not expanded)
    hf://owner/name[@rev][/sub]  a hub repository; `refs/pr/N` is written plainly, other slashes as %2F
    owner/name[@rev]             the same, when no such path exists
    https://…, s3://bucket/…     a folder or safetensors file on a server or in an object store
    file:///…                    a path
    base + adapter [+ …]         adapters on a base; an existing path that contains `+` wins
    path#task                    one task of a package; `path#a=0.5&b=0.5` a weighted sum, names quoted by %
    {path, revision, adapter}    the long form, for whatever the short one cannot say

Looks at the file system only to ask whether a path exists. Must not open anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import SourceError, Where

SCHEME = "hf://"
ADDRESSES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_]|[.-](?![.-]))*"
_HUB = re.compile(rf"(?P<name>{_WORD}/{_WORD})(?:@(?P<revision>[^@\s]+))?")
_REFS = re.compile(r"refs/[^/]+/[^/]+")
_KEYS = ("path", "revision", "adapter", "adapters")


@dataclass(frozen=True, slots=True)
class Reference:
    """One checkpoint, and the adapters on it.

    `name` is a path as written, or `owner/name` on the hub; `assumed` says that it was taken for a hub
    repository because no such path exists.
    """

    kind: Literal["path", "hub", "url"]
    name: str
    revision: str | None = None
    subfolder: str | None = None
    adapters: tuple[Reference, ...] = ()
    assumed: bool = False
    tasks: tuple[tuple[str, float], ...] = ()  # of a package, with their weights
    base: str | None = None  # of a package, where it is not the one it names

    @property
    def display(self) -> str:
        """The reference as a person would write it."""
        return " + ".join([self._alone, *(adapter.display for adapter in self.adapters)])

    @property
    def _alone(self) -> str:
        if self.kind == "path":
            return self.name + (f"#{fragment(self.tasks, self.base)}" if self.tasks else "")
        if self.kind == "url":
            return self.name
        plain = self.assumed and self.subfolder is None
        return (
            ("" if plain else SCHEME)
            + self.name
            + self._revision
            + (f"/{self.subfolder}" if self.subfolder else "")
        )

    @property
    def _revision(self) -> str:
        if self.revision is None:
            return ""
        return f"@{self.revision if _REFS.fullmatch(self.revision) else quote(self.revision, safe='')}"


def parse_reference(written: str | Mapping[str, Any], anchor: Path) -> Reference:
    """The reference a person wrote, in its short or long form; paths are relative to `anchor`."""
    if isinstance(written, Mapping):
        return _long_form(written, anchor)
    text = written.strip()
    if not text or "\0" in text:
        raise _bad(written, "is not a path or `hf://owner/name`")
    if "+" not in text or exists(anchor, text):
        return _single(text, anchor)
    base, *adapters = [_single(part, anchor) for part in _split(text, anchor)]
    return replace(base, adapters=tuple(adapters))


def exists(anchor: Path, text: str) -> bool:
    """Whether there is such a path; names no file system can hold do not exist."""
    try:
        return (anchor / text).exists()
    except (OSError, ValueError):
        return False


def _split(text: str, anchor: Path) -> list[str]:
    """The parts around each `+`, spaced pluses first, so that `my+base + adapter` can be written."""
    parts: list[str] = []
    for piece in re.split(r"\s+\+\s+", text):
        parts += [piece] if exists(anchor, piece) else piece.split("+")
    stripped = [part.strip() for part in parts]
    if not all(stripped):
        hint = "write a path that contains `+` as `{path: ...}`"
        raise _bad(text, "has nothing on one side of a `+`", hint=hint)
    return stripped


def _single(text: str, anchor: Path) -> Reference:
    if "://" in text and not text.startswith(SCHEME):
        return _address(text)
    if "#" in text and text.partition("://")[0] in ("hf", text) and not exists(anchor, text):
        return _package(text)
    if text.startswith(SCHEME):
        return _hub(text)
    match = _HUB.fullmatch(text)
    if match is None or exists(anchor, text) or text.lower().endswith(WEIGHT_SUFFIXES):
        return Reference("path", text)
    return Reference("hub", match["name"], _unquoted(match["revision"]), assumed=True)


def fragment(tasks: Sequence[tuple[str, float]], base: str | None = None) -> str:
    """What follows `#` for these tasks of a package: `math`, or `math=0.5&code=0.5`; `base` is another base for it."""
    shown = [quote(name, safe="") + ("" if weight == 1 else f"={weight!r}") for name, weight in tasks]
    return "&".join([*shown, *([] if base is None else [f"base={quote(base, safe='/.')}"])])


def _package(text: str) -> Reference:
    """`path#task`, `path#a=0.5&b=0.5`, with `&base=PATH` for another base."""
    path, _, tail = text.partition("#")
    if path.startswith(SCHEME) or not path:
        hint = "fetch the repository, and name its folder"
        raise _bad(
            text, "does not name a package on this machine, which is where they are read from", hint=hint
        )
    tasks: list[tuple[str, float]] = []
    base = None
    for item in tail.split("&"):
        name, given, value = item.partition("=")
        if name == "base":
            base = unquote(value)
            continue
        try:
            weight = float(value) if given else 1.0
        except ValueError:
            weight = float("nan")
        if not name or weight - weight != 0:
            raise _bad(text, "does not name tasks as `path#task` or `path#task=0.5&other=0.5`")
        tasks.append((unquote(name), weight))
    if not tasks or len({name for name, _ in tasks}) < len(tasks) or base == "":
        raise _bad(text, "must name each of its tasks once, and at least one")
    return Reference("path", path, tasks=tuple(tasks), base=base)


def _address(text: str) -> Reference:
    """A path written as `file://`, or an address; what could hold a secret is refused, since recipes are shared."""
    try:
        parts = urlsplit(text)
        host, secret = parts.netloc, "@" in parts.netloc or bool(parts.query or parts.fragment)
    except ValueError:
        raise _bad(text.partition("://")[0], "does not begin an address") from None
    scheme = parts.scheme.lower()
    if scheme == "file" and host in ("", "localhost"):
        return Reference("path", unquote(parts.path))
    plain = f"{scheme}://{host.rpartition('@')[2]}{parts.path}"
    if scheme not in ADDRESSES:
        expected = f"expected a path, `{SCHEME}owner/name`, `https://` or `s3://`"
        raise _bad(plain, f"has an unknown scheme; {expected}")
    if secret:
        hint = "credentials come from the environment or `~/.netrc`, never from a recipe"
        raise _bad(plain, "has a user, a query or a fragment, which addresses must not have", hint=hint)
    if not host or ".." in parts.path.split("/"):
        raise _bad(plain, "is not an address of a folder or a file")
    return Reference("url", plain.rstrip("/"))


def _hub(text: str) -> Reference:
    """`hf://owner/name[@rev][/sub]`."""
    owner, _, rest = text.removeprefix(SCHEME).rstrip("/").partition("/")
    name, at, tail = rest.partition("@")
    if not at:
        name, _, subfolder = rest.partition("/")
        revision = ""
    else:
        plain = _REFS.match(tail)
        revision = plain[0] if plain else tail.partition("/")[0]
        subfolder = tail[len(revision) :].removeprefix("/")
    if _HUB.fullmatch(f"{owner}/{name}") is None or (at and not revision) or ".." in subfolder.split("/"):
        raise _bad(text, f"is not of the form `{SCHEME}owner/name[@revision][/subfolder]`")
    return Reference("hub", f"{owner}/{name}", _unquoted(revision or None), subfolder or None)


def _long_form(written: Mapping[str, Any], anchor: Path) -> Reference:
    for key in written:
        if key not in _KEYS:
            raise _bad(str(key), "is not a key of a source", hint=did_you_mean(str(key), _KEYS))
    path, revision = written.get("path"), written.get("revision")
    if not isinstance(path, str) or not path.strip():
        raise _bad("path", "of a source must be a path or a hub repository")
    if revision is not None and not isinstance(revision, str):
        raise _bad("revision", f"of a source must be text, got `{printable(str(revision))}`")
    found = _single(path.strip(), anchor)
    if revision is not None:
        found = _pinned(found, revision)
    listed = [*_listed(written.get("adapter")), *_listed(written.get("adapters"))]
    return replace(found, adapters=tuple(_adapter(item, anchor) for item in listed))


def _adapter(written: Any, anchor: Path) -> Reference:
    if isinstance(written, str) and written.strip():
        return _single(written.strip(), anchor)
    if isinstance(written, Mapping) and not {"adapter", "adapters"} & set(written):
        return _long_form(written, anchor)
    raise _bad("adapter", f"of a source must be a path or a hub repository, got `{printable(str(written))}`")


def _pinned(found: Reference, revision: str) -> Reference:
    if found.kind != "hub":
        raise _bad(found.name, "is not on the hub, so it cannot have a `revision`")
    if found.revision not in (None, revision):
        raise _bad(found.display, f"names one revision, and `revision` another: `{printable(revision)}`")
    return replace(found, revision=revision)


def _listed(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, (list, tuple)) else (value,)


def _unquoted(revision: str | None) -> str | None:
    return None if revision is None else unquote(revision)


def _bad(text: str, reason: str, *, hint: str | None = None) -> SourceError:
    shown = printable(text)
    return SourceError("CV-S044", f"`{shown}` {reason}", where=Where(source=shown), hint=hint)

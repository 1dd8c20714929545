"""The manifest as a file: its fields, its one encoding, and reading it back without trust.

    cuvee_manifest   version of this form (1)
    cuvee            version and, when known, commit of cuvee
    recipe           BLAKE3 of the text as the user wrote it, and the text without absolute paths
    lock             each source: name, revision, digests
    plan             digest of the plan
    methods          version of each method used
    numerics         dtype, device and library versions that fix the bytes, and figures that stages record for later
                     runs
    lineage          only where asked for: tensor → digest of everything that it was made from; with digests of its
                     blocks of `step` elements where those have their own
    files            name → kind, size, digest, and for weight files the bytes of their header
    tensors          name → file, offset, nbytes, blake3
    complete         how many files, tensors and bytes there are; the manifest itself not counted
    digest           BLAKE3 of the canonical JSON of everything above

Digests are those of `core.digests`. No clock, no path, no name of a machine: the same run gives the same
bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from cuvee.bundle.json_files import load_object
from cuvee.bundle.portable import portable
from cuvee.core.digests import FileRecord, bytes_digest, canonical_json
from cuvee.core.names import printable
from cuvee.errors import CorruptFile, VerifyError, Where
from cuvee.formats.member_path import name_flaw
from cuvee.sinks.layout import Layout
from cuvee.sinks.target import MANIFEST

FORMAT = 1
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SECTIONS: dict[str, type | tuple[type, ...]] = {
    "cuvee": dict,
    "recipe": dict,
    "lock": dict,
    "plan": str,
    "methods": dict,
    "numerics": dict,
    "files": dict,
    "tensors": dict,
    "complete": dict,
}


class TensorRecord(NamedTuple):
    """Where a tensor lies and what it hashes to."""

    file: str
    offset: int
    nbytes: int
    blake3: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest that is consistent with itself. `content` is all of it, as JSON data."""

    files: Mapping[str, FileRecord]
    tensors: Mapping[str, TensorRecord]
    content: Mapping[str, Any]

    @property
    def left_out(self) -> str:
        """What a read budget left out, in words; empty where everything was read, or nothing was lost."""
        for row in self.content["numerics"].get("figures", {}).get("read_budget", ()):
            if row.get("lost", row.get("bound", 1.0)) > 0:
                return f"{100 * row['read'] / max(1.0, row['of']):.0f} % of its experts were read"
        return ""

    def tensors_of(self, file: str) -> list[str]:
        """Names of the tensors in a file, in the order they lie there."""
        inside = [name for name, record in self.tensors.items() if record.file == file]
        return sorted(inside, key=lambda name: (self.tensors[name].offset, self.tensors[name].nbytes))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an output comes from: everything a manifest says besides files and tensors."""

    recipe: str
    plan_digest: str
    lock: Mapping[str, Any]
    methods: Mapping[str, Any]
    numerics: Mapping[str, Any]
    version: str
    commit: str | None = None
    lineage: Mapping[str, Any] | None = None


def build(
    origin: Origin, layout: Layout, digests: Mapping[str, str], files: Mapping[str, FileRecord]
) -> bytes:
    """The manifest's bytes: what `Session.commit` asks for, given `session.digests` and the files' records.

    Absolute paths in the recipe and the lock are cut to their last part.
    """
    tensors = {name: {**layout.place(name)._asdict(), "blake3": digests[name]} for name in layout.tensors}
    content = {
        "cuvee_manifest": FORMAT,
        "cuvee": {"version": origin.version, **({"commit": origin.commit} if origin.commit else {})},
        "recipe": {"digest": bytes_digest(origin.recipe.encode()), "text": portable(origin.recipe)},
        "lock": portable(dict(origin.lock)),
        "plan": origin.plan_digest,
        "methods": dict(origin.methods),
        "numerics": portable(dict(origin.numerics)),
        **({"lineage": dict(origin.lineage)} if origin.lineage is not None else {}),
        "files": {name: _file_fields(record) for name, record in files.items()},
        "tensors": tensors,
        "complete": {
            "files": len(files),
            "tensors": len(tensors),
            "bytes": sum(record.size for record in files.values()),
        },
    }
    return canonical_json({**content, "digest": bytes_digest(canonical_json(content))})


def parse(data: bytes, file: str = MANIFEST) -> Manifest:
    """Read a manifest; VerifyError naming `file` when a single bit of it is not as it was built."""
    try:
        content = load_object(data, file)
    except CorruptFile as error:
        raise _altered(file, error.diagnostics[0].message.partition("` ")[2]) from error
    version = content.get("cuvee_manifest")
    if isinstance(version, int) and version > FORMAT:
        raise VerifyError(
            "CV-V008",
            f"`{printable(file)}` has format version {version}, this cuvee reads up to {FORMAT}",
            where=Where(file=printable(file)),
            hint="verify with a newer version of cuvee",
        )
    body = {key: value for key, value in content.items() if key != "digest"}
    if version != FORMAT or set(body) - {"lineage"} != {"cuvee_manifest", *_SECTIONS}:
        raise _altered(file, "does not have the fields of a manifest")
    for key, kind in _SECTIONS.items():
        if not isinstance(body[key], kind) or not isinstance(body.get("lineage", {}), dict):
            raise _altered(file, f"has a field `{key}` of another type")
    if content.get("digest") != bytes_digest(canonical_json(body)) or canonical_json(content) != data:
        raise _altered(file, "does not have the digest it says it has")
    manifest = Manifest(_files(body["files"], file), _tensors(body["tensors"], file), content)
    _check_complete(manifest, body["complete"], file)
    return manifest


def _file_fields(record: FileRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {"kind": record.kind, "size": record.size, "digest": record.digest}
    return {**fields, "header": record.header} if record.kind == "tensors" else fields


def _files(section: dict[str, Any], file: str) -> dict[str, FileRecord]:
    found = {}
    for name, fields in section.items():
        flaw = name_flaw(name)
        if flaw or name == MANIFEST:
            raise _altered(file, f"lists a file `{printable(name)}` whose name {flaw or 'is its own'}")
        try:
            record = FileRecord(**fields)
        except TypeError:
            raise _altered(file, f"has wrong fields for `{name}`") from None
        known = record.kind in ("tensors", "plain") and _is_digest(record.digest)
        if not known or not _are_sizes(record.size, record.header) or record.header > record.size:
            raise _altered(file, f"has impossible values for `{name}`")
        found[name] = record
    return found


def _tensors(section: dict[str, Any], file: str) -> dict[str, TensorRecord]:
    found = {}
    for name, fields in section.items():
        try:
            record = TensorRecord(**fields)
        except TypeError:
            raise _altered(file, f"has wrong fields for tensor `{printable(name)}`") from None
        if not _is_digest(record.blake3) or not _are_sizes(record.offset, record.nbytes):
            raise _altered(file, f"has impossible values for tensor `{printable(name)}`")
        found[name] = record
    return found


def _check_complete(manifest: Manifest, counts: dict[str, Any], file: str) -> None:
    """Every weight file must consist of its header and its tensors, with nothing between or after."""
    inside: dict[str, list[TensorRecord]] = {
        name: [] for name, record in manifest.files.items() if record.kind == "tensors"
    }
    for name, record in manifest.tensors.items():
        if record.file not in inside:
            raise _altered(file, f"puts tensor `{printable(name)}` into a file that it does not list")
        inside[record.file].append(record)
    for name, records in inside.items():
        end = manifest.files[name].header
        for record in sorted(records, key=lambda r: (r.offset, r.nbytes)):
            if record.offset != end:
                raise _altered(file, f"leaves a gap or an overlap in `{printable(name)}`")
            end += record.nbytes
        if end != manifest.files[name].size:
            raise _altered(file, f"does not account for all of `{printable(name)}`")
    total = sum(record.size for record in manifest.files.values())
    expected = {"files": len(manifest.files), "tensors": len(manifest.tensors), "bytes": total}
    if counts != expected:
        raise _altered(file, "does not list as many files, tensors or bytes as it says")


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def _are_sizes(*values: object) -> bool:
    return all(type(value) is int and value >= 0 for value in values)


def _altered(file: str, what: str) -> VerifyError:
    return VerifyError(
        "CV-V002",
        f"the manifest `{printable(file)}` {what}",
        where=Where(file=printable(file)),
        hint="it was changed after it was written; fetch the output again, or run its recipe again",
    )

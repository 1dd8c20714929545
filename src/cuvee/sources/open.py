"""From what a person names to a source: the one door of this package.

Owns the choice of the kind of source and the layers on it (dequantisation, adapters). Must not interpret
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from cuvee.core import settings
from cuvee.core.limits import DEFAULT, Limits
from cuvee.core.names import printable
from cuvee.errors import CuveeError, Diagnostic, SourceError, UsageError
from cuvee.formats.folder_files import PACKAGE, PACKED
from cuvee.sources.folder import FolderSource, Origin, open_adapter, open_path
from cuvee.sources.pipeline import is_pipeline, open_pipeline
from cuvee.sources.reference import Reference, parse_reference
from cuvee.sources.source import Source, note


def open_source(
    what: Reference | str | Mapping[str, Any] | Any,
    *,
    anchor: Path,
    limits: Limits = DEFAULT,
    offline: bool = False,
    revision: str | None = None,
    label: str | None = None,
) -> Source:
    """Open anything that holds tensors; only headers are read.

    `what` is a reference (short or long form, relative to `anchor`), a mapping from names to tensors or
    arrays, a torch module, a PEFT model, or a source, which is returned as it is. `revision` pins a hub
    repository that is named without one. Raises SourceError, with the source named, when it cannot be used.
    """
    if isinstance(what, (Reference, str)) or _is_long_form(what):
        reference = what if isinstance(what, Reference) else parse_reference(what, anchor)
        if revision is not None:
            reference = _with_revision(reference, revision)
        shown = label or reference.display
        try:
            return _open(reference, shown, anchor=anchor, limits=limits, offline=offline)
        except CuveeError as error:
            error.at(source=printable(shown))
            raise
    if isinstance(what, Source):
        return what
    if revision is not None:
        raise UsageError("CV-S036", "only hub repositories have a `revision`")
    from cuvee.sources.memory import open_memory

    return open_memory(what, label or "memory")


def _is_long_form(what: Any) -> bool:
    return isinstance(what, Mapping) and isinstance(what.get("path"), str)


def _with_revision(reference: Reference, revision: str) -> Reference:
    if reference.kind != "hub" or reference.revision not in (None, revision):
        raise UsageError(
            "CV-S036", f"`{printable(reference.display)}` cannot be pinned to `{printable(revision)}`"
        )
    return replace(reference, revision=revision)


def _open(reference: Reference, label: str, *, anchor: Path, limits: Limits, offline: bool) -> Source:
    from cuvee.sources.quantised import dequantised

    alone = replace(reference, adapters=())
    source: Source = _open_base(
        alone, label if not reference.adapters else alone.display, anchor, limits, offline
    )
    try:
        source = dequantised(_unpacked(source, reference, anchor, limits, offline))
        for adapter in reference.adapters:
            source = _adapted(source, adapter, anchor, limits, offline)
    except BaseException:
        source.close()
        raise
    return source


def _unpacked(source: Source, reference: Reference, anchor: Path, limits: Limits, offline: bool) -> Source:
    """The expert that a folder holds packed, on its base; any other source as it is."""
    if not isinstance(source, FolderSource) or PACKED not in source.files():
        return source
    from cuvee.sources.packed import base_of, missing_base, unpacked
    from cuvee.sources.quantised import dequantised

    folder = anchor / reference.name if reference.kind == "path" else next(iter(source.weight_files())).parent
    found = base_of(source, folder, limits)
    if found is None:
        return source
    table, named = found
    try:
        base = dequantised(_open_base(named, named.display, folder, limits, offline))
    except CuveeError as error:
        raise missing_base(error, source.label, table.base) from error
    try:
        return unpacked(source, table, base, folder)
    except BaseException:
        base.close()
        raise


def _open_base(reference: Reference, label: str, anchor: Path, limits: Limits, offline: bool) -> Source:
    if reference.kind == "path":
        path = anchor / reference.name
        if reference.tasks:
            return _open_task(reference, label, anchor, limits, offline)
        if (path / PACKAGE).is_file():
            from cuvee.sources.package import without_task

            raise without_task(path, label, limits)
        if is_pipeline(anchor / reference.name):
            return open_pipeline(anchor / reference.name, label, limits)
        return open_path(anchor / reference.name, label, limits)
    if reference.kind == "url":
        from cuvee.sources.remote import open_remote

        return open_remote(reference, label, limits, offline=offline or settings.flag("CUVEE_OFFLINE"))
    from cuvee.sources.hub import open_hub

    return open_hub(reference, label, limits, offline=offline, notes=_assumed_notes(reference, label, anchor))


def _open_task(reference: Reference, label: str, anchor: Path, limits: Limits, offline: bool) -> Source:
    from cuvee.sources.package import open_package

    def base(text: str) -> Source:
        return open_source(text, anchor=anchor, limits=limits, offline=offline)

    return open_package(anchor / reference.name, reference.tasks, label, limits, base, reference.base)


def _adapted(base: Source, reference: Reference, anchor: Path, limits: Limits, offline: bool) -> Source:
    from cuvee.sources.adapter import apply_adapter
    from cuvee.sources.diffusion_lora import apply_lora, lora_file

    label = reference.display
    if reference.kind == "url":
        raise SourceError(
            "CV-S219",
            f"`{printable(label)}` is an address, and adapters are read from folders or the hub",
            hint="fetch the adapter and name its folder",
        )
    path = anchor / reference.name
    origin = Origin("adapter", path.resolve().name)
    if reference.kind == "hub":
        from cuvee.sources.hub import fetch_adapter

        path, origin = fetch_adapter(reference, label, limits, offline=offline)
    file = lora_file(path)
    if file is not None:
        return apply_lora(base, file, label, limits, origin)
    stored, raw, side = open_adapter(path, label, limits)
    try:
        return apply_adapter(base, stored, raw, side, origin)
    except BaseException:
        stored.close()
        raise


def _assumed_notes(reference: Reference, label: str, anchor: Path) -> tuple[Diagnostic, ...]:
    """What to say when a bare `owner/name` was taken for a hub repository."""
    if not reference.assumed:
        return ()
    message = f"there is no folder `{reference.name}`, so `{reference.name}` is taken from the hub"
    return (note("CV-S010", message, label, hint=f"write `hf://{reference.name}` to say so"),)

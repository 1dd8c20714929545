"""One task of a package, or a weighted sum of several, as an ordinary source: the base plus what the tasks add.

Owns opening a package's folder, finding its base and knowing it again. The form is `formats.package_form`, decoding
`package_deltas`, what the parts must look like `package_parts`. Nothing but headers is read before a tensor is.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cuvee.core.limits import Limits
from cuvee.core.names import did_you_mean, printable
from cuvee.core.sampling import Span, sample
from cuvee.errors import CorruptFile, CuveeError, SourceError, Where
from cuvee.formats.json_file import read_json
from cuvee.formats.member_path import safe_member
from cuvee.formats.package_form import BASE, FILE, BaseModel, Malformed, Package, from_json, to_json
from cuvee.sources.adapted import AdaptedSource, Overlay, OverlayFacts, Replacement
from cuvee.sources.folder import read_config
from cuvee.sources.low_rank import Delta, Sum
from cuvee.sources.package_deltas import Weighted
from cuvee.sources.package_parts import Parts, TaskReader
from cuvee.sources.source import Source, weight_files

OpenBase = Callable[[str], Source]


def is_package(path: Path) -> bool:
    """Whether a folder is a package."""
    return (path / FILE).is_file()


def read_package(folder: Path, limits: Limits) -> Package:
    """What a package's `package.json` says; CorruptFile where it is not one."""
    path = safe_member(folder, FILE)
    try:
        package = from_json(read_json(path, limits))
    except Malformed as error:
        raise CorruptFile(
            "CV-S181", f"`{FILE}` {printable(str(error), 400)}", where=Where(file=str(path))
        ) from None
    for name, task in package.tasks.items():
        if "/" in task.folder:
            folder_name = printable(task.folder)
            message = (
                f"`{FILE}` puts the task `{printable(name)}` into `{folder_name}`, which is no folder of it"
            )
            raise CorruptFile("CV-S181", message, where=Where(file=str(path)))
        safe_member(folder, task.folder)
    return package


def without_task(folder: Path, label: str, limits: Limits) -> SourceError:
    """The refusal to take a package for a model, with what could have been meant."""
    tasks = list(read_package(folder, limits).tasks)
    named = _listed(tasks)
    first = tasks[0] if tasks else "TASK"
    return SourceError(
        "CV-S180",
        f"`{printable(label)}` is a package of {len(tasks)} tasks, not a model: {named}",
        where=Where(source=label),
        hint=f"name one, as in `{printable(label)}#{printable(first)}`",
    )


def _listed(tasks: Sequence[str]) -> str:
    """The first few names of tasks."""
    return ", ".join(f"`{printable(task)}`" for task in tasks[:8]) + (", …" if len(tasks) > 8 else "")


def open_package(
    folder: Path,
    tasks: Sequence[tuple[str, float]],
    label: str,
    limits: Limits,
    open_base: OpenBase,
    base: str | None,
) -> Source:
    """The tasks' weighted sum on the package's base; `base` stands in for what the package names."""
    if not is_package(folder):
        message = f"`{printable(str(folder))}` has no `{FILE}`, so it is no package"
        raise SourceError("CV-S180", message, where=Where(source=label, file=str(folder)))
    package = read_package(folder, limits)
    for name, _ in tasks:
        if name not in package.tasks:
            message = f"the package has no task `{printable(name)}`"
            hint = did_you_mean(name, package.tasks) or f"its tasks are {_listed(list(package.tasks))}"
            raise SourceError("CV-S180", message, where=Where(source=label), hint=hint)
    model = _base(folder, package.base, open_base, base)
    try:
        return _source(folder, package, tasks, label, limits, model)
    except BaseException:
        model.close()
        raise


def _source(
    folder: Path,
    package: Package,
    tasks: Sequence[tuple[str, float]],
    label: str,
    limits: Limits,
    base: Source,
) -> AdaptedSource:
    parts = Parts(folder, label, limits)
    try:
        readers = [TaskReader(parts, name, package.tasks[name], base.tensors) for name, _ in tasks]
        weights = [weight for _, weight in tasks]
        deltas = _combined([reader.deltas() for reader in readers], weights)
        alone = len(tasks) == 1 and weights[0] == 1
        replaced: Mapping[str, Replacement] = readers[0].replaced() if alone else {}
        if not alone:
            _refuse_whole(readers, label)
        absent = frozenset(package.tasks[tasks[0][0]].absent) if alone else frozenset()
        config = (
            read_config(folder, f"{package.tasks[tasks[0][0]].folder}/config.json", limits) if alone else None
        )
    except BaseException:
        parts.close()
        raise
    named = ", ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in tasks)
    name = f"{folder.resolve().name}#{named}"
    files = parts.identity()
    overlay = Overlay(
        replaced=replaced,
        deltas=deltas,
        identity={"kind": "package", "name": name, "revision": None, "files": files},
        close=parts.close,
        facts=OverlayFacts(name, (), sum(int(f["size"]) for f in files), len(deltas), len(replaced)),
        weights=parts.weight_files,
        removed=absent - replaced.keys(),
        config=config,
    )
    return AdaptedSource(base, overlay, label)


def _combined(found: Sequence[Mapping[str, Delta]], weights: Sequence[float]) -> dict[str, Delta]:
    out: dict[str, list[Delta]] = {}
    for deltas, weight in zip(found, weights, strict=True):
        for name, delta in deltas.items():
            out.setdefault(name, []).append(delta if weight == 1 else Weighted(delta, weight))
    return {name: each[0] if len(each) == 1 else Sum(tuple(each)) for name, each in out.items()}


def _refuse_whole(readers: Sequence[TaskReader], label: str) -> None:
    """SourceError where a task has tensors of its own (a head), which no sum is taken of."""
    for reader in readers:
        for name in reader.replaced():
            raise SourceError(
                "CV-S182",
                f"the task `{printable(reader.name)}` cannot be weighed: it has its own `{printable(name)}`",
                where=Where(source=label, tensor=printable(name)),
                hint="name one task with weight 1, and merge such models in a recipe",
            )


def _base(folder: Path, base: BaseModel, open_base: OpenBase, given: str | None) -> Source:
    if base.included and given is None:
        return open_base(str(folder.resolve() / BASE))
    source = _opened(folder, base, open_base, given)
    if base.included:
        return source
    try:
        _same(source, base, folder)
    except BaseException:
        source.close()
        raise
    return source


def _opened(folder: Path, base: BaseModel, open_base: OpenBase, given: str | None) -> Source:
    if given is not None:
        return open_base(given)
    try:
        for home in (folder.absolute(), folder.resolve()) if base.path and base.revision is None else ():
            beside = os.path.normpath(home / base.path)
            if Path(beside).exists():
                return open_base(beside)
        text = base.path if base.revision is None else f"{base.path}@{base.revision}"
        return open_base(text)
    except CuveeError as error:
        raise SourceError(
            "CV-S183",
            f"the base `{printable(base.path)}` of the package cannot be opened: {error.diagnostics[0].message}",
            where=Where(file=str(folder / FILE)),
            hint="name it: `{package: ..., task: ..., base: ./base}`, or `PACKAGE#TASK&base=./base`",
        ) from error


def samples_of(source: Source) -> list[dict[str, str]]:
    """The weight files of a source by name with samples of their contents (`core.sampling`)."""
    return [
        {"name": path.name, "blake3": _sampled(path, spans)} for path, spans in weight_files(source).items()
    ]


def _sampled(path: Path, spans: Sequence[Span]) -> str:
    try:
        return sample(path, spans)
    except OSError as error:
        message = f"`{printable(str(path))}` cannot be read: {(error.strerror or str(error)).lower()}"
        raise SourceError("CV-S110", message, where=Where(file=str(path))) from None


def _same(source: Source, base: BaseModel, folder: Path) -> None:
    """SourceError where the model is not the base that the package was made of, by samples of its files."""
    found = sorted(one["blake3"] for one in samples_of(source))
    if found != sorted(one.get("blake3", "") for one in base.samples):
        raise SourceError(
            "CV-S184",
            f"`{printable(source.label)}` is not the base that the package was made of: its files hold other values",
            where=Where(source=source.label, file=str(folder / FILE)),
            hint="name the model it was made of, unchanged; `include_base: true` puts it into the package",
        )


def summary(folder: Path, limits: Limits) -> dict[str, Any]:
    """What a package holds, as plain data (schema `cuvee.package/1`), from its headers."""
    package = read_package(folder, limits)
    return {"schema": "cuvee.package/1", "source": str(folder), **to_json(package)}

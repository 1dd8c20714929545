"""All experts of a recipe written as one package: shared tensors, a code for each task, `package.json`, a manifest.

Forms are decided before the layout, since a file's header comes first; then every tensor is computed and written, all
or nothing, and an interrupted run goes on where it stopped. What is stored is the business of `engine.packing`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cuvee
from cuvee.api.inputs import refuse_changed, refuse_inputs, resume_key, stamps
from cuvee.api.lock import lock_of, lock_text
from cuvee.api.record import libraries
from cuvee.bundle.json_files import dump_json
from cuvee.bundle.manifest_form import Origin, build
from cuvee.core.digests import tensor_bytes
from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.engine.decompositions import decomposer
from cuvee.engine.evaluate import Evaluator
from cuvee.engine.events import Finished, Listener, Progress, Started, ignore, peak_memory
from cuvee.engine.fused.fuse import fuse
from cuvee.engine.guard import Guard
from cuvee.engine.memo import Memo
from cuvee.engine.options import RunOptions
from cuvee.engine.packing import Packing, Stored
from cuvee.engine.run import serialised
from cuvee.engine.threads import Mapped, threads
from cuvee.errors import Diagnostic, PlanError, Where
from cuvee.formats.package_form import BASE, FILE, SHARED, BaseModel, Package, to_json
from cuvee.plan.packages import base_of, source_of
from cuvee.plan.plan import Plan
from cuvee.plan.summary import size
from cuvee.recipe.model import PackageOutput, Reference
from cuvee.recipe.packaging import tasks_of
from cuvee.recipe.settings import Resolved
from cuvee.sinks.folder import FolderSink
from cuvee.sinks.layout import Layout, plan_parts
from cuvee.sources.package import samples_of

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.sinks.staging import StagedSession

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class PackageSaved:
    """Where the package is, what it took, and what `package.json` says."""

    path: Path
    finished: Finished
    content: Mapping[str, Any]
    notes: tuple[Diagnostic, ...]


def save_package(
    plan: Plan,
    out: Path,
    form: PackageOutput,
    options: RunOptions | None = None,
    *,
    overwrite: bool = False,
    resume: bool = True,
    listener: Listener = ignore,
) -> PackageSaved:
    """Run a plan and write every expert into a package; all or nothing.

    Raises:
        PlanError: CV-P180, a tensor that no package can hold; CV-P181, a base that cannot be named.
    """
    began = time.monotonic()
    chosen = options or RunOptions.from_settings()
    refuse_inputs(plan, out)
    if out.suffix == ".safetensors":
        raise not_a_folder(f"`{printable(out.name)}` names a file")
    before = stamps(plan)
    tell = serialised(listener)
    packing = _packing(plan, form, chosen, tell)
    with torch.no_grad(), threads(plan, packing.evaluator) as mapped:
        base = _base_model(plan, form, out)
        stored = packing.stored()
        layout = _layout(stored, plan, packing)
        key = resume_key(plan, before, {"cuvee": cuvee.__version__, "device": chosen.device, **libraries()})
        with FolderSink(out, paranoid=chosen.paranoid).begin(
            layout, key, resume=resume, overwrite=overwrite
        ) as session:
            left = _write(packing, stored, session, layout, tell, mapped)
            refuse_changed(plan, before)
            content = to_json(_package(plan, packing, base, layout))
            files = _files(plan, packing, form, content)
            session.commit(
                files, lambda records: build(_origin(plan, content, chosen), layout, session.digests, records)
            )
    total = layout.total_bytes
    done = Finished(time.monotonic() - began, 0, left, peak_memory(), total - left)
    listener(done)
    return PackageSaved(out, done, content, (_note(content),))


def not_a_folder(what: str) -> PlanError:
    """The refusal to write a package elsewhere."""
    return PlanError("CV-P180", f"a package is a folder, and {what}", hint="name a folder to write it to")


def folders_of(tasks: tuple[str, ...]) -> dict[str, str]:
    """A folder for each task: its name where that is plain and no other's, else a number."""
    taken = {BASE, SHARED}
    out = {}
    for number, task in enumerate(tasks, 1):
        plain = task if _PLAIN.fullmatch(task) and task.casefold() not in taken else f"task-{number}"
        while plain.casefold() in taken:
            plain += "-"
        taken.add(plain.casefold())
        out[task] = plain
    return out


def _packing(plan: Plan, form: PackageOutput, options: RunOptions, listener: Listener) -> Packing:
    sources = {key: opened.source for key, opened in plan.sources.items()}
    groups = {name: [node for _, node in members] for name, members in plan.groups().items()}
    memo, guard = Memo(), Guard(options, sources, listener)
    evaluator = Evaluator(sources, groups, options, guard, decompose=decomposer(options), memo=memo)
    if len({name for name in groups if ":emr_expert:" in name}) > 1:
        message = "some experts lack tensors that EMR's factors are taken over, so there is no one factor for each task"
        raise PlanError("CV-P180", message, hint="`--tensor-intersection` leaves such tensors out")
    return Packing(
        plan, evaluator, folders_of(tasks_of(plan.recipe)), form.include_base, fuse(plan, options, memo=memo)
    )


def _layout(stored: list[Stored], plan: Plan, packing: Packing) -> Layout:
    metas = [meta for one in stored for meta in one.metas]
    here = {meta.name.partition(".")[0] for meta in metas}
    parts = [part for part in (BASE, SHARED, *packing.folders.values()) if part in here]
    return plan_parts(metas, dict.fromkeys(parts, "model"), max_shard_bytes=plan.recipe.output.shard_bytes)


def _write(
    packing: Packing,
    stored: list[Stored],
    session: StagedSession,
    layout: Layout,
    listener: Listener,
    mapped: Mapped,
) -> int:
    """Compute and write what the session does not hold yet; how many bytes that was."""
    done = session.done
    missing = [one for one in stored if any(meta.name not in done for meta in one.metas)]
    left = sum(meta.nbytes for one in missing for meta in one.metas if meta.name not in done)
    listener(Started(len(layout.tensors), layout.total_bytes, layout.total_bytes - left))

    def make(one: Stored) -> None:
        kinds = {meta.name: meta for meta in one.metas}

        def write(name: str, start: int, values: Tensor) -> None:
            if name not in done:
                data = tensor_bytes(values)
                session.write(name, start * kinds[name].dtype.size, data)
                listener(Progress(name, len(data)))

        one.fill(write)
        for meta in one.metas:
            if meta.name not in done:
                session.finish(meta.name)

    if packing.fused is not None and missing:
        packing.fused.prepare(packing.prepared(), lambda find, items: mapped(find, [("", i) for i in items]))
    mapped(make, [(one.tensor, one) for one in missing])
    return left


def _package(plan: Plan, packing: Packing, base: BaseModel, layout: Layout) -> Package:
    nbytes: dict[str, int] = {}
    for name, place in layout.places.items():
        folder = name.partition(".")[0]
        nbytes[folder] = nbytes.get(folder, 0) + place.nbytes
    return Package(plan.method_label, base, packing.tasks(nbytes), nbytes.get(SHARED, 0), _parameters(plan))


def _parameters(plan: Plan) -> dict[str, Any]:
    """Values of parameters that are one for all tensors; those that differ are in the recipe."""
    found: dict[str, list[Any]] = {}
    for tensor in plan.tensors:
        for name, resolved in tensor.parameters.items():
            each = {"": resolved} if isinstance(resolved, Resolved) else resolved
            found.setdefault(name, []).append({expert: one.value for expert, one in each.items()})
    same = {name: values[0] for name, values in found.items() if all(v == values[0] for v in values)}
    return {n: _one(v) for n, v in same.items() if n != "restore"}


def _one(values: dict[str, Any]) -> Any:
    """The value that all experts have, else each one's."""
    first = next(iter(values.values()))
    return first if all(value == first for value in values.values()) else values


def _base_model(plan: Plan, form: PackageOutput, out: Path) -> BaseModel:
    """How the base is named in the package, and by what it is known again."""
    opened = base_of(plan)
    source = opened.source
    nbytes = sum(meta.nbytes for meta in source.tensors.values())
    if form.include_base:
        return BaseModel(included=True, nbytes=nbytes)
    spec = plan.recipe.sources.get(plan.recipe.base or "")
    identity = source.identity()
    plain = isinstance(spec, Reference) and identity.get("kind") in ("folder", "file", "hub", "pipeline")
    if not plain or not isinstance(spec, Reference):
        raise PlanError(
            "CV-P181",
            "the base is not one folder, file or repository that a package could name",
            where=Where(file=plan.recipe.file),
            hint="put it into the package: `include_base: true`",
        )
    if len(opened.paths) == 1:
        path, revision = Path(os.path.relpath(opened.paths[0], out)).as_posix(), None
    else:
        path, revision = f"hf://{identity['name']}", identity.get("revision")
    return BaseModel(False, path, revision, tuple(samples_of(source)), nbytes)


def _files(plan: Plan, packing: Packing, form: PackageOutput, content: Mapping[str, Any]) -> dict[str, bytes]:
    """`package.json`, the recipe and the lock, configurations of tasks that have their own, the base's side files."""
    files = {FILE: dump_json(content), "cuvee.lock": lock_text(plan)}
    if plan.recipe.text:
        files["cuvee.yaml"] = plan.recipe.text.encode()
    base = base_of(plan).source
    for task, folder in packing.folders.items():
        opened = source_of(plan, task)
        config = opened.source.config if opened else None
        if config is not None and config != base.config:
            files[f"{folder}/config.json"] = dump_json(config)
    if form.include_base:
        for name in base.files():
            data = base.file(name)
            if data is not None and not name.startswith("cuvee"):
                files[f"{BASE}/{name}"] = data
        if base.config is not None:
            files[f"{BASE}/config.json"] = dump_json(base.config)
    return files


def _origin(plan: Plan, content: Mapping[str, Any], options: RunOptions) -> Origin:
    numerics = {
        "compute": sorted({t.compute.name for t in plan.tensors}),
        "device": options.device,
        "libraries": libraries(),
        "package": content["bytes"],
    }
    methods = {plan.method_label: cuvee.__version__}
    return Origin(plan.recipe.text, plan.digest, lock_of(plan), methods, numerics, cuvee.__version__)


def _note(content: Mapping[str, Any]) -> Diagnostic:
    found, many = content["bytes"], len(content["tasks"])
    apart = "" if content["base"]["included"] else f" besides the base ({size(content['base']['bytes'])})"
    message = (
        f"{many} task{'' if many == 1 else 's'} in {size(found['total'])}{apart}: {size(found['shared'])} shared, "
        f"{size(found['tasks'])} of single tasks; separate models take {size(found['separate_models'])}"
    )
    return Diagnostic("CV-P182", message, severity="note")

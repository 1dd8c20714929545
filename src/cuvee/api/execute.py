"""Plan → output on disk or in memory: the sink, the run, the side files, one commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import cuvee
from cuvee.api.beforehand import lightened
from cuvee.api.card import card_text
from cuvee.api.fetch import fetch
from cuvee.api.inputs import refuse_changed, refuse_inputs, resume_key, stamps
from cuvee.api.lock import lock_of, lock_text
from cuvee.api.record import libraries, manifest_of
from cuvee.api.recording import recorder_of, told_of, watched
from cuvee.api.writing import with_text
from cuvee.bundle.json_files import dump_json
from cuvee.bundle.pipeline import is_pipeline
from cuvee.core.names import printable
from cuvee.engine.events import Committed, Finished, Listener, ignore
from cuvee.engine.options import RunOptions
from cuvee.engine.run import run
from cuvee.errors import Diagnostic, Interrupted, UsageError
from cuvee.plan.plan import Plan
from cuvee.sinks.folder import FolderSink
from cuvee.sinks.layout import plan_layout
from cuvee.sinks.memory import MemorySink
from cuvee.sinks.single import SingleFileSink
from cuvee.sinks.sink import Staging
from cuvee.sources.reference import WEIGHT_SUFFIXES

if TYPE_CHECKING:
    from torch import Tensor

Runner: TypeAlias = Callable[[Plan, Staging, RunOptions, Listener], Finished]
Lineage: TypeAlias = Mapping[str, Any] | Callable[[], Mapping[str, Any]]  # as it is, or when a run is over
RECIPE_NAMES = {"mergekit": "mergekit_config.yml", "cuvee": "cuvee.yaml"}


@dataclass(frozen=True, slots=True)
class Saved:
    """What a merge left behind: where, and what it took."""

    path: Path
    finished: Finished
    notes: tuple[Diagnostic, ...] = ()  # found on the way


def save(
    plan: Plan,
    out: Path,
    options: RunOptions | None = None,
    *,
    overwrite: bool = False,
    resume: bool = True,
    listener: Listener = ignore,
    runner: Runner = run,
    lineage: Lineage | None = None,
) -> Saved:
    """Run a plan into a folder, or into one file when `out` ends in `.safetensors`; `runner` is where and how.

    `lineage`: what each tensor is made from, for the manifest; or what tells it when all was read.

    All or nothing: `out` appears complete or not at all. An interrupted run is resumed by the same call.
    """
    chosen = options or RunOptions.from_settings()
    fetch(plan, listener)
    plan = with_text(plan)
    asked = plan.recipe.output
    if asked.adapter is not None:
        from cuvee.api.adapter_out import save_adapter

        made = save_adapter(
            plan, out, asked.adapter, chosen, overwrite=overwrite, resume=resume, listener=listener
        )
        return Saved(made.path, made.finished, made.notes)
    if asked.package is not None:
        from cuvee.api.package_out import save_package

        stored = save_package(
            plan, out, asked.package, chosen, overwrite=overwrite, resume=resume, listener=listener
        )
        return Saved(stored.path, stored.finished, stored.notes)
    refuse_inputs(plan, out)
    return _written(plan, out, chosen, listener, runner, lineage, resume=resume, overwrite=overwrite)


def _written(
    plan: Plan,
    out: Path,
    chosen: RunOptions,
    listener: Listener,
    runner: Runner,
    lineage: Lineage | None,
    *,
    resume: bool,
    overwrite: bool,
) -> Saved:
    """The run into a model's own output."""
    single = is_single(out)
    kind = SingleFileSink if single else FolderSink
    sink = kind(out, paranoid=chosen.paranoid)
    plan = laid_out(plan, out)
    if runner is run:
        plan, runner, _ = lightened(plan, chosen)
    inputs = stamps(plan)
    arithmetic = {"cuvee": cuvee.__version__, "device": chosen.device, **libraries()}
    key = resume_key(plan, inputs, arithmetic)
    recorder = recorder_of(plan, chosen)
    with sink.begin(plan.layout, key, resume=resume, overwrite=overwrite) as session:
        try:
            writing: Staging = session if recorder is None else watched(session, recorder, plan)
            finished = runner(plan, writing, chosen, listener)
        except Interrupted as error:
            raise error.at(file=str(out)) from None
        refuse_changed(plan, inputs)
        notes = told_of(recorder, chosen)
        told_lineage = lineage() if callable(lineage) else lineage
        locked = lock_of(plan)
        files = {} if single else side_files(plan, out.name, locked)
        began = time.monotonic()
        session.commit(
            files,
            lambda records: manifest_of(
                plan, session.digests, records, chosen.device, finished.figures, told_lineage, locked
            ),
        )
        if chosen.profile:
            listener(Committed(time.monotonic() - began))
    return Saved(out, finished, notes)


def is_single(out: Path) -> bool:
    """Whether an output is one file rather than a folder; UsageError for a file of a kind that is never written."""
    if out.suffix in set(WEIGHT_SUFFIXES) - {".safetensors"}:
        raise UsageError(
            "CV-U101",
            f"`{printable(out.name)}` is named like a {out.suffix} file, which merges are not written as",
            hint="name a folder or a .safetensors file; `cuvee convert` also writes .gguf",
        )
    return out.suffix == ".safetensors"


def laid_out(plan: Plan, out: Path) -> Plan:
    """The plan with the layout of its output: one file where `out` is one."""
    if not is_single(out):
        return plan
    if is_pipeline(plan.config):
        raise UsageError(
            "CV-P156",
            f"the merge is a pipeline of several components, and `{printable(out.name)}` is one file",
            hint="name a folder, or write `output: {form: single_file}` in the recipe",
        )
    metas = [tensor.meta for tensor in plan.tensors]
    return replace(plan, layout=plan_layout(metas, max_shard_bytes=None, stem=out.stem))


def load(plan: Plan, options: RunOptions | None = None, listener: Listener = ignore) -> dict[str, Tensor]:
    """Run a plan in memory: the output's tensors by name."""
    if plan.recipe.output.package is not None:
        from cuvee.api.package_out import not_a_folder

        raise not_a_folder("a merge in memory is one model")
    fetch(plan, listener)
    chosen = options or RunOptions.from_settings()
    lighter, runner, _ = lightened(plan, chosen)
    sink = MemorySink()
    with sink.begin(plan.layout, plan.digest, resume=False, overwrite=False) as session:
        runner(lighter, session, chosen, listener)
        session.commit({}, lambda records: b"{}")
    return sink.tensors


def side_files(plan: Plan, name: str, locked: Mapping[str, Any]) -> Mapping[str, bytes]:
    """Every file of the output besides weights and manifest."""
    files = dict(plan.side_files)
    if plan.config is not None and not is_pipeline(plan.config):  # a pipeline has an index instead
        files["config.json"] = dump_json(plan.config)
    if plan.recipe.text:
        files[RECIPE_NAMES.get(plan.recipe.dialect, "cuvee.yaml")] = plan.recipe.text.encode()
    files["cuvee.lock"] = lock_text(plan, locked)
    if plan.recipe.output.card and plan.config is not None:
        files["README.md"] = card_text(plan, name).encode()
    return files

"""What `merge`, `quick` and `mergekit-yaml` share: plan, run, say what came of it."""

from __future__ import annotations

import shlex
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.api.beforehand import lightened
from cuvee.api.blend import Blend
from cuvee.api.execute import Lineage, Runner, Saved, laid_out, save
from cuvee.api.outlook import outlook, remember, teaches
from cuvee.cli.profile import profiled
from cuvee.cli.progress import listener
from cuvee.cli.render import json_line, notes, stderr, stdout
from cuvee.engine.options import RunOptions
from cuvee.engine.run import run
from cuvee.errors import Interrupted
from cuvee.plan.explain import explain_text, size
from cuvee.plan.plan import Plan

if TYPE_CHECKING:
    from cuvee.engine.cluster.job import ClusterOptions
    from cuvee.engine.tables import Tables


@dataclass(frozen=True, slots=True)
class Manner:
    """How a command runs and talks."""

    overwrite: bool = False
    resume: bool = True
    as_json: bool = False
    quiet: bool = False
    strict: bool = False
    again: str = field(
        default_factory=lambda: "cuvee " + shlex.join(sys.argv[1:])
    )  # the command that resumes


def merge_into(
    blend: Blend, out: Path, options: RunOptions, manner: Manner, cluster: ClusterOptions | None = None
) -> int:
    """Plan and run a merge, on a cluster where one is given; the exit code."""
    runner = run if cluster is None else blend.on_cluster(cluster)
    options = options if cluster is None else replace(options, recording="off")  # this machine reads nothing
    plan = blend.build()
    try:
        return run_plan(plan, out, options, manner, runner)
    finally:
        plan.close()


def merge_again(
    blend: Blend,
    out: Path,
    options: RunOptions,
    manner: Manner,
    earlier: Path | None,
    cluster: ClusterOptions | None = None,
) -> int:
    """As `merge_into`, with lineage, and what is the same in an earlier output taken from there."""
    from cuvee.api.remerge import closed, lineage_of, remerge

    plan = blend.build()
    try:
        found = remerge(plan, earlier, options)
        try:
            runner = found.run if cluster is None else blend.on_cluster(cluster, found)
            if options.recording == "on":  # what the inputs hold is known when they were read
                options = options if earlier is None else replace(options, recording="missing")
                return run_plan(found.plan, out, options, manner, runner, lambda: lineage_of(plan, options))
            options = replace(options, recording="off")
            return run_plan(found.plan, out, options, manner, runner, found.lineage)
        finally:
            closed(found)
    finally:
        plan.close()


def run_plan(
    plan: Plan,
    out: Path,
    options: RunOptions,
    manner: Manner,
    runner: Runner = run,
    lineage: Lineage | None = None,
    tables: Tables | None = None,
) -> int:
    """Run a plan and report; `tables` are those that the runner has thresholds from."""
    plan, here = laid_out(plan, out), runner is run
    if here:
        plan, runner, tables = lightened(plan, options)
    is_shown = not (manner.as_json or manner.quiet)
    ahead = outlook(plan, out, options, tables) if is_shown or teaches(plan) else None
    if manner.as_json:
        json_line({"type": "version", "schema": "cuvee.merge/1"})
        for note in plan.notes:
            json_line({"type": "diagnostic", **note.as_dict()})
    else:
        if is_shown:
            stderr(explain_text(plan, ahead, notes=False))
        notes(plan.notes, manner.quiet)
    try:
        began = time.monotonic()
        saved = save(
            plan,
            out,
            options,
            overwrite=manner.overwrite,
            resume=manner.resume,
            listener=profiled(listener(as_json=manner.as_json, quiet=manner.quiet), as_json=manner.as_json),
            runner=runner,
            lineage=lineage,
        )
    except (Interrupted, KeyboardInterrupt):
        if not manner.as_json:
            stderr(f"resume with: {manner.again}")
        raise
    if manner.as_json:
        for note in saved.notes:
            json_line({"type": "diagnostic", **note.as_dict()})
    else:
        notes(saved.notes, manner.quiet)
    # A cluster says nothing of this machine.
    if ahead is not None and here and not saved.finished.resumed_bytes:
        remember(ahead.prediction, time.monotonic() - began)  # with what is synced in the end
    _report(plan, saved, manner)
    warned = any(note.severity == "warning" for note in plan.notes)
    return 4 if manner.strict and warned else 0


def _report(plan: Plan, saved: Saved, manner: Manner) -> None:
    finished, out = saved.finished, saved.path
    if manner.as_json:
        json_line(
            {
                "type": "summary",
                "output": str(out),
                "seconds": finished.seconds,
                "read_bytes": finished.read_bytes,
                "written_bytes": finished.written_bytes,
                "resumed_bytes": finished.resumed_bytes,
                "weight_bytes": plan.layout.total_bytes,
                "peak_memory": finished.peak_memory,
                "warnings": sum(d.severity == "warning" for d in plan.notes),
            }
        )
        return
    stdout(str(out))
    if manner.quiet:
        return
    there = f" ({size(finished.resumed_bytes)} were there already)" if finished.resumed_bytes else ""
    stderr(
        f"wrote {size(plan.layout.total_bytes)}{there} in {finished.seconds:.1f} s, "
        f"peak memory {size(finished.peak_memory)}\n"
        f"next: cuvee verify {shlex.quote(str(out))} · cuvee inspect {shlex.quote(str(out))} · "
        f"cuvee push {shlex.quote(str(out))} OWNER/NAME"
    )

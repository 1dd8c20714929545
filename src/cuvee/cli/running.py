"""What `merge`, `quick` and `mergekit-yaml` share: plan, run, say what came of it."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.api.blend import Blend
from cuvee.api.execute import Saved, laid_out, save
from cuvee.api.outlook import known_rates, remember, teaches
from cuvee.api.ways import PLAINLY, Reading, Way
from cuvee.cli.profile import profiled
from cuvee.cli.progress import listener
from cuvee.cli.render import json_line, notes, stderr, stdout
from cuvee.engine.options import RunOptions
from cuvee.errors import Diagnostic, Interrupted
from cuvee.plan.cost import Outlook
from cuvee.plan.explain import explain_text, size
from cuvee.plan.plan import Plan

if TYPE_CHECKING:
    from cuvee.engine.cluster.job import ClusterOptions


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
    blend: Blend,
    out: Path,
    options: RunOptions,
    manner: Manner,
    cluster: ClusterOptions | None = None,
    reading: Reading = PLAINLY,
) -> int:
    """Plan and run a merge, on a cluster where one is given, and report; the exit code."""
    with blend.way(options, reading, cluster) as found:
        found = replace(found, plan=laid_out(found.plan, out), less=laid_out(found.less, out))
        ahead = _told_before(found, out, manner)
        began = time.monotonic()
        saved = _saved(found, out, manner)
        # With what is synced in the end.
        told = not (saved.finished.resumed_bytes or options.paranoid)  # of the same work as is foretold
        if ahead is not None and found.is_plain and told:
            remember(ahead.prediction, time.monotonic() - began)
        _report(found.plan, saved, manner)
        warned = any(note.severity == "warning" for note in found.plan.notes)
        return 4 if manner.strict and warned else 0


def _told_before(found: Way, out: Path, manner: Manner) -> Outlook | None:
    """Say what will be done; what it will take, where somebody asks."""
    is_shown = not (manner.as_json or manner.quiet)
    # What nobody sees takes a while to find out, and teaches much only where no run has shown the rate yet.
    ahead = found.outlook(out) if is_shown or (not known_rates().measured and teaches(found.less)) else None
    if manner.as_json:
        json_line({"type": "version", "schema": "cuvee.merge/1"})
    if is_shown:
        stderr(explain_text(found.less, ahead, notes=False))
    _tell(found.plan.notes, manner)
    return ahead


def _tell(found: Iterable[Diagnostic], manner: Manner) -> None:
    if not manner.as_json:
        notes(found, manner.quiet)
        return
    for note in found:
        json_line({"type": "diagnostic", **note.as_dict()})


def _saved(found: Way, out: Path, manner: Manner) -> Saved:
    """Run it, and say what was found on the way."""
    try:
        saved = save(
            found.plan,
            out,
            found.options,
            overwrite=manner.overwrite,
            resume=manner.resume,
            listener=profiled(listener(as_json=manner.as_json, quiet=manner.quiet), as_json=manner.as_json),
            runner=found.runner,
            lineage=found.lineage,
        )
    except (Interrupted, KeyboardInterrupt):
        if not manner.as_json:
            stderr(f"resume with: {manner.again}")
        raise
    _tell(saved.notes, manner)
    return saved


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

"""What `merge`, `quick` and `mergekit-yaml` share: plan, run, say what came of it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from cuvee.api.blend import Blend
from cuvee.api.execute import save
from cuvee.cli.progress import listener
from cuvee.cli.render import json_line, notes, stderr, stdout
from cuvee.engine.events import Finished
from cuvee.engine.options import RunOptions
from cuvee.errors import Diagnostic, Interrupted
from cuvee.plan.explain import explain_text, size
from cuvee.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class Manner:
    """How a command runs and talks."""

    overwrite: bool = False
    resume: bool = True
    as_json: bool = False
    quiet: bool = False
    strict: bool = False
    again: str = "cuvee merge"  # the command that resumes


def merge_into(blend: Blend, out: Path, options: RunOptions, manner: Manner) -> int:
    """Plan and run a merge; the exit code."""
    plan = blend.build()
    try:
        return run_plan(plan, out, options, manner)
    finally:
        plan.close()


def run_plan(plan: Plan, out: Path, options: RunOptions, manner: Manner) -> int:
    """Run a plan and report."""
    if manner.as_json:
        json_line({"type": "version", "schema": "cuvee.merge/1"})
        for note in plan.notes:
            json_line({"type": "diagnostic", **note.as_dict()})
    else:
        notes(plan.notes, manner.quiet)
        if not manner.quiet:
            stderr(explain_text(plan))
    try:
        saved = save(
            plan,
            out,
            options,
            overwrite=manner.overwrite,
            resume=manner.resume,
            listener=listener(as_json=manner.as_json, quiet=manner.quiet),
        )
    except (Interrupted, KeyboardInterrupt):
        if not manner.as_json:
            stderr(f"resume with: {manner.again}")
        raise
    _report(saved.path, saved.finished, plan.notes, manner)
    warned = any(note.severity == "warning" for note in plan.notes)
    return 4 if manner.strict and warned else 0


def _report(out: Path, finished: Finished, diagnostics: tuple[Diagnostic, ...], manner: Manner) -> None:
    if manner.as_json:
        json_line(
            {
                "type": "summary",
                "output": str(out),
                "seconds": finished.seconds,
                "read_bytes": finished.read_bytes,
                "written_bytes": finished.written_bytes,
                "peak_memory": finished.peak_memory,
                "warnings": sum(d.severity == "warning" for d in diagnostics),
            }
        )
        return
    stdout(str(out))
    if manner.quiet:
        return
    stderr(
        f"wrote {size(finished.written_bytes)} in {finished.seconds:.1f} s, peak memory {size(finished.peak_memory)}\n"
        f"next: cuvee verify {shlex.quote(str(out))} · cuvee inspect {shlex.quote(str(out))} · "
        f"cuvee push {shlex.quote(str(out))} OWNER/NAME"
    )

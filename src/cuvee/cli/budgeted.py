"""Merges within a budget of what they read: `cuvee merge --read-budget` and `--max-deviation`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cuvee.api.blend import Blend
from cuvee.api.budget import budgeted, running
from cuvee.cli.running import Manner, run_plan
from cuvee.engine.options import RunOptions


def merge_within(
    blend: Blend, out: Path, options: RunOptions, manner: Manner, within: Mapping[str, Any]
) -> int:
    """Choose what is read, run, and say what came of it; the exit code. The plan's notes tell the bound."""
    plan = blend.build()
    try:
        asked = budgeted(plan, **within, options=options)
        return run_plan(asked.plan, out, options, manner, running(asked), tables=asked.tables)
    finally:
        plan.close()

"""Merges within a budget of what they read: `cuvee merge --read-budget` and `--max-deviation`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.api.blend import Blend
from cuvee.api.budget import budgeted, running
from cuvee.cli.running import Manner, run_plan
from cuvee.engine.options import RunOptions

if TYPE_CHECKING:
    from cuvee.engine.cluster.job import ClusterOptions


def merge_within(
    blend: Blend,
    out: Path,
    options: RunOptions,
    manner: Manner,
    within: Mapping[str, Any],
    cluster: ClusterOptions | None = None,
) -> int:
    """Choose what is read, run, and say what came of it; the exit code. The plan's notes tell the bound."""
    if cluster is not None:
        options = replace(options, recording="off")  # this machine reads a sample alone
    plan = blend.build()
    try:
        asked = budgeted(plan, **within, options=options)
        inner = None if cluster is None else blend.on_cluster(cluster, within=asked)
        return run_plan(asked.plan, out, options, manner, running(asked, inner), tables=asked.tables)
    finally:
        plan.close()

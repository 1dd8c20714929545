"""What a worker is told: how to build the plan again, and how a run goes. Plain data that can be sent.

A worker trusts nothing: it plans from the recipe and compares the digest with the driver's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from cuvee.core.names import printable
from cuvee.engine.cluster.likeness import Samples, differing
from cuvee.engine.options import RunOptions
from cuvee.errors import CuveeError, Diagnostic, PlanError, UsageError
from cuvee.plan.build import PlanOptions, build
from cuvee.plan.plan import Plan
from cuvee.plan.sharing import wrapped
from cuvee.plan.views import Opener
from cuvee.recipe.model import InMemory, Recipe
from cuvee.sinks.layout import Layout

VERSION: str = import_module("cuvee").__version__
Storage = Literal["auto", "shared", "driver"]


@dataclass(frozen=True, slots=True)
class Origin:
    """What a plan was built from; `anchor` and `working` are absolute."""

    recipe: Recipe
    anchor: Path
    working: Path
    offline: bool
    elsewhere: bool
    choices: PlanOptions


@dataclass(frozen=True, slots=True)
class Staged:
    """Where the output is staged, and what the file that proves it says; None: bytes go to the driver."""

    folder: Path
    proof: Path
    word: str


@dataclass(frozen=True, slots=True)
class Known:
    """What a catalogue tells of a plan: blocks to be read from another source, by source, tensor and block; thresholds
    within tensors, by tensor and the number of their stage among its nodes.

    Where blocks are left out with a loss, `needed` are the stages, named alike, whose thresholds are not looked for in
    what is left, `facts` what their sources tell of it, and `built` is the digest of the plan without that (empty: the
    driver's).
    """

    stand_ins: Mapping[str, Mapping[str, Mapping[int, str]]] = field(default_factory=dict)
    cuts: Mapping[str, Mapping[int, Any]] = field(default_factory=dict)
    needed: Mapping[str, Sequence[int]] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    built: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One run, for workers."""

    origin: Origin
    layout: Layout
    digest: str
    options: RunOptions
    staged: Staged | None
    known: Known = field(default_factory=Known)
    samples: Samples = field(default_factory=dict)
    version: str = VERSION


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """Where the cluster is and how it is used; none of it changes a byte of the output.

    `address`: as Ray takes it (None: `RAY_ADDRESS`, else a cluster on this machine).
    `workers`: how many (None: one for each CPU of the cluster).
    `storage`: whether workers write into the staged output themselves (`auto`: where they see it).
    `retries`: how often a piece of work may be lost. `patience`: seconds to wait for a first worker.
    """

    address: str | None = None
    workers: int | None = None
    storage: Storage = "auto"
    retries: int = 3
    patience: float = 300.0


@dataclass(frozen=True, slots=True)
class Failed:
    """A CuveeError on its way from a worker (exceptions do not travel)."""

    kind: str
    diagnostics: tuple[Diagnostic, ...]

    def error(self) -> CuveeError:
        """The error as it was raised there."""
        import cuvee.errors

        kind = getattr(cuvee.errors, self.kind, CuveeError)
        made: CuveeError = kind.collected(list(self.diagnostics))
        return made


def origin_of(recipe: Recipe, anchor: Path, offline: bool, elsewhere: bool, choices: PlanOptions) -> Origin:
    """What workers build the plan from; UsageError when that cannot be sent."""
    if any(isinstance(spec, InMemory) for spec in _specs(recipe)):
        raise UsageError(
            "CV-U211",
            "models in memory cannot be merged on a cluster: its workers open sources themselves",
            hint="save the model, and name its folder",
        )
    if recipe.output.adapter is not None or recipe.output.package is not None:
        raise UsageError(
            "CV-U214",
            "adapters and packages are made on one machine, not on a cluster",
            hint="leave `--engine ray` out, or merge a model there and use `cuvee extract lora`",
        )
    return Origin(recipe, anchor.resolve(), Path.cwd(), offline, elsewhere, choices)


def _specs(recipe: Recipe) -> list[Any]:
    found: list[Any] = []
    for spec in recipe.sources.values():
        found += _specs(spec) if isinstance(spec, Recipe) else [spec]
    return found


def rebuilt(job: Job) -> Plan:
    """The plan, built here; PlanError when it is another one than the driver's."""
    if job.version != VERSION:
        raise _other(f"a worker has version {VERSION} of cuvee, the driver {job.version}")
    origin = job.origin
    with suppress(OSError):
        os.chdir(origin.working)  # some paths of recipes are relative to it
    opener = Opener(origin.anchor, origin.offline, elsewhere=origin.elsewhere)
    plan = replace(build(origin.recipe, opener, origin.choices), layout=job.layout)
    found = differing(job.samples, plan)
    if plan.digest != job.digest or found is not None:
        plan.close()
        what = "its sources differ" if found is None else f"`{printable(found)}` holds other bytes there"
        raise _other(f"a worker plans something else than the driver: {what}")
    return wrapped(plan, job.known.stand_ins, job.known.facts) if job.known.stand_ins else plan


def _other(message: str) -> PlanError:
    hint = "name sources that every machine sees, and install the same version everywhere"
    return PlanError("CV-E212", message, hint=hint)


def failed(error: CuveeError) -> Failed:
    """The error, ready to be sent."""
    return Failed(type(error).__name__, error.diagnostics)


Learned = Mapping[tuple[str, str], Any]  # (group, figure or `summary`) to values for the group's members

"""Options that several commands share, and how their values become options of plans and runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cuvee.core import settings
from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic, UsageError

if TYPE_CHECKING:
    from cuvee.api.ways import Reading
    from cuvee.engine.cluster.job import ClusterOptions
    from cuvee.engine.options import RunOptions
    from cuvee.plan.build import PlanOptions

F = TypeVar("F", bound=Callable[..., Any])
EXISTING = click.Path(path_type=Path)


def output_options(function: F) -> F:
    """`--json`, `-q`, `-v`, `--debug`: on every command."""
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show tracebacks of errors."),
        click.option("-v", "--verbose", is_flag=True, help="Say more."),
        click.option("-q", "--quiet", is_flag=True, help="Say less."),
        click.option("--json", "as_json", is_flag=True, help="Machine-readable output."),
    ):
        function = option(function)
    return function


def plan_options(function: F) -> F:
    """Options that shape a plan."""
    for option in (
        click.option(
            "--set",
            "changes",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change a shared parameter or output key.",
        ),
        click.option("--seed", type=int, default=None, help="Seed of random stages."),
        click.option(
            "--no-rule",
            "rules_off",
            multiple=True,
            metavar="NAME",
            help="Switch an optimisation of the plan off.",
        ),
        click.option("--offline", is_flag=True, help="Never touch the network."),
        click.option("--allow-crimes", is_flag=True, help="Mix architectures, by tensor name."),
        click.option(
            "--unsafe-truncate-embeddings", is_flag=True, help="Cut vocabularies to their common rows."
        ),
        click.option("--tensor-union", is_flag=True, help="Keep tensors that only some models have."),
        click.option("--tensor-intersection", is_flag=True, help="Keep only tensors that all models have."),
        click.option("--shard-size", metavar="SIZE", default=None, help="Largest weight file, e.g. 5GB."),
        click.option(
            "--dtype", "out_dtype", metavar="DTYPE", default=None, help="Type of the written tensors."
        ),
    ):
        function = option(function)
    return function


def run_options(function: F) -> F:
    """Options of a run: they never change a byte of the output."""
    for option in (
        click.option(
            "--non-finite",
            type=click.Choice(["stop", "warn", "allow"]),
            default="stop",
            help="What to do about NaN and infinity.",
        ),
        click.option(
            "--device", default="cpu", metavar="DEVICE", help="Device of the arithmetic: cpu, cuda, auto."
        ),
        click.option("-j", "--threads", type=click.IntRange(1), default=None, help="Worker threads."),
        click.option(
            "--memory", metavar="SIZE", default=None, help="Budget of block buffers (default 128MiB)."
        ),
    ):
        function = option(function)
    return function


def paranoid_option(function: F) -> F:
    """The option of commands that write a model: look at it once more before it appears."""
    text = "Read what was written back from the device, and compare, before it appears."
    return click.option("--paranoid", is_flag=True, help=text)(function)


def reading_options(function: F) -> F:
    """Options that bound what is read of the experts, or the error of that, or name an output that has a part of it."""
    for option in (
        click.option(
            "--from",
            "earlier",
            type=EXISTING,
            default=None,
            metavar="OUTPUT",
            help="Take what is the same from an earlier output with lineage.",
        ),
        click.option(
            "--max-deviation",
            type=float,
            default=None,
            help="Read only what keeps the error below this, such as 1e-2.",
        ),
        click.option(
            "--read-budget",
            default=None,
            metavar="SHARE",
            help="Read at most this of the experts, such as 25% or 8GB.",
        ),
    ):
        function = option(function)
    return function


def reading_of(given: Mapping[str, Any]) -> Reading:
    """What `reading_options`, and `--lineage` where there is one, ask for."""
    from cuvee.api.ways import Reading

    asked = {key: given[key] for key in ("read_budget", "max_deviation", "earlier")}
    return Reading(**asked, lineage=given.get("lineage", False))


def cluster_options(function: F) -> F:
    """Options of a run on a cluster: they never change a byte of the output."""
    for option in (
        click.option(
            "--cluster-storage",
            type=click.Choice(["auto", "shared", "driver"]),
            default="auto",
            help="Who writes the output: workers, where they see it, or the driver.",
        ),
        click.option("--workers", type=click.IntRange(1), default=None, help="Workers on the cluster."),
        click.option("--ray-address", metavar="ADDRESS", default=None, help="The Ray cluster to use."),
        click.option(
            "--engine",
            type=click.Choice(["local", "ray"]),
            default="local",
            help="This machine, or the workers of a Ray cluster.",
        ),
    ):
        function = option(function)
    return function


def cluster_choices(given: Mapping[str, Any]) -> ClusterOptions | None:
    """ClusterOptions from the flags of `cluster_options`; None for a run on this machine.

    Raises UsageError for flags that only a cluster has.
    """
    if given["engine"] == "local":
        if given["ray_address"] or given["workers"]:
            raise UsageError(
                "CV-U213", "`--ray-address` and `--workers` are for clusters", hint="add `--engine ray`"
            )
        return None
    from cuvee.engine.cluster.job import ClusterOptions

    return ClusterOptions(given["ray_address"], given["workers"], given["cluster_storage"])


def plan_choices(rules_off: tuple[str, ...], allow_crimes: bool) -> PlanOptions:
    """PlanOptions from flags; unknown rule names are refused."""
    from cuvee.plan.build import PlanOptions
    from cuvee.plan.rules import RULES

    for name in rules_off:
        if name not in RULES:
            raise UsageError("CV-U004", f"there is no rule `{name}`", hint=did_you_mean(name, RULES))
    return PlanOptions(tuple(rules_off), allow_crimes)


def is_offline(flag: bool) -> bool:
    """Whether the network is forbidden, by flag or environment."""
    return flag or settings.flag("CUVEE_OFFLINE") or settings.flag("HF_HUB_OFFLINE")


def run_choices(given: Mapping[str, Any]) -> RunOptions:
    """RunOptions from the flags of `run_options`, the environment and defaults."""
    from cuvee.engine.options import RunOptions

    return RunOptions.from_settings(
        memory=given["memory"],
        threads=given["threads"],
        device=device_of(given["device"]),
        non_finite=given["non_finite"],
        profile=given.get("profile"),
        paranoid=given.get("paranoid"),
    )


def device_of(name: str) -> str:
    """`auto` → the accelerator if there is one; UsageError for a device that this machine or torch lacks."""
    if name == "cpu":
        return name
    from cuvee.core.lazy import torch
    from cuvee.errors import UsageError

    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "auto":
        return accelerator
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UsageError(
            "CV-U021",
            f"the device `{printable(name)}` cannot be used: {printable(reason)}",
            hint="`--device auto` takes an accelerator where there is one",
        ) from None
    return name


def existing_output(path: Path) -> Path:
    """The path; UsageError when there is neither an output nor, for a single file, a manifest beside it."""
    from cuvee.api import outputs

    return outputs.existing_output(path)


def shard_bytes(text: str) -> int:
    """The size of a `--shard-size`; UsageError when it is not one, or nothing."""
    from cuvee.engine.options import parse_bytes

    found = parse_bytes(text)
    if found < 1:
        raise UsageError("CV-U003", "`--shard-size` must be at least one byte")
    return found


def strictly(diagnostics: tuple[Diagnostic, ...], strict: bool) -> int:
    """The exit code of a command that finished: 4 when `--strict` and there were warnings."""
    return 4 if strict and any(d.severity == "warning" for d in diagnostics) else 0

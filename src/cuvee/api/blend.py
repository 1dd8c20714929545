"""A merge as a value: it can be planned, shown, saved, loaded or put into a live module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.api.modules import put
from cuvee.api.ways import PLAINLY, Cluster, Reading, Way, way
from cuvee.engine.options import RunOptions
from cuvee.plan.build import PlanOptions, build
from cuvee.plan.cost import Outlook
from cuvee.plan.explain import explain_html, explain_text
from cuvee.plan.plan import Plan
from cuvee.plan.views import Opener
from cuvee.recipe.model import Recipe

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from cuvee.api.execute import Saved
    from cuvee.engine.cluster.job import ClusterOptions
    from cuvee.engine.events import Listener


@dataclass(frozen=True, slots=True)
class PlanView:
    """A plan that prints itself; `value` is the plan, `ahead` what running it would take."""

    value: Plan
    ahead: Outlook

    def __str__(self) -> str:
        return explain_text(self.value, self.ahead)

    def _repr_html_(self) -> str:
        return explain_html(self.value, self.ahead)

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the output's tensors."""
        return tuple(t.meta.name for t in self.value.tensors)

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON data."""
        return self.value.as_json()


@dataclass(frozen=True, slots=True)
class Blend:
    """A recipe with the means to run it. Nothing is read before `plan`, no weight before `save` or `load`."""

    recipe: Recipe
    anchor: Path = field(default_factory=Path)
    offline: bool = False
    options: PlanOptions = field(default_factory=PlanOptions)
    elsewhere: bool = False  # paths are relative to `anchor`, wherever the recipe's file is

    def build(self) -> Plan:
        """A fresh plan; close it when done."""
        return build(self.recipe, Opener(self.anchor, self.offline, elsewhere=self.elsewhere), self.options)

    def plan(
        self,
        *,
        run: RunOptions | None = None,
        read_budget: str | None = None,
        max_deviation: float | None = None,
        earlier: str | Path | None = None,
    ) -> PlanView:
        """What would be read, computed and written by `save` with the same arguments."""
        reading = Reading(read_budget, max_deviation, earlier=earlier)
        with self.way(run or RunOptions.from_settings(), reading) as found:
            return PlanView(found.less, found.outlook())

    def save(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        resume: bool = True,
        run: RunOptions | None = None,
        listener: Listener | None = None,
        cluster: ClusterOptions | None = None,
        read_budget: str | None = None,
        max_deviation: float | None = None,
        lineage: bool = False,
        earlier: str | Path | None = None,
    ) -> Saved:
        """Merge into a folder (or one `.safetensors` file); resumes an interrupted run of the same plan.

        Args:
            path: of the output.
            overwrite: replace an existing output, atomically.
            resume: go on where an interrupted run ended.
            run: memory, threads and the like.
            listener: is told what happens.
            cluster: the workers of a Ray cluster that do it.
            read_budget: the most that is read of the experts, a share (`25%`) or a size (`8GB`).
            max_deviation: the largest error, relative to what the merge adds to the base (at least 0, below 1).
            lineage: record what each tensor is made from, for a later merge's `earlier`.
            earlier: an output with lineage; what is the same there is taken from it.

        Raises:
            PlanError: no bound can be given for the budget (CV-P200), or it cannot be kept (CV-P202).
            UsageError: a budget and lineage are asked for at once (CV-U001), or `earlier` has none (CV-U281).
        """
        from cuvee.api.execute import save
        from cuvee.engine.events import ignore

        reading = Reading(read_budget, max_deviation, lineage, earlier)
        with self.way(run or RunOptions.from_settings(), reading, cluster) as found:
            return save(
                found.plan,
                Path(path),
                found.options,
                overwrite=overwrite,
                resume=resume,
                listener=listener or ignore,
                runner=found.runner,
                lineage=found.lineage,
            )

    @contextmanager
    def way(
        self, options: RunOptions, reading: Reading = PLAINLY, cluster: ClusterOptions | None = None
    ) -> Iterator[Way]:
        """A fresh plan and how it is run, here or by the workers of a Ray cluster; closed at the end."""
        plan = self.build()
        try:
            with way(plan, options, reading, None if cluster is None else self._placed(cluster)) as found:
                yield found
        finally:
            plan.close()

    def _placed(self, cluster: ClusterOptions) -> Cluster:
        from cuvee.engine.cluster.job import origin_of

        return origin_of(self.recipe, self.anchor, self.offline, self.elsewhere, self.options), cluster

    def load(self, run: RunOptions | None = None) -> dict[str, Tensor]:
        """Merge in memory: a dictionary of tensors."""
        from cuvee.api.execute import load

        plan = self.build()
        try:
            return load(plan, run)
        finally:
            plan.close()

    def into(self, module: Module, run: RunOptions | None = None) -> Module:
        """Merge in memory and load the result into a live module, every key or an error; returns the module."""
        return put(self.load(run), module)

    def with_(self, **changes: Any) -> Blend:
        """The same merge with fields of its recipe replaced."""
        return replace(self, recipe=replace(self.recipe, **changes))

    def _repr_html_(self) -> str:
        return self.plan()._repr_html_()

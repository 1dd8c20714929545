"""A merge as a value: it can be planned, shown, saved, loaded or put into a live module."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.api.beforehand import as_merged
from cuvee.api.modules import put
from cuvee.api.outlook import outlook
from cuvee.plan.build import PlanOptions, build
from cuvee.plan.cost import Outlook
from cuvee.plan.explain import explain_html, explain_text
from cuvee.plan.plan import Plan
from cuvee.plan.views import Opener
from cuvee.recipe.model import Recipe

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from cuvee.api.budgeted_plan import Budgeted
    from cuvee.api.execute import Runner, Saved
    from cuvee.api.remerge import Remerge
    from cuvee.engine.cluster.job import ClusterOptions
    from cuvee.engine.events import Listener
    from cuvee.engine.options import RunOptions


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

    def plan(self) -> PlanView:
        """What would be read, computed and written."""
        plan = self.build()
        try:
            merged, tables = as_merged(plan)
            return PlanView(merged, outlook(merged, tables=tables))
        finally:
            plan.close()

    def save(
        self,
        path: str | Path,
        *,
        overwrite: bool = False,
        resume: bool = True,
        run: RunOptions | None = None,
        listener: Listener | None = None,
        cluster: ClusterOptions | None = None,
    ) -> Saved:
        """Merge into a folder (or one `.safetensors` file); resumes an interrupted run of the same plan.

        With `cluster`, workers of a Ray cluster do it.
        """
        from cuvee.api.execute import save
        from cuvee.engine.events import ignore
        from cuvee.engine.options import RunOptions
        from cuvee.engine.run import run as here

        options = run or RunOptions.from_settings()
        if cluster is not None:
            options = replace(options, recording="off")  # this machine reads nothing
        plan = self.build()
        try:
            return save(
                plan,
                Path(path),
                options,
                overwrite=overwrite,
                resume=resume,
                listener=listener or ignore,
                runner=here if cluster is None else self.on_cluster(cluster),
            )
        finally:
            plan.close()

    def on_cluster(
        self, cluster: ClusterOptions, again: Remerge | None = None, *, within: Budgeted | None = None
    ) -> Runner:
        """What runs this merge's plan on a cluster; with `again`, what is the same in an earlier output is copied; with
        `within`, workers read what that budget leaves.
        """
        from cuvee.api.clustered import again_on_cluster, on_cluster, within_on_cluster
        from cuvee.engine.cluster.job import origin_of

        origin = origin_of(self.recipe, self.anchor, self.offline, self.elsewhere, self.options)
        if within is not None:
            return within_on_cluster(within, origin, cluster)
        if again is None:
            return on_cluster(origin, cluster)
        return again_on_cluster(again, lambda taken: on_cluster(origin, cluster, taken))

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

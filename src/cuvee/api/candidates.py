"""Models held in memory and merged again and again with other values of parameters: what a search asks for.

Owns what stays from one candidate to the next: the plan's expressions, what stages found out about their inputs, and
what was combined where only the coefficients behind it change. A candidate's bytes are those of an ordinary merge with
the same values. Must not know any method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.api.apart import refuse_shared
from cuvee.api.fetch import fetch
from cuvee.api.given import Models
from cuvee.api.modules import plain, put
from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.engine.events import ignore
from cuvee.engine.memo import Memo
from cuvee.engine.options import RunOptions
from cuvee.engine.run import run
from cuvee.errors import NonFinite, UsageError
from cuvee.plan.cost import inputs_of
from cuvee.plan.nodes import Node
from cuvee.plan.plan import Opened, Plan
from cuvee.plan.shortcut import joints_of, since, until
from cuvee.plan.variants import Variants, variants
from cuvee.plan.views import Opener
from cuvee.sinks.memory import FilledSession
from cuvee.sources.held import HeldSource
from cuvee.sources.memory import MemorySource

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

_COMBINED = "combined in memory"  # key of the source of values that were combined before

Tensors = Mapping[str, "Tensor"]


@dataclass(slots=True)
class Candidates:
    """Experts and base in memory as they were given, and the merges of them.

    The models must not be changed while they are held. Not to be used from two threads at once.
    """

    models: Models
    run: RunOptions
    _variants: Variants
    _memo: Memo = field(default_factory=Memo)
    _buffers: dict[str, Tensor] = field(default_factory=dict)  # of `into`
    _joints: dict[str, Node] = field(default_factory=dict)  # of the last candidate
    _combined: Opened | None = None  # their values

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the merged tensors."""
        return tuple(tensor.meta.name for tensor in self._variants.first.tensors)

    def merge(self, *, out: Tensors | None = None, **changes: Any) -> dict[str, Tensor]:
        """The tensors of one candidate by name; byte by byte those of `cuvee.merge` with the same parameters.

        Args:
            out: tensors to fill instead of new ones: every name, contiguous, on the CPU, in shape and type of the
                result, in memory of their own. Their content is undefined after an error.
            changes: parameters that differ from those of `hold`; those of other candidates are forgotten. Where the
                method is a chain, a parameter is `stage.parameter` (two stages of one name change together).

        Raises:
            UsageError: `out` does not fit.
            RecipeError: a parameter is unknown or out of range.
        """
        plan = self._variants.plan(self.models.recipe(changes))
        tensors = _fresh(plan) if out is None else _fitting(plan, out)
        if out is not None:
            refuse_shared(self._variants.first, tensors)
        self._run(self._shortened(plan), tensors)
        return tensors

    def into(self, module: Module, **changes: Any) -> Module:
        """Put one candidate into a live module, every key or an error; returns the module.

        UsageError for a module that is held itself.
        """
        own = plain(module.state_dict()) if hasattr(module, "state_dict") else {}
        refuse_shared(self._variants.first, own, each=False)  # what a module ties, `put` knows
        self._buffers = self.merge(out=self._buffers or None, **changes)
        return put(self._buffers, module)

    def close(self) -> None:
        """Let go of the models and of all that was kept."""
        self._variants.first.close()
        self._memo, self._buffers, self._joints, self._combined = Memo(), {}, {}, None

    def __enter__(self) -> Candidates:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, plan: Plan, tensors: Tensors) -> None:
        with FilledSession(tensors) as session:
            run(plan, session, self.run, ignore, self._memo)

    def _shortened(self, plan: Plan) -> Plan:
        """The plan from where its tensors were combined, when that is as in the candidate before.

        The values there are made when they are asked for a second time.
        """
        joints = joints_of(plan)
        if joints != self._joints:  # nodes are compared by identity
            self._joints, self._combined = joints, None
            return plan
        if joints and self._combined is None:
            self._combined = self._made(plan, joints)
        return plan if self._combined is None else since(plan, joints, self._combined)

    def _made(self, plan: Plan, joints: Mapping[str, Node]) -> Opened | None:
        short = until(plan, joints)
        tensors = _fresh(short)
        try:
            self._run(short, tensors)
        except NonFinite:  # the whole expression says it better
            return None
        return Opened(_COMBINED, MemorySource(tensors, _COMBINED), None)


def hold(
    models: Sequence[Any] | Mapping[str, Any],
    *,
    base: Any = None,
    method: str | Sequence[Any] = "linear",
    seed: int = 0,
    dtype: Any = None,
    out_dtype: Any = None,
    offline: bool = False,
    run: RunOptions | None = None,
    **parameters: Any,
) -> Candidates:
    """Hold models in memory for merging them many times. Arguments as of `cuvee.merge`.

    Tensors and modules are used where they are; checkpoints are read once, in their own types. Where a search changes
    only coefficients behind the combination (`lambda`), one more model is kept, in float32. Where it changes weights of
    an election over trimmed or dropped changes, the entries left are gathered, in at most half of the experts' bytes.
    """
    given = Models(models, base, method, parameters, {"seed": seed, "dtype": dtype, "out_dtype": out_dtype})
    made = variants(given.recipe({}), Opener(Path(), offline))
    fetch(made.first, ignore)
    made.first = _held(made.first)
    return Candidates(given, run or RunOptions.from_settings(), made)


def _held(plan: Plan) -> Plan:
    """The plan with what it reads in memory."""
    wanted: dict[str, list[str]] = {}
    for source, name in inputs_of(plan.tensors):
        wanted.setdefault(source, []).append(name)
    sources = {
        key: replace(opened, source=HeldSource(opened.source, wanted.get(key, [])))
        for key, opened in plan.sources.items()
    }
    return replace(plan, sources=sources)


def _fresh(plan: Plan) -> dict[str, Tensor]:
    metas = [tensor.meta for tensor in plan.tensors]
    return {meta.name: torch.empty(meta.shape, dtype=meta.dtype.torch) for meta in metas}


def _fitting(plan: Plan, out: Tensors) -> dict[str, Tensor]:
    """The tensors to fill, in the order of the plan; UsageError where one does not fit."""
    for tensor in plan.tensors:
        meta, given = tensor.meta, out.get(tensor.meta.name)
        fits = (
            given is not None
            and given.shape == meta.shape
            and given.dtype == meta.dtype.torch
            and given.device.type == "cpu"
            and given.is_contiguous()
        )
        if not fits:
            wanted = f"a contiguous `{meta.dtype.name}` tensor of shape {list(meta.shape)} on the CPU"
            what = "is missing" if given is None else f"is `{given.dtype}` {list(given.shape)}"
            raise UsageError("CV-U220", f"`{printable(meta.name)}` of `out` {what}, and should be {wanted}")
    return {tensor.meta.name: out[tensor.meta.name] for tensor in plan.tensors}

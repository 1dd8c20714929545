"""Greedy soups: which of several fine-tuned models to average, chosen by a score that the caller computes.

Owns the selection and the running mean that candidates are made of; ends in an ordinary recipe. Must not know tasks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cuvee.api.blend import Blend
from cuvee.api.python_recipe import recipe_from
from cuvee.core.names import printable
from cuvee.errors import UsageError
from cuvee.recipe.model import InMemory, Recipe

if TYPE_CHECKING:
    from torch import Tensor

Tensors = dict[str, "Tensor"]
METHOD = "uniform_soup"


@dataclass(frozen=True, slots=True)
class Trial:
    """One mean that was scored: of which models, its score, whether it became the soup.

    The first trials are the models alone, in the order given; then one for each model that was added on trial.
    """

    members: tuple[str, ...]
    score: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Soup:
    """What a greedy selection ends in: the merge of the chosen models, their names, and every score on the way."""

    blend: Blend
    members: tuple[str, ...]
    score: float
    trials: tuple[Trial, ...]


def greedy_soup(
    models: Sequence[Any] | Mapping[str, Any],
    *,
    score: Callable[[Tensors], float],
    base: Any = None,
    dtype: Any = None,
    out_dtype: Any = None,
    offline: bool = False,
) -> Soup:
    """Average those models that make the average better: the greedy soup (Wortsman et al., arXiv:2203.05482).

    Models are ranked by their own score, ties in the order given; each, from the second on, is added to the mean of
    those chosen, and stays if the score does not fall. A score is computed at most 2K − 1 times for K models. The
    result scores at least as well as the best model, on what was scored: report it on other data.

    Args:
        models: the models, as a list or by name, in any form that `merge` takes.
        score: what is to be large, of a candidate's tensors by name (`module.load_state_dict(tensors)`).
        base: the model whose config and tokenizer the output takes; the first chosen when there is none.
        dtype: type that inputs are read as; float32 when not given.
        out_dtype: type of candidates and of the output; `dtype`, else that of the models when not given.
        offline: never touch the network.

    Returns:
        The chosen models as a blend that averages them (a recipe like any other), with all scores. Candidates are made
        from a running mean, so that chosen models are not read again; they differ from the blend's tensors by rounding
        alone.

    Raises:
        UsageError: CV-U110, the score is not a number.
    """
    options = {"dtype": dtype, "out_dtype": out_dtype}
    whole = recipe_from(models, base, METHOD, {}, options)
    names = [one.source for one in whole.modules["*"].slices[0].inputs]
    kitchen = _Kitchen(whole, offline, score)
    trials = select(names, kitchen.score)
    best = next(trial for trial in reversed(trials) if trial.kept)
    return Soup(Blend(_of(whole, best.members), offline=offline), best.members, best.score, tuple(trials))


def select(names: Sequence[str], score: Callable[[tuple[str, ...]], float]) -> list[Trial]:
    """Every trial of the greedy selection; the soup is the last that was kept.

    `score` is asked for each model alone, then for growing sets that begin with the soup so far.
    """
    alone = [Trial((name,), score((name,)), False) for name in names]
    ranked = sorted(range(len(names)), key=lambda i: -alone[i].score)  # stable: ties in the order given
    first, *others = ranked
    alone[first] = soup = replace(alone[first], kept=True)
    trials = list(alone)
    for number in others:
        members = (*soup.members, names[number])
        found = score(members)
        trial = Trial(members, found, found >= soup.score)
        trials.append(trial)
        soup = trial if trial.kept else soup
    return trials


def _of(whole: Recipe, members: Sequence[str]) -> Recipe:
    """The recipe that averages these models alone."""
    (part,) = whole.modules["*"].slices
    inputs = {one.source: one for one in part.inputs}
    kept = {*members, *([whole.base] if whole.base is not None else [])}
    sources = {name: spec for name, spec in whole.sources.items() if name in kept}
    ordered = {name: sources[name] for name in (*(n for n in sources if n not in members), *members)}
    slices = (replace(part, inputs=tuple(inputs[name] for name in members)),)
    return replace(whole, sources=ordered, modules={"*": replace(whole.modules["*"], slices=slices)})


class _Kitchen:
    """Makes candidates and scores them; keeps the mean of the soup so far, so that its members are not read again."""

    def __init__(self, whole: Recipe, offline: bool, score: Callable[[Tensors], float]) -> None:
        self.whole, self.offline, self.ask = whole, offline, score
        self.made: dict[tuple[str, ...], Tensors] = {}  # the last candidate, and the soup it was made from

    def score(self, members: tuple[str, ...]) -> float:
        found = self.ask(self._candidate(members))
        shown = ", ".join(f"`{printable(name)}`" for name in members)
        try:
            number = float(found)
        except (TypeError, ValueError):
            what = printable(repr(found), 60)
            raise UsageError("CV-U110", f"the score of {shown} is not a number: {what}") from None
        if math.isnan(number):
            hint = "give -inf for a model that fails"
            raise UsageError("CV-U110", f"the score of {shown} is not a number: NaN", hint=hint)
        return number

    def _candidate(self, members: tuple[str, ...]) -> Tensors:
        """The mean of the members in the types that the blend of them has."""
        blend = Blend(_of(self.whole, members), offline=self.offline)
        if len(members) == 1:
            return blend.load()
        plan = blend.build()
        plan.close()
        dtypes = {tensor.meta.name: tensor.meta.dtype.torch for tensor in plan.tensors}
        mean = self._mean(members)
        if mean.keys() != dtypes.keys():  # tensors that only some of the models have
            return blend.load()
        return {name: tensor.to(dtypes[name]) for name, tensor in mean.items()}

    def _mean(self, members: tuple[str, ...]) -> Tensors:
        """The mean in the type of the arithmetic: of the soup's mean and one more model."""
        if members not in self.made:
            soup = members[:-1]
            if len(soup) == 1:
                wide = self._wide(_of(self.whole, members))
            else:
                before = self._mean(soup)
                weights = {"weight": [float(len(soup)), 1.0]}
                recipe = recipe_from({"soup": before, "one": {}}, None, "linear", weights, {})
                sources = {"soup": InMemory(before), "one": self.whole.sources[members[-1]]}
                wide = self._wide(replace(recipe, sources=sources, compute=self.whole.compute))
            self.made = {key: value for key, value in self.made.items() if key == soup} | {members: wide}
        return self.made[members]

    def _wide(self, recipe: Recipe) -> Tensors:
        """The recipe's tensors in the type of its arithmetic, not yet rounded to that of the output."""
        blend = Blend(recipe, offline=self.offline)
        plan = blend.build()
        plan.close()
        double = any(tensor.compute.name == "float64" for tensor in plan.tensors)
        output = replace(recipe.output, dtype="float64" if double else "float32")
        return Blend(replace(recipe, output=output), offline=self.offline).load()

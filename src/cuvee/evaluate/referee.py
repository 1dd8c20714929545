"""The protocol: let a method choose on selection data under a budget, then score what it chose once on test data.

Owns the order of things and nothing else. `choose` runs with test data locked away, `score` is the only door to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.core.names import printable
from cuvee.errors import EvaluationError
from cuvee.evaluate import phases
from cuvee.evaluate.apart import apart, ours, possible
from cuvee.evaluate.choice import Choice
from cuvee.evaluate.contender import Contender
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.selection import BudgetSpent, Selection, answered, scorecard
from cuvee.evaluate.track import Examinee, Track, handed, sides

if TYPE_CHECKING:
    from torch import Tensor

    from cuvee.evaluate.track import Weights


Method = Callable[[Selection], "tuple[Weights, Mapping[str, Any]]"]


def demand_experts(track: Track, names: Sequence[str]) -> list[str]:
    """All tasks of the track with an expert; EvaluationError CV-B006 where one of `names` is none of them."""
    seen = [n for n, task in track.tasks.items() if not task.unseen]
    strangers = sorted(set(names) - set(seen))
    if strangers:
        raise EvaluationError(
            "CV-B006",
            f"the track `{printable(track.name)}` has no expert for "
            f"{', '.join(f'`{printable(n)}`' for n in strangers)}",
            hint=f"its tasks are {', '.join(seen)}",
        )
    return seen


class Referee:
    """Judges methods on one track and one set of its tasks.

    `names` are tasks with experts, scored with their shifts; unless `unseen` is False, tasks without an expert are
    scored as well. All methods get the same `budget` of evaluations on selection data. `examinee`: a live model of the
    track to use instead of building one. `isolated`: whether methods choose in a process of their own, without any test
    item in it (None: those that are not cuvee's own, where the system can fork). `hidden`: folders and files that
    such a process must not see, where test scores are kept. `selected`: what experts are known to score on their
    selection parts, which choosing is normalised by; what the referee has to find out is added.
    """

    def __init__(
        self,
        track: Track,
        names: Sequence[str] | None = None,
        *,
        budget: int = 16,
        examinee: Examinee | None = None,
        unseen: bool = True,
        isolated: bool | None = None,
        hidden: Sequence[Path] = (),
        selected: dict[str, TaskScore] | None = None,
    ) -> None:
        seen = demand_experts(track, names or ())
        self.track = track
        self.names = list(names or seen)
        others = {n: task for n, task in track.tasks.items() if task.unseen}
        self.unseen = [n for n, task in others.items() if unseen and not task.shift_of]
        self.shifted = [n for n, task in others.items() if task.shift_of in self.names]
        self.budget = budget
        self.isolated = isolated
        self.hidden = tuple(hidden)
        self.selected = {} if selected is None else selected
        self._examinee = examinee

    @property
    def examinee(self) -> Examinee:
        """The live model, built when first needed."""
        if self._examinee is None:
            self._examinee = self.track.examinee()
        return self._examinee

    def choose(self, method: Method, *, budget: int | None = None) -> Choice:
        """Run a method's selection phase; LeakError if it reaches for test items.

        The method gets a `Selection` and returns weights and the settings it chose. Its evaluations are counted and
        end at the budget; where it lets BudgetSpent pass, its best candidate stands. The tensors are copied, so that
        nothing of the method runs, or changes them, once test items are open.
        """
        granted = self.budget if budget is None else budget
        self._prepare(granted)
        if self._apart(method):
            return apart(lambda: self._chosen(method, granted), self.track.tasks.values(), self.hidden)
        return self._chosen(method, granted)

    def _prepare(self, granted: int) -> None:
        """Everything of the track that a method may use is made now: its making is not the method's cost."""
        _ = self.examinee, self.track.base, handed(self.track, self.names)
        if granted:
            self.experts_on_selection()

    def _apart(self, method: Method) -> bool:
        if self.isolated is not None:
            return self.isolated
        return not (isinstance(method, Contender) and ours(method.method)) and possible()

    def _chosen(self, method: Method, granted: int) -> Choice:
        """The method's choice within `granted` evaluations, in this process."""
        known = {name: score.mean for name, score in self.selected.items()}
        base = self.track.base  # some tracks make it anew each time, which is not the method's to pay
        room = Selection(self.track, self.names, self.examinee, granted, known)
        with phases.selecting(), room.ledger.spending():
            try:
                weights, settings = _answer(method(room))
            except BudgetSpent:
                if room.best is None:
                    raise
                weights, settings = room.best
            settled = _copied(weights, base)
        taken = max(room.ledger.evaluations, len(room.log))
        if taken > granted:
            raise EvaluationError(
                "CV-B007",
                f"the method took {taken} evaluations, its budget is {granted}",
                hint="leave `budget`, `ledger` and `log` of the selection to the referee",
            )
        return Choice(settled, dict(settings), room.ledger, tuple(room.log))

    def score(self, choice: Choice | Weights, name: str, tasks: Sequence[str] | None = None) -> Scorecard:
        """Test scores of what was chosen, on these tasks (else all of the referee's), with all it cost.

        Tensors that the choice lacks are the base's, not those of whoever was scored before.
        """
        made = choice if isinstance(choice, Choice) else Choice(choice)
        whole = {**self.track.base, **made.weights}
        with phases.scoring():
            self.examinee.load(whole)
            asked = [self.track.tasks[n] for n in tasks or (*self.names, *self.unseen, *self.shifted)]
            card = scorecard(name, self.examinee, asked, Ledger())
        return replace(card, spent=made.spent.copy(), settings=made.settings, log=tuple(made.log))

    def experts_on_selection(self) -> dict[str, TaskScore]:
        """Each expert's score on its own selection items, taken once; it counts for nobody."""
        for name in self.names:
            task = self.track.tasks[name]
            if name not in self.selected and task.selection:
                self.examinee.load({**self.track.base, **self.track.expert(name)})
                self.selected |= answered(self.examinee, [task], "selection", Ledger())
        return {name: self.selected[name] for name in self.names if name in self.selected}

    def judge(self, method: Method, name: str, *, budget: int | None = None) -> Scorecard:
        """`choose`, then `score`."""
        return self.score(self.choose(method, budget=budget), name)

    def experts(self) -> dict[str, Scorecard]:
        """Each expert's test scores on every task: its own and the others'."""
        return {n: self.score(self.track.expert(n), f"expert {n}") for n in self.names}


def _answer(found: Any) -> tuple[Weights, Mapping[str, Any]]:
    """What a method returned; EvaluationError CV-B012 for anything but weights and settings."""
    if (
        isinstance(found, (tuple, list))
        and len(found) == 2
        and all(isinstance(part, Mapping) for part in found)
    ):
        return found[0], found[1]
    raise EvaluationError(
        "CV-B012",
        f"the method returned {_described(found)}, `(weights, settings)` was expected",
        hint="return two dictionaries: tensors by name, and the settings that were chosen",
    )


def _described(found: Any) -> str:
    if isinstance(found, (tuple, list)):
        return f"{len(found)} values of {', '.join(sorted({type(part).__name__ for part in found})) or 'nothing'}"
    return "nothing" if found is None else printable(type(found).__name__)


def _copied(weights: Weights, base: Weights) -> dict[str, Tensor]:
    """Plain tensors with the values of these; EvaluationError for anything else, or what the base has not."""
    out = {}
    for name, tensor in weights.items():
        if not isinstance(tensor, torch.Tensor):
            raise EvaluationError(
                "CV-B012",
                f"the method gave `{printable(str(name))}` as {type(tensor).__name__}, a tensor is expected",
                hint="return tensors by name, and the settings that were chosen",
            )
        _demand_place(str(name), tensor, base)
        out[str(name)] = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        out[str(name)].copy_(tensor.detach())
    return out


def _demand_place(name: str, tensor: Tensor, base: Weights) -> None:
    """EvaluationError CV-B012 for a tensor that is not the base's by name and sides, or holds no real numbers."""
    if name not in base:
        what = "the base has no such tensor"
    elif sides(tensor.shape) != sides(base[name].shape):
        what = f"its shape is {list(tensor.shape)}, the base's {list(base[name].shape)}"
    elif tensor.is_complex():
        what = "it holds complex numbers"
    else:
        return
    raise EvaluationError(
        "CV-B012",
        f"the method gave `{printable(name)}`, and {what}",
        hint="return tensors of the base's names and shapes; those that are left out are the base's",
    )

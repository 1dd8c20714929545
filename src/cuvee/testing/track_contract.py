"""What every track of the benchmark promises, as checks that outside packages may run against their own.

    @pytest.mark.parametrize("check", TRACK_CHECKS, ids=lambda check: check.__name__)
    def test_my_track(check):
        check(lambda: MyTrack(seed=0))

Each check makes the track itself (twice where that matters) and raises AssertionError with what it found. Experts are
trained where the track trains them, so checks run on a small version. Must not know any kind of track.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy
import torch

from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.task import ACCURACY, Task
from cuvee.evaluate.track import Track

Maker = Callable[[], Track]


def tasks_are_told_apart(made: Maker) -> None:
    """Tasks stand under their own names; shifts belong to tasks with experts; somebody can be merged for."""
    tasks = made().tasks
    seen = [name for name, task in tasks.items() if not task.unseen]
    assert len(seen) > 1, f"there are experts for {seen}, at least two are needed"
    for name, task in tasks.items():
        assert name == task.name, f"{task.name} stands under {name}"
        assert not task.shift_of or task.shift_of in seen, (
            f"{name} shifts {task.shift_of}, which has no expert"
        )
        assert len(task.test) > 0, f"{name} has no test items"
        assert task.unseen or task.selection, f"{name} has an expert and no selection items"


def it_is_the_same_every_time(made: Maker) -> None:
    """The digest, the tasks, the base and the first expert of two tracks of one seed agree."""
    one, two = made(), made()
    assert one.digest == two.digest, f"the digest is {one.digest}, then {two.digest}"
    assert {n: t.digest for n, t in one.tasks.items()} == {n: t.digest for n, t in two.tasks.items()}
    first = _seen(one)[0].name
    for a, b in ((one.base, two.base), (one.expert(first), two.expert(first))):
        assert all(torch.equal(tensor, b[name]) for name, tensor in a.items()), "weights differ"


def models_have_the_tensors_of_the_base(made: Maker) -> None:
    """Experts and references have the base's names and shapes, finite values, and an expert is not the base."""
    track = made()
    given = {f"the expert of {task.name}": track.expert(task.name) for task in _seen(track)}
    references = track.references()
    assert not {"base", "experts"} & set(references), f"references are called {sorted(references)}"
    for what, weights in {**given, **references}.items():
        assert set(weights) == set(track.base), f"{what} has other tensors than the base"
        for name, tensor in weights.items():
            assert tensor.shape == track.base[name].shape, f"{what}: {name} has another shape"
            assert not tensor.is_floating_point() or bool(tensor.isfinite().all()), (
                f"{what}: {name} is not finite"
            )
            assert not tensor.requires_grad, f"{what}: {name} is still being trained"
        changed = any(not torch.equal(tensor, track.base[name]) for name, tensor in weights.items())
        assert changed, f"{what} is the base"


def answers_are_numbers_for_items(made: Maker) -> None:
    """A finite number for each item, the same twice, whatever the order; what it took is counted."""
    track = made()
    examinee = track.examinee()
    for task in _seen(track):
        examinee.load(track.expert(task.name))
        items, ledger = list(task.selection), Ledger()
        found = numpy.asarray(examinee.answer(task, items, ledger))
        assert found.shape == (len(items),), f"{task.name}: {found.shape} numbers for {len(items)} items"
        assert numpy.isfinite(found).all(), f"{task.name}: answers are not finite"
        turned = numpy.asarray(examinee.answer(task, items[::-1], Ledger()))[::-1]
        assert numpy.allclose(found, turned, atol=1e-3), f"{task.name}: answers depend on their order"
        assert (ledger.examples, ledger.forward > 0) == (len(items), True), (
            f"{task.name}: not counted: {ledger}"
        )
        if task.metric.name == ACCURACY.name:
            assert set(numpy.unique(found)) <= {0.0, 1.0}, f"{task.name}: accuracy is 0 or 1 for each item"


def confidence_belongs_to_the_answers(made: Maker) -> None:
    """Where there is `classify`, its scores are those of `answer` and its confidence lies in 0…1."""
    track = made()
    examinee = track.examinee()
    classify = getattr(examinee, "classify", None)
    if classify is None:
        return
    for task in [t for t in _seen(track) if t.metric.name == ACCURACY.name]:
        examinee.load(track.expert(task.name))
        items = list(task.selection)
        found = classify(task, items, Ledger())
        plain = numpy.asarray(examinee.answer(task, items, Ledger()))
        assert numpy.array_equal(found.scores, plain), f"{task.name}: `classify` and `answer` disagree"
        inside = (found.confidence >= 0) & (found.confidence <= 1 + 1e-9)
        assert inside.all(), f"{task.name}: confidence outside of 0…1"


def loaded_weights_are_the_ones_that_answer(made: Maker) -> None:
    """After the base was loaded again it answers as before, and loading changes no tensor that was given."""
    track = made()
    examinee, task = track.examinee(), _seen(track)[0]
    before = {name: tensor.clone() for name, tensor in track.base.items()}
    answers = []
    for weights in (track.base, track.expert(task.name), track.base):
        examinee.load(dict(weights))
        answers.append(numpy.asarray(examinee.answer(task, task.selection, Ledger())))
    assert numpy.array_equal(answers[0], answers[2]), (
        "the base answers differently after an expert was loaded"
    )
    assert not numpy.array_equal(answers[0], answers[1]), "the expert answers as the base does"
    assert all(torch.equal(tensor, before[name]) for name, tensor in track.base.items()), (
        "the base was changed"
    )


def experts_are_better_on_their_own_task(made: Maker) -> None:
    """On test items every expert beats the base on its task, or there is nothing to merge."""
    track = made()
    referee = Referee(track, unseen=False)
    for task in _seen(track):
        sign = 1 if task.metric.better == "higher" else -1
        base, own = (
            sign * referee.score(weights, "x", [task.name]).tasks[task.name].mean
            for weights in (track.base, track.expert(task.name))
        )
        assert own > base, f"the expert of {task.name} scores {own:.4f}, the base {base:.4f}"


def _seen(track: Track) -> Sequence[Task]:
    return [task for task in track.tasks.values() if not task.unseen]


TRACK_CHECKS: tuple[Callable[[Maker], None], ...] = (
    tasks_are_told_apart,
    it_is_the_same_every_time,
    models_have_the_tensors_of_the_base,
    answers_are_numbers_for_items,
    confidence_belongs_to_the_answers,
    loaded_weights_are_the_ones_that_answer,
    experts_are_better_on_their_own_task,
)

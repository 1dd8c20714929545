"""Tracks I and C in small: networks of different starts aim at one code book; a run's checkpoints score its text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.evaluate import phases
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.selection import Selection
from cuvee.evaluate.task import Item, Provenance
from cuvee.evaluate.tracks import heads, learning, parts
from cuvee.evaluate.tracks.arithmetic import flops
from cuvee.evaluate.tracks.initialisations.networks import KINDS, WIDTH
from cuvee.evaluate.tracks.initialisations.tasks import Labelled
from cuvee.evaluate.tracks.initialisations.track import InitialisationsTrack, Training
from cuvee.evaluate.tracks.language.texts import Document
from cuvee.evaluate.tracks.trajectory.track import Run, TrajectoryTrack
from cuvee.testing.track_contract import TRACK_CHECKS


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path))
    torch.set_num_threads(1)


def _blobs(seed: int) -> Labelled:
    """Ten patterns under noise: learned in a few steps, not known before."""
    random = np.random.default_rng(seed)
    patterns = random.integers(0, 256, (10, 16, 16))
    labels = [i % 10 for i in range(700)]
    noisy = [patterns[k] + random.normal(0, 60, (16, 16)) for k in labels]
    pairs = [(np.clip(p, 0, 255).astype(np.uint8), k) for p, k in zip(noisy, labels, strict=True)]
    return Labelled(pairs[:500], pairs[500:], Provenance("made here"))


def _initialisations(kind: str) -> InitialisationsTrack:
    sets = {"first": lambda: _blobs(0), "second": lambda: _blobs(1)}
    return InitialisationsTrack(kind=kind, training=Training(samples=1600, batch=32, rate=3e-3), sets=sets)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_experts_of_different_starts_learn_their_task_and_their_average_knows_nothing(kind: str) -> None:
    track = _initialisations(kind)
    referee = Referee(track, ["first_a", "first_b"], budget=1)
    scores = {n: referee.score(track.expert(n), n, [n]).tasks[n].mean for n in referee.names}
    assert min(scores.values()) > 0.8
    a, b = (track.expert(name) for name in referee.names)
    average = referee.score({name: (a[name] + b[name]) / 2 for name in a}, "average")
    assert average.mean() < min(scores.values())
    assert referee.score(track.base, "base").mean() < 0.4
    assert all(float((a[name] - b[name]).abs().max()) > 0 for name in a if name.endswith("out.weight"))


def test_halves_of_the_classes_are_disjoint_and_answered_among_themselves() -> None:
    track = _initialisations("mlp")
    low, high = track.tasks["second_low"], track.tasks["second_high"]
    assert (low.classes, high.classes) == (
        tuple("1" + str(i) for i in range(5)),
        ("15", "16", "17", "18", "19"),
    )
    assert {item.target for item in low.train} == set(range(10, 15))
    assert track.tasks["second"].unseen and not track.tasks["second"].train
    examinee = track.examinee()
    examinee.load(track.expert("second_high"))
    with phases.scoring():
        assert examinee.answer(high, list(high.test), Ledger()).mean() > 0.8
    both = {i.digest for i in track.tasks["first_a"].train} & {i.digest for i in track.tasks["first_b"].train}
    assert not both


def test_no_expert_was_trained_on_what_another_task_selects_by() -> None:
    tasks = _initialisations("mlp").tasks.values()
    with phases.scoring():
        test = {item.digest for task in tasks for item in task.test}
    trained = {item.digest for task in tasks for item in task.train}
    chosen = {item.digest for task in tasks for item in task.selection}
    assert len(chosen) > 100 and not chosen & trained and not test & (trained | chosen)


def test_arithmetic_is_counted_by_hand() -> None:
    sizes = [(256, 128), (128, 128), (128, 128), (128, WIDTH)]
    assert flops(KINDS["mlp"](), torch.zeros(1, 1, 16, 16)) == sum(2 * a * b for a, b in sizes)
    track, ledger = _initialisations("convolution"), Ledger()
    task = track.tasks["first_a"]
    track.examinee().answer(task, task.selection[:3], ledger)
    products = 16 * 16 * 16 * 9 + 8 * 8 * 32 * 16 * 9 + 4 * 4 * 64 * 32 * 9 + 256 * WIDTH
    assert ledger.flops == 3 * 2 * products


def test_codes_are_orthonormal_and_the_same_every_time() -> None:
    head = heads.codes(20, WIDTH)
    assert torch.allclose(head.directions @ head.directions.T, torch.eye(20), atol=1e-5)
    assert torch.equal(head.directions, heads.codes(20, WIDTH).directions)


def test_shapes_of_the_learning_rate() -> None:
    for shape in (learning.linear, learning.cosine, learning.constant, learning.decayed):
        assert shape(0.05) == pytest.approx(0.5, abs=0.05)
        assert all(0 <= shape(x / 100) <= 1 for x in range(101))
    assert learning.linear(1.0) == learning.decayed(1.0) == 0.0
    assert learning.cosine(1.0) == pytest.approx(0.1)
    assert learning.constant(1.0) == learning.constant(0.5) == learning.decayed(0.79) == 1.0
    assert learning.decayed(0.9) == pytest.approx(0.5)


def test_a_group_is_in_the_test_part_whatever_stands_beside_it() -> None:
    share = sum(parts.in_test(str(i), 0.3) for i in range(2000)) / 2000
    assert 0.26 < share < 0.34
    assert parts.unique([3, 1, 3, 2, 1], lambda x: x) == [3, 1, 2]


def _documents() -> Iterator[Document]:
    for number in range(40):
        lines = [f"def f{i}(x{number}):\n    return x{number} + {i}\n" for i in range(12)]
        yield Document("".join(lines), str(number))


@pytest.mark.transformers
@pytest.mark.parametrize("shape", ["constant", "cosine", "decayed"])
def test_a_run_learns_and_its_checkpoints_differ(shape: str) -> None:
    run = Run(steps=24, checkpoints=3, batch=4, window=64, width=32, layers=1, rate=1e-2)
    track = TrajectoryTrack(shape=shape, run=run, documents=_documents)
    assert run.kept() == [16, 20, 24] and list(track.tasks) == ["step_16", "step_20", "step_24"]
    referee = Referee(track, budget=1)
    half, last = (referee.score(w, "x").mean() for w in (track.base, track.references()["last"]))
    assert last > half > 0
    name = "model.embed_tokens.weight"
    moved = [float((track.expert(t)[name] - track.base[name]).norm()) for t in track.tasks]
    assert moved[0] > 0 and moved[2] > moved[0]
    with phases.scoring():
        test = {item.digest for task in track.tasks.values() for item in task.test}
    plain = [
        x for held in vars(track).values() if isinstance(held, tuple) for x in held if isinstance(x, list)
    ]
    assert plain and not any(isinstance(i, Item) and i.digest in test for items in plain for i in items)
    again = TrajectoryTrack(shape=shape, run=run, documents=_documents)
    assert torch.equal(again.expert("step_24")[name], track.expert("step_24")[name])


@pytest.mark.parametrize("check", TRACK_CHECKS, ids=lambda check: check.__name__)
def test_the_published_checks_hold_on_networks_of_different_starts(check: Callable[..., None]) -> None:
    check(lambda: _initialisations("mlp"))


def test_a_function_of_ones_own_is_scored_in_its_process_as_here() -> None:
    def half(room: Selection) -> Any:
        a, b = room.experts
        merged = {name: (a[name] + b[name]) / 2 for name in a}
        room.evaluate(merged)
        return merged, {}

    track = _initialisations("mlp")
    names = ["first_a", "first_b"]
    here, there = (Referee(track, names, budget=1, isolated=i).choose(half) for i in (False, True))
    assert here.log == there.log and here.spent.flops == there.spent.flops > 0
    assert all(torch.equal(tensor, there.weights[name]) for name, tensor in here.weights.items())

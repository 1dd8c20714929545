"""Track V in small: drawn pictures, a narrow network, experts of a few steps; its corruptions, archives, drawings."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.errors import EvaluationError
from cuvee.evaluate import phases
from cuvee.evaluate.ledger import Ledger
from cuvee.evaluate.referee import Referee
from cuvee.evaluate.task import ACCURACY, Item, Provenance, Task
from cuvee.evaluate.tracks.vision import corruptions, glyphs
from cuvee.evaluate.tracks.vision import track as vision
from cuvee.evaluate.tracks.vision.model import Training, batch_of
from cuvee.evaluate.tracks.vision.network import LITE0, SMALL, EfficientNetLite, new, parameters
from cuvee.evaluate.tracks.vision.tasks import corrupted
from cuvee.evaluate.tracks.vision.track import VisionTrack

pytest.importorskip("PIL")
_SETS = {"numerals": "0123", "capitals": "ABCD", "smalls": "kmps"}


def _pictures(characters: str, count: int, seed: int) -> Iterator[Item]:
    from PIL import ImageFont

    drawn = dict(glyphs.characters(ImageFont.load_default(48), characters))
    chance = random.Random(seed)
    for number in range(count):
        label = number % len(characters)
        yield Item(glyphs.jittered(drawn[label], chance), label)


def _tasks() -> Mapping[str, Task]:
    made, tests = {}, {}
    for name, characters in _SETS.items():
        items = list({item.digest: item for item in _pictures(characters, 160, 1)}.values())
        tests[name] = items[80:]
        made[name] = Task.of(
            name,
            train=items[:60],
            selection=items[60:80],
            test=items[80:],
            metric=ACCURACY,
            head="frozen",
            provenance=Provenance("drawn here"),
            classes=list(characters),
        )
    return {**made, **corrupted(tests, {name: task.provenance for name, task in made.items()})}


def _small_network() -> Any:
    """Random weights, with the statistics of BatchNorm taken from drawn pictures."""
    network = new(SMALL, 3).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean
    with torch.no_grad():
        network(batch_of([item.input for item in _pictures("ABCDkmps0123", 96, 2)]))
    return network.eval()


@pytest.fixture
def track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> VisionTrack:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path))
    torch.set_num_threads(1)
    training = Training(samples=720, batch=24, rate=2e-3)
    return VisionTrack(0, training, name="small", network=_small_network, make_tasks=_tasks)


def test_experts_beat_the_base_on_their_own_task_and_a_merge_is_judged(track: VisionTrack) -> None:
    referee = Referee(track, budget=1)
    base = referee.score(track.base, "base")
    own = [referee.score(track.expert(name), name, [name]).tasks[name].mean for name in _SETS]
    assert np.mean(own) > base.mean() + 0.08
    joint = referee.score(track.references()["multitask"], "multitask")
    assert joint.mean() > base.mean() + 0.08
    assert set(joint.shifted()) == {f"{name}_corrupted" for name in _SETS}


def test_an_expert_is_trained_once_and_another_seed_gives_another(
    track: VisionTrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = track.expert("numerals")
    other = VisionTrack(1, track.training, name="small", network=_small_network, make_tasks=_tasks)
    assert not torch.equal(other.expert("numerals")["_conv_head.weight"], first["_conv_head.weight"])
    assert other.digest != track.digest
    monkeypatch.setattr(vision, "fine_tune", lambda *given: pytest.fail("trained a second time"))
    again = VisionTrack(0, track.training, name="small", network=_small_network, make_tasks=_tasks)
    kept = again.expert("numerals")
    assert all(torch.equal(first[name], kept[name]) for name in first)


def test_another_base_gives_other_heads_and_experts(track: VisionTrack) -> None:
    def moved() -> Any:
        network = _small_network()
        with torch.no_grad():
            network._conv_head.weight += 0.01
        return network

    other = VisionTrack(0, track.training, name="small", network=moved, make_tasks=_tasks)
    assert other.digest != track.digest
    assert not torch.equal(other.heads["numerals"].directions, track.heads["numerals"].directions)


def test_statistics_of_batchnorm_stay_those_of_the_base(track: VisionTrack) -> None:
    network = _small_network()
    before = {name: tensor.clone() for name, tensor in network.named_buffers()}
    from cuvee.evaluate.tracks.vision.model import fine_tune

    tuned = fine_tune(network, [track.tasks["numerals"]], track.heads, 0, track.training)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.named_buffers())
    assert not torch.equal(tuned["_bn1.weight"], parameters(_small_network())["_bn1.weight"])


def test_a_shift_is_asked_with_the_head_of_its_own_task(track: VisionTrack) -> None:
    examinee = track.examinee()
    examinee.load(track.expert("capitals"))
    task = track.tasks["capitals_corrupted"]
    ledger = Ledger()
    with phases.scoring():
        items = list(task.test)
        found = examinee.answer(task, items, ledger)
    assert ledger.flops > 0 and ledger.flops % len(items) == 0
    assert task.provenance == Provenance("drawn here", split="test pictures only, corrupted")
    seen = examinee.network(batch_of([item.input for item in items]))
    said = track.heads["capitals"].logits(seen).argmax(1).tolist()
    assert found.tolist() == [float(s == item.target) for s, item in zip(said, items, strict=True)]


def test_pointwise_convolutions_are_matrices_to_methods(track: VisionTrack) -> None:
    assert track.base["_conv_head.weight"].ndim == 2 and track.base["_conv_stem.weight"].ndim == 4
    examinee = track.examinee()
    before = examinee.network._conv_head.weight.detach().clone()
    examinee.load({name: tensor.bfloat16() * 2 for name, tensor in track.base.items()})
    torch.testing.assert_close(examinee.network._conv_head.weight, 2 * before, rtol=1e-2, atol=1e-3)


def test_weights_of_another_network_are_refused(track: VisionTrack) -> None:
    with pytest.raises(EvaluationError, match="no tensor `strange`"):
        track.examinee().load({"strange": torch.zeros(1)})


def test_the_network_has_the_published_shape() -> None:
    """EfficientNet-Lite0 has 4,652,008 parameters, 1,281,000 of them in the classifier that is left out."""
    network = EfficientNetLite(LITE0)
    assert sum(t.numel() for t in network.parameters()) == 4_652_008 - 1_281_000
    assert network(torch.zeros(1, 3, 65, 33)).shape == (1, 1280)


def test_padding_is_that_of_tensorflow() -> None:
    """Stride 2 and kernel 3 on an even side pad only after the picture; an odd side on both."""
    from cuvee.evaluate.tracks.vision.network import Convolution

    layer = Convolution(1, 1, 3, 2, bias=False)
    torch.nn.init.ones_(layer.weight)
    even = layer(torch.ones(1, 1, 4, 4))[0, 0]
    odd = layer(torch.ones(1, 1, 5, 5))[0, 0]
    assert even.tolist() == [[9.0, 6.0], [6.0, 4.0]]
    assert odd.tolist() == [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]


def test_corruptions_change_a_picture_as_they_say_and_repeat() -> None:
    picture = np.zeros((64, 64), np.uint8)
    picture[16:48, 16:48] = 255
    faded = corruptions.contrast(picture, 0)
    assert int(faded.max()) - int(faded.min()) == pytest.approx(255 / 4, abs=1)
    noisy = corruptions.noise(picture, 5)
    assert np.array_equal(noisy, corruptions.noise(picture, 5))
    assert not np.array_equal(noisy, corruptions.noise(picture, 6))
    blurred = corruptions.blur(picture, 0)
    assert blurred[32, 32] == 255 and 0 < blurred[32, 15] < 255


@pytest.mark.parametrize(
    ("path", "ends"),
    [
        ("M1,2L3,4", [(1, 2), (3, 4)]),
        ("M1,2c0,0,2,2,4-1", [(1, 2), (5, 1)]),
        ("m1 2l1 1 1-1", [(1, 2), (2, 3), (3, 2)]),
        ("M0,0C1,0,2,0,3,0S5,0,6,0", [(0, 0), (6, 0)]),
    ],
)
def test_paths_of_strokes_end_where_svg_says(path: str, ends: list[tuple[float, float]]) -> None:
    points = glyphs.polyline(path)
    assert points[0] == pytest.approx(ends[0]) and points[-1] == pytest.approx(ends[-1])
    if "L" in path or "l" in path:
        assert points == ends


def test_characters_that_a_face_lacks_are_left_out() -> None:
    from PIL import ImageFont

    face = ImageFont.load_default(48)
    found = [number for number, _ in glyphs.characters(face, ["A", "\U000e0041", "B", "\U000e0042"])]
    assert found == [0, 2]

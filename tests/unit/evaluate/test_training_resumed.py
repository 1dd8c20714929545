"""A killed training goes on to the bytes of one that was not: dropout, moments, batch order, what is gathered."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cuvee.core import disk
from cuvee.errors import RunError
from cuvee.evaluate.task import ACCURACY, Item, Provenance, Task
from cuvee.evaluate.tracks import learning, state, store
from cuvee.evaluate.tracks.heads import codes
from cuvee.evaluate.tracks.language import model as language
from cuvee.evaluate.tracks.language.tasks import Tokens
from cuvee.evaluate.tracks.text import train as text
from cuvee.evaluate.tracks.vision import model as vision

STEPS = 9
Make = Callable[[], dict[str, torch.Tensor]]


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(learning, "EVERY", 0.0)
    monkeypatch.setattr(learning, "_LEAST", 0.0)
    keep = learning._Course.keep
    monkeypatch.setattr(
        learning._Course, "keep", lambda self, step: keep(self, step) if step % 2 == 0 else None
    )


def task(name: str, inputs: list[Any]) -> Task:
    items = [Item(value, number % 2) for number, value in enumerate(inputs)]
    return Task.of(
        name,
        train=items,
        selection=(),
        test=(),
        metric=ACCURACY,
        head="frozen",
        provenance=Provenance("made here"),
        classes=("0", "1"),
    )


class Encoder(torch.nn.Module):
    """Embeddings with dropout, called as a BERT is."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = torch.nn.Embedding(50, 8)
        self.drop, self.layer = torch.nn.Dropout(0.3), torch.nn.Linear(8, 8)
        self.frozen = torch.nn.Parameter(torch.zeros(3), requires_grad=False)
        self.unused = torch.nn.Parameter(torch.zeros(3))

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.layer(self.drop(self.embeddings(input_ids))))


class Predictor(torch.nn.Module):
    """Called as a causal language model is."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.head = torch.nn.Embedding(20, 8), torch.nn.Linear(8, 20)

    def forward(self, input_ids: Any) -> Any:
        return SimpleNamespace(logits=self.head(self.embed_tokens(input_ids)))


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in module.state_dict().items()}


def texts(name: str) -> Task:
    drawn = random.Random(name)
    return task(name, [tuple(drawn.randrange(50) for _ in range(drawn.randint(3, 9))) for _ in range(300)])


def like_text() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    encoder, heads = Encoder().train(), {name: codes(2, 8) for name in ("one", "two")}
    training = text.Training(samples=32 * 5, rate=1e-2)
    text.train(encoder, [texts("one"), texts("two")], heads, 0, training)
    return tensors(encoder)


def like_language() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    drawn = random.Random(0)
    windows = [((0,), tuple(drawn.randrange(1, 20) for _ in range(8))) for _ in range(60)]
    training = language.Training(steps=STEPS, batch=3, window=12, rate=1e-2)
    base = language.Base("tiny", Predictor, Tokens(str.encode, str, 0), 0)
    return language.fine_tune(Predictor(), [task("words", windows)], base, 0, training)


def like_vision() -> dict[str, torch.Tensor]:
    from cuvee.evaluate.tracks.vision.network import SMALL, new

    drawn = np.random.default_rng(0)
    seen = task("seen", [drawn.integers(0, 256, (16, 16)).astype(np.uint8) for _ in range(40)])
    network = new(SMALL, 0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    training = vision.Training(samples=4 * STEPS, batch=4, rate=1e-2)
    return vision.fine_tune(network, [seen], {"seen": codes(2, 48)}, 0, training)


def kept(cache: Path, monkeypatch: pytest.MonkeyPatch, make: Make) -> bytes:
    """The bytes of the file that training under this cache leaves."""
    monkeypatch.setenv("CUVEE_CACHE", str(cache))
    store.kept("a" * 32, "expert", make)
    return store.place("a" * 32, "expert").read_bytes()


def killed(cache: Path, monkeypatch: pytest.MonkeyPatch, make: Make, at: int) -> Path:
    """Train in another process that ends in the middle of a step, without a word; where the state lies."""
    monkeypatch.setenv("CUVEE_CACHE", str(cache))
    if (child := os.fork()) == 0:
        clip, count = torch.nn.utils.clip_grad_norm_, iter(range(1, 1000))
        torch.nn.utils.clip_grad_norm_ = lambda *a: os._exit(9) if next(count) == at else clip(*a)
        try:
            store.kept("a" * 32, "expert", make)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    return store.place("a" * 32, "expert", "training")


@pytest.mark.parametrize("make", [like_text, like_language, like_vision])
def test_a_killed_training_goes_on_to_the_same_bytes(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kept(tmp_path / "whole", monkeypatch, make)
    other, drawn = tmp_path / "other", random.Random(make.__name__)
    first = drawn.randint(3, STEPS - 3)
    unfinished = killed(other, monkeypatch, make, first)
    assert [path.name for path in unfinished.parent.iterdir()] == [unfinished.name]
    killed(other, monkeypatch, make, 3)  # in the third step of those that were left
    heard: list[store.Making] = []
    with store.told(heard.append):
        assert kept(other, monkeypatch, make) == whole
    steps = STEPS if make is not like_text else 10
    before = (first - 1) // 2 * 2
    assert [one.done for one in heard if one.done] == [(before + 2) / steps]
    assert list(unfinished.parent.iterdir()) == []


def spoilt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def misdated(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"step":"4"', b'"step":"2"'))


def foreign(path: Path) -> None:
    state.write(path, {"random": torch.get_rng_state()}, {"training": "another", "step": "4"})


@pytest.mark.parametrize(
    "damage",
    [spoilt, misdated, foreign, lambda path: path.write_bytes(path.read_bytes()[:-40]), Path.unlink],
    ids=["spoilt", "misdated", "foreign", "short", "gone"],
)
def test_a_state_that_does_not_fit_is_as_good_as_none(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kept(tmp_path / "whole", monkeypatch, like_language)
    damage(killed(tmp_path / "other", monkeypatch, like_language, 6))
    heard: list[store.Making] = []
    with store.told(heard.append):
        assert kept(tmp_path / "other", monkeypatch, like_language) == whole
    assert not any(one.done for one in heard)


def line(steps: int = STEPS, rate: float = 0.1) -> dict[str, torch.Tensor]:
    """A weight, and its values after every third step."""
    weight, gathered = torch.nn.Parameter(torch.ones(4)), dict[str, torch.Tensor]()

    def after(step: int) -> None:
        if step % 3 == 0:
            gathered[f"after {step}"] = weight.detach().clone()

    losses = [lambda n=n: ((weight - n) ** 2).sum() for n in range(steps)]
    learning.learn([weight], losses, rate=rate, after=after, gathered=gathered)
    return {"weight": weight.detach(), **gathered}


def test_what_was_gathered_before_the_kill_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kept(tmp_path / "whole", monkeypatch, line)
    killed(tmp_path / "other", monkeypatch, line, 8)
    assert kept(tmp_path / "other", monkeypatch, line) == whole
    assert b"after 3" in whole and b"after 9" in whole


def test_other_settings_threads_or_a_start_are_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed(tmp_path, monkeypatch, line, 8)
    heard: list[store.Making] = []
    with store.told(heard.append):
        assert kept(tmp_path, monkeypatch, lambda: line(rate=0.2))
    assert not any(one.done for one in heard)


def test_a_full_disk_ends_no_training_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kept(tmp_path / "whole", monkeypatch, line)
    pwrite, calls = disk.REAL.pwrite, []

    def full(handle: Any, data: Any, offset: int) -> None:
        calls.append(handle.path.name)
        if ".cuvee-part" in handle.path.name and len(calls) % 3 == 0:
            raise RunError("CV-X001", "no space left")
        pwrite(handle, data, offset)

    monkeypatch.setattr(disk.REAL, "pwrite", full)
    assert kept(tmp_path / "other", monkeypatch, line) == whole
    assert len(calls) > 6 and not list((tmp_path / "other" / "evaluate" / "training").iterdir())


def test_a_state_of_other_code_or_another_processor_is_left_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = kept(tmp_path / "whole", monkeypatch, line)
    for number, (name, other) in enumerate(
        (("training_digest", lambda module: "changed"), ("quick", lambda: None))
    ):
        killed(tmp_path / str(number), monkeypatch, line, 8)
        heard: list[store.Making] = []
        with monkeypatch.context() as patched, store.told(heard.append):
            patched.setattr(learning, name, other)
            assert kept(tmp_path / str(number), monkeypatch, line) == whole
        assert len(heard) == 2 and not any(one.done for one in heard)


def test_the_code_of_a_training_is_that_of_the_tracks_and_of_its_loss() -> None:
    from cuvee.evaluate.tracks import sources

    own, foreign = map(sources.training_digest, ("cuvee.evaluate.tracks.learning", "json"))
    assert own != foreign and learning._module(text._loss) == text.__name__ != learning._module(lambda: None)
    assert sources.source_of("no.such.module") == sources.source_of("") != sources.source_of("json")
    assert sources.source_of("cuvee.evaluate.tracks.learning") == Path(str(learning.__file__)).read_bytes()


def test_no_space_to_reserve_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there, and may hold what could be reserved, when the system says that there is no more."""
    create = disk.REAL.create

    def full(path: Path, size: int) -> Any:
        disk.REAL.close(create(path, 10))
        raise RunError("CV-X001", "no space left")

    monkeypatch.setattr(disk.REAL, "create", full)
    with pytest.raises(RunError):
        state.write(tmp_path / "x.safetensors", {"weight": torch.ones(3)}, {})
    assert list(tmp_path.iterdir()) == []


def test_half_written_states_of_the_dead_are_removed_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    old, new = (tmp_path / f"x.safetensors.{pid}.cuvee-part" for pid in (1, 2))
    for part in (path, old, new):
        part.write_bytes(b"")
    os.utime(old, (0, 0))
    state.remove(path)
    assert list(tmp_path.iterdir()) == [new]


def test_text_is_trained_as_by_the_loop_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, dropout included, against PyTorch's own schedule."""
    found = like_text()

    def loop(weights: Any, losses: Any, *, rate: float, decay: float, schedule: Any) -> None:
        every = list(weights)
        optimiser = torch.optim.AdamW(
            [p for p in every if p.requires_grad], lr=rate, weight_decay=decay, fused=True
        )
        total = len(losses)
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: min(1.0, (step + 1) / (0.1 * total)) * (1 - step / total)
        )
        for loss in losses:
            loss().backward()
            torch.nn.utils.clip_grad_norm_(every, 1.0)
            optimiser.step()
            scheduler.step()
            optimiser.zero_grad()

    monkeypatch.setattr(text, "learn", loop)
    wanted = like_text()
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[n], found[n]) for n in wanted)


def test_the_command_says_that_a_training_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    from cuvee.cli.commands.bench import made

    for making in (store.Making("x", "experts"), store.Making("x", "experts", done=0.43)):
        made(as_json=False, quiet=False)(making)
    said = capsys.readouterr().err
    assert said == "making x (experts)\nx (experts) was interrupted, going on at 43% of its training\n"

"""The LoRA versions of track T: factors under PEFT's names, weights that equal PEFT's own merge."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from cuvee.errors import EvaluationError
from cuvee.evaluate.task import ACCURACY, Item, Provenance, Task
from cuvee.evaluate.tracks import registry, store
from cuvee.evaluate.tracks.heads import prototypes
from cuvee.evaluate.tracks.text import track as texts
from cuvee.evaluate.tracks.text.low_rank import LowRank, adapt, applied
from cuvee.evaluate.tracks.text.model import head_of
from cuvee.evaluate.tracks.text.track import TextTrack
from cuvee.evaluate.tracks.text.train import Training

pytestmark = pytest.mark.transformers
TRAINING = LowRank(rank=2, alpha=4, samples=64, rate=1e-2)


def _encoder() -> Any:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return BertModel(BertConfig(vocab_size=40, **sizes), add_pooling_layer=False).eval()


def _task() -> Task:
    rows = [Item((2 + i % 2, 5 + i % 7, 9 + i // 7 % 20, i % 40), i % 2) for i in range(96)]
    parts = {"train": rows[:40], "selection": rows[40:50], "test": rows[50:]}
    return Task.of(
        "odd", **parts, metric=ACCURACY, head="frozen", provenance=Provenance("here"), classes="ab"
    )


def test_factors_and_weights_are_those_of_peft() -> None:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    head = prototypes(torch.randn(20, 16), torch.arange(20) % 2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # a first run shows nobody else's warnings
        factors = adapt([_task()], {"odd": head}, 0, TRAINING, _encoder())
    assert all(name.startswith("base_model.model.encoder.layer.0.") for name in factors)
    assert {tuple(t.shape)[0 if "lora_A" in n else 1] for n, t in factors.items()} == {2}
    known = {k: v for k, v in TRAINING.config.items() if k != "peft_type"}
    peer = get_peft_model(_encoder(), LoraConfig(**known))
    set_peft_model_state_dict(peer, factors)
    expected = peer.merge_and_unload().state_dict()
    base = {n: t.clone() for n, t in _encoder().state_dict().items()}
    made = applied(base, factors, TRAINING)
    moved = [name for name in made if not torch.equal(made[name], base[name])]
    assert len(moved) == 6
    for name in made:
        torch.testing.assert_close(made[name], expected[name], atol=1e-6, rtol=1e-5)


def test_heads_are_made_once_and_are_those_of_the_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path))
    monkeypatch.setattr(texts, "build", _encoder)
    tracks = [TextTrack(), TextTrack(seed=1), TextTrack(rank=8)]
    for track in tracks:
        track.__dict__["tasks"] = {"odd": _task()}
    first = tracks[0].heads["odd"]
    assert torch.equal(first.directions, head_of(_encoder(), _task()).directions)
    monkeypatch.setattr(texts, "build", lambda: pytest.fail("made a second time"))
    assert all(torch.equal(track.heads["odd"].directions, first.directions) for track in tracks)


def test_a_track_of_full_fine_tunes_has_no_adapters() -> None:
    with pytest.raises(EvaluationError) as caught:
        TextTrack().adapter("movie")
    assert caught.value.diagnostics[0].code == "CV-B301"
    assert TextTrack(rank=8).training == LowRank(rank=8, alpha=16, rate=1e-3)


def test_the_short_track_is_smaller_and_shares_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        texts.making, "all_tasks", lambda sizes: {name: _task() for name in texts.making.SEEN}
    )
    full, short = TextTrack(), TextTrack(short=True)
    assert (full._sizes, short._sizes) == (texts.making.Sizes(6000, 300, 1500), texts.making.SHORT)
    assert (full.training, short.training) == (Training(), Training(samples=480))
    addresses = {track._address(name) for track in (full, short) for name in ("odd", "news20", "multitask")}
    assert len(addresses) == 6 and full.digest != short.digest
    data = _task().digest
    assert full._address("news20") == store.address("text", "1", "news20", data, repr(Training()), "0")


def test_every_track_of_the_registry_can_be_made() -> None:
    found = {name: registry.open_track(name, seed=2) for name in registry.names()}
    assert {
        "text",
        "text-short",
        "text-lora8",
        "vision",
        "language",
        "language-short",
        "trajectory-cosine",
    } <= set(found)
    assert all(track.name == name for name, track in found.items())

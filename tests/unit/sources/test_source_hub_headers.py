"""Planning with models on the hub costs their headers; the weights come when they are merged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

import cuvee
from cuvee.engine.events import Fetching
from cuvee.errors import CuveeError
from cuvee.sources import hub_header
from cuvee.sources.open import open_source
from cuvee.sources.source import unfetched
from cuvee.testing.hub import LocalHub

BIG = 1 << 20  # bytes of the weights of each model below
CONFIG = b'{"model_type": "x"}'


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        for name, value in (("a", 1.0), ("b", 3.0)):
            content = {"w.weight": torch.full((BIG // 4,), value), "v.bias": torch.full((3,), value)}
            running.add(f"o/{name}", {"config.json": CONFIG, "model.safetensors": save(content)})
        yield running


def recipe(folder: Path, more: str = "") -> Path:
    text = f"version: 1\nexperts: {{a: 'hf://o/a', b: 'hf://o/b'}}\nmerge: {{method: average}}\n{more}"
    (folder / "r.yaml").write_text(text)
    return folder / "r.yaml"


def test_check_plan_inspect_and_lock_read_headers_only(
    hub: LocalHub, tmp_path: Path, cli: Any, monkeypatch: Any
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    recipe(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in (
        "check r.yaml",
        "plan r.yaml",
        "inspect hf://o/a",
        "lock r.yaml",
        "plan r.yaml -o plan.json",
    ):
        assert cli(*line.split()).code == 0
    assert hub.served < 2 * (hub_header.FIRST + len(CONFIG)) + 1000
    before = hub.served
    assert cli("plan", "r.yaml").code == 0
    assert hub.served == before  # the headers of a commit are asked for once
    blend = cuvee.load("r.yaml")
    events: list[Any] = []
    blend.save("out", listener=events.append)
    fetched = [event for event in events if isinstance(event, Fetching)]
    assert [(e.source, e.files, e.done) for e in fetched] == [
        ("a", 1, False),
        ("a", 1, True),
        ("b", 1, False),
        ("b", 1, True),
    ]
    assert type(events[4]).__name__ == "Started"
    merged = load_file("out/model.safetensors")
    assert torch.equal(merged["w.weight"], torch.full((BIG // 4,), 2.0))
    whole = before + 2 * BIG
    assert whole <= hub.served < whole + 10_000
    assert cli("merge", "plan.json", "-o", "again", "-q").code == 0  # a plan of headers holds for the weights
    assert cli("lock", "r.yaml", "--check").code == 0
    assert hub.served < whole + 10_000


def test_a_long_header_takes_a_second_request(hub: LocalHub, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(hub_header, "FIRST", 16)
    source = open_source("hf://o/a", anchor=tmp_path)
    assert {name: meta.shape for name, meta in source.tensors.items()} == {
        "w.weight": (BIG // 4,),
        "v.bias": (3,),
    }
    assert len(unfetched(source)) == 1
    assert hub.served < 2000
    assert max(file["size"] for file in source.identity()["files"]) > BIG
    assert torch.equal(source.read("v.bias"), torch.ones(3))
    assert unfetched(source) == []


def test_shards_and_identity_are_the_same_before_and_after(hub: LocalHub, tmp_path: Path) -> None:
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    parts = [{"a": torch.arange(5.0)}, {"b": torch.arange(7.0)}]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    shards = {name: save(part) for name, part in zip(names, parts, strict=True)}
    files = {"config.json": CONFIG, **shards, "model.safetensors.index.json": json.dumps(index).encode()}
    hub.add("o/shards", files)
    first = open_source("hf://o/shards", anchor=tmp_path)
    before = first.identity()
    assert len(unfetched(first)) == 2
    assert torch.equal(first.read("b", 2, 4), torch.tensor([2.0, 3.0]))
    assert first.extent("a") is not None
    again = open_source("hf://o/shards", anchor=tmp_path)
    assert (again.identity(), unfetched(again)) == (before, [])
    hub.add("o/lying", {**files, names[1]: save({"c": torch.ones(1)})})
    with pytest.raises(CuveeError, match="CV-S073"):
        open_source("hf://o/lying", anchor=tmp_path)


def test_a_hub_that_serves_whole_files_only(hub: LocalHub, tmp_path: Path, monkeypatch: Any) -> None:
    def whole(*arguments: Any) -> Any:
        raise hub_header.NoRanges

    monkeypatch.setattr(hub_header, "_first", whole)
    source = open_source("hf://o/a", anchor=tmp_path)
    assert (unfetched(source), source.tensors["v.bias"].shape) == ([], (3,))


def test_a_file_that_is_not_the_one_planned_with(hub: LocalHub, tmp_path: Path) -> None:
    source = open_source("hf://o/a", anchor=tmp_path)
    (file,) = unfetched(source)
    commit = hub.repositories["o/a"].names["main"]
    hub.repositories["o/a"].commits[commit]["model.safetensors"] = save({"w.weight": torch.ones(2)})
    with pytest.raises(CuveeError, match="CV-S111"):
        file.fetch()


def test_single_files_and_the_network_going_away(hub: LocalHub, tmp_path: Path, monkeypatch: Any) -> None:
    source = open_source("hf://o/a/model.safetensors", anchor=tmp_path)
    assert source.tensors["v.bias"].shape == (3,)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    other = open_source({"w": torch.ones(1)}, anchor=tmp_path)
    assert other.tensors
    waiting = unfetched(source)
    if waiting:
        with pytest.raises(CuveeError, match="CV-S015"):
            waiting[0].fetch()

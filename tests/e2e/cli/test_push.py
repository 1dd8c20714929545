"""`cuvee push` against a hub on this machine: one commit, verified first, nothing of an earlier model left."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cuvee.testing.hub import LocalHub

TOKEN = "hf_canary0123456789"


@pytest.fixture
def hub(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    with LocalHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield running


@pytest.fixture
def blend(here: Path, cli: Any) -> Path:
    assert cli("quick", "linear", "./math", "./code", "-o", "blend", "-q").code == 0
    return here / "blend"


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_file_in_one_commit(blend: Path, hub: LocalHub, cli: Any) -> None:
    outcome = cli("push", "blend", "me/blend", "--private", "--message", "my merge")
    assert outcome.code == 0, outcome.err
    repository = hub.repositories["me/blend"]
    commit = repository.names["main"]
    assert outcome.out == f"{hub.endpoint}/me/blend/commit/{commit}\n"
    assert outcome.err.startswith("uploading ")
    assert repository.private
    assert repository.messages == ["my merge"]
    assert repository.commits[commit] == {".gitattributes": b"", **files(blend)}


def test_json_is_the_address(blend: Path, hub: LocalHub, cli: Any) -> None:
    outcome = cli("push", "blend", "me/blend", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    commit = hub.repositories["me/blend"].names["main"]
    url = f"{hub.endpoint}/me/blend/commit/{commit}"
    assert outcome.json == {"schema": "cuvee.push/1", "url": url, "removed": []}


def test_weights_of_an_earlier_model_go_and_other_files_stay(blend: Path, hub: LocalHub, cli: Any) -> None:
    stale = {"model-00001-of-00002.safetensors": b"old", "pytorch_model.bin": b"old"}
    stale |= {"model.safetensors.index.json": b"{}"}
    kept = {"picture.png": b"p", "gguf/other.gguf": b"g", "eval/model.safetensors": b"e"}
    hub.add("me/blend", {**stale, **kept, "config.json": b"old"})
    outcome = cli("push", "blend", "me/blend", "--json")
    assert outcome.json["removed"] == sorted(stale)
    repository = hub.repositories["me/blend"]
    assert repository.commits[repository.names["main"]] == {**kept, **files(blend)}
    hub.add("me/blend", stale)
    assert "removed weights of an earlier model: `model-00001" in cli("push", "blend", "me/blend").err


def test_a_branch_is_made_when_it_is_not_there(blend: Path, hub: LocalHub, cli: Any) -> None:
    main = hub.add("me/blend", {"README.md": b"main"})
    assert cli("push", "blend", "me/blend", "--revision", "v2").code == 0
    repository = hub.repositories["me/blend"]
    assert repository.names["main"] == main
    assert repository.commits[repository.names["v2"]] == files(blend)


def test_one_weight_file_travels_with_its_manifest(here: Path, hub: LocalHub, cli: Any) -> None:
    assert cli("quick", "linear", "./math", "-o", "one.safetensors", "-q").code == 0
    assert cli("push", "one.safetensors", "me/one").code == 0
    repository = hub.repositories["me/one"]
    sent = repository.commits[repository.names["main"]].keys() - {".gitattributes"}
    assert sent == {"one.safetensors", "one.safetensors.cuvee-manifest.json"}


def test_what_is_damaged_is_not_sent(blend: Path, hub: LocalHub, cli: Any) -> None:
    (blend / "config.json").write_text("{}")
    outcome = cli("push", "blend", "me/blend")
    assert outcome.code == 3
    assert "config.json" in outcome.err
    assert hub.requests == []
    assert cli("push", "blend", "me/blend", "--no-verify").code == 0


def test_a_refusal_says_how_to_log_in(
    blend: Path, hub: LocalHub, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    outcome = cli("push", "blend", "me/blend")
    assert outcome.code == 1
    assert "status 401" in outcome.err
    assert "hint: log in with `hf auth login`" in outcome.err


def test_offline_is_absolute(blend: Path, hub: LocalHub, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HF_HUB_OFFLINE", "CUVEE_OFFLINE"):
        with monkeypatch.context() as patched:
            patched.setenv(variable, "1")
            assert cli("push", "blend", "me/blend").code == 1
    assert hub.requests == []


def test_nothing_that_is_not_there(hub: LocalHub, here: Path, cli: Any) -> None:
    outcome = cli("push", "bace", "me/blend", "--json")
    assert outcome.code == 2
    (found,) = json.loads(outcome.err)["diagnostics"]
    assert (found["code"], found["hint"]) == ("CV-U100", "did you mean `base`?")

"""Hub sources against a local endpoint: what is fetched, the cache, offline mode, and every refusal."""

import io
import json

import pytest
import torch
from safetensors.torch import save
from source_checkpoints import same, tensors, whole

from cuvee.errors import SourceError
from cuvee.sources.open import open_source
from cuvee.sources.source import unfetched
from cuvee.testing.hub import LocalHub

TOKEN = "hf_canary0123456789"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LocalHub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        yield running


def opened(what, anchor, **more):
    return open_source(what, anchor=anchor, **more)


def complete(what, anchor):
    """Open a source and bring all of it into the cache."""
    source = opened(what, anchor)
    for file in unfetched(source):
        file.fetch()
    source.close()


def refused(what, anchor, **more):
    with pytest.raises(SourceError) as caught:
        opened(what, anchor, **more)
    found = caught.value.diagnostics[0]
    assert TOKEN not in str(caught.value) and TOKEN not in json.dumps(found.as_dict())
    assert "http" not in found.message
    return found


def pickled(made):
    buffer = io.BytesIO()
    torch.save(made, buffer)
    return buffer.getvalue()


SIDE = {"config.json": b'{"model_type": "x"}', "tokenizer.json": b"{}", "README.md": b"#", "LICENSE": b"free"}
EXTRA = {"onnx/model.onnx": b"x", "training_args.bin": b"x", ".gitattributes": b"", "sub/config.json": b"{}"}


def model(**more):
    return {**SIDE, **EXTRA, "model.safetensors": save(tensors(**more)), "pytorch_model.bin": b"never read"}


def test_only_what_is_needed_is_fetched(hub, tmp_path):
    commit = hub.add("owner/name", model())
    source = opened("hf://owner/name", tmp_path)
    made = tensors()
    assert all(same(whole(source, name), made[name]) for name in made)
    assert sorted(set(hub.fetched())) == sorted([*SIDE, "model.safetensors"])
    assert source.files() == sorted(SIDE) and source.config == {"model_type": "x"}
    identity = source.identity()
    assert (identity["kind"], identity["name"], identity["revision"]) == ("hub", "owner/name", commit)
    assert str(tmp_path) not in json.dumps(identity)
    assert source.notes == ()


def test_a_bare_name_is_said_to_be_taken_from_the_hub(hub, tmp_path):
    hub.add("owner/name", model())
    assert [n.code for n in opened("owner/name", tmp_path).notes] == ["CV-S010"]


def test_shards_that_the_index_lists(hub, tmp_path):
    made = tensors()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    parts = [dict(list(made.items())[i::2]) for i in range(2)]
    index = {"weight_map": {n: file for file, part in zip(names, parts, strict=True) for n in part}}
    files = {
        **SIDE,
        **{f: save(p) for f, p in zip(names, parts, strict=True)},
        "consolidated.safetensors": b"huge",
    }
    hub.add("owner/name", {**files, "model.safetensors.index.json": json.dumps(index).encode()})
    source = opened("hf://owner/name", tmp_path)
    assert all(same(whole(source, name), made[name]) for name in made)
    assert "consolidated.safetensors" not in hub.fetched()


def test_revisions(hub, tmp_path):
    first = hub.add("owner/name", model(seed=1))
    hub.add("owner/name", model(seed=2), revision="refs/pr/1")
    second = hub.add("owner/name", model(seed=3), revision="feature/x")
    for text, seed in (("", 1), (f"@{first}", 1), ("@refs/pr/1", 2), ("@feature%2Fx", 3), (f"@{second}", 3)):
        source = opened(f"hf://owner/name{text}", tmp_path)
        assert same(
            whole(source, "model.layers.0.q_proj.weight"), tensors(seed=seed)["model.layers.0.q_proj.weight"]
        )
    pinned = opened("hf://owner/name", tmp_path, revision="feature/x")
    assert pinned.identity()["revision"] == second
    assert refused("hf://owner/name@nowhere", tmp_path).code == "CV-S014"


def test_subfolders_and_single_files(hub, tmp_path):
    hub.add(
        "owner/name",
        {
            "a/b/model.safetensors": save(tensors()),
            "a/b/config.json": b"{}",
            "x.bin": pickled({"w": torch.ones(2)}),
        },
    )
    source = opened("hf://owner/name/a/b", tmp_path)
    assert source.files() == ["config.json"] and source.identity()["name"] == "owner/name/a/b"
    assert list(opened("hf://owner/name/x.bin", tmp_path).tensors) == ["w"]
    assert refused("hf://owner/name/nowhere", tmp_path).code == "CV-S017"
    assert refused("hf://owner/name/y.bin", tmp_path).hint == "did you mean `x.bin`?"


def test_several_candidates_are_refused_before_anything_large_is_fetched(hub, tmp_path):
    hub.add("owner/name", {"m-Q4.gguf": b"1", "m-Q8.gguf": b"2"})
    found = refused("hf://owner/name", tmp_path)
    assert found.code == "CV-S018" and "hf://owner/name/m-Q4.gguf" in found.hint
    assert hub.fetched() == []


def test_the_cache_serves_offline(hub, tmp_path, monkeypatch):
    commit = hub.add("owner/name", model())
    complete("hf://owner/name", tmp_path)
    hub.requests.clear()
    for what in ("hf://owner/name", f"hf://owner/name@{commit}"):
        source = opened(what, tmp_path, offline=True)
        assert source.identity()["revision"] == commit and source.notes == ()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    opened("hf://owner/name", tmp_path).close()
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setenv("CUVEE_OFFLINE", "1")
    opened("hf://owner/name", tmp_path).close()
    found = refused("hf://owner/other", tmp_path)
    assert found.code == "CV-S012" and hub.requests == []


def test_a_cache_without_the_weights_is_not_enough_offline(hub, tmp_path):
    hub.add("owner/name", {**model(), "x/model.safetensors": save(tensors())})
    opened("hf://owner/name/x", tmp_path).close()
    found = refused("hf://owner/name", tmp_path, offline=True)
    assert found.code == "CV-S012" and "not completely" in found.message


def test_an_unreachable_hub(hub, tmp_path, monkeypatch):
    hub.add("owner/name", model())
    complete("hf://owner/name", tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    source = opened("hf://owner/name", tmp_path)
    assert [(n.code, n.severity) for n in source.notes] == [("CV-S016", "warning")]
    assert refused("hf://owner/other", tmp_path).code == "CV-S015"


def test_what_is_not_there_or_not_allowed(hub, tmp_path):
    hub.add("owner/gated", model(), gated=True)
    assert refused("hf://owner/gated", tmp_path).code == "CV-S013"
    assert refused("hf://owner/none", tmp_path).code == "CV-S011"
    found = refused("owner/none", tmp_path)
    assert found.code == "CV-S011" and "no folder `owner/none`" in found.hint
    assert TOKEN in hub.requests[0].authorization


def test_adapters_from_the_hub(hub, tmp_path):
    made = {"base_model.model.model.layers.0.q_proj.lora_A.weight": torch.ones(1, 4)}
    made["base_model.model.model.layers.0.q_proj.lora_B.weight"] = torch.ones(4, 1)
    config = json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 2}).encode()
    hub.add("owner/name", model())
    commit = hub.add(
        "owner/lora",
        {"adapter_model.safetensors": save(made), "adapter_config.json": config, "optimizer.pt": b"x"},
    )
    source = opened("hf://owner/name + hf://owner/lora", tmp_path)
    wanted = tensors()["model.layers.0.q_proj.weight"] + 2
    assert torch.equal(whole(source, "model.layers.0.q_proj.weight"), wanted)
    assert source.identity()["adapter"]["revision"] == commit and "optimizer.pt" not in hub.fetched()
    assert refused("hf://owner/lora", tmp_path).code == "CV-S003"


def test_nothing_is_drawn_on_the_terminal(hub, tmp_path, capfd):
    hub.add("owner/name", model())
    opened("hf://owner/name", tmp_path).close()
    assert capfd.readouterr() == ("", "")

"""Folders and single files: tensors as the reference library wrote them, side files, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file
from source_checkpoints import folder, same, tensors, whole

from cuvee.core.limits import Limits
from cuvee.errors import CorruptFile, MissingTensor, SourceError, UnsafeFile
from cuvee.sources.open import open_source


def refused(what, anchor, kind=SourceError, **more):
    with pytest.raises(kind) as caught:
        open_source(what, anchor=anchor, **more).close()
    return caught.value.diagnostics[0]


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_holds_what_was_saved(tmp_path, shards):
    made = folder(tmp_path / "m", shards)
    source = open_source("m", anchor=tmp_path)
    assert set(source.tensors) == set(made)
    assert all(same(whole(source, name), made[name]) for name in made)
    assert source.config == {"model_type": "llama", "vocab_size": 5}
    assert source.files() == ["README.md", "config.json", "tokenizer.json"]
    assert source.file("tokenizer.json") == b'{"version": "1.0"}'
    assert source.file("vocab.json") is None and source.file("model.safetensors") is None
    assert (source.label, source.notes) == ("m", ())


def test_prefixes_are_stripped_and_noted(tmp_path):
    made = folder(tmp_path / "m", prefix="_orig_mod.")
    source = open_source("m", anchor=tmp_path)
    assert all(same(whole(source, name.removeprefix("_orig_mod.")), made[name]) for name in made)
    assert [note.code for note in source.notes] == ["CV-S043"]
    assert all(name == meta.name for name, meta in source.tensors.items())


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.pth"])
def test_a_single_file_has_no_side_files(tmp_path, name):
    made = {n: t for n, t in tensors().items() if t.numel()}
    (save_file if name.endswith(".safetensors") else torch.save)(made, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    source = open_source(name, anchor=tmp_path)
    assert all(same(whole(source, n), made[n]) for n in made)
    assert source.config is None and source.files() == [] and source.file("config.json") is None
    assert source.identity()["kind"] == "file" and source.identity()["name"] == name


def test_identity_says_what_changed_without_absolute_paths(tmp_path):
    folder(tmp_path / "m", 2)
    one = open_source("m", anchor=tmp_path).identity()
    assert [f["name"] for f in one["files"]] == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "config.json",
        "tokenizer.json",
    ]
    assert str(tmp_path) not in json.dumps(one)
    assert open_source(str(tmp_path / "m"), anchor=tmp_path.parent).identity() == one
    (tmp_path / "m" / "config.json").write_text('{"vocab_size": 6}')
    two = open_source("m", anchor=tmp_path).identity()
    assert [a["name"] for a, b in zip(one["files"], two["files"], strict=True) if a != b] == ["config.json"]
    folder(tmp_path / "n", 1, rows=6)
    assert open_source("n", anchor=tmp_path).identity()["files"][0]["digest"] != one["files"][0]["digest"]


def test_nothing_there(tmp_path):
    folder(tmp_path / "model-7b")
    found = refused("model-7c", tmp_path)
    assert found.code == "CV-S001" and found.hint == "did you mean `model-7b`?"
    assert refused("~/m", tmp_path).hint.startswith("`~`")
    (tmp_path / "empty").mkdir()
    assert "expected" in refused("empty", tmp_path).message
    assert refused("empty", tmp_path).where.source == "empty"


def test_missing_tensors_are_named_with_the_nearest(tmp_path):
    folder(tmp_path / "m")
    with pytest.raises(MissingTensor) as caught:
        open_source("m", anchor=tmp_path).read("model.layers.0.q_prj.weight")
    assert caught.value.diagnostics[0].hint == "did you mean `model.layers.0.q_proj.weight`?"


def test_a_tensor_in_two_files_is_refused(tmp_path):
    folder(tmp_path / "m", 2)
    extra = {"model.scalar": torch.tensor(1.0), "model.empty": torch.empty(0, 4)}
    save_file(extra, tmp_path / "m" / "model-00002-of-00002.safetensors")
    refused("m", tmp_path)


def test_side_files_stay_inside_and_small(tmp_path):
    folder(tmp_path / "m")
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "m" / "link.json").symlink_to(tmp_path / "secret.json")
    source = open_source("m", anchor=tmp_path, limits=Limits(json_bytes=100))
    assert "link.json" not in source.files()
    for name in ("../secret.json", "link.json", str(tmp_path / "secret.json")):
        with pytest.raises(UnsafeFile):
            source.file(name)
    (tmp_path / "m" / "big.json").write_text(" " * 101)
    with pytest.raises(CorruptFile) as caught:
        source.file("big.json")
    assert caught.value.diagnostics[0].code == "CV-S047"


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 1, "a": 2}'])
def test_a_config_that_is_no_object_is_refused(tmp_path, text):
    folder(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(text)
    refused("m", tmp_path, CorruptFile)


def test_more_shards_than_open_files(tmp_path, monkeypatch):
    made = folder(tmp_path / "m", 9)
    monkeypatch.setattr("cuvee.sources.file_pool.FilePool.__init__.__defaults__", (2,))
    source = open_source("m", anchor=tmp_path)
    assert len(source._stored._pool._slots) == 2
    assert all(same(whole(source, name), made[name]) for name in made)
    source.close()
    assert not source._stored._pool._slots
    with pytest.raises(SourceError) as caught:
        source.read("model.ids")
    assert caught.value.diagnostics[0].code == "CV-S045"


def test_an_adapter_alone_says_which_base_it_wants(tmp_path):
    folder(tmp_path / "base")
    (tmp_path / "lora").mkdir()
    save_file(
        {"base_model.model.x.lora_A.weight": torch.ones(1, 1)}, tmp_path / "lora/adapter_model.safetensors"
    )
    config = tmp_path / "lora" / "adapter_config.json"
    config.write_text(json.dumps({"peft_type": "LORA"}))
    assert refused("lora", tmp_path).hint == "write `BASE + lora`"
    config.write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "base")}))
    found = refused("lora", tmp_path)
    assert found.code == "CV-S003" and "which is there" in found.message
    assert found.hint == f"write `{tmp_path / 'base'} + lora`"


def test_headers_are_read_without_torch(tmp_path):
    import subprocess
    import sys

    folder(tmp_path / "m", 2)
    code = (
        "import sys; from pathlib import Path; from cuvee.sources.open import open_source\n"
        f"s = open_source('m', anchor=Path({str(tmp_path)!r}))\n"
        "s.identity(), s.files(), [s.extent(n) for n in s.tensors], s.close()\n"
        "print(sorted({'torch', 'numpy', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

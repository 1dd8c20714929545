"""Which files are a folder's model: the damage that loaders accept is refused, ordinary folders are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cuvee.core.limits import DEFAULT
from cuvee.errors import MissingTensor, SourceError, UnsafeFile
from cuvee.formats.shard_index import ShardIndex, WeightSet, read_index, weight_files

SHARDS = 6
INDEX = "model.safetensors.index.json"


def shard(number: int, stem: str = "model", total: int = SHARDS) -> str:
    return f"{stem}-{number:05}-of-{total:05}.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound model of six shards, two tensors in each."""
    weight_map = {}
    for number in range(1, SHARDS + 1):
        names = [f"layers.{number}.{part}" for part in "ab"]
        save_file({name: torch.full((2,), float(number)) for name in names}, tmp_path / shard(number))
        weight_map |= dict.fromkeys(names, shard(number))
    write_index(tmp_path, weight_map)
    return tmp_path


def write_index(folder: Path, weight_map: dict[str, Any], name: str = INDEX) -> None:
    (folder / name).write_text(json.dumps({"metadata": {"total_size": 96}, "weight_map": weight_map}))


def weight_map(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / INDEX).read_text())["weight_map"])


def refusal(folder: Path) -> tuple[str, str]:
    with pytest.raises(SourceError) as caught:
        weight_files(folder)
    found = caught.value.diagnostics[0]
    assert found.where is not None
    assert str(folder) in (found.where.file or "")
    return found.code, found.message


def test_a_sound_sharded_model(folder: Path) -> None:
    found = weight_files(folder)
    assert (found.format, len(found.files), found.index_path) == ("safetensors", SHARDS, folder / INDEX)
    assert isinstance(found, WeightSet)
    assert isinstance(found.index, ShardIndex)
    assert found.paths == tuple(folder / shard(number) for number in range(1, SHARDS + 1))
    assert {name for file in found.files for name in file.tensors} == set(found.index.weight_map)
    assert found.notes == ()
    assert found.index.metadata == {"total_size": 96}
    found.close()


# The damage that loaders accept in silence (all but the shard of zeros, which no header shows).


def test_an_index_that_omits_the_tensors_of_one_shard(folder: Path) -> None:
    kept = {name: file for name, file in weight_map(folder).items() if file != shard(3)}
    write_index(folder, kept)
    code, message = refusal(folder)
    assert (code, "5 of the 6 shards" in message) == ("CV-S073", True)
    (folder / shard(3)).unlink()
    assert refusal(folder)[0] == "CV-S073"


def test_an_index_that_omits_one_tensor_of_a_shard(folder: Path) -> None:
    kept = weight_map(folder)
    del kept["layers.3.b"]
    write_index(folder, kept)
    code, message = refusal(folder)
    assert (code, "`layers.3.b`" in message, shard(3) in message) == ("CV-S073", True, True)


def test_an_old_model_beside_the_index(folder: Path) -> None:
    save_file({"layers.1.a": torch.zeros(2)}, folder / "model.safetensors")
    with pytest.raises(SourceError) as caught:
        weight_files(folder)
    found = caught.value.diagnostics[0]
    assert found.code == "CV-S074"
    assert "`model.safetensors`" in found.message
    assert f"`{INDEX}`" in found.message
    assert "delete" in (found.hint or "")


def test_an_index_that_leaves_the_folder(folder: Path) -> None:
    save_file({"w": torch.zeros(2)}, folder.parent / "outside.safetensors")
    write_index(folder, weight_map(folder) | {"w": "../outside.safetensors"})
    with pytest.raises(UnsafeFile, match="CV-S071"):
        weight_files(folder)


def test_a_listed_shard_that_is_absent(folder: Path) -> None:
    (folder / shard(4)).unlink()
    code, message = refusal(folder)
    assert (code, shard(4) in message) == ("CV-S072", True)


def test_a_shard_of_another_model_beside_the_index(folder: Path) -> None:
    save_file({"w": torch.zeros(2)}, folder / shard(7, total=7))
    code, message = refusal(folder)
    assert (code, shard(7, total=7) in message) == ("CV-S073", True)


def test_a_tensor_in_another_shard_than_listed(folder: Path) -> None:
    write_index(folder, weight_map(folder) | {"layers.1.a": shard(2)})
    with pytest.raises(MissingTensor, match="does not hold it"):
        weight_files(folder)
    write_index(folder, weight_map(folder) | {"layers.1.a": shard(1), "absent": shard(2)})
    with pytest.raises(MissingTensor, match="`absent`"):
        weight_files(folder)


def test_a_tensor_that_two_shards_hold(folder: Path) -> None:
    save_file(
        {"layers.2.a": torch.zeros(2), "layers.2.b": torch.zeros(2), "layers.1.a": torch.zeros(2)},
        folder / shard(2),
    )
    code, message = refusal(folder)
    assert (code, f"says it is in `{shard(1)}`" in message) == ("CV-S073", True)


def test_files_of_another_format_in_an_index(folder: Path) -> None:
    write_index(folder, weight_map(folder) | {"w": "evil.bin"})
    with pytest.raises(UnsafeFile, match="CV-S076"):
        weight_files(folder)


def test_a_shard_cut_short(folder: Path) -> None:
    path = folder / shard(5)
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal(folder)[0] == "CV-S052"


def test_a_shard_that_is_a_link_out_of_the_folder(folder: Path) -> None:
    target = folder.parent / "elsewhere.safetensors"
    (folder / shard(5)).rename(target)
    (folder / shard(5)).symlink_to(target)
    assert refusal(folder)[0] == "CV-S071"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ([], "CV-S070"),
        ({}, "CV-S070"),
        ({"weight_map": {}}, "CV-S070"),
        ({"weight_map": []}, "CV-S070"),
        ({"weight_map": {"a": 1}}, "CV-S070"),
        ({"weight_map": {"a": None}}, "CV-S070"),
        ({"weight_map": {"a": "x.safetensors"}, "metadata": []}, "CV-S070"),
        ({"weight_map": {"a": "x.safetensors"}, "other": 1}, "CV-S070"),
        ({"weight_map": {"a": "/x.safetensors"}}, "CV-S071"),
        ({"weight_map": {"a": "x.bin"}}, "CV-S076"),
        ({"weight_map": {"n" * 600: "x.safetensors"}}, "CV-S053"),
        ({"weight_map": {str(i): f"{i}.safetensors" for i in range(5)}}, "CV-S053"),
        ({"weight_map": {str(i): "x.safetensors" for i in range(11)}}, "CV-S053"),
    ],
)
def test_an_index_that_is_none(value: Any, code: str, tmp_path: Path) -> None:
    path = tmp_path / INDEX
    path.write_text(json.dumps(value))
    with pytest.raises(SourceError) as caught:
        read_index(path, replace(DEFAULT, shards=4, tensors=10))
    assert caught.value.diagnostics[0].code == code


def test_an_index_with_a_name_twice(tmp_path: Path) -> None:
    path = tmp_path / INDEX
    path.write_text('{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}')
    with pytest.raises(SourceError, match="`a` is there twice"):
        read_index(path)


# Folders without an index

Writer = Callable[[Path], None]


def tensors(path: Path) -> None:
    save_file({"w": torch.ones(2)}, path)


def pickled(path: Path) -> None:
    torch.save({"w": torch.ones(2)}, path)


def text(path: Path) -> None:
    path.write_text("{}")


@pytest.mark.parametrize(
    ("files", "chosen", "notes"),
    [
        (["model.safetensors"], "model.safetensors", 0),
        (["other.safetensors"], "other.safetensors", 0),
        (["diffusion_pytorch_model.safetensors"], "diffusion_pytorch_model.safetensors", 0),
        (["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"],
         "diffusion_pytorch_model.safetensors", 1),
        (["model.safetensors", "consolidated.safetensors"], "model.safetensors", 1),
        (["model.safetensors", "adapter_model.safetensors"], "model.safetensors", 0),
        (["model.safetensors", "pytorch_model.bin"], "model.safetensors", 1),
        (["model-00001-of-00001.safetensors"], "model-00001-of-00001.safetensors", 0),
        (["pytorch_model.bin", "training_args.bin", "optimizer.pt"], "pytorch_model.bin", 0),
        (["weights.pth", "scheduler.pt"], "weights.pth", 0),
    ],
)  # fmt: skip
def test_one_file_is_the_model(files: list[str], chosen: str, notes: int, tmp_path: Path) -> None:
    for name in [*files, "config.json"]:
        write = tensors if name.endswith("safetensors") else text if name.endswith("json") else pickled
        write(tmp_path / name)
    found = weight_files(tmp_path)
    assert found.paths == (tmp_path / chosen,)
    assert found.files[0].read("w").tolist() == [1, 1]
    assert [note.severity for note in found.notes] == ["note"] * notes
    found.close()


@pytest.mark.parametrize(
    ("files", "code", "part"),
    [
        ([], "CV-S077", "no safetensors"),
        (["adapter_model.safetensors"], "CV-S077", "only the adapter"),
        (["training_args.bin"], "CV-S077", "no safetensors"),
        (["a.safetensors", "b.safetensors"], "CV-S075", "2 files could be the model"),
        (["model-00001-of-00002.safetensors"], "CV-S075", "no index"),
        (["model.safetensors", "model-00002-of-00002.safetensors"], "CV-S075", "no index"),
        (["a.bin", "b.bin"], "CV-S075", "2 files"),
    ],
)
def test_doubt_is_an_error(files: list[str], code: str, part: str, tmp_path: Path) -> None:
    for name in files:
        (tensors if name.endswith("safetensors") else pickled)(tmp_path / name)
    found = refusal(tmp_path)
    assert (found[0], part in found[1]) == (code, True), found


def test_sharded_pytorch_models(tmp_path: Path) -> None:
    names = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    for name, file in names.items():
        torch.save({name: torch.ones(2)}, tmp_path / file)
    write_index(tmp_path, names, "pytorch_model.bin.index.json")
    found = weight_files(tmp_path)
    assert (found.format, len(found.files)) == ("torch", 2)
    found.close()
    write_index(tmp_path, names | {"c": "x.safetensors"}, "pytorch_model.bin.index.json")
    assert refusal(tmp_path)[0] == "CV-S076"


def test_shards_counted_from_zero(tmp_path: Path) -> None:
    names = {str(number): shard(number, total=2) for number in range(2)}
    for name, file in names.items():
        save_file({name: torch.ones(1)}, tmp_path / file)
    write_index(tmp_path, names)
    assert len(weight_files(tmp_path).files) == 2


def test_a_folder_that_is_absent(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent")[0] == "CV-S050"

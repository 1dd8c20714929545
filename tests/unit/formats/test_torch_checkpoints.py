"""Benign PyTorch checkpoints read as `torch.load(weights_only=True)` reads them, headers without torch."""

from __future__ import annotations

import collections
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from pickle_bytes import FLOATS, GOOD, archive, legacy, mapping, name, number, storage, tensor, text, whole

from cuvee.errors import SourceError
from cuvee.formats.file import open_file
from cuvee.formats.torch_file import TorchFile, open_torch

NEW_DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
    torch.complex64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32,
    torch.uint16, torch.uint8, torch.bool,
]  # fmt: skip
OLD_DTYPES = [
    d for d in NEW_DTYPES if d not in (torch.uint16, torch.uint32, torch.uint64) and "float8" not in str(d)
]


def filled(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    values = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=generator)
    return values.to(torch.float32).to(dtype) if dtype.is_floating_point else values.to(dtype)


def assert_same(file: TorchFile, wanted: dict[str, Any]) -> None:
    tensors = {key: value for key, value in wanted.items() if isinstance(value, torch.Tensor)}
    assert list(file.tensors) == list(tensors)
    for key, value in tensors.items():
        meta = file.tensors[key]
        assert (meta.dtype.torch, meta.shape) == (value.dtype, tuple(value.shape))
        flat = value.detach().contiguous().view(-1)
        assert torch.equal(file.read(key).view(torch.uint8), flat.view(torch.uint8)), key
        extent = file.extent(key)
        assert (extent is not None) == value.is_contiguous()
        if extent is not None:
            data = extent.path.read_bytes()[extent.offset : extent.offset + extent.nbytes]
            assert data == bytes(flat.view(torch.uint8).tolist())


@pytest.mark.parametrize("new", [True, False])
def test_all_dtypes_and_strides(new: bool, tmp_path: Path) -> None:
    wanted: dict[str, Any] = {}
    for dtype in NEW_DTYPES if new else OLD_DTYPES:
        base = filled((3, 4, 5), dtype)
        word = str(dtype).removeprefix("torch.")
        wanted |= {
            f"{word}.whole": base,
            f"{word}.turned": base.transpose(0, 2),
            f"{word}.part": base[1:, ::2, 1:3],
        }
    wanted |= {
        "scalar": torch.tensor(3.0),
        "empty": torch.empty(0, 3),
        "empty.turned": torch.empty(3, 0, 2).transpose(0, 2),
        "repeated": torch.tensor([1.0, 2.0])[:, None].expand(2, 5),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "frozen": torch.nn.Parameter(torch.ones(2), requires_grad=False),
        "buffer": torch.nn.Buffer(torch.ones(3)),
    }
    wanted["tied"] = wanted["float32.whole"]
    torch.save(wanted, tmp_path / "a.bin", _use_new_zipfile_serialization=new)
    loaded = torch.load(tmp_path / "a.bin", weights_only=True)
    file = open_torch(tmp_path / "a.bin")
    assert_same(file, loaded)
    assert file.metadata["container"] == ("zip" if new else "legacy")


@pytest.mark.parametrize("new", [True, False])
def test_every_range_of_strided_tensors(new: bool, tmp_path: Path) -> None:
    base = torch.arange(60.0).view(3, 4, 5)
    wanted = {"turned": base.permute(2, 0, 1), "part": base[:, 1:3, ::2], "plain": base, "row": base[1, :, 2]}
    torch.save(wanted, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    file = open_torch(tmp_path / "a.pt")
    for key, value in wanted.items():
        flat = value.reshape(-1)
        for start in range(len(flat) + 1):
            for stop in range(start, len(flat) + 1):
                assert torch.equal(file.read(key, start, stop), flat[start:stop])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_module_state_dicts_of_any_protocol(protocol: int, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(module.state_dict(), tmp_path / "a.bin", pickle_protocol=protocol)
    file = open_torch(tmp_path / "a.bin")
    assert_same(file, dict(module.state_dict()))
    assert file.metadata["skipped"] == ()


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "module", "params", "params_ema"])
def test_the_model_is_found_under_the_keys_of_trainers(key: str, tmp_path: Path) -> None:
    inner = {"w": torch.ones(2), "step": 3, "size": torch.Size([1, 2]), "kind": torch.float16}
    outer = {"epoch": 7, key: inner, "optimizer": {"state": {0: {"m": torch.ones(2)}}}, 5: torch.ones(1)}
    torch.save(outer, tmp_path / "a.pt")
    file = open_torch(tmp_path / "a.pt")
    assert_same(file, inner)
    assert file.metadata["nest"] == (key,)
    assert set(file.metadata["skipped"]) == {
        "epoch (int)",
        "optimizer (dict)",
        "5 (tensor)",
        f"{key}.step (int)",
        f"{key}.size (tuple)",
        f"{key}.kind (dtype)",
    }


def test_nested_twice_and_direct_tensors_first(tmp_path: Path) -> None:
    torch.save({"model": {"module": {"w": torch.ones(2)}}}, tmp_path / "a.pt")
    assert open_torch(tmp_path / "a.pt").metadata["nest"] == ("model", "module")
    torch.save({"w": torch.ones(2), "model": {"v": torch.ones(2)}}, tmp_path / "a.pt")
    file = open_torch(tmp_path / "a.pt")
    assert list(file.tensors) == ["w"]
    assert file.metadata["skipped"] == ("model (dict)",)


@pytest.mark.parametrize(
    "value", [3, [torch.ones(1)], {}, {"a": 1}, {"generator": {"w": torch.ones(1)}}, torch.ones(1)]
)
def test_a_checkpoint_without_named_tensors_is_refused(value: Any, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(SourceError, match="CV-S064"):
        open_torch(tmp_path / "a.pt")


def test_plain_values_of_many_kinds_are_accepted(tmp_path: Path) -> None:
    extras = {
        "a": [1, 2.5, None, True, "text", b"bytes", (1, (2,)), -(2**70), 2**31, 300, {"x", "y"}],
        "b": collections.OrderedDict(x=1),
        "c": collections.Counter("aab"),
        "d": torch.device("cpu"),
        "e": 1 + 2j,
        "f": bytearray(b"z"),
        "g": "ünïcode ♥" * 40,
    }
    torch.save({"w": torch.ones(1), **extras}, tmp_path / "a.pt")
    torch.load(tmp_path / "a.pt", weights_only=True)
    assert len(open_torch(tmp_path / "a.pt").metadata["skipped"]) == len(extras)


def test_a_tensor_with_attributes_and_a_storage_window(tmp_path: Path) -> None:
    marked = torch.nn.Parameter(torch.arange(3.0))
    marked.note = "x"  # type: ignore[attr-defined]
    torch.save({"w": marked}, tmp_path / "a.pt")
    assert open_torch(tmp_path / "a.pt").read("w").tolist() == [0, 1, 2]
    window = b"(" + text("v") + number(1) + number(2) + b"t"
    body = mapping(("w", tensor(storage(window=window), (2,))))
    path = legacy(tmp_path / "b.bin", whole(body), ["0"], struct.pack("<q", 4) + FLOATS)
    assert open_torch(path).read("w").tolist() == [2, 3]


def test_python_2_spellings(tmp_path: Path) -> None:
    body = mapping(("w", tensor(storage()))).replace(text("w"), b"U\x01w")
    dictionary = name("collections", "OrderedDict") + b"(](](" + text("k") + number(1) + b"eetR"
    body = (
        body[:-1] + text("extra") + dictionary + text("s") + name("__builtin__", "set") + b"(]K\x01atR" + b"u"
    )
    file = open_torch(archive(tmp_path / "a.pt", whole(body)))
    assert file.read("w").tolist() == [1, 2, 3, 4]


def test_archives_with_64_bit_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    path = archive(tmp_path / "a.pt", GOOD)
    assert b"PK\x06\x06" in path.read_bytes()
    assert open_torch(path).read("w").tolist() == [1, 2, 3, 4]


def test_a_legacy_pickle_longer_than_the_first_look(tmp_path: Path) -> None:
    wanted = {f"layer.{i}.{'x' * 400}": torch.full((2,), float(i)) for i in range(4000)}
    torch.save(wanted, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    assert (tmp_path / "a.bin").stat().st_size > 2 << 20
    file = open_torch(tmp_path / "a.bin")
    assert all(torch.equal(file.read(key), value) for key, value in list(wanted.items())[::500])


def test_header_work_imports_no_torch(tmp_path: Path) -> None:
    for new in (True, False):
        torch.save({"w": torch.ones(3)}, tmp_path / f"{new}.bin", _use_new_zipfile_serialization=new)
    program = (
        "import sys; from cuvee.formats.file import open_file\n"
        "for path in sys.argv[1:]: assert open_file(path).tensors['w'].shape == (3,)\n"
        "print('torch' in sys.modules, 'numpy' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "True.bin"), str(tmp_path / "False.bin")]
    shown = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert shown.stdout.split() == ["False", "False"]


def test_the_door_recognises_each_format(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "a.bin")
    torch.save({"w": torch.ones(3)}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    assert open_file(tmp_path / "a.bin").format == "torch"
    assert open_file(str(tmp_path / "old.ckpt")).format == "torch"
    (tmp_path / "a.bin").rename(tmp_path / "a.safetensors")
    with pytest.raises(SourceError, match="the name says safetensors, the first bytes say torch"):
        open_file(tmp_path / "a.safetensors")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SourceError, match="not a weight file"):
        open_file(tmp_path / "notes.txt")

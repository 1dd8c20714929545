"""GGUF files: every encoding agrees with the `gguf` package, headers that lie are refused before."""

from __future__ import annotations

import importlib.util
import struct
from dataclasses import replace
from pathlib import Path

import gguf
import gguf_bytes as make
import numpy as np
import pytest
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from cuvee.core.limits import DEFAULT
from cuvee.errors import SourceError
from cuvee.formats.gguf import open_gguf
from cuvee.formats.gguf_types import ENCODINGS, UNREADABLE

PACKED = [GGMLQuantizationType(n) for n, encoding in ENCODINGS.items() if encoding.plain is None]


def test_the_table_of_encodings_is_that_of_the_package() -> None:
    for number, encoding in ENCODINGS.items():
        assert GGMLQuantizationType(number).name == encoding.name
        assert GGML_QUANT_SIZES[GGMLQuantizationType(number)] == (encoding.elements, encoding.size)
    assert {int(kind) for kind in GGML_QUANT_SIZES} <= set(ENCODINGS) | set(UNREADABLE)
    for number in set(UNREADABLE) & {int(kind) for kind in GGML_QUANT_SIZES}:
        kind = GGMLQuantizationType(number)
        with pytest.raises(NotImplementedError):
            gguf.dequantize(np.zeros(GGML_QUANT_SIZES[kind][1], np.uint8), kind)


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)
def test_every_packed_encoding_agrees_with_the_package(kind: GGMLQuantizationType, tmp_path: Path) -> None:
    data = make.packed(kind, rows=3)
    path = make.write(tmp_path / "a.gguf", "test", {"before": np.ones(5, np.float32), "w": (data, kind)})
    with np.errstate(all="ignore"):
        wanted = torch.from_numpy(gguf.dequantize(data, kind).astype(np.float32))
    file = open_gguf(path)
    assert file.encodings == {"w": kind.name}
    assert (file.tensors["w"].shape, file.tensors["w"].dtype.name) == (tuple(wanted.shape), "float32")
    flat = wanted.reshape(-1)
    block = ENCODINGS[int(kind)].elements
    for start, stop in [(0, len(flat)), (0, 1), (block - 1, block + 1), (5, 5), (7, 3 * block + 2)]:
        assert torch.equal(file.read("w", start, stop).view(torch.int32), flat[start:stop].view(torch.int32))
    assert file.extent("w") is None


def test_long_reads_are_cut_at_blocks(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q4_K
    data = np.tile(make.packed(kind, rows=4), (400, 1))
    file = open_gguf(make.write(tmp_path / "a.gguf", "test", {"w": (data, kind)}))
    flat = torch.from_numpy(gguf.dequantize(data, kind)).reshape(-1)
    assert len(flat) > 3 * 2**18
    assert torch.equal(file.read("w"), flat)
    assert torch.equal(file.read("w", 1000, len(flat) - 77), flat[1000:-77])


def test_plain_tensors_keep_their_dtype(tmp_path: Path) -> None:
    wanted = {
        "f32": np.arange(6, dtype=np.float32).reshape(2, 3),
        "f16": np.arange(6, dtype=np.float16).reshape(3, 2),
        "f64": np.arange(4, dtype=np.float64),
        "i8": np.arange(4, dtype=np.int8),
        "i16": np.arange(4, dtype=np.int16),
        "i32": np.arange(4, dtype=np.int32),
        "i64": np.arange(4, dtype=np.int64),
    }
    brain = torch.randn(4, 2).to(torch.bfloat16)
    extra = {"bf16": (brain.view(torch.uint8).numpy(), GGMLQuantizationType.BF16)}
    file = open_gguf(make.write(tmp_path / "a.gguf", "test", wanted | extra))
    for name, value in wanted.items():
        assert file.tensors[name].shape == value.shape
        assert np.array_equal(file.read(name).numpy(), value.reshape(-1))
        extent = file.extent(name)
        assert extent is not None
        assert extent.path.read_bytes()[extent.offset :][: extent.nbytes] == value.tobytes()
    assert file.tensors["bf16"].shape == (4, 2)
    assert torch.equal(file.read("bf16"), brain.view(-1))
    assert file.encodings == {}


def test_key_values_agree_with_the_package(tmp_path: Path) -> None:
    settings = {
        "test.b": True,
        "test.i": 7,
        "test.f": 0.5,
        "test.s": "ünï ♥",
        "test.strings": ["a", "", "ccc"],
        "test.ints": [1, -2, 3],
        "test.floats": [0.5, 1.5],
        "test.bools": [True, False],
    }
    path = make.write(tmp_path / "a.gguf", "test", {"w": np.ones(3, np.float32)}, settings)
    ours = open_gguf(path).metadata
    peer = gguf.GGUFReader(path)
    theirs = {key: field.contents() for key, field in peer.fields.items() if not key.startswith("GGUF.")}
    assert ours == theirs
    assert {key: ours[key] for key in settings} == settings


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = GGMLQuantizationType.Q8_0
    packed = make.write(tmp_path / "a.gguf", "test", {"w": (make.packed(kind, 1), kind)})
    plain = make.write(tmp_path / "b.gguf", "test", {"w": np.ones(3, np.float32)})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError) as caught:
        open_gguf(packed)
    assert caught.value.diagnostics[0].code == "CV-S066"
    assert caught.value.diagnostics[0].hint == "pip install 'cuvee[gguf]'"
    assert open_gguf(plain).read("w").tolist() == [1, 1, 1]


F32 = (make.info("w", (2,), 0, 0), bytes(8))
U32, STRING, ARRAY, BOOL = 4, 8, 9, 7
HOSTILE = {
    "magic": (lambda p: p.write_bytes(b"GGUX" + bytes(40)), "CV-S065", "begin with `GGUF`"),
    "short": (lambda p: p.write_bytes(b"GGUF\3\0"), "CV-S065", "asks for byte"),
    "version 1": (lambda p: make.raw(p, [], [], version=1), "CV-S068", "of version 1"),
    "version 9": (lambda p: make.raw(p, [], [], version=9), "CV-S068", "of version 9"),
    "big endian": (lambda p: make.raw(p, [], [], version=3 << 24), "CV-S068", "big-endian"),
    "tensor count": (lambda p: make.raw(p, [], [], counts=(2**60, 0)), "CV-S053", "number of tensors"),
    "pair count": (lambda p: make.raw(p, [], [], counts=(0, 2**60)), "CV-S053", "number of key-values"),
    "missing tensors": (lambda p: make.raw(p, [], [], counts=(5, 0)), "CV-S065", "asks for byte"),
    "key length": (lambda p: make.raw(p, [struct.pack("<Q", 2**63)], []), "CV-S053", "length of a key"),
    "long key": (lambda p: make.raw(p, [pair_of(key="k" * 600)], []), "CV-S053", "length of a key"),
    "key twice": (lambda p: make.raw(p, [pair_of(), pair_of()], []), "CV-S065", "there twice"),
    "empty key": (lambda p: make.raw(p, [pair_of(key="")], []), "CV-S065", "is empty"),
    "bad utf-8": (
        lambda p: make.raw(p, [make.pair("k", STRING, make.string(b"\xff"))], []),
        "CV-S065",
        "UTF-8",
    ),
    "string length": (
        lambda p: make.raw(p, [make.pair("k", STRING, struct.pack("<Q", 2**62))], []),
        "CV-S065",
        "asks for byte",
    ),
    "kind": (lambda p: make.raw(p, [make.pair("k", 13, bytes(8))], []), "CV-S065", "unknown kind 13"),
    "truth": (lambda p: make.raw(p, [make.pair("k", BOOL, b"\2")], []), "CV-S065", "neither true nor false"),
    "nested list": (lambda p: make.raw(p, [array_of(ARRAY, 1, b"")], []), "CV-S065", "nested kind 9"),
    "endless list": (lambda p: make.raw(p, [array_of(0, 2**61, b"")], []), "CV-S065", "asks for byte"),
    "endless strings": (lambda p: make.raw(p, [array_of(STRING, 2**61, b"")], []), "CV-S065", "claims"),
    "alignment": (lambda p: make.raw(p, [align(24)], []), "CV-S065", "power of two"),
    "no alignment": (lambda p: make.raw(p, [align(0)], []), "CV-S065", "power of two"),
    "alignment text": (
        lambda p: make.raw(p, [make.pair("general.alignment", STRING, make.string("x"))], []),
        "CV-S065",
        "power of two",
    ),
    "split": (
        lambda p: make.raw(p, [make.pair("split.count", 2, struct.pack("<H", 3))], []),
        "CV-S068",
        "part of a split model",
    ),
    "tensor twice": (lambda p: make.raw(p, [], [F32[0], F32[0]], F32[1]), "CV-S058", "listed twice"),
    "rank": (lambda p: make.raw(p, [], [make.info("w", (1,) * 5, 0, 0)], bytes(4)), "CV-S053", "rank is 5"),
    "huge rank": (
        lambda p: make.raw(p, [], [make.string("w") + struct.pack("<I", 2**31)]),
        "CV-S053",
        "rank is 2,147,483,648",
    ),
    "overflow": (lambda p: make.raw(p, [], [make.info("w", (2**33, 2**33), 0, 0)]), "CV-S065", "overflows"),
    "huge length": (
        lambda p: make.raw(p, [], [make.info("w", (2**64 - 1, 0), 0, 0)]),
        "CV-S065",
        "overflows",
    ),
    "encoding": (
        lambda p: make.raw(p, [], [make.info("w", (2,), 99, 0)], bytes(8)),
        "CV-S067",
        "99 is unknown",
    ),
    "Q8_K": (lambda p: make.raw(p, [], [make.info("w", (256,), 15, 0)], bytes(292)), "CV-S067", "Q8_K"),
    "block": (
        lambda p: make.raw(p, [], [make.info("w", (33,), 8, 0)], bytes(68)),
        "CV-S065",
        "do not divide",
    ),
    "single block": (
        lambda p: make.raw(p, [], [make.info("w", (), 8, 0)], bytes(34)),
        "CV-S065",
        "single number",
    ),
    "offset": (
        lambda p: make.raw(p, [], [make.info("w", (2,), 0, 32)], bytes(40)),
        "CV-S056",
        "begins at byte 32",
    ),
    "unaligned": (
        lambda p: make.raw(p, [], [make.info("w", (2,), 0, 4)], bytes(12)),
        "CV-S056",
        "begins at byte 4",
    ),
    "overlap": (
        lambda p: make.raw(p, [], [make.info("w", (9,), 0, 0), make.info("v", (9,), 0, 32)], bytes(96)),
        "CV-S056",
        "overlaps",
    ),
    "truncated": (lambda p: make.raw(p, [], [F32[0]], bytes(7)), "CV-S052", "the tensor ends at byte"),
    "trailing": (lambda p: make.raw(p, [], [F32[0]], bytes(33)), "CV-S056", "follow the last tensor"),
    "name length": (
        lambda p: make.raw(p, [], [make.info("n" * 600, (2,), 0, 0)], F32[1]),
        "CV-S053",
        "tensor name",
    ),
}


def pair_of(key: str = "k") -> bytes:
    return make.pair(key, U32, struct.pack("<I", 1))


def array_of(kind: int, count: int, data: bytes) -> bytes:
    return make.pair("k", ARRAY, struct.pack("<IQ", kind, count) + data)


def align(value: int) -> bytes:
    return make.pair("general.alignment", U32, struct.pack("<I", value))


@pytest.mark.parametrize("case", HOSTILE)
def test_headers_that_lie_are_refused(case: str, tmp_path: Path) -> None:
    build, code, part = HOSTILE[case]
    build(tmp_path / "a.gguf")
    with pytest.raises(SourceError) as caught:
        open_gguf(tmp_path / "a.gguf")
    found = caught.value.diagnostics[0]
    assert (found.code, part in found.message) == (code, True), found.message
    assert found.where is not None
    assert found.where.file == str(tmp_path / "a.gguf")


def test_the_hand_written_file_is_sound_without_lies(tmp_path: Path) -> None:
    path = make.raw(tmp_path / "a.gguf", [pair_of(), align(32)], [F32[0]], struct.pack("<2f", 1, 2))
    assert open_gguf(path).read("w").tolist() == [1, 2]
    assert open_gguf(make.raw(tmp_path / "b.gguf", [], [])).tensors == {}


def test_headers_are_limited(tmp_path: Path) -> None:
    path = make.write(tmp_path / "a.gguf", "test", {"w": np.ones(3, np.float32)}, {"test.s": "x" * 5000})
    with pytest.raises(SourceError, match="header size in bytes"):
        open_gguf(path, replace(DEFAULT, header_bytes=1000))
    with pytest.raises(SourceError, match="number of tensors is 1"):
        open_gguf(path, replace(DEFAULT, tensors=0))

"""Thousands of damaged headers, pickles and indices: each is refused as a SourceError, or means what a peer says.

Seeded, so a failure repeats; `FUZZ_ROUNDS` below multiplies the counts for longer hunts by hand.
"""

from __future__ import annotations

import json
import pickle
import random
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "formats"))

import gguf_bytes
from pickle_bytes import FLOATS, archive, legacy, mapping, number, put, storage, tensor, text, whole

from cuvee.core.dtypes import of_torch
from cuvee.errors import SourceError
from cuvee.formats.file import TensorFile
from cuvee.formats.gguf import open_gguf
from cuvee.formats.gguf_names import hf_config, hf_view
from cuvee.formats.index_file import read_index
from cuvee.formats.json_file import read_json
from cuvee.formats.safetensors import open_safetensors
from cuvee.formats.torch_file import open_torch

FUZZ_ROUNDS = 1
WORDS = [
    b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u0061", b"0", b"1", b"-1", b"1e9", b"9" * 20, b"9" * 5000,
    b"null", b"true", b"NaN", b"\xff", b"\0", b"F32", b"F4", b"U8", b'"a"', b'"dtype"', b'"shape"', b" ", b"[" * 2000,
    b'"__metadata__":{},', b'"data_offsets":[0,0],',
]  # fmt: skip


def damaged(data: bytes, dice: random.Random, words: list[bytes]) -> bytes:
    """One to three changes: a flipped bit, a new byte, a removed, doubled or moved run, a word put in."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3))):
        if not out:
            break
        at, size = dice.randrange(len(out)), dice.choice((1, 1, 2, 4, 8, 40))
        match dice.randrange(7):
            case 0:
                out[at] ^= 1 << dice.randrange(8)
            case 1:
                out[at] = dice.randrange(256)
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = out[at : at + size]
            case 4:
                run = bytes(out[at : at + size])
                del out[at : at + size]
                to = dice.randrange(len(out) + 1)
                out[to:to] = run
            case 5:
                out[at:at] = dice.choice(words)
            case 6:
                word = dice.choice(words)
                out[at : at + len(word)] = word
    return bytes(out)


def read_all(file: TensorFile) -> None:
    for name, meta in file.tensors.items():
        assert file.read(name).numel() == meta.numel
        file.extent(name)
    file.close()


def outcomes(attempt: Callable[[], Any], counts: dict[str, int]) -> Any:
    """What the attempt gives, None when it is refused; anything but a SourceError fails the test."""
    try:
        value = attempt()
    except SourceError as error:
        assert all(d.where is not None and d.where.file for d in error.diagnostics)
        counts["refused"] = counts.get("refused", 0) + 1
        return None
    counts["read"] = counts.get("read", 0) + 1
    return value


def peer_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """What the safetensors package finds; None when it refuses."""
    try:
        with safe_open(path, "pt") as peer:
            found = {name: peer.get_tensor(name) for name in peer.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, OSError, RuntimeError):
        return None
    return {
        name: (of_torch(t.dtype).code, tuple(t.shape), bytes(t.reshape(-1).view(torch.uint8).tolist()))
        for name, t in found.items()
    }


def our_tensors(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    file = open_safetensors(path)
    return {
        name: (meta.dtype.code, meta.shape, bytes(file.read(name).view(torch.uint8).tolist()))
        for name, meta in file.tensors.items()
    }


def test_safetensors_headers(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt", "note": "ünï"},
        "a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
        "b": {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]},
        "c": {"dtype": "BF16", "shape": [], "data_offsets": [11, 13]},
        "d": {"dtype": "I64", "shape": [0, 4], "data_offsets": [13, 13]},
    }
    path, data = tmp_path / "a.safetensors", bytes(range(13))
    counts: dict[str, int] = {}
    for seed in range(10_000 * FUZZ_ROUNDS):
        dice = random.Random(seed)
        raw = damaged(json.dumps(header).encode(), dice, WORDS)
        length = len(raw) if dice.random() < 0.97 else dice.getrandbits(dice.choice((8, 32, 64)))
        put(
            path,
            struct.pack("<Q", length) + raw + (data if dice.random() < 0.9 else damaged(data, dice, WORDS)),
        )
        ours = outcomes(lambda: our_tensors(path), counts)
        if ours is not None:
            assert ours == peer_tensors(path), raw
    assert min(counts["refused"], counts["read"]) > 100, counts


OPERATIONS = [bytes([code]) for code in range(256)] + [
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nSize\n", b"h\0", b"q\0", number(-1), number(2**31 - 1), text("x"),
    b"ccollections\nOrderedDict\n)R", b"]" * 5000, b")" + b"\x85" * 5000, b"X\xff\xff\xff\xff", storage("1"),
]  # fmt: skip


@pytest.mark.parametrize("container", ["zip", "legacy"])
def test_pickles(container: str, tmp_path: Path) -> None:
    views = [("a", tensor(storage())), ("b", tensor(storage(), (2, 2), (1, 2))), ("n", b"K\x01")]
    sound = [
        whole(mapping(*views)),
        pickle.dumps({"model": {"x": [1, 2.5, None, {"y"}]}, "epoch": (3, b"x")}, 4),
        whole(mapping(("state_dict", mapping(*views)))),
    ]
    path, counts = tmp_path / "a.pt", {}
    for seed in range(1_000 * FUZZ_ROUNDS):
        dice = random.Random(seed)
        pickled = damaged(dice.choice(sound), dice, OPERATIONS)
        if container == "zip":
            archive(path, pickled)
        else:
            legacy(path, pickled, ["0"], struct.pack("<q", 4) + FLOATS)
        outcomes(lambda: read_all(open_torch(path)), counts)
    read_all(open_torch(archive(path, sound[0])))
    assert min(counts["refused"], counts["read"]) > 2, counts  # few bytes of a pickle may change


@pytest.mark.parametrize("new", [True, False])
def test_whole_checkpoints(new: bool, tmp_path: Path) -> None:
    wanted = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.arange(6.0).view(2, 3).T,
        "c": torch.ones(2).half(),
    }
    torch.save(wanted, tmp_path / "sound.pt", _use_new_zipfile_serialization=new)
    sound, path, counts = (tmp_path / "sound.pt").read_bytes(), tmp_path / "a.pt", {}
    for seed in range(1_000 * FUZZ_ROUNDS):
        put(path, damaged(sound, random.Random(seed), OPERATIONS))
        outcomes(lambda: read_all(open_torch(path)), counts)
    assert min(counts["refused"], counts["read"]) > 20, counts


NUMBERS = [struct.pack("<I", n) for n in range(14)] + [
    struct.pack("<Q", n) for n in (0, 1, 2**31, 2**62, 2**64 - 1)
]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "other"])
def test_gguf_headers(architecture: str, tmp_path: Path) -> None:
    tensors = {
        "token_embd.weight": np.ones((4, 8), np.float32),
        "blk.0.attn_q.weight": np.ones((8, 8), np.float32),
        "blk.0.attn_norm.weight": np.ones(8, np.float32),
        "rope_freqs.weight": np.ones(4, np.float32),
        "blk.0.ffn_up.weight": (gguf_bytes.packed(gguf_bytes.GGMLQuantizationType.Q8_0, 2),) * 2,
    }
    tensors["blk.0.ffn_up.weight"] = (tensors["blk.0.ffn_up.weight"][0], gguf_bytes.GGMLQuantizationType.Q8_0)
    values = {
        f"{architecture}.attention.head_count": 2,
        f"{architecture}.block_count": 1,
        f"{architecture}.embedding_length": 8,
        f"{architecture}.rope.freq_base": 10000.0,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.tokens": ["a", "b", "c", "d"],
        "tokenizer.ggml.scores": [0.5, 1.5],
    }
    sound = gguf_bytes.write(tmp_path / "sound.gguf", architecture, tensors, values).read_bytes()
    path, counts = tmp_path / "a.gguf", {}
    header = sound.index(b"blk.0.ffn_up") + 64
    for seed in range(700 * FUZZ_ROUNDS):
        dice = random.Random(seed)
        put(path, damaged(sound[:header], dice, NUMBERS) + sound[header:])

        def attempt() -> None:
            view = hf_view(open_gguf(path))
            read_all(view)
            try:
                hf_config(view.metadata)
            except SourceError as error:
                assert error.diagnostics[0].code == "CV-S080"

        outcomes(attempt, counts)
    assert min(counts["refused"], counts["read"]) > 20, counts


def test_indices(tmp_path: Path) -> None:
    index = {
        "metadata": {"total_size": 12, "note": [1.5, None]},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    path, counts = tmp_path / "model.safetensors.index.json", {}
    sound = json.dumps(index, indent=1).encode()
    words = [*WORDS, b"../", b"/", b"C:\\", b"\\u0000", b"\\ud800", b".bin", b'"weight_map":{},']
    for seed in range(2_000 * FUZZ_ROUNDS):
        put(path, damaged(sound, random.Random(seed), words))
        found = outcomes(lambda: read_index(path), counts)
        if found is not None:
            assert {"metadata": found.metadata, "weight_map": found.weight_map}.items() >= (
                json.loads(path.read_bytes()).items()
            )
    assert min(counts["refused"], counts["read"]) > 100, counts


@pytest.mark.parametrize(
    "reader", [open_safetensors, open_torch, open_gguf, read_json], ids=lambda reader: reader.__name__
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=200),
    head=st.sampled_from([b"", b"GGUF\3\0\0\0", b"PK\3\4", b"\x80\x02", b"\x20" + bytes(7)]),
)
def test_any_bytes(reader: Callable[[Path], Any], data: bytes, head: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    put(path, head + data)
    outcomes(lambda: reader(path), {})

"""Benign safetensors files agree with the reference package; headers that lie are refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from safetensors_bytes import entry, write

from cuvee.core.dtypes import BY_CODE, of_torch
from cuvee.core.limits import DEFAULT
from cuvee.core.tensors import TensorMeta
from cuvee.errors import SourceError
from cuvee.formats.safetensors import encode_header, open_safetensors


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    out = {}
    for code, dtype in BY_CODE.items():
        raw = torch.randint(0, 256, (6 * dtype.size,), dtype=torch.uint8, generator=generator)
        out[f"some.{code}"] = (raw % 2).bool() if code == "BOOL" else raw.view(dtype.torch).view(2, 3)
    out["scalar"] = torch.tensor(2.5)
    out["empty"] = torch.empty(0, 4, dtype=torch.float16)
    out["naïve.♥"] = torch.arange(5)
    return out


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(
        a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)
    )


def test_every_dtype_reads_as_the_reference_package_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(tensors(), path, metadata={"format": "pt", "say": 'a "quoted" word \\ ♥'})
    file = open_safetensors(path)
    with safe_open(path, "pt") as peer:
        assert set(peer.keys()) == set(file.tensors)
        assert peer.metadata() == file.metadata
        for name, meta in file.tensors.items():
            whole = peer.get_tensor(name)
            assert meta.shape == tuple(whole.shape)
            assert meta.dtype == of_torch(whole.dtype)
            flat = whole.reshape(-1)
            assert same(file.read(name), flat)
            for start, stop in [(0, 1), (1, 3), (2, 2), (1, meta.numel)]:
                if start <= stop <= meta.numel:
                    assert same(file.read(name, start, stop), flat[start:stop])
            extent = file.extent(name)
            data = path.read_bytes()[extent.offset : extent.offset + extent.nbytes]
            assert data == bytes(flat.view(torch.uint8).tolist())


def test_tensors_are_listed_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    header = {"z": entry("U8", [1], 2, 3), "a": entry("U8", [2], 0, 2), "m": entry("U8", [0], 3, 3)}
    file = open_safetensors(write(tmp_path / "a.safetensors", header, b"abc"))
    assert list(file.tensors) == ["a", "z", "m"]
    assert bytes(file.read("z").tolist()) == b"c"


def test_what_is_read_is_fresh_and_writable(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"a": entry("U8", [2], 0, 2)}, b"xy")
    file = open_safetensors(path)
    file.read("a").zero_()
    assert file.read("a").tolist() == list(b"xy")
    with pytest.raises(ValueError, match="elements 1:3"):
        file.read("a", 1, 3)


def test_bytes_other_than_0_and_1_become_true(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"a": entry("BOOL", [4], 0, 4)}, b"\x00\x01\x02\xff")
    assert open_safetensors(path).read("a").view(torch.uint8).tolist() == [0, 1, 1, 1]


def test_field_order_and_blanks_do_not_matter(tmp_path: Path) -> None:
    text = ' \n"a" :\t{ "shape" : [ 1 , 2 ] , "data_offsets":[0 ,2], "dtype" : "U8" }\r\n}  '
    file = open_safetensors(write(tmp_path / "a.safetensors", "{" + text, b"xy"))
    assert file.tensors["a"].shape == (1, 2)


def test_an_encoded_header_is_read_back_by_the_reference_package(tmp_path: Path) -> None:
    values = {name: value.contiguous() for name, value in tensors().items()}
    metas = [TensorMeta(name, of_torch(value.dtype), tuple(value.shape)) for name, value in values.items()]
    head, begins = encode_header(metas, {"format": "pt", "note": "♥"})
    path = tmp_path / "a.safetensors"
    path.write_bytes(
        head + b"".join(v.reshape(-1).view(torch.uint8).numpy().tobytes() for v in values.values())
    )
    assert len(head) % 64 == 0
    assert begins["some.F64"] == len(head)
    with safe_open(path, "pt") as peer:
        assert peer.metadata() == {"format": "pt", "note": "♥"}
        assert all(same(peer.get_tensor(name), value) for name, value in values.items())
    ours = open_safetensors(path)
    assert list(ours.tensors.values()) == metas
    assert {name: ours.extent(name).offset for name in begins} == begins


def test_two_tensors_of_one_name_cannot_be_encoded() -> None:
    meta = TensorMeta("a", BY_CODE["U8"], (1,))
    with pytest.raises(ValueError, match="called 'a'"):
        encode_header([meta, meta], {})
    with pytest.raises(ValueError, match="__metadata__"):
        encode_header([replace(meta, name="__metadata__")], {})


ONE = entry("U8", [1], 0, 1)
HOSTILE: dict[str, tuple[object, bytes, str, str]] = {
    # name: header, data, code, a part of the message
    "not json": ("{nonsense", b"", "CV-S054", "expected a name in quotes"),
    "no header": ("", b"", "CV-S054", "does not begin with `{`"),
    "array": ("[]", b"", "CV-S054", "does not begin with `{`"),
    "open object": ('{"a":' + json.dumps(ONE), b"", "CV-S054", "expected `,` or `}`"),
    "trailing comma": ('{"a":' + json.dumps(ONE) + ",}", b"x", "CV-S054", "expected a name in quotes"),
    "two objects": ('{"a":' + json.dumps(ONE) + "}{}", b"x", "CV-S054", "follow the closing brace"),
    "duplicate name": (f'{{"a":{json.dumps(ONE)},"a":{json.dumps(ONE)}}}', b"x", "CV-S058", "listed twice"),
    "duplicate escaped": (f'{{"a":{json.dumps(ONE)},"\\u0061":{json.dumps(ONE)}}}', b"x", "CV-S058", "twice"),
    "duplicate metadata": ('{"__metadata__":{},"__metadata__":{}}', b"", "CV-S058", "listed twice"),
    "duplicate metadata key": ('{"__metadata__":{"a":"1","a":"2"}}', b"", "CV-S058", "listed twice"),
    "duplicate field": (
        '{"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}}',
        b"x",
        "CV-S058",
        "has `dtype` twice",
    ),
    "unknown field": ({"a": ONE | {"sparse": True}}, b"x", "CV-S055", "unknown field `sparse`"),
    "missing field": ({"a": {"dtype": "U8", "shape": [1]}}, b"x", "CV-S055", "no `data_offsets`"),
    "not an object": ({"a": 3}, b"", "CV-S055", "is not an object"),
    "metadata number": ({"__metadata__": {"a": 1}}, b"", "CV-S059", "not a string"),
    "metadata list": ({"__metadata__": []}, b"", "CV-S059", "not an object of strings"),
    "metadata null": ({"__metadata__": None}, b"", "CV-S059", "not an object of strings"),
    "metadata tensor": ({"__metadata__": ONE}, b"x", "CV-S059", "not a string"),
    "overlap": ({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"xyz", "CV-S056", "overlap"),
    "same bytes": ({"a": ONE, "b": ONE}, b"x", "CV-S056", "overlap"),
    "hole": ({"a": ONE, "b": entry("U8", [1], 2, 3)}, b"xyz", "CV-S056", "belong to no tensor"),
    "hole at begin": ({"a": entry("U8", [1], 1, 2)}, b"xy", "CV-S056", "belong to no tensor"),
    "trailing bytes": ({"a": ONE}, b"xy", "CV-S056", "follow the last tensor"),
    "only trailing bytes": ("{}", b"xy", "CV-S056", "follow the last tensor"),
    "truncated": ({"a": entry("U8", [9], 0, 9)}, b"xyz", "CV-S052", "cut short"),
    "too few bytes": ({"a": entry("F32", [2], 0, 4)}, b"1234", "CV-S055", "takes 8"),
    "too many bytes": ({"a": entry("U8", [1], 0, 4)}, b"1234", "CV-S055", "takes 1"),
    "backwards": ({"a": entry("U8", [0], 1, 0)}, b"", "CV-S055", "not a range"),
    "negative shape": ({"a": entry("U8", [-1], 0, 1)}, b"x", "CV-S055", "holds `-1`"),
    "negative offset": ({"a": entry("U8", [1], -1, 0)}, b"", "CV-S055", "holds `-1`"),
    "float shape": (
        '{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}',
        b"x",
        "CV-S055",
        "holds `1.0`",
    ),
    "bool shape": ({"a": entry("U8", [True], 0, 1)}, b"x", "CV-S055", "holds `true`"),
    "string shape": ({"a": {"dtype": "U8", "shape": "1", "data_offsets": [0, 1]}}, b"x", "CV-S055", "list"),
    "huge shape": ({"a": entry("U8", [2**64], 0, 1)}, b"x", "CV-S055", "overflows"),
    "huge digits": (
        '{"a":{"dtype":"U8","shape":[%s],"data_offsets":[0,1]}}' % ("9" * 400),
        b"x",
        "CV-S055",
        "holds",
    ),
    "overflow": ({"a": entry("F64", [2**32, 2**32], 0, 0)}, b"", "CV-S055", "overflows"),
    "overflow then zero": ({"a": entry("F64", [2**40, 2**40, 0], 0, 0)}, b"", "CV-S055", "overflows"),
    "three offsets": (
        '{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,1]}}',
        b"x",
        "CV-S055",
        "3 entries",
    ),
    "leading zero": (
        '{"a":{"dtype":"U8","shape":[01],"data_offsets":[0,1]}}',
        b"x",
        "CV-S054",
        "well-formed",
    ),
    "unknown dtype": ({"a": entry("Q9", [1], 0, 1)}, b"x", "CV-S057", "`Q9` is unknown"),
    "sub-byte dtype": ({"a": entry("F4", [2], 0, 1)}, b"x", "CV-S057", "`F4`, which cuvee does not read"),
    "scale dtype": ({"a": entry("F8_E8M0", [1], 0, 1)}, b"x", "CV-S057", "does not read"),
    "rank": ({"a": entry("U8", [1] * 9, 0, 1)}, b"x", "CV-S053", "rank is 9, the limit is 8"),
    "huge rank": ({"a": entry("U8", [1] * 900, 0, 1)}, b"x", "CV-S053", "rank is 900"),
    "long name": ({"n" * 513: ONE}, b"x", "CV-S053", "name in bytes is 513"),
    "deep": ('{"a":' + "[" * 100_000, b"", "CV-S055", "not an object"),
    "deep object": ('{"a":' + '{"a":' * 100_000, b"", "CV-S054", "not well-formed"),
    "bad utf-8": (b'{"\xff":' + json.dumps(ONE).encode() + b"}", b"x", "CV-S054", "UTF-8"),
    "bad utf-8 metadata": (b'{"__metadata__":{"a":"\xc0\x80"}}', b"", "CV-S054", "UTF-8"),
    "half surrogate": ('{"\\ud800":' + json.dumps(ONE) + "}", b"x", "CV-S054", "UTF-8"),
    "bad escape": ('{"\\x41":' + json.dumps(ONE) + "}", b"x", "CV-S054", "not valid"),
    "control character": ('{"a\x01":' + json.dumps(ONE) + "}", b"x", "CV-S054", "control character"),
    "single quotes": ("{'a':1}", b"", "CV-S054", "in quotes"),
    "comment": ("{/* */}", b"", "CV-S054", "in quotes"),
    "nan": ('{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,1]}}', b"x", "CV-S055", "holds"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_header_that_lies_is_refused(case: str, tmp_path: Path) -> None:
    header, data, code, part = HOSTILE[case]
    path = write(tmp_path / "a.safetensors", header, data)
    with pytest.raises(SourceError) as caught:
        open_safetensors(path)
    found = caught.value.diagnostics[0]
    assert (found.code, part in found.message) == (code, True), found.message
    assert found.where is not None
    assert found.where.file == str(path)


@pytest.mark.parametrize("case", ["overlap", "hole", "too few bytes", "rank", "unknown dtype", "truncated"])
def test_a_refusal_names_the_tensor(case: str, tmp_path: Path) -> None:
    header, data, _, _ = HOSTILE[case]
    with pytest.raises(SourceError) as caught:
        open_safetensors(write(tmp_path / "a.safetensors", header, data))
    where = caught.value.diagnostics[0].where
    assert where is not None
    assert where.tensor in header


def test_names_from_files_are_escaped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"\x1b[31m\u202e": entry("F32", [1], 0, 1)}, b"x")
    with pytest.raises(SourceError) as caught:
        open_safetensors(path)
    found = caught.value.diagnostics[0]
    assert "\x1b" not in found.message + str(found.where)
    assert "\u202e" not in found.message + str(found.where)


def test_length_field_beyond_file_or_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for length, code in [(1 << 63, "CV-S052"), (100, "CV-S052")]:
        with pytest.raises(SourceError) as caught:
            open_safetensors(write(path, "{}", length=length))
        assert caught.value.diagnostics[0].code == code
    for data in (b"", b"\x01", b"\x00" * 7):
        path.write_bytes(data)
        with pytest.raises(SourceError, match="CV-S052"):
            open_safetensors(path)
    write(path, {"a": ONE}, b"x")
    with pytest.raises(SourceError, match="header size"):
        open_safetensors(path, replace(DEFAULT, header_bytes=20))
    write(path, {str(i): entry("U8", [0], 0, 0) for i in range(5)})
    with pytest.raises(SourceError, match="number of tensors is 4"):
        open_safetensors(path, replace(DEFAULT, tensors=3))


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("absent", "", "pipe", "nul\0byte"):
        with pytest.raises(SourceError, match="CV-S050"):
            open_safetensors(tmp_path / name if name else tmp_path)


@pytest.mark.parametrize("case", HOSTILE)
def test_what_the_reference_package_refuses_we_refuse(case: str, tmp_path: Path) -> None:
    header, data, _, _ = HOSTILE[case]
    path = write(tmp_path / "a.safetensors", header, data)
    try:
        with safe_open(path, "pt") as peer:
            peer.keys()
    except (SafetensorError, ValueError, OSError):
        with pytest.raises(SourceError):
            open_safetensors(path)


def test_a_file_that_shrinks_is_an_error_not_a_crash(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", {"a": entry("U8", [5000], 0, 5000)}, bytes(5000))
    file = open_safetensors(path)
    os.truncate(path, 1000)
    with pytest.raises(SourceError) as caught:
        file.read("a")
    where = caught.value.diagnostics[0].where
    assert where is not None
    assert where.tensor == "a"


COSTS = {
    "tiny": lambda: {format(i, "x"): entry("U8", [0], 0, 0) for i in range(100_000)},
    "metadata": lambda: {"__metadata__": {format(i, "x"): "" for i in range(60_000)}},
    "quotes": lambda: {"__metadata__": {"a": '"\\' * 2_000_000}},
    "million": lambda: {format(i, "x"): entry("U8", [0], 0, 0) for i in range(260_000)},
    "lists": lambda: {"a": [[]] * 3_000_000},
    "emoji": lambda: {"\U0001f600" * 100 + str(i): entry("U8", [0], 0, 0) for i in range(20_000)},
}
MEASURE = """
import sys, time
from pathlib import Path
from cuvee.errors import SourceError
from cuvee.formats.safetensors import open_safetensors
# ru_maxrss would remember the process that started this one
rss = lambda: int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before, start = rss(), time.process_time()
try:
    open_safetensors(Path(sys.argv[1]))
except SourceError:
    pass
print(rss() - before, time.process_time() - start, "torch" in sys.modules, "numpy" in sys.modules)
"""


@pytest.mark.parametrize("case", COSTS)
def test_a_header_costs_bounded_memory_and_time_and_no_torch(case: str, tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.safetensors", json.dumps(COSTS[case](), separators=(",", ":"), ensure_ascii=False)
    )
    megabytes = path.stat().st_size / 1e6
    command = [sys.executable, "-c", MEASURE, str(path)]
    shown = subprocess.run(
        command, capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    memory, seconds, *heavy = shown.stdout.split()
    assert heavy == ["False", "False"]
    assert float(memory) / 1e6 <= 12 * megabytes + 16
    assert float(seconds) <= 0.2 * megabytes + 0.1

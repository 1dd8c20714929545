"""Layouts: names, order, sizes, index; read back by the reference reader."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from cuvee.core.dtypes import BY_NAME
from cuvee.core.tensors import TensorMeta
from cuvee.errors import PlanError
from cuvee.sinks.layout import Layout, plan_layout

F32, BF16, I64 = (BY_NAME[name] for name in ("float32", "bfloat16", "int64"))
METAS = [TensorMeta("w.10", F32, (4, 4)), TensorMeta("w.2", BF16, (3,)), TensorMeta("z", F32, (0, 2)),
         TensorMeta("é.ids", I64, (5,)), TensorMeta("scalar", F32, ())]  # fmt: skip


def test_one_file_without_a_limit() -> None:
    layout = plan_layout(METAS, max_shard_bytes=None)
    assert [file.name for file in layout.files] == ["model.safetensors"]
    assert layout.index is None
    assert layout.files[0].tensors == ("w.10", "w.2", "z", "é.ids", "scalar")
    assert layout.total_bytes == layout.files[0].size


def test_the_reference_reader_finds_every_tensor_where_the_layout_put_it(tmp_path: Path) -> None:
    layout = plan_layout(METAS, max_shard_bytes=70)
    rng = numpy.random.default_rng(0)
    values = {meta.name: rng.bytes(meta.nbytes) for meta in METAS}
    for file in layout.files:
        data = bytearray(file.size)
        data[: len(file.header)] = file.header
        for name in file.tensors:
            place = layout.place(name)
            assert place.file == file.name
            data[place.offset : place.offset + place.nbytes] = values[name]
        (tmp_path / file.name).write_bytes(data)
    weight_map = json.loads(layout.index)["weight_map"]
    for meta in METAS:
        with safe_open(tmp_path / weight_map[meta.name], "pt") as reader:
            assert reader.metadata() == {"format": "pt"}
            tensor = reader.get_tensor(meta.name)
        assert tuple(tensor.shape) == meta.shape
        assert tensor.dtype == meta.dtype.torch
        raw = tensor.reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []
        assert bytes(raw) == values[meta.name]


sizes = st.lists(st.integers(0, 40), min_size=1, max_size=30)


@settings(max_examples=200)
@given(sizes=sizes, limit=st.integers(1, 80))
def test_shards_are_greedy_whole_and_in_order(sizes: list[int], limit: int) -> None:
    metas = [TensorMeta(f"t{i}", BY_NAME["uint8"], (size,)) for i, size in enumerate(sizes)]
    layout = plan_layout(metas, max_shard_bytes=limit, stem="m")
    by_file = [[int(name[1:]) for name in file.tensors] for file in layout.files]
    assert sorted(i for group in by_file for i in group) == list(range(len(sizes)))
    assert [min(group) for group in by_file] == sorted(min(group) for group in by_file)
    for group, following in zip(by_file, [*by_file[1:], None], strict=True):
        total = sum(sizes[i] for i in group)
        assert total <= limit or len([i for i in group if sizes[i]]) == 1
        if following is not None:
            assert total + sizes[min(following)] > limit
    count = len(by_file)
    expected = [f"m-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert [file.name for file in layout.files] == (expected if count > 1 else ["m.safetensors"])
    if count > 1:
        index = json.loads(layout.index)
        assert index["metadata"] == {"total_size": sum(sizes), "total_parameters": sum(sizes)}
        assert index["weight_map"] == {meta.name: layout.place(meta.name).file for meta in metas}
    assert layout.total_bytes == sum(f.size for f in layout.files) + len(layout.index or b"")


def test_a_layout_survives_json() -> None:
    layout = plan_layout(METAS, max_shard_bytes=70, metadata={"format": "pt", "x": "y"}, stem="model")
    data = json.loads(json.dumps(layout.to_json()))
    assert Layout.from_json(data) == layout
    for key, value in [("stem", "other"), ("max_shard_bytes", 20), ("metadata", {}), ("digest", "x")]:
        with pytest.raises(PlanError) as caught:
            Layout.from_json({**data, key: value})
        assert caught.value.diagnostics[0].code == "CV-E012"
    with pytest.raises(PlanError):
        Layout.from_json({**data, "tensors": [["w.10", "F99", [1]]]})
    with pytest.raises(PlanError):
        Layout.from_json({})


def test_no_tensors_and_twice_the_same() -> None:
    layout = plan_layout([], max_shard_bytes=5)
    assert (len(layout.files), layout.files[0].size, layout.index) == (1, len(layout.files[0].header), None)
    with pytest.raises(ValueError, match="share a name"):
        plan_layout([METAS[0], METAS[0]], max_shard_bytes=None)

"""The memory sink: tensors of every dtype come back bit for bit."""

from __future__ import annotations

import pytest
import torch

from cuvee.core.digests import FileRecord, tensor_digest
from cuvee.core.dtypes import BY_NAME
from cuvee.core.tensors import TensorMeta
from cuvee.errors import RunError
from cuvee.sinks.layout import plan_layout
from cuvee.sinks.memory import MemorySink

SHAPES = [(3, 5), (), (0, 4), (2, 1, 6)]
METAS = [TensorMeta(f"{name}{shape}", dtype, shape) for name, dtype in BY_NAME.items() for shape in SHAPES]


def raw(meta: TensorMeta) -> bytes:
    data = torch.randint(0, 256, (meta.nbytes,), generator=torch.Generator().manual_seed(meta.nbytes))
    return bytes(data.tolist()) if meta.dtype.family != "bool" else bytes((data % 2).tolist())


def test_every_dtype_and_shape_comes_back() -> None:
    sink = MemorySink()
    seen: dict[str, FileRecord] = {}
    layout = plan_layout(METAS, max_shard_bytes=None)
    with sink.begin(layout, "p", resume=True, overwrite=False) as session:
        assert session.done == set()
        for meta in METAS:
            data = raw(meta)
            session.write(meta.name, 0, data[:7])
            session.write(meta.name, len(data[:7]), memoryview(data)[7:])
            session.finish(meta.name)
            assert session.digests[meta.name] == tensor_digest(data)
        assert sink.tensors == {}
        session.commit({"config.json": b"{}"}, lambda files: seen.update(files) or b"manifest")
    assert list(sink.tensors) == [meta.name for meta in METAS]
    for meta in METAS:
        tensor = sink.tensors[meta.name]
        assert (tensor.dtype, tuple(tensor.shape)) == (meta.dtype.torch, meta.shape)
        assert bytes(tensor.reshape(-1).view(torch.uint8).tolist() if tensor.numel() else b"") == raw(meta)
    assert (sink.files, sink.manifest) == ({"config.json": b"{}"}, b"manifest")
    assert sorted(seen) == ["config.json", "model.safetensors"]
    assert seen["model.safetensors"].size == layout.files[0].size


def test_an_incomplete_session_delivers_nothing() -> None:
    sink = MemorySink()
    layout = plan_layout(METAS[:2], max_shard_bytes=None)
    with sink.begin(layout, "p", resume=True, overwrite=False) as session:
        session.write(METAS[0].name, 0, raw(METAS[0]))
        session.finish(METAS[0].name)
        with pytest.raises(RunError, match="1 of 2 tensors"):
            session.commit({}, lambda files: b"")
    assert sink.tensors == {}

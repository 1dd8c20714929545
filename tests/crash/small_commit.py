"""A small output, the run that writes it, and what is true of an output that nobody interrupted."""

from __future__ import annotations

import random
from pathlib import Path

from cuvee.core.digests import canonical_json
from cuvee.core.disk import Disk
from cuvee.core.dtypes import BY_NAME
from cuvee.core.tensors import TensorMeta
from cuvee.errors import OutputBusy
from cuvee.sinks.folder import FolderSink
from cuvee.sinks.layout import Layout, plan_layout
from cuvee.sinks.single import SingleFileSink
from cuvee.testing.faulty_disk import FaultyDisk

OUT = Path("/disk/model")
FILE = Path("/disk/weights.safetensors")
OLD = {"model.safetensors": b"an older model", "config.json": b"{}", "leftover/notes.txt": b"old"}
OLD_FILE = b"an older file"
SIDE_FILES = {"config.json": b'{"a": 1}', "sub/template.jinja": b"{{ x }}"}
PLAN = "plan-1"

METAS = [
    TensorMeta("a", BY_NAME["float32"], (9,)),
    TensorMeta("b", BY_NAME["bfloat16"], (3, 5)),
    TensorMeta("empty", BY_NAME["float32"], (0, 4)),
    TensorMeta("c", BY_NAME["int8"], (41,)),
]
LAYOUT = plan_layout(METAS, max_shard_bytes=70)
FILE_LAYOUT = plan_layout(METAS, max_shard_bytes=None, stem="weights")


def content(meta: TensorMeta) -> bytes:
    return random.Random(meta.name).randbytes(meta.nbytes)


def manifest(files: object) -> bytes:
    return canonical_json({name: [r.kind, r.size, r.digest, r.header] for name, r in files.items()})


def run(disk: Disk, *, shape: str = "folder", overwrite: bool = False, resume: bool = True) -> list[str]:
    """One run from start to end, or to the error that stops it; the tensors it had to write."""
    sink = FolderSink(OUT, disk) if shape == "folder" else SingleFileSink(FILE, disk)
    layout = LAYOUT if shape == "folder" else FILE_LAYOUT
    with sink.begin(layout, PLAN, resume=resume, overwrite=overwrite) as session:
        todo = [meta for meta in METAS if meta.name not in session.done]
        for meta in todo:
            data = content(meta)
            for start in range(0, len(data), 16):
                session.write(meta.name, start, memoryview(data)[start : start + 16])
            session.finish(meta.name)
        session.commit(SIDE_FILES if shape == "folder" else {}, manifest)
    return [meta.name for meta in todo]


def run_until_done(disk: Disk, **how: object) -> None:
    """As a user would: a refusal because the output exists means that it is there."""
    try:
        run(disk, **how)
    except OutputBusy as busy:
        assert [d.code for d in busy.diagnostics] == ["CV-E006"]


def fresh(shape: str = "folder", old: bool = False, **options: object) -> FaultyDisk:
    """A disk with the parent folder, and perhaps an older output."""
    disk = FaultyDisk(**options)
    disk.put(Path("/disk/bystander"), b"not ours")
    if old and shape == "folder":
        for name, data in OLD.items():
            disk.put(OUT / name, data)
    elif old:
        disk.put(FILE, OLD_FILE)
    return disk


def visible(disk: FaultyDisk, shape: str = "folder") -> object:
    """What a reader finds at the output path."""
    if shape == "folder":
        return disk.tree(OUT)
    return disk.tree(FILE.parent).get(FILE.name)


def whole(shape: str = "folder", old: bool = False) -> object:
    """The output of a run that nothing disturbs."""
    disk = fresh(shape, old)
    run(disk, shape=shape, overwrite=old)
    return visible(disk, shape)


def before(shape: str = "folder", old: bool = False) -> object:
    """What is at the output path before any run."""
    return visible(fresh(shape, old), shape)


def layout_of(shape: str) -> Layout:
    return LAYOUT if shape == "folder" else FILE_LAYOUT

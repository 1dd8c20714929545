"""A checkpoint written as one GGUF file: layout first, then every tensor in blocks, one commit.

Owns the way from a source's elements to the file's bytes. Names are the business of `formats.gguf_write_names`,
key-values of `gguf_write_config` and `gguf_write_tokenizer`, durability of `sinks`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cuvee
from cuvee.api.inputs import refuse_other, stamps_of
from cuvee.api.record import libraries
from cuvee.bundle.manifest_form import Origin, build
from cuvee.core.digests import bytes_digest, canonical_json
from cuvee.core.disk import REAL, Disk
from cuvee.core.dtypes import BY_CODE
from cuvee.core.lazy import torch
from cuvee.core.names import did_you_mean, printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import Diagnostic, NonFinite, OutputBusy, SourceError, UsageError, Where
from cuvee.formats.gguf_write import GgufTensor, encode_header, packed
from cuvee.formats.gguf_write_config import config_metadata, facts_of, general_metadata
from cuvee.formats.gguf_write_names import Heads, Outgoing, encoding_of, outgoing
from cuvee.formats.gguf_write_tokenizer import tokenizer_metadata
from cuvee.sinks.layout import Layout, Place, PlannedFile
from cuvee.sinks.single import SingleFileSink
from cuvee.sinks.sink import Session
from cuvee.sources.open import open_source
from cuvee.sources.source import Source, unfetched, weight_files

if TYPE_CHECKING:
    from torch import Tensor

ENCODINGS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
_SPELLINGS = {
    "float32": "f32",
    "float16": "f16",
    "bfloat16": "bf16",
    "fp32": "f32",
    "fp16": "f16",
    "q8": "q8_0",
}
# From here on a magnitude rounds to infinity (Q8_0: its scale, a 127th of it, does). BF16: half a step above.
_LARGEST = {"F16": 65520.0, "Q8_0": 65520.0 * 127, "BF16": 2.0**128 * (1 - 2.0**-9)}
_BLOCK = 1 << 20  # elements read at once; a multiple of what any encoding packs together


@dataclass(frozen=True, slots=True)
class GgufPlan:
    """The whole file but for its elements: key-values, tensors with where they come from, what to say."""

    header: bytes
    entries: tuple[tuple[GgufTensor, Outgoing | tuple[float, ...]], ...]
    notes: tuple[Diagnostic, ...]


@dataclass(frozen=True, slots=True)
class GgufSaved:
    """What was written, and what a person should know about it."""

    path: Path
    notes: tuple[Diagnostic, ...]


def convert_to_gguf(
    source: str,
    out: Path,
    dtype: str,
    *,
    overwrite: bool,
    offline: bool,
    resume: bool = True,
    paranoid: bool = False,
    disk: Disk = REAL,
) -> GgufSaved:
    """Write a checkpoint (adapters applied) as the GGUF file `out`, all or nothing; a manifest lies beside it.

    `dtype` is f32, f16, bf16 or q8_0. Vectors, norms and routers are float32 whatever it says; with q8_0, rows
    that are not whole blocks of 32 are float16. An interrupted run is resumed by the same call. `paranoid`: the file is
    read back from the device before it appears.

    Raises:
        UsageError: CV-E040 an unknown dtype.
        SourceError: the model has no form in GGUF (CV-S090 to CV-S093), or cannot be read.
        NonFinite: CV-E041 elements that are NaN or infinite, or overflow the type.
        OutputBusy: something is at `out` and `overwrite` is false, or `out` is what is read.
        OutOfSpace: before anything large is written.
    """
    wanted = encoding_named(dtype)
    opened = open_source(source, anchor=Path(), offline=offline)
    try:
        _refuse_input(opened, source, out)
        plan = plan_gguf(opened, wanted, name=_model_name(opened, out))
        layout = _layout(plan, out)
        identity = {"gguf": wanted, "source": opened.identity(), "header": bytes_digest(plan.header)}
        digest = bytes_digest(canonical_json(identity))
        for file in unfetched(opened):
            file.fetch()
        before = stamps_of(weight_files(opened))  # headers say nothing of values, which must not be mixed
        key = bytes_digest(canonical_json([digest, dict(before)]))
        sink = SingleFileSink(out, disk, paranoid=paranoid)
        with sink.begin(layout, key, resume=resume, overwrite=overwrite) as session:
            _write(opened, plan, session)
            refuse_other(before)
            origin = _origin(opened, digest)
            session.commit({}, lambda records: build(origin, layout, session.digests, records))
    finally:
        opened.close()
    return GgufSaved(out, plan.notes)


def encoding_named(dtype: str) -> str:
    """The encoding a person means (`q8_0`: `Q8_0`); UsageError when there is none of that name."""
    word = dtype.lower()
    word = _SPELLINGS.get(word, word)
    if word not in ENCODINGS:
        raise UsageError(
            "CV-E040",
            f"`{printable(dtype, 40)}` is not a type of GGUF files, expected f16, bf16, f32 or q8_0",
            hint=did_you_mean(word, ENCODINGS),
        )
    return ENCODINGS[word]


def plan_gguf(source: Source, wanted: str, *, name: str) -> GgufPlan:
    """Everything about the file that is known without reading an element."""
    if source.config is None:
        raise SourceError(
            "CV-S092",
            f"`{printable(source.label)}` has no config, so it cannot be written to GGUF",
            where=Where(source=source.label),
            hint="name the model's folder, with its `config.json`",
        )
    facts = facts_of(source.config)
    architecture = facts.architecture
    heads = Heads(facts.query_heads, facts.key_heads)
    found = outgoing(architecture, source.tensors, heads, tied=facts.tied)
    embedding = next(tensor for tensor in found if tensor.name == "token_embd.weight")
    values, rope = config_metadata(facts, rows=embedding.shape[0])
    _check_depth(found, facts.whole("num_hidden_layers"), source.label)
    tokenizer = tokenizer_metadata(source.file, source.config, embedding.shape[0])
    entries: list[tuple[GgufTensor, Outgoing | tuple[float, ...]]] = [
        (GgufTensor(table, (len(numbers),), "F32"), numbers) for table, numbers in rope.tables.items()
    ]
    entries += [(GgufTensor(t.name, t.shape, encoding_of(t, wanted)), t) for t in found]
    parameters = sum(entry.numel for entry, _ in entries)
    metadata = general_metadata(name, architecture, parameters, wanted) | values | tokenizer.values
    notes = [
        Diagnostic("CV-S096", text, Where(source=source.label), severity="note") for text in tokenizer.remarks
    ]
    notes += _lossy_notes([entry for entry, _ in entries], wanted, source)
    header = encode_header(metadata, [entry for entry, _ in entries])
    return GgufPlan(header, tuple(entries), tuple(notes))


def _check_depth(found: list[Outgoing], layers: int, label: str) -> None:
    there = {tensor.name.split(".")[1] for tensor in found if tensor.name.startswith("blk.")}
    if len(there) != layers:
        raise SourceError(
            "CV-S091",
            f"`{printable(label)}` has {len(there)} layers, and its config says {layers}",
            where=Where(source=label, file="config.json"),
        )


def _lossy_notes(entries: list[GgufTensor], wanted: str, source: Source) -> list[Diagnostic]:
    fallen = [e.name for e in entries if wanted == "Q8_0" and e.encoding == "F16"]
    notes = []
    if fallen:
        message = (
            f"{len(fallen)} tensors whose rows are not whole blocks of 32 are stored as F16, such as "
            f"`{fallen[0]}`"
        )
        notes.append(Diagnostic("CV-S097", message, Where(source=source.label), severity="note"))
    config = source.config or {}
    if config.get("model_type") == "mistral" and config.get("sliding_window"):
        message = "the file cannot say that attention is limited to a window; readers attend to all positions"
        notes.append(Diagnostic("CV-S097", message, Where(source=source.label), severity="warning"))
    return notes


def _layout(plan: GgufPlan, out: Path) -> Layout:
    """One file; each tensor's place includes the padding after it, so that nothing lies between two places."""
    offset = len(plan.header)
    places: dict[str, Place] = {}
    for tensor, _ in plan.entries:
        places[tensor.name] = Place(out.name, offset, tensor.padded)
        offset += tensor.padded
    metas = {n: TensorMeta(n, BY_CODE["U8"], (place.nbytes,)) for n, place in places.items()}
    file = PlannedFile(out.name, plan.header, tuple(places), offset)
    return Layout(metas, (file,), places, out.stem, None, {}, None)


def _write(source: Source, plan: GgufPlan, session: Session) -> None:
    for tensor, origin in plan.entries:
        if tensor.name in session.done:
            continue
        offset = 0
        values = _blocks(source, origin) if isinstance(origin, Outgoing) else iter([torch.tensor(origin)])
        for block in values:
            _check(block, tensor)
            data = packed(block, tensor.encoding)
            session.write(tensor.name, offset, data.data)
            offset += data.nbytes
        if tensor.padded > offset or not offset:
            session.write(tensor.name, offset, bytes(tensor.padded - offset))
        session.finish(tensor.name)


def _blocks(source: Source, tensor: Outgoing) -> Iterator[Tensor]:
    """The tensor's elements in the file's order, as float32."""
    for name in tensor.origins:
        meta = source.tensors[name]
        step = _BLOCK
        if tensor.change == "interleaved":
            head = meta.numel // tensor.heads
            step = max(1, _BLOCK // max(head, 1)) * head
        for start in range(0, meta.numel, max(step, 1)):
            block = source.read(name, start, min(start + step, meta.numel)).to(torch.float32)
            if tensor.change == "shifted":
                block = block + 1
            elif tensor.change == "interleaved":
                rows = meta.shape[0] // tensor.heads
                block = block.view(-1, 2, rows // 2, meta.numel // meta.shape[0]).transpose(1, 2)
            yield block.reshape(-1)


def _check(block: Tensor, tensor: GgufTensor) -> None:
    """NonFinite when a block holds NaN or infinity, or the tensor's type would make infinity of it."""
    if not block.numel():
        return
    low, high = (float(value) for value in torch.aminmax(block))  # NaN comes through
    largest = max(-low, high)
    if not (math.isfinite(low) and math.isfinite(high)):
        reason, hint = "holds values that are NaN or infinite", None
    elif largest >= _LARGEST.get(tensor.encoding, math.inf):
        reason = f"holds values that overflow `{tensor.encoding.lower()}`, such as {largest:g}"
        hint = "choose `--dtype bf16` or `--dtype f32`"
    else:
        return
    where = Where(tensor=tensor.name)
    raise NonFinite("CV-E041", f"`{printable(tensor.name)}` {reason}", where=where, hint=hint)


def _refuse_input(source: Source, written: str, out: Path) -> None:
    """OutputBusy when the output would replace what it is made from."""
    files = {Path(part.strip()).resolve() for part in written.split("+")}
    files |= {path.resolve() for path in weight_files(source)}
    if out.resolve() in files:
        raise OutputBusy(
            "CV-E031",
            f"`{printable(str(out))}` is the source of this conversion",
            hint="choose another output; inputs are never written to",
        )


def _model_name(source: Source, out: Path) -> str:
    name = source.identity().get("name")
    return str(name).rpartition("/")[2] if name else out.stem


def _origin(source: Source, digest: str) -> Origin:
    lock = {"version": 1, "sources": {"source": source.identity()}}
    numerics = {"compute": ["float32"], "libraries": libraries()}
    return Origin("", digest, lock, {"convert": cuvee.__version__}, numerics, cuvee.__version__)

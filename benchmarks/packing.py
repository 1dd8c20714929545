"""How small experts get when they are packed against their base, and how fast they are read again.

    python benchmarks/packing.py BASE EXPERT... [--json FILE]

For each expert: bits a weight of the packed file, beside the entropy of the integer differences given the exponent of
the base (counted here, independently of the codec: one distribution for each exponent, of each tensor and of the whole
model), and nanoseconds an element to pack; and, of the processor's time, to decode (in memory, one thread) and to read
through the source.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from cuvee.api.pack import pack
from cuvee.formats.packed_codec import CHUNK, KINDS, coding, decoding, frequencies
from cuvee.formats.packed_native import PADDING, codec
from cuvee.sources.bits import bits_of
from cuvee.sources.open import open_source


def ordered(bits: np.ndarray, width: int) -> np.ndarray:
    """Signed integers in the order of the values."""
    wide, sign = bits.astype(np.int64), 1 << (width - 1)
    return np.where(wide & sign, -(wide & (sign - 1)), wide)


def entropy(counts: np.ndarray) -> float:
    """Bits that all these together take in an ideal code of their own."""
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum())


def entropies(expert: Any, base: Any) -> tuple[float, float]:
    """Bits a weight: given the exponent of the base, in each tensor; and over the whole model."""
    own, whole, elements = 0.0, Counter[tuple[int, int]](), 0
    for name, meta in expert.tensors.items():
        kind = KINDS[meta.dtype.name]
        ours, theirs = (bits_of(source, name, 0, meta.numel) for source in (expert, base))
        steps = ordered(ours, 8 * kind.size) - ordered(theirs, 8 * kind.size)
        exponents = theirs >> kind.shift & kind.mask
        for exponent in np.unique(exponents):
            values, counts = np.unique(steps[exponents == exponent], return_counts=True)
            own += entropy(counts)
            whole.update({(int(exponent), int(v)): int(c) for v, c in zip(values, counts, strict=True)})
        elements += meta.numel
    by_exponent: dict[int, list[int]] = {}
    for (exponent, _), count in whole.items():
        by_exponent.setdefault(exponent, []).append(count)
    total = sum(entropy(np.array(counts)) for counts in by_exponent.values())
    return own / elements, total / elements


def best_of(action: Any, times: int = 7) -> float:
    """Median seconds of the processor, which other work on the machine disturbs least."""
    found = []
    for _ in range(times):
        began = time.process_time()
        action()
        found.append(time.process_time() - began)
    return statistics.median(found)


def decoding_speed(expert: Any, base: Any) -> float:
    """Nanoseconds an element, of the largest tensor's first chunks, into memory that is reused as in merges."""
    name = max(expert.tensors, key=lambda n: expert.tensors[n].numel)
    meta = expert.tensors[name]
    kind, chunks = KINDS[meta.dtype.name], min(16, meta.numel // CHUNK)
    pairs = [
        (bits_of(base, name, c * CHUNK, (c + 1) * CHUNK), bits_of(expert, name, c * CHUNK, (c + 1) * CHUNK))
        for c in range(chunks)
    ]
    counts = sum(codec().counted(b, e, kind) for b, e in pairs)
    shares = frequencies(counts)
    there, back = coding(shares), decoding(shares)
    parts = []
    for ground, tuned in pairs:
        body = codec().encode(ground, tuned, kind, there, 8 * CHUNK)
        held = np.frombuffer(body + bytes(PADDING), np.uint8)
        parts.append((held, len(body), ground, np.zeros_like(tuned)))
    return best_of(lambda: codec().decode_into(parts, kind, back), 15) / (CHUNK * len(parts)) * 1e9


def measured(expert: str, base: str, folder: Path) -> dict[str, Any]:
    """One row of the table."""
    began = time.perf_counter()
    report = pack(expert, base, folder / "packed", overwrite=True)
    packing = time.perf_counter() - began
    tuned, ground = open_source(expert, anchor=Path()), open_source(base, anchor=Path())
    packed = open_source(str(folder / "packed"), anchor=Path())
    elements = sum(t.numel for t in report.tensors)

    def read() -> None:
        for name, meta in packed.tensors.items():
            for start in range(0, meta.numel, 4 * CHUNK):
                packed.read(name, start, min(meta.numel, start + 4 * CHUNK))

    read()
    own, whole = entropies(tuned, ground)
    row = {
        "expert": Path(expert).name,
        "dtype": next(iter(tuned.tensors.values())).dtype.name,
        "changed": sum(t.changed for t in report.tensors) / elements,
        "bits": report.bits,
        "entropy_tensors": own,
        "entropy_model": whole,
        "of_entropy": report.bits / whole,
        "fewer_bytes": report.stored / report.nbytes,
        "pack_ns": packing / elements * 1e9,
        "decode_ns": decoding_speed(tuned, ground),
        "read_ns": best_of(read, 3) / elements * 1e9,
    }
    for source in (tuned, ground, packed):
        source.close()
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Sizes and speeds of packed experts")
    parser.add_argument("base")
    parser.add_argument("experts", nargs="+")
    parser.add_argument("--json", type=Path, default=None)
    given = parser.parse_args()
    rows = []
    for expert in given.experts:
        with tempfile.TemporaryDirectory(dir=Path(expert).resolve().parent) as folder:
            rows.append(measured(expert, given.base, Path(folder)))
        print("  ".join(f"{k} {v:.3f}" if isinstance(v, float) else str(v) for k, v in rows[-1].items()))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

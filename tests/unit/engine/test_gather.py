"""Realigned rows, block by block, against indexing in plain torch."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from cuvee.bundle.vocabulary.rows import Segment, table
from cuvee.core.dtypes import BY_NAME, FLOAT32
from cuvee.core.tensors import TensorMeta
from cuvee.engine.evaluate import Evaluator
from cuvee.engine.events import ignore
from cuvee.engine.guard import Guard
from cuvee.engine.options import RunOptions
from cuvee.plan.nodes import Convert, Gather, Node, Read
from cuvee.sources.memory import MemorySource

WIDTH, OWN, OTHER = 12, 300, 200


def segments(seed: int) -> list[Segment]:
    """Random segments of every rule, each a few rows long."""
    chance, found, row = random.Random(seed), [], 0
    while row < 400:
        length = chance.randint(1, 40)
        rule = chance.choice(["own", "own", "blend", "zero", "mean"])
        own = chance.randrange(OWN - length)
        donors = tuple(chance.sample([("a", own), ("b", chance.randrange(OTHER))], chance.randint(1, 2)))
        blend = rule == "blend"
        found.append(Segment(row, row + length, rule, own if rule == "own" else 0, donors if blend else ()))  # type: ignore[arg-type]
        row += length
    return found


def expected(parts: list[Segment], a: Tensor, b: Tensor) -> Tensor:
    """Rows by the definition; the mean in float64 over the rows that are not means."""
    models, rows, filled = {"a": a, "b": b}, [], []
    for part in parts:
        for i in range(part.stop - part.start):
            if part.rule == "own":
                rows.append(a[part.row + i])
            elif part.rule == "blend":
                taken = [models[m][r] for m, r in part.donors]
                rows.append(sum(taken[1:], taken[0]) / len(taken))
            else:
                rows.append(torch.zeros(a.shape[1]))
            filled.append(part.rule != "mean")
    out, kept = torch.stack(rows), torch.tensor(filled)
    if not kept.all():
        out[~kept] = out[kept].double().mean(0).float()
    return out


def evaluator(tensors: dict[str, Tensor], block: int | None) -> Evaluator:
    sources = {name: MemorySource({"w": t}, name) for name, t in tensors.items()}
    options = RunOptions(kernels=False, block=block)
    return Evaluator(sources, {}, options, Guard(options, {}, ignore))


def read(source: str, tensor: Tensor) -> Node:
    dtype = BY_NAME[str(tensor.dtype).removeprefix("torch.")]
    return Convert(Read(source, TensorMeta("w", dtype, tuple(tensor.shape))), FLOAT32)


@pytest.mark.parametrize("block", [None, 1024])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_gathered_as_defined(seed: int, axis: int, block: int | None) -> None:
    torch.manual_seed(seed)
    a, b = torch.randn(OWN, WIDTH).bfloat16(), torch.randn(OTHER, WIDTH).bfloat16()
    parts = segments(seed)
    turned = {name: (t if axis == 0 else t.T.contiguous()) for name, t in (("a", a), ("b", b))}
    rows = parts[-1].stop
    shape = (rows, WIDTH) if axis == 0 else (WIDTH, rows)
    nodes = {name: read(name, t) for name, t in turned.items()}
    node = Gather(nodes["a"], (("b", nodes["b"]),), table("a", OWN, parts), axis, shape)
    blocks = list(evaluator(turned, block).blocks(node))
    assert [start for start, _, _ in blocks] == [0, *(stop for _, stop, _ in blocks[:-1])]
    found = torch.cat([value for _, _, value in blocks]).reshape(shape)
    wanted = expected(parts, a.float(), b.float())
    torch.testing.assert_close(found if axis == 0 else found.T, wanted, rtol=1e-6, atol=1e-7)
    exact = torch.tensor([part.rule != "mean" for part in parts for _ in range(part.stop - part.start)])
    assert torch.equal((found if axis == 0 else found.T)[exact], wanted[exact])
    if axis == 0 and block:
        assert len(blocks) > 1


def test_a_row_filled_by_the_mean_does_not_depend_on_the_cut() -> None:
    a = torch.randn(5000, 3)
    parts = [Segment(0, 5000, "own"), Segment(5000, 5001, "mean")]
    node = Gather(read("a", a), (), table("a", 5000, parts), 0, (5001, 3))
    values = [torch.cat([v for _, _, v in evaluator({"a": a}, block).blocks(node)]) for block in (None, 1024)]
    assert torch.equal(*values)
    torch.testing.assert_close(values[0][-3:], a.double().mean(0).float(), rtol=1e-6, atol=1e-8)


def test_the_mean_takes_one_pass_however_many_rows_it_fills() -> None:
    a = torch.randn(4000, 16)
    parts = []
    for i in range(0, 4000, 100):
        parts += [Segment(len(parts) // 2 * 101, len(parts) // 2 * 101 + 100, "own", i)]
        parts += [Segment(parts[-1].stop, parts[-1].stop + 1, "mean")]
    node = Gather(read("a", a), (), table("a", 4000, parts), 0, (parts[-1].stop, 16))
    one = evaluator({"a": a}, 1024)
    count, source = 0, one.sources["a"].read

    def counted(name: str, start: int = 0, stop: int | None = None) -> Tensor:
        nonlocal count
        count += (stop or 0) - start
        return source(name, start, stop)

    one.sources["a"].read = counted  # type: ignore[method-assign]
    list(one.blocks(node))
    assert count < 3 * a.numel()

"""How much arithmetic a plan asks for, by stage, and the seconds it takes.

Owns the amounts and what each unit costs (`costs.toml`, fitted to measured runs by `benchmarks/fit_costs.py`). Must not
know devices: what waiting adds is told by `plan.cost`.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from cuvee.engine.fused.figures import keeps_all
from cuvee.plan.cost import Moving
from cuvee.plan.nodes import Apply, Node, Read, walk
from cuvee.plan.plan import OutputTensor

OUTPUT, NORM = "output", "norm"  # an element of the output; an entry of a stage that restores the l1 norm
_JOINT = {"trim", "band"}  # cost less with a threshold over many tensors, which gathers a smaller share
_OTHER = 1.2  # nanoseconds of a stage that is not listed
_GENERIC, _TORCH_EACH = 20.0, 8.0  # times as much by torch, and nanoseconds for taking in an input


@cache
def costs() -> Mapping[str, Mapping[str, float]]:
    """Nanoseconds of one thread: for `bytes` read and written, in `stages` for each element and input, and for
    `planning` an input."""
    text = Path(__file__).with_name("costs.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def moving() -> Moving:
    """What reading and writing take of a thread, for each byte."""
    found = costs()["bytes"]
    return Moving(found["read"] * 1e-9, found["written"] * 1e-9)


def planning(tensors: Iterable[OutputTensor]) -> float:
    """Seconds before anything is read, by one thread, whatever the sizes: inputs are found, checked and foreseen."""
    return costs()["planning"]["input"] * 1e-9 * sum(_inputs(tensor.node) for tensor in tensors)


def work_of(tensor: OutputTensor) -> Counter[str]:
    """How many entries each stage takes in for a tensor (`trim@model` with a threshold over many tensors)."""
    found = Counter({OUTPUT: tensor.meta.numel})
    for node in walk(tensor.node):
        if not isinstance(node, Apply) or keeps_all(node):
            continue
        entries = tensor.meta.numel * len(node.inputs)
        found[_name(node)] += entries
        if dict(node.values).get("rescale") == "l1":
            found[NORM] += entries
    return found


def seconds_of(tensor: OutputTensor, *, compiled: bool) -> float:
    """Seconds of one thread for a tensor's arithmetic, without moving its bytes."""
    stages = costs()["stages"]
    work = work_of(tensor)
    output = stages[OUTPUT] * work.pop(OUTPUT)
    nanoseconds = sum(
        stages.get(stage, stages.get(stage.partition("@")[0], _OTHER)) * n for stage, n in work.items()
    )
    if not compiled:
        nanoseconds = _GENERIC * nanoseconds + _TORCH_EACH * _inputs(tensor.node) * tensor.meta.numel
    return (nanoseconds + output) * 1e-9


def _name(node: Apply) -> str:
    return f"{node.stage}@model" if node.group is not None and node.stage in _JOINT else node.stage


def _inputs(root: Node) -> int:
    return sum(isinstance(node, Read) for node in walk(root))

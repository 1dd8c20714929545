"""Attempts to refute what a stage claims in its traits; run them over your own stages.

    from cuvee.testing.stage_contract import refute
    refute(my_stage, {"density": 0.3})

Each function raises AssertionError with the claim that failed. Must not know any particular stage.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cuvee.core import random
from cuvee.methods.contract import Stage, Summary
from cuvee.methods.decompositions import Plain
from cuvee.methods.vectors import is_map
from cuvee.testing.stages import defaulted, run_group
from cuvee.testing.streams import MemoryStream, blocks_of

SHAPES = ((3, 5, 7, 11), (6, 700), (5000,), (1,), ())
BLOCKS = (1024, 4096, None)
Groups = list[list[Tensor]]


def refute(
    stage: Stage,
    params: Mapping[str, Any] | None = None,
    *,
    inputs: int | None = None,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    differentiable: bool = True,
) -> None:
    """Try every claim on random inputs of these shapes; `differentiable=False` skips the gradients."""
    values = defaulted(stage, params or {})
    count = inputs or _inputs(stage)
    groups = sample(count, shapes)
    if stage.role == "space":
        refute_space(stage, values, groups)
        return
    refute_cuts(stage, values, groups)
    refute_purity(stage, values, groups)
    refute_dtypes(stage, values, groups)
    if differentiable:
        refute_gradients(stage, values, groups)


def refute_space(stage: Stage, values: Mapping[str, Any], groups: Groups) -> None:
    """Claims: coordinates share one shape and the inputs' dtype, what comes back from any weighted sum of them is that
    sum of the inputs, and no input is changed.
    """
    wanted = inspect.signature(stage.function).parameters
    for group in (group for group in groups if is_map(tuple(group[0].shape))):
        for dtype in (torch.float32, torch.float64):
            inputs = [tensor.to(dtype) for tensor in group]
            before = [tensor.clone() for tensor in inputs]
            injected = {"decompose": Plain(), "factors": [None] * len(inputs)}
            extra = {name: value for name, value in injected.items() if name in wanted}
            made: Any = stage.function(inputs, **values, **extra)
            one = {(tuple(t.shape), t.dtype) for t in made.tensors}
            _claim(len(one) == 1 and made.tensors[0].dtype == dtype, stage, "coordinates are alike")
            assert stage.leave is not None
            weights = [0.5 - number for number in range(len(inputs))]
            merged = torch.stack([w * t for w, t in zip(weights, made.tensors, strict=True)]).sum(dim=0)
            back = stage.leave(merged, made.frame)
            expected = torch.stack([w * t for w, t in zip(weights, inputs, strict=True)]).sum(dim=0)
            error = float((back - expected).abs().max()) if back.shape == expected.shape else 1.0
            _claim(
                error < 1e-4 and back.dtype == dtype, stage, "sums of coordinates come back as sums of inputs"
            )
            same = all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
            _claim(same, stage, "inputs are not changed")


def _inputs(stage: Stage) -> int:
    """How many tensors the stage is tried with: three experts where it allows them, and what stands beside."""
    if stage.role == "space":
        return 3
    if stage.role != "combine":
        return {None: 1, "base": 2, "experts": 4}[stage.beside]
    return max(stage.inputs[0], min(3, stage.inputs[1] or 3))


def sample(inputs: int, shapes: Sequence[tuple[int, ...]], seed: int = 0) -> Groups:
    """float32 inputs for tensors of these shapes: normal, a tenth of them zero, and every fifth rounded so
    that
    equal magnitudes occur."""
    generator = torch.Generator().manual_seed(seed)
    groups = []
    for shape in shapes:
        group = []
        for _ in range(inputs):
            tensor = torch.randn(shape, generator=generator)
            tensor = torch.where(
                torch.rand(shape, generator=generator) < 0.2, tensor.mul(4).round() / 4, tensor
            )
            group.append(torch.where(torch.rand(shape, generator=generator) < 0.1, 0.0, tensor))
        groups.append(group)
    return groups


def refute_cuts(stage: Stage, values: Mapping[str, Any], groups: Groups) -> None:
    """Claim: the same bits for any cut into blocks, of the summary's pass and of the stage's own."""
    results = [_run(stage, values, groups, block) for block in BLOCKS]
    for block, result in zip(BLOCKS, results, strict=True):
        for group, found, expected in zip(groups, result, results[-1], strict=True):
            shape = tuple(group[0].shape)
            _claim(found.shape == group[0].shape, stage, f"the result has the shape of the inputs {shape}")
            same = torch.equal(torch.nan_to_num(found), torch.nan_to_num(expected))
            _claim(same, stage, f"blocks of {block} elements give the bits of the whole, shape {shape}")


def refute_purity(stage: Stage, values: Mapping[str, Any], groups: Groups) -> None:
    """Claims: no argument is changed in place, and a second call gives the same bits."""
    before = [[tensor.clone() for tensor in group] for group in groups]
    versions = [[tensor._version for tensor in group] for group in groups]
    first = _run(stage, values, groups, None)
    for group, copies, counts in zip(groups, before, versions, strict=True):
        for tensor, copy, version in zip(group, copies, counts, strict=True):
            _claim(tensor._version == version and torch.equal(tensor, copy), stage, "inputs are not changed")
    again = _run(stage, values, groups, None)
    for one, other in zip(first, again, strict=True):
        _claim(torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)), stage, "two calls give the same")


def refute_dtypes(stage: Stage, values: Mapping[str, Any], groups: Groups) -> None:
    """Claims: float32, float64 and bfloat16 are accepted, and the result is in the dtype the stage was
    handed.
    """
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        expected = torch.promote_types(dtype, torch.float32) if stage.upcast else dtype
        cast = [[tensor.to(dtype) for tensor in group] for group in groups]
        for result in _run(stage, values, cast, None):
            _claim(result.dtype == expected, stage, f"{dtype} inputs give {expected}, got {result.dtype}")
            _claim(bool(result.isfinite().all()), stage, f"finite {dtype} inputs give finite results")


def refute_gradients(stage: Stage, values: Mapping[str, Any], groups: Groups) -> None:
    """Claim: with its summary held fixed, the stage's gradient is its directional derivative (float64).

    Tried at random points, away from zeros and ties, along directions in which every |x| grows, so that what
    a selection keeps at its threshold stays kept.
    """
    generator = torch.Generator().manual_seed(1)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64)

    for group in groups:
        inputs = [normal(tensor).requires_grad_() for tensor in group]
        function = _frozen(stage, values, inputs)
        result, probe = function(inputs), normal(inputs[0])
        weighed = (result.reshape(probe.shape) * probe).sum()
        gradients: tuple[Tensor | None, ...] = (None,) * len(inputs)  # a constant has none
        if weighed.requires_grad:
            gradients = torch.autograd.grad(weighed, inputs, allow_unused=True)
        steps = [normal(x).abs() * x.detach().sign() * 1e-10 for x in inputs]
        with torch.no_grad():
            change = function([x + step for x, step in zip(inputs, steps, strict=True)]) - result
        slope = float((change.reshape(probe.shape) * probe).sum())
        terms = [g * step for g, step in zip(gradients, steps, strict=True) if g is not None]
        expected = sum(float(term.sum()) for term in terms)
        size = sum(float(term.abs().sum()) for term in terms)
        _claim(abs(slope - expected) <= 1e-4 * size + 1e-14, stage, "the gradient is the derivative")


def _frozen(
    stage: Stage, values: Mapping[str, Any], inputs: list[Tensor]
) -> Callable[[list[Tensor]], Tensor]:
    """The stage's function of one whole tensor, its summary taken once."""
    access = stage.access_for(values)
    streams = _uniforms(stage, 1)
    fixed = [tensor.detach() for tensor in inputs]
    summary: Summary = {}
    if stage.summarise and stage.scope_for(values):
        summary = stage.summarise(MemoryStream([fixed], access, None, streams), **values)
    wanted = inspect.signature(stage.function).parameters

    def function(tensors: list[Tensor]) -> Tensor:
        (block,) = blocks_of(tensors, access, None)
        injected = {"summary": summary, "uniforms": streams[0], "decompose": Plain(), "block": block}
        injected["factors"] = [None] * len(tensors)
        extra = {name: value for name, value in injected.items() if name in wanted}
        return stage.function(
            block.tensors if stage.role == "combine" else block.tensors[0], **values, **extra
        )

    return function


def _run(stage: Stage, values: Mapping[str, Any], groups: Groups, block: int | None) -> list[Tensor]:
    return run_group(stage, groups, values, block=block, uniforms=_uniforms(stage, len(groups)))


def _uniforms(stage: Stage, count: int) -> list[random.Stream]:
    return [random.Stream(random.key_of(0, stage.name, "0", str(number))) for number in range(count)]


def _claim(holds: bool, stage: Stage, claim: str) -> None:
    if not holds:
        raise AssertionError(f"stage {stage.name} breaks its contract: {claim}")

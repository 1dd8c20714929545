"""Merging within spaces, against a dense float64 evaluation that is written here and nowhere else."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import pytest
import torch

import cuvee
from cuvee.core.random import Stream, key_of
from cuvee.engine.options import RunOptions
from cuvee.errors import CuveeError
from cuvee.methods.contract import Factors, rows_of
from cuvee.methods.decompositions import Plain
from cuvee.methods.registry import stage

Array = numpy.ndarray[Any, Any]
Arrays = dict[str, Array]
SHAPES = {"a.weight": (9, 14), "b.weight": (14, 9), "b.bias": (14,), "conv.weight": (4, 3, 2, 2)}
CONDITIONS = [
    ("trim", {"density": 0.4, "scope": "tensor"}),
    ("trim", {"density": 0.3}),
    ("drop", {"density": 0.6}),
]
COMBINES = [
    ("weighted_sum", {}),
    ("weighted_sum", {"normalize": True}),
    ("elect", {}),
    ("elect", {"vote": "unweighted", "divisor": "count"}),
]
RESCALES = [("scale", {"lambda": 0.7}), ("negate", {"lambda": 0.4})]
SPACES = [("full", {}), ("knots", {}), ("knots", {"shared": "input"}), ("core_space", {})]


def models(count: int, rank: int | None, seed: int) -> tuple[list[Arrays], Arrays]:
    draw = numpy.random.default_rng(seed)
    base = {name: draw.normal(size=shape) for name, shape in SHAPES.items()}
    experts = []
    for _ in range(count):
        expert = {}
        for name, shape in SHAPES.items():
            delta = draw.normal(size=shape)
            if rank is not None and len(shape) > 1:
                rows, columns = shape[0], int(numpy.prod(shape[1:]))
                delta = (draw.normal(size=(rows, rank)) @ draw.normal(size=(rank, columns))).reshape(shape)
            expert[name] = base[name] + 0.1 * delta
        experts.append(expert)
    return experts, base


def merged(experts: list[Arrays], base: Arrays, chain: list[Any], **more: Any) -> Arrays:
    def tensors(model: Arrays) -> dict[str, Any]:
        return {name: torch.from_numpy(value) for name, value in model.items()}

    run = more.pop("run", None)
    named = {f"model_{i}": tensors(e) for i, e in enumerate(experts)}
    blend = cuvee.merge(named, base=tensors(base), method=chain, **more)
    return {name: value.numpy() for name, value in blend.load(run).items()}


# --- the dense evaluation --------------------------------------------------------------------------------


def flat(x: Array) -> Array:
    return x.reshape(len(x), -1)


def knots(deltas: list[Array], shared: str = "output") -> tuple[list[Array], Callable[[Array], Array]]:
    shape = deltas[0].shape
    sides = [flat(d) if shared == "output" else flat(d).T for d in deltas]
    u, s, vh = numpy.linalg.svd(numpy.concatenate(sides, axis=1), full_matrices=False)
    r = int((s > 1e-5).sum())
    parts = numpy.split(s[:r, None] * vh[:r], len(deltas), axis=1)

    def back(p: Array) -> Array:
        whole = u[:, :r] @ p
        return (whole if shared == "output" else whole.T).reshape(shape)

    return parts, back


def core(deltas: list[Array]) -> tuple[list[Array], Callable[[Array], Array]]:
    shape, factors = deltas[0].shape, []
    for delta in deltas:
        u, s, vh = numpy.linalg.svd(flat(delta), full_matrices=False)
        r = int((s > 1e-5).sum())
        factors.append((u[:, :r] * numpy.sqrt(s[:r]), numpy.sqrt(s[:r, None]) * vh[:r]))
    left = numpy.linalg.svd(numpy.concatenate([b for b, _ in factors], axis=1), full_matrices=False)[0]
    right = numpy.linalg.svd(numpy.concatenate([a for _, a in factors], axis=0), full_matrices=False)[2].T
    cores = [left.T @ b @ a @ right for b, a in factors]
    return cores, lambda m: (left @ m @ right.T).reshape(shape)


def stay(deltas: list[Array]) -> tuple[list[Array], Callable[[Array], Array]]:
    return deltas, lambda x: x


def trimmed(group: Arrays, density: float, scope: str = "model") -> Arrays:
    if scope == "tensor":
        return {name: trimmed({name: x}, density)[name] for name, x in group.items()}
    every = numpy.sort(numpy.concatenate([abs(x).ravel() for x in group.values()]))
    least = every[len(every) - int(density * len(every))]
    return {name: numpy.where(abs(x) >= least, x, 0) for name, x in group.items()}


def dropped(group: Arrays, density: float, label: str) -> Arrays:
    out = {}
    for name, x in group.items():
        words = Stream(key_of(0, "drop", label, name)).words(0, x.size).numpy().reshape(x.shape)
        out[name] = numpy.where(words < density * 2**32, x, 0) / density
    return out


def elected(values: list[Array], vote: str = "weighted", divisor: str = "weight") -> Array:
    sign = numpy.where(sum(values) < 0, -1.0, 1.0)  # type: ignore[operator]
    agree = [numpy.sign(v) == sign for v in values]
    count = numpy.maximum(sum(agree), 1)  # type: ignore[call-overload]
    total: Array = sum(numpy.where(a, v, 0) for a, v in zip(agree, values, strict=True)) / count
    return total


def dense(experts: list[Arrays], base: Arrays, chain: list[tuple[str, dict[str, Any]]]) -> Arrays:  # noqa: C901
    """The chain by its definition, tensor by tensor, everything in memory."""
    labels = [f"model_{i}" for i in range(len(experts))]
    current: list[Arrays] = [{n: e[n] - base[n] for n in base} for e in experts]
    backs: dict[str, Callable[[Array], Array]] = {}
    explicit = any(name == "leave" for name, _ in chain)
    enters: Mapping[str, Any] = {"knots": knots, "core_space": core, "full": stay}
    for name, given in chain:
        if name in enters:
            for tensor in base:
                if base[tensor].ndim > 1:
                    parts, backs[tensor] = enters[name]([c[tensor] for c in current], **given)
                    for one, part in zip(current, parts, strict=True):
                        one[tensor] = part
        elif name == "trim":
            current = [trimmed(one, **given) for one in current]
        elif name == "drop":
            current = [
                dropped(one, given["density"], label) for one, label in zip(current, labels, strict=True)
            ]
        elif name in ("weighted_sum", "elect"):
            columns = {tensor: [one[tensor] for one in current] for tensor in base}
            share = len(experts) if given.get("normalize") else 1
            combine = (lambda xs: sum(xs) / share) if name == "weighted_sum" else elected  # noqa: B023
            current = [{tensor: combine(xs) for tensor, xs in columns.items()}]
        elif name in ("scale", "negate"):
            factor = given["lambda"] * (1 if name == "scale" else -1)
            current = [{tensor: factor * x for tensor, x in current[0].items()}]
        if name == "leave" or (not explicit and name in ("weighted_sum", "elect")):
            current = [{t: backs[t](x) if t in backs else x for t, x in current[0].items()}]
            backs = {}
    return {name: base[name] + current[0][name] for name in base}


def random_chain(draw: random.Random) -> list[tuple[str, dict[str, Any]]]:
    def some(stages: list[Any], most: int) -> list[Any]:
        return draw.sample(stages, draw.randint(0, most))

    chain = some(CONDITIONS, 1)
    space = draw.random() < 0.9
    chain += [draw.choice(SPACES)] if space else []
    taken = {name for name, _ in chain}
    chain += [c for c in some(CONDITIONS, 1) if c[0] not in taken] + [draw.choice(COMBINES)]
    chain += [*some(RESCALES, 1), ("leave", {})] if space and draw.random() < 0.4 else []
    return chain + some(RESCALES, 2)


@pytest.mark.parametrize("seed", range(24))
def test_random_legal_chains_are_their_dense_evaluation(seed: int) -> None:
    draw = random.Random(seed)
    chain = random_chain(draw)
    experts, base = models(draw.randint(1, 4), draw.choice([None, 2]), seed)
    found = merged(experts, base, chain)
    expected = dense(experts, base, chain)
    for name in base:
        assert numpy.allclose(found[name], expected[name], atol=1e-9), (chain, name)


@pytest.mark.parametrize("space", ["knots", "core_space", "full"])
@pytest.mark.parametrize("count", [1, 5])
def test_a_sum_within_a_space_is_the_sum(space: str, count: int) -> None:
    experts, base = models(count, 2, 3)
    found = merged(experts, base, [space, "weighted_sum"])
    expected = {n: base[n] + sum(e[n] - base[n] for e in experts) for n in base}
    assert all(numpy.allclose(found[n], expected[n], atol=1e-12) for n in base)


def test_the_host_of_knots_sees_all_layers_together() -> None:
    experts, base = models(3, 2, 5)
    chain: list[Any] = [("knots", {}), ("trim", {"density": 0.2}), ("elect", {})]
    parts = {
        n: knots([e[n] - base[n] for e in experts])[0]
        if base[n].ndim > 1
        else [e[n] - base[n] for e in experts]
        for n in base
    }
    kept = [trimmed({n: p[i] for n, p in parts.items()}, 0.2) for i in range(3)]
    assert len({float((kept[0][n] != 0).mean()) for n in base}) > 1  # the threshold is not each tensor's own
    found, named = merged(experts, base, chain), merged(experts, base, "knots_ties", density=0.2)  # type: ignore[arg-type]
    expected = dense(experts, base, chain)
    assert all(numpy.allclose(found[n], expected[n], atol=1e-10) for n in base)
    assert all((found[n] == named[n]).all() for n in base)


@pytest.mark.parametrize("method", ["knots_ties", "knots_dare_ties", "core_space_ties"])
def test_a_memory_budget_and_threads_change_no_bit(method: str) -> None:
    experts, base = models(3, 2, 7)
    roomy = merged(experts, base, method, run=RunOptions())  # type: ignore[arg-type]
    tight = merged(experts, base, method, run=RunOptions(memory=1000, threads=3))  # type: ignore[arg-type]
    assert all((roomy[n] == tight[n]).all() for n in base)


def test_experts_in_another_order_give_the_same() -> None:
    experts, base = models(4, 2, 9)
    for method in ("knots_ties", "core_space_ties"):
        found = merged(experts, base, method)  # type: ignore[arg-type]
        turned = merged(experts[::-1], base, method)  # type: ignore[arg-type]
        assert all(numpy.allclose(found[n], turned[n], atol=1e-9) for n in base)


def test_core_and_full_ties_differ() -> None:
    experts, base = models(3, 2, 11)
    chain: list[Any] = [("trim", {"scope": "tensor", "density": 0.2}), "elect"]
    inside, outside = merged(experts, base, ["core_space", *chain]), merged(experts, base, chain)
    assert not numpy.allclose(inside["a.weight"], outside["a.weight"])


@pytest.mark.parametrize("scale", [0.0, 1e-9])
def test_experts_that_equal_the_base_give_the_base(scale: float) -> None:
    _, base = models(1, None, 13)
    experts = [{n: x + scale for n, x in base.items()} for _ in range(2)]
    for method in ("knots_ties", "core_space_ties", "knots_dare_ties"):
        found = merged(experts, base, method)  # type: ignore[arg-type]
        assert all(numpy.allclose(found[n], base[n], atol=1e-6) for n in base)


@pytest.mark.parametrize(
    ("chain", "code", "told"),
    [
        (["knots", "core_space", "elect"], "CV-P170", "`core_space` within `knots`"),
        (["elect", "leave"], "CV-P171", "never entered"),
        (["knots", "leave", "elect"], "CV-P171", "before the experts are combined"),
        (["knots", "elect", "leave", "leave"], "CV-P171", "twice"),
        (["elect", "knots"], "CV-P172", "combined already"),
        (["knots"], "CV-P010", "no stage"),
        (["knots", "slerp"], "CV-P012", "`slerp` combines weights"),
        (["knots", "elect", "trim"], "CV-P011", "out of order"),
    ],
)
def test_senseless_chains_are_refused(chain: list[str], code: str, told: str) -> None:
    experts, base = models(2, None, 0)
    with pytest.raises(CuveeError) as caught:
        merged(experts, base, chain)
    (found,) = caught.value.diagnostics
    assert found.code == code and told in found.message
    assert found.hint


def test_tables_and_vectors_have_no_space() -> None:
    from cuvee.methods.contract import Place
    from cuvee.methods.vectors import is_map

    assert is_map((3, 4)) and is_map((4, 3, 2, 2)) and is_map((3, 4), Place(role="q"))
    assert is_map((1, 5)) and is_map((5, 1)) and not is_map((0, 5))
    assert not is_map((3,)) and not is_map(()) and not is_map((1, 3, 5)) and not is_map((5, 1, 1))
    assert not is_map((3, 4), Place(role="embeddings")) and not is_map((3, 4), Place(role="head"))


def test_large_inputs_go_through_products_to_the_same_space(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuvee.methods.spaces import bases

    experts, base = models(3, 2, 15)
    found = merged(experts, base, ["knots", "elect"])
    monkeypatch.setattr(bases, "_TOGETHER", 0)
    again = merged(experts, base, ["knots", "elect"])
    assert all(numpy.allclose(found[n], again[n], atol=1e-6) for n in base)


@pytest.mark.parametrize("shape", [(30, 11), (11, 30), (20, 20), (6, 5, 2, 2)])
@pytest.mark.parametrize("shared", ["output", "input"])
def test_knots_of_factors_is_that_of_their_products(shape: tuple[int, ...], shared: str) -> None:
    """Parts of the joint decomposition, up to the sign of a singular vector; no vector for what is only rounding."""
    draw = torch.Generator().manual_seed(1)
    rows, columns = rows_of(shape)
    factors = [
        Factors(torch.randn(rows, rank, generator=draw), torch.randn(rank, columns, generator=draw))
        for rank in (1, 2, 3)
    ]
    deltas = [(f.left.double() @ f.right.double()).float().reshape(shape) for f in factors]
    knots = stage("knots").function
    known = knots(deltas, shared=shared, cut=1e-3, factors=factors, decompose=Plain())
    dense = knots(deltas, shared=shared, cut=1e-3, factors=[None] * 3, decompose=Plain())
    side = rows if shared == "output" else columns
    assert known.tensors[0].shape[0] == dense.tensors[0].shape[0] == min(6, side)
    for one, other in zip(known.tensors, dense.tensors, strict=True):
        torch.testing.assert_close(one.abs(), other.abs(), atol=2e-5, rtol=2e-5)
    back = stage("knots").leave
    assert back is not None
    for part, delta in zip(known.tensors, deltas, strict=True):
        torch.testing.assert_close(back(part, known.frame), delta, atol=1e-5, rtol=1e-5)

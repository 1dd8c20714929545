"""Elections over gathered entries give the bytes of an ordinary merge, and take no more memory than is said."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cuvee
from cuvee.engine.fused import stages
from cuvee.engine.kernels import build, library
from cuvee.engine.options import RunOptions
from cuvee.errors import NonFinite

SHAPES = {"a.weight": (67, 48), "exact": (2048,), "long": (5001,), "short": (77,)}
TYPES = (torch.bfloat16, torch.float16, torch.float32)
Tensors = dict[str, Tensor]

pytestmark = pytest.mark.skipif(library.kernels() is None, reason=f"no kernels: {library.state().reason}")


def models(dtype: torch.dtype, count: int = 4) -> tuple[Tensors, list[Tensors]]:
    """Some entries that did not change, zeros of both signs, and many equal magnitudes."""
    draw = torch.Generator().manual_seed(0)
    base = {n: torch.randn(s, generator=draw).to(dtype) for n, s in SHAPES.items()}
    base["exact"][:300] = -0.0
    experts = []
    for _ in range(count):
        changes = {n: torch.randn(s, generator=draw) ** 3 * 0.05 for n, s in SHAPES.items()}
        changes["long"] = (changes["long"] * 8).round() / 8
        expert = {n: (base[n].float() + change).to(dtype) for n, change in changes.items()}
        expert["exact"][:200] = 0.0
        expert["a.weight"][:9] = base["a.weight"][:9]
        experts.append(expert)
    return base, experts


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the experts of each election that was held over entries."""
    found: list[int] = []
    voted = stages.voted

    def counted(*given: Any) -> Any:
        value = voted(*given)
        if value is not None:
            found.append(len(given[1].inputs))
        return value

    monkeypatch.setattr(stages, "voted", counted)
    return found


def same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name].view(torch.uint8), value.view(torch.uint8)), name


def weights(count: int, seed: int) -> list[float]:
    """Of both signs, some 0, the first two cancelling each other where inputs are equal."""
    draw = random.Random(seed)
    found = [draw.choice((-1.0, 1.0, 1.0)) * draw.random() for _ in range(count)]
    found[seed % count] = 0.0 if seed % 2 else -0.0
    return found


def compare(base: Tensors, experts: list[Tensors], method: Any, rounds: int = 4, **values: Any) -> None:
    generic = RunOptions(kernels=False, threads=1)
    with cuvee.hold(experts, base=base, method=method, run=RunOptions(threads=2), **values) as held:
        out = held.merge()
        for number in range(rounds):
            weight = weights(len(experts), number)
            found = held.merge(out=out, weight=weight)
            blend = cuvee.merge(experts, base=base, method=method, **values, weight=weight)
            same(found, blend.load(generic))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("density", [0.001, 0.2, 0.4, 0.7, 1.0])
def test_ties_with_new_weights(dtype: torch.dtype, density: float, used: list[int]) -> None:
    base, experts = models(dtype)
    for how in ({"merge": "mean"}, {"merge": "mean", "divisor": "count"}, {"merge": "sum"}):
        compare(base, experts, "ties", density=density, **how)
    assert bool(used) == (density < 0.5)  # what is dense is merged as ever


def test_a_base_of_another_type(used: list[int]) -> None:
    (base, _), (_, experts) = models(torch.float32), models(torch.bfloat16)
    compare(base, experts, "ties", density=0.2)
    assert used
    used.clear()
    (base, _), (_, experts) = models(torch.bfloat16), models(torch.float32)
    compare(base, experts, "ties", density=0.2)
    assert used


@pytest.mark.parametrize("scope", ["tensor", "model"])
def test_thresholds_of_tensors_and_of_models(scope: str, used: list[int]) -> None:
    compare(*models(torch.bfloat16), "ties", density=0.3, scope=scope, lam=1.3)
    assert used


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_random_drops_are_gathered_with_their_divisor(dtype: torch.dtype, used: list[int]) -> None:
    compare(*models(dtype), "dare_ties", density=0.3)
    assert used


@pytest.mark.parametrize("merge", ["sum", "mean", "max"])
@pytest.mark.parametrize("zero_sign", ["plus", "minus", "majority"])
def test_every_way_to_merge_those_that_agree(merge: str, zero_sign: str, used: list[int]) -> None:
    elect = ("elect", {"merge": merge, "zero_sign": zero_sign, "vote": "weighted"})
    base, experts = models(torch.float32)
    generic = RunOptions(kernels=False, threads=1)
    chain = [("trim", {"density": 0.2}), elect, ("scale", {"lam": 0.8})]
    held = cuvee.hold(experts, base=base, method=chain)
    held.merge()
    for number in range(3):
        weight = weights(len(experts), number)
        other = [
            ("trim", {"density": 0.2}),
            ("elect", {**elect[1], "weight": weight}),
            ("scale", {"lam": 0.8}),
        ]
        same(
            held.merge(**{"elect.weight": weight}),
            cuvee.merge(experts, base=base, method=other).load(generic),
        )
    assert used


def test_other_densities_and_the_same_again(used: list[int]) -> None:
    base, experts = models(torch.bfloat16)
    with cuvee.hold(experts, base=base, method="ties", density=0.2) as held:
        for number, density in enumerate((0.2, 0.2, 0.2, 0.1, 0.1, {"long": 0.3, "default": 0.1}, 0.1, 0.2)):
            changes = {"density": density, "weight": weights(4, number)}
            same(held.merge(**changes), cuvee.merge(experts, base=base, method="ties", **changes).load())
    assert used


def test_nothing_is_gathered_where_only_lambda_changes(used: list[int]) -> None:
    base, experts = models(torch.bfloat16)
    with cuvee.hold(experts, base=base, method="ties", density=0.2) as held:
        for lam in (0.2, 0.5, 0.9, 1.4):
            held.merge(lam=lam)
        assert not any(key[0] == "entries" for key in held._memo._entries)
    assert not used


def test_what_is_gathered_takes_at_most_half_of_the_experts() -> None:
    for dtype in TYPES:
        base, experts = models(dtype)
        for density in (0.2, 0.4, 0.6):
            with cuvee.hold(experts, base=base, method="ties", density=density) as held:
                for number in range(3):
                    held.merge(weight=weights(4, number))
                kept = [e.value for key, e in held._memo._entries.items() if key[0] == "entries"]
            taken = sum(entries.nbytes for found in kept for entries in found)
            assert (taken > 0) == (density < 0.5)
            assert taken <= sum(t.nbytes for expert in experts for t in expert.values()) / 2


def test_sums_that_are_not_finite_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUVEE_THREADS", "1")  # with two, either tensor may be the first to fail
    base, experts = models(torch.float32)
    large = [{name: tensor * 1e6 for name, tensor in expert.items()} for expert in experts]
    values: dict[str, Any] = {"density": 0.2, "merge": "sum"}
    with cuvee.hold(large, base=base, method="ties", **values) as held:
        for number in range(3):
            held.merge(weight=[weight * 1e-3 for weight in weights(4, number)])
        for weight in ([3e38, -3e38, 3e38, -3e38], [3e38] * 4):
            with pytest.raises(NonFinite) as mine:
                held.merge(weight=weight)
            with pytest.raises(NonFinite) as theirs:
                cuvee.merge(large, base=base, method="ties", weight=weight, **values).load()
            assert str(mine.value) == str(theirs.value)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Kernels for processors without wide vectors."""
    where = tmp_path_factory.mktemp("kernels") / "plain.so"
    command = ["cc", *build.FLAGS, "-O1", str(build.SOURCE), "-o", str(where)]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    return where


@pytest.fixture
def plain(compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(library, "prebuilt", lambda: compiled)
    library._load.cache_clear()
    yield
    monkeypatch.undo()
    library._load.cache_clear()


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_without_wide_vectors(dtype: torch.dtype, plain: None, used: list[int]) -> None:
    assert library.state().path is not None
    assert library.state().path.name == "plain.so"
    for method in ("ties", "dare_ties"):
        used.clear()
        compare(*models(dtype), method, density=0.2)
        assert used, method

"""Held models give, for every method and any change of parameters, the bytes of an ordinary merge."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import cuvee
from cuvee.engine import evaluate
from cuvee.engine.fused import fuse as fused
from cuvee.engine.options import RunOptions
from cuvee.errors import CuveeError, NonFinite, UsageError
from cuvee.methods.registry import get, names, parameters_for
from cuvee.testing.sample_values import sample_values

SHAPES = {"a.weight": (67, 48), "b.weight": (48, 30), "long": (3001,), "one": (), "cube": (3, 5, 7)}
RUNS = {"kernels": RunOptions(), "torch": RunOptions(kernels=False, block=1024, threads=2)}


def tensors(
    seed: int, start: dict[str, Tensor] | None = None, dtype: Any = torch.bfloat16
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    values = noise if start is None else {n: start[n].float() + 0.1 * x for n, x in noise.items()}
    return {name: value.to(dtype) for name, value in values.items()}


BASE = tensors(0)
EXPERTS = [tensors(seed, BASE) for seed in (1, 2, 3)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].view(torch.uint8), value.view(torch.uint8)) if value.dim() else True
        assert torch.equal(found[name], value), name


def other_values(method: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Changes of one parameter at a time: numbers halved, twice each, so that what was kept is used."""
    out = []
    for name, parameter in parameters_for(get(method)).items():
        value = values.get(name, parameter.default)
        if isinstance(value, list):
            value = value[0]
        if not isinstance(value, float) or parameter.problem(value / 2):
            continue
        out += [{name: value / 2}, {name: value}]
    return out


@pytest.mark.parametrize("method", names())
def test_every_candidate_is_what_an_ordinary_merge_gives(method: str) -> None:
    found = get(method)
    experts = EXPERTS[: found.inputs[1] or 3]
    values = sample_values(found, len(experts))
    base = None if found.base == "ordinary" else BASE
    held = cuvee.hold(experts, base=base, method=method, seed=4, **values)
    out: dict[str, Tensor] | None = None
    for changes in [{}, {}, *other_values(method, values), {}]:
        try:
            expected = cuvee.merge(experts, base=base, method=method, seed=4, **{**values, **changes}).load()
        except CuveeError:  # halves that do not go together
            with pytest.raises(CuveeError):
                held.merge(**changes)
            continue
        out = held.merge(out=out, **changes)
        same(out, expected)


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_ties_over_types_scopes_and_rules_by_name(dtype: torch.dtype, run: str) -> None:
    base = tensors(0, None, dtype)
    experts = {f"e{i}": tensors(i, base, dtype) for i in (1, 2, 3)}
    held = cuvee.hold(experts, base=base, method="ties", run=RUNS[run])
    for changes in (
        {"lam": 0.7},
        {"lam": -0.0},
        {"lam": 0.0},
        {"weight": [0.2, 0.5, 0.9]},
        {"weight": [0.2, 0.5, 0.9], "lambda": 2.0},
        {"density": 0.3, "scope": "model"},
        {"density": 0.3, "scope": "model", "lambda": 0.4},
        {"density": {"a.*": 0.1, "default": 0.6}, "lambda": {"b.*": 0.1, "default": 1.5}},
        {"density": {"a.*": 0.1, "default": 0.6}, "lambda": cuvee.curve([0.5, 1.0])},
    ):
        same(held.merge(**changes), cuvee.merge(experts, base=base, method="ties", **changes).load(RUNS[run]))


def test_checkpoints_are_read_once(tmp_path: Path) -> None:
    paths = []
    for i, held in enumerate((BASE, *EXPERTS)):
        save_file(held, tmp_path / f"{i}.safetensors")
        paths.append(tmp_path / f"{i}.safetensors")
    expected = cuvee.merge(EXPERTS, base=BASE, method="ties", lam=0.5).load()
    with cuvee.hold(paths[1:], base=paths[0], method="ties") as held:
        for path in paths:
            path.unlink()
        same(held.merge(lam=0.5), expected)


def test_summaries_are_made_once_where_what_they_depend_on_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    figures, summarised = fused.gathering, evaluate.Evaluator._summarised
    guard = threading.Lock()

    def gathering(figure: str, nodes: Any, kernels: Any) -> Any:
        with guard:
            made.append(figure)
        return figures(figure, nodes, kernels)

    def counted(self: Any, nodes: Any, frame: Any) -> Any:
        with guard:
            made.append(nodes[0].stage)
        return summarised(self, nodes, frame)

    monkeypatch.setattr(fused, "gathering", gathering)
    monkeypatch.setattr(evaluate.Evaluator, "_summarised", counted)
    for method, first, changes, again in (
        ("ties", {"density": 0.3}, {"weight": 0.7}, set()),
        ("ties", {"density": 0.3}, {"density": 0.2}, {"cuts", "trim"}),
        ("slerp", {"t": 0.3}, {"t": 0.6}, set()),
        ("pcb", {}, {"weight": 0.6}, set()),
    ):
        for run in RUNS.values():
            experts = EXPERTS[: get(method).inputs[1] or 3]
            base = None if get(method).base == "ordinary" else BASE
            held = cuvee.hold(experts, base=base, method=method, run=run, **first)
            held.merge()
            assert made
            made.clear()
            held.merge(**changes)
            assert set(made) <= again
            assert bool(made) == bool(again)
            made.clear()


def test_a_chain_is_changed_by_stage() -> None:
    chain = [("trim", {"density": 0.5}), "elect", ("scale", {"lam": 0.8})]
    held = cuvee.hold(EXPERTS, base=BASE, method=chain)
    for changes, stages in (
        ({"scale.lam": 0.3}, [("trim", {"density": 0.5}), "elect", ("scale", {"lam": 0.3})]),
        ({"trim.density": 0.2}, [("trim", {"density": 0.2}), "elect", ("scale", {"lam": 0.8})]),
    ):
        same(held.merge(**changes), cuvee.merge(EXPERTS, base=BASE, method=stages).load())
    with pytest.raises(UsageError) as caught:
        held.merge(lam=0.3)
    assert caught.value.diagnostics[0].code == "CV-U221"


def test_into_a_module_and_into_given_tensors() -> None:
    module = torch.nn.Linear(5, 3)
    state = {n: t.clone() for n, t in module.state_dict().items()}
    other = {n: t + 1 for n, t in state.items()}
    held = cuvee.hold([state, other], method="linear")
    for weight in ([0.5, 0.5], [0.1, 0.9]):
        expected = cuvee.merge([state, other], method="linear", weight=weight).load()
        same(dict(held.into(module, weight=weight).state_dict()), expected)
    out = held.merge()
    kept = {name: tensor.data_ptr() for name, tensor in out.items()}
    assert {n: t.data_ptr() for n, t in held.merge(out=out).items()} == kept
    for wrong in (
        {"bias": out["bias"]},
        {**out, "weight": out["weight"].t()},
        {**out, "bias": out["bias"].half()},
    ):
        with pytest.raises(UsageError) as caught:
            held.merge(out=wrong)
        assert caught.value.diagnostics[0].code == "CV-U220"


def test_wrong_values_are_refused_and_the_models_stay_usable() -> None:
    held = cuvee.hold(EXPERTS, base=BASE, method="ties")
    for wrong in ({"density": 7.0}, {"densty": 0.3}):
        with pytest.raises(CuveeError) as mine:
            held.merge(**wrong)
        with pytest.raises(CuveeError) as theirs:
            cuvee.merge(EXPERTS, base=BASE, method="ties", **wrong).load()
        assert str(mine.value) == str(theirs.value)
    with pytest.raises(CuveeError):
        held.merge(density={"nothing.*": 0.3})
    same(held.merge(lam=0.5), cuvee.merge(EXPERTS, base=BASE, method="ties", lam=0.5).load())


def test_not_a_number_is_named_each_time() -> None:
    bad = {**EXPERTS[1], "long": EXPERTS[1]["long"].clone()}
    bad["long"][7] = torch.nan
    held = cuvee.hold([EXPERTS[0], bad], base=BASE, method="ties")
    for _ in range(3):
        with pytest.raises(NonFinite, match="long"):
            held.merge()


def test_tensors_with_gaps_are_read_as_they_are() -> None:
    turned = [{"w": x["a.weight"].t()} for x in EXPERTS]
    plain = [{"w": x["w"].contiguous()} for x in turned]
    same(cuvee.hold(turned).merge(weight=0.2), cuvee.merge(plain, weight=0.2).load())


@pytest.mark.parametrize("method", ["ties", "pcb"])
def test_what_is_computed_in_float64_counts_in_the_figures_of_the_model(method: str) -> None:
    """Its combined value is not kept; thresholds over the model are of all tensors all the same."""
    models = [{**tensors, "wide": tensors["long"].double() * 2} for tensors in (BASE, *EXPERTS)]
    values = {"scope": "model", "density": 0.3} if method == "ties" else {"ratio": 0.3}
    with cuvee.hold(models[1:], base=models[0], method=method, **values) as held:
        for lam in (0.5, 0.7, 0.5) if method == "ties" else (None, None, None):
            more = {} if lam is None else {"lam": lam}
            expected = cuvee.merge(models[1:], base=models[0], method=method, **values, **more).load()
            same(held.merge(**more), expected)


def test_what_is_filled_lies_apart_from_what_is_held() -> None:
    layer, other = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    with cuvee.hold([layer, dict(other.state_dict())], method="linear", weight=1.0) as held:
        room = torch.empty(9)
        overlapping = {"weight": room[:6].view(2, 3), "bias": room[5:7]}
        views = {"weight": layer.weight.detach().view(-1).view(2, 3), "bias": torch.empty(2)}
        for out in (dict(layer.state_dict()), overlapping, views):
            with pytest.raises(UsageError, match="lies in the memory of") as caught:
                held.merge(out=out)
            assert caught.value.diagnostics[0].code == "CV-U220"
        with pytest.raises(UsageError, match="of the model `expert_1`"):
            held.into(layer)
        assert all(torch.equal(tensor, before[name]) for name, tensor in layer.state_dict().items())
        side_by_side = {"weight": room[:6].view(2, 3), "bias": room[6:8]}
        assert torch.equal(held.merge(out=side_by_side)["bias"], held.merge()["bias"])
        held.into(torch.nn.Linear(3, 2))


def test_a_module_of_other_shapes_is_told_them() -> None:
    models = [{"weight": torch.ones(2, 3)}, {"weight": torch.zeros(2, 3)}]
    with cuvee.hold(models, method="linear", weight=1.0) as held, pytest.raises(UsageError) as caught:
        held.into(torch.nn.Linear(2, 2))
    said = caught.value.diagnostics[0].message
    assert "`weight` is [2, 2] in the module and [2, 3] in the merge" in said
    assert "`bias` is the module's alone" in said

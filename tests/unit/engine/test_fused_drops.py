"""What several single operations became one for: which operations programs hold, and the same bytes either way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.engine.fused import selection
from cuvee.engine.kernels import library
from cuvee.engine.kernels.operations import Code
from cuvee.engine.options import RunOptions

pytestmark = pytest.mark.skipif(library.kernels() is None, reason=f"no kernels: {library.state().reason}")

SHAPE = (40, 1030)  # tiles, and a rest


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A base and 17 experts in bfloat16; a third of the changes are 0."""
    folder = tmp_path_factory.mktemp("drops")
    draw = torch.Generator().manual_seed(3)
    base = torch.randn(SHAPE, generator=draw)
    paths = []
    for expert in range(18):
        change = torch.randn(SHAPE, generator=draw) * (torch.rand(SHAPE, generator=draw) > 1 / 3) * 0.1
        tensor = base + change * (expert > 0)
        paths.append(folder / f"m{expert}.safetensors")
        save_file({"w": tensor.bfloat16()}, paths[-1])
    return paths


class Programs:
    """The operations of every program that runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.codes: list[list[int]] = []
        original = library.Kernels.stream

        def told(kernels: Any, ops: Any, *given: Any) -> Any:
            self.codes.append([op.code for op in ops])
            return original(kernels, ops, *given)

        monkeypatch.setattr(library.Kernels, "stream", told)

    def of(self, code: Code) -> int:
        return sum(codes.count(code) for codes in self.codes)


def saved(
    models: list[Path], out: Path, method: str, experts: int, options: RunOptions, **values: Any
) -> bytes:
    blend = cuvee.merge(models[1 : experts + 1], base=models[0], method=method, **values)
    blend.save(out / "o.safetensors", run=options, overwrite=True, resume=False)
    return (out / "o.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_what_is_kept_is_drawn_once_where_bits_have_room(
    method: str, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"density": 0.4, "rescale": "l1"}
    generic = saved(models, tmp_path, method, 3, RunOptions(kernels=False, threads=1), **values)
    programs = Programs(monkeypatch)
    assert saved(models, tmp_path, method, 3, RunOptions(threads=1), **values) == generic
    assert programs.of(Code.NORMS) > 0
    assert programs.of(Code.KEEP) == 0
    programs.codes.clear()
    assert saved(models, tmp_path, method, 3, RunOptions(threads=1, memory=4096), **values) == generic
    assert programs.of(Code.KEEP) > 0


@pytest.mark.parametrize("experts", [1, 3, 17])
def test_the_mean_of_what_moved_is_one_operation(
    experts: int, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generic = saved(models, tmp_path, "ram", experts, RunOptions(kernels=False, threads=1), epsilon=0.01)
    programs = Programs(monkeypatch)
    assert saved(models, tmp_path, "ram", experts, RunOptions(threads=1), epsilon=0.01) == generic
    assert programs.of(Code.MOVERS) > 0
    assert programs.of(Code.BOOST) == 0


@pytest.mark.parametrize(
    ("method", "experts", "values"),
    [("model_stock", 3, {}), ("nuslerp", 2, {"weight": [0.3, 0.9]}), ("multislerp", 3, {})],
)
def test_a_traced_weighted_sum_is_one_operation(
    method: str,
    experts: int,
    values: dict[str, Any],
    models: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generic = saved(models, tmp_path, method, experts, RunOptions(kernels=False, threads=1), **values)
    programs = Programs(monkeypatch)
    assert saved(models, tmp_path, method, experts, RunOptions(threads=1), **values) == generic
    assert programs.of(Code.MIXED) > 0
    assert programs.of(Code.MULTIPLY_ADD) == 0


@pytest.mark.parametrize("experts", [1, 3, 17])
@pytest.mark.parametrize(
    ("density", "gamma"),
    [(0.9, 0.01), (0.2, 0.3), (0.004, 0.5), (0.5, 0.0), (0.3, 0.6999), (1e-5, 0.2), (0.7, 0.3)],
)
def test_the_middle_of_the_magnitudes_is_summed_in_one_operation(
    experts: int,
    density: float,
    gamma: float,
    models: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = {"density": density, "gamma": gamma}
    generic = saved(models, tmp_path, "breadcrumbs", experts, RunOptions(kernels=False, threads=1), **values)
    programs = Programs(monkeypatch)
    assert saved(models, tmp_path, "breadcrumbs", experts, RunOptions(threads=1), **values) == generic
    assert programs.of(Code.MIXED) > 0
    assert programs.of(Code.TRIM) == 0


TRIMS = [{"density": 0.3}, {"density": 0.3, "count": "official"}, {"density": 0.3, "count": "strict"}]


@pytest.mark.parametrize(
    "conditions",
    [*([("trim", values)] for values in TRIMS), [("drop", {"density": 0.4}), ("trim", {"density": 1.0})]],
)
def test_a_sum_of_what_is_thinned_is_one_operation(
    conditions: list[Any], models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain: Any = [*conditions, ("weighted_sum", {"weight": [0.5, -0.3, 2.0]})]
    generic = saved(models, tmp_path, chain, 3, RunOptions(kernels=False, threads=1))
    programs = Programs(monkeypatch)
    assert saved(models, tmp_path, chain, 3, RunOptions(threads=1)) == generic
    assert programs.of(Code.MIXED) > 0
    assert programs.of(Code.TRIM) == programs.of(Code.KEEP) == 0


@pytest.mark.parametrize("density", [1.0, [1.0, 0.5, 1.0]])
def test_a_band_that_keeps_everything_below_a_figure_of_the_model(
    density: Any, models: list[Path], tmp_path: Path
) -> None:
    """Figures of several tensors are found while nothing is known of stages that want none."""
    chain: Any = [("band", {"density": density}), ("weighted_sum", {"weight": 0.5}), "lines"]
    generic = saved(models, tmp_path, chain, 3, RunOptions(kernels=False, threads=1))
    assert saved(models, tmp_path, chain, 3, RunOptions(threads=1)) == generic


def test_both_thresholds_of_a_band_are_looked_for_as_changes_are_made(
    models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"density": 0.5, "gamma": 0.1}
    generic = saved(models, tmp_path, "breadcrumbs", 3, RunOptions(kernels=False, threads=1), **values)
    monkeypatch.setattr(selection, "spacing", lambda total: 2)
    programs = Programs(monkeypatch)
    assert saved(models, tmp_path, "breadcrumbs", 3, RunOptions(threads=1), **values) == generic
    assert 6 in [codes.count(Code.PICK_CHANGE) for codes in programs.codes]  # two for each expert
    assert programs.of(Code.PICK) == 0

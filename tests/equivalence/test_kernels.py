"""Compiled kernels against the generic path: the whole output file, byte for byte."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import cuvee
from cuvee.engine.events import Event, Finding, Progress
from cuvee.engine.fused import fuse, probes, selection
from cuvee.engine.kernels import library
from cuvee.engine.options import RunOptions
from cuvee.errors import NonFinite
from cuvee.methods.registry import get, names

pytestmark = pytest.mark.skipif(library.kernels() is None, reason=f"no kernels: {library.state().reason}")

FLOATS = ("bfloat16", "float16", "float32")
STORED = (*FLOATS, "float8_e4m3fn", "float8_e5m2")  # what a tensor may be read from
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)  # an example of whole files takes too long to shrink
SHAPES = ((1,), (), (1023,), (1025,), (37, 61), (3, 5, 7), (2, 1024), (70, 80))
WEIGHTS = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 0.5, 1 / 3, 1e30, 1e-30, -7.25, 3.0]), st.floats(-2, 2))
DENSITIES = st.one_of(st.sampled_from([0.0, 1e-9, 0.2, 0.5, 1.0, 1 - 2.0**-40]), st.floats(0, 1))


def values(method: str, draw: Any, experts: int) -> dict[str, Any]:
    """Parameters of a method, as many of them as matter to what is fused."""
    each = lambda strategy: draw(st.lists(strategy, min_size=experts, max_size=experts))  # noqa: E731
    weighted = {"weight": each(WEIGHTS)}
    density = {"density": each(DENSITIES)}
    flag = draw(st.booleans())
    elect = {
        "vote": draw(st.sampled_from(["weighted", "unweighted", "count"])),
        "merge": draw(st.sampled_from(["mean", "sum", "max"])),
        "divisor": draw(st.sampled_from(["weight", "count"])),
        "zero_sign": draw(st.sampled_from(["plus", "majority"])),
    }
    trim = {
        "rescale": draw(st.sampled_from(["none", "l1"])),
        "count": draw(st.sampled_from(["exact", "official", "strict"])),
    }
    drop = {"rescale": draw(st.sampled_from(["inverse_p", "l1", "none"]))}
    scaled = {"lam": draw(WEIGHTS)}
    scope = {"scope": draw(st.sampled_from(["model", "tensor"]))}
    band = {"gamma": each(DENSITIES), "rescale": draw(st.sampled_from(["none", "l1"]))}
    known: dict[str, dict[str, Any]] = {
        "linear": {**weighted, "normalize": flag},
        "passthrough": {"scale": [draw(st.one_of(st.none(), WEIGHTS))]},
        "task_arithmetic": {**weighted, **scaled, "normalize": flag},
        "task_negation": {**weighted, **scaled},
        "ties": {**weighted, **density, **elect, **trim, **scaled, **scope},
        "dare_linear": {**weighted, **density, **drop, **scaled},
        "dare_ties": {**weighted, **density, **drop, **elect, **scaled, "trim_after": draw(DENSITIES)},
        "breadcrumbs": {**weighted, **density, **band, **scaled},
        "breadcrumbs_ties": {**weighted, **density, **band, **elect},
        "slerp": {"t": draw(st.floats(-1, 2)), "threshold": draw(st.sampled_from([0.5, 0.9995]))},
        "nuslerp": weighted,
        "multislerp": {"weight": each(st.floats(0.1, 2)), "normalize": flag},
        "karcher": {"weight": each(st.floats(0.1, 2))},
        "model_stock": {"average": draw(st.sampled_from(["cosines", "angles"])), "clamp": flag},
        "ram": {"epsilon": draw(st.sampled_from([0.0, 1e-5, 0.1])), **scaled},
        "ramplus_tl": {
            "epsilon": draw(st.sampled_from([1e-5, 0.1])),
            "r": draw(st.floats(0, 2)),
            "alpha": draw(st.floats(0, 3)),
            **scope,
        },
        "sce": {
            "select_topk": draw(DENSITIES),
            "mask_scope": draw(st.sampled_from(["all", "weights_only"])),
            "guard": draw(st.sampled_from(["relative", "mergekit"])),
            **scaled,
        },
        "magmax": scaled,
        "consensus": {"strength": each(st.floats(0, 2)), "agree": draw(st.integers(0, 3)), **scaled},
        "pcb": {
            "weight": each(st.floats(-2, 2)),
            "ratio": draw(DENSITIES),
            "clamp": draw(st.floats(0, 0.4)),
            "variant": draw(st.sampled_from(["reference", "vision"])),
        },
        "della": {**window(draw, experts), **weighted, **elect, **scaled, "zero_sign": "plus"},
        "della_linear": {**window(draw, experts), **weighted, **scaled},
        "nearswap": {"t": draw(st.sampled_from([0.0, 1e-8, 1e-3, 0.3]))},
    }
    return known[method] if method in known else traced(method, draw, experts)


def traced(method: str, draw: Any, experts: int) -> dict[str, Any]:
    """Parameters of a method whose stages are run on traced values."""
    each = lambda strategy: draw(st.lists(strategy, min_size=experts, max_size=experts))  # noqa: E731
    share = draw(st.sampled_from([0.0, 0.1, 0.7, 1.0]))
    restore = {"restore": [number == experts - 1 for number in range(experts)]}
    weighted = {"weight": each(WEIGHTS)}
    positive = {"weight": each(st.floats(0.1, 2))}
    scope = {"scope": draw(st.sampled_from(["model", "tensor"]))}
    far = {
        "radius": draw(st.sampled_from([0.0, 0.01, 3.0])),
        "distance": draw(st.sampled_from(["absolute", "relative"])),
    }
    known: dict[str, dict[str, Any]] = {
        "ema": {"decay": share, "start": draw(st.sampled_from(["first", "zero"]))},
        "swa": {"every": draw(st.integers(1, 2))},
        "lawa": {"last": draw(st.integers(1, experts))},
        "pma_ema": {"alpha": share},
        "wsm": {"decay": draw(st.sampled_from(["1 - x", "1 - sqrt(x)"]))},
        "mwa": {"metric": each(st.floats(0.5, 3)), "form": draw(st.sampled_from(["power", "softmax"]))},
        "task_analogy": {**weighted, "lam": draw(WEIGHTS)},
        "task_negation_deployed": {**weighted, "lam": draw(WEIGHTS)},
        "slack_merge": {**weighted, "slack": share},
        "orbit": {**far, **scope, "pull": draw(st.sampled_from(["project", "average"]))},
        "lines": {
            "alpha": draw(st.sampled_from([None, 0.3])),
            "beta": draw(st.sampled_from([None, 0.5])),
            **weighted,
        },
        "varm": {"granularity": draw(st.sampled_from(["model", "layer", "tensor", "element"]))},
        "slerp_fold": {**positive, "steps": draw(st.sampled_from(["share", "weight"])), "threshold": share},
        "warp": {**positive, "eta": share},
        "lwptv": {"keep": share},
        "emr_expert": {**restore, "sums": draw(st.sampled_from(["sum", "mean"]))},
        "tall_masks": {**restore, "strength": each(st.floats(0, 2))},
        "localize_stitch_datafree": {"density": each(DENSITIES), **scope},
    }
    if method == "tall_masks":
        known[method] |= {
            "total": draw(st.sampled_from(["sum", "ties", "ties_official"])),
            "density": draw(DENSITIES),
        }
    return known.get(method, {})


def window(draw: Any, experts: int) -> dict[str, Any]:
    """Densities with windows around them that stay between 0 and 1, and densities that need none."""
    densities = draw(
        st.lists(st.sampled_from([0.0, 1.0, 0.2, 0.31, 0.75]), min_size=experts, max_size=experts)
    )
    epsilons = draw(st.lists(st.floats(0, 0.19), min_size=experts, max_size=experts))
    return {
        "density": densities,
        "epsilon": epsilons,
        "rescale": draw(st.sampled_from(["inverse_q", "l1", "none"])),
    }


METHODS = {
    "linear": (1, 5),
    "passthrough": (1, 1),
    "task_arithmetic": (1, 4),
    "task_negation": (1, 2),
    "ties": (1, 4),
    "dare_linear": (1, 3),
    "dare_ties": (1, 3),
    "breadcrumbs": (1, 3),
    "breadcrumbs_ties": (1, 3),
    "slerp": (2, 2),
    "nuslerp": (2, 2),
    "multislerp": (2, 4),
    "karcher": (1, 4),
    "model_stock": (2, 4),
    "nearswap": (1, 1),
    "ram": (1, 4),
    "ramplus_tl": (1, 4),
    "sce": (1, 4),
    "magmax": (1, 4),
    "della": (1, 3),
    "della_linear": (1, 3),
    "consensus": (1, 4),
    "pcb": (1, 4),
    "ema": (1, 4),
    "swa": (1, 4),
    "lawa": (1, 4),
    "pma_ema": (1, 3),
    "pma_wma": (1, 4),
    "wsm": (2, 4),
    "mwa": (1, 3),
    "task_analogy": (3, 3),
    "task_negation_deployed": (2, 3),
    "slack_merge": (2, 2),
    "orbit": (1, 1),
    "lines": (1, 3),
    "metagpt": (1, 3),
    "varm": (1, 3),
    "slerp_fold": (1, 4),
    "warp": (1, 3),
    "lwptv": (1, 3),
    "emr_expert": (1, 3),
    "tall_masks": (1, 3),
    "onebit_task_vector": (1, 3),
    "localize_stitch_datafree": (1, 3),
}
# What is needed besides, where the defaults alone say nothing.
NEEDED: dict[str, dict[str, Any]] = {
    "slerp": {"t": 0.3},
    "nearswap": {"t": 0.1},
    "lawa": {"last": 1},
    "mwa": {"metric": 1.0},
    "orbit": {"radius": 0.5},
    "emr_expert": {"restore": True},
    "tall_masks": {"restore": True},
}


def model(
    path: Path, seed: int, dtypes: list[str], base: dict[str, torch.Tensor] | None
) -> dict[str, torch.Tensor]:
    """Tensors of odd shapes, coarse so that magnitudes tie, some equal to the base's, some zero."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for number, shape in enumerate(SHAPES):
        dtype = getattr(torch, dtypes[number % len(dtypes)])
        noise = torch.randn(shape, generator=draw)
        if number % 3 == 0:
            noise = (noise * 4).round() / 4
        value = noise if base is None else base[f"t{number}"].float() + 0.25 * noise
        if base is not None and number == 4:
            value = base[f"t{number}"].float()
        tensors[f"t{number}"] = value.to(dtype)
    tensors["steps"] = torch.tensor([1, 2, 3])
    save_file(tensors, path)
    return tensors


class Counting:
    """How many tensors the fast path made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made = self.left = 0
        original = fuse.Fused.tensor

        def counted(fused: Any, *arguments: Any) -> bool:
            done = original(fused, *arguments)
            self.made, self.left = self.made + done, self.left + (not done)
            return done

        monkeypatch.setattr(fuse.Fused, "tensor", counted)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("kernels")


def outcome(blend: cuvee.Blend, out: Path, options: RunOptions) -> bytes | str:
    """The file's bytes, or what was said instead."""
    try:
        blend.save(out, run=options, overwrite=True, resume=False)
    except cuvee.CuveeError as error:
        return str(error)
    return out.read_bytes()


@pytest.mark.parametrize("method", METHODS)
@settings(
    max_examples=7, deadline=None, phases=PHASES, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_bytes_equal_the_generic_path(method: str, folder: Path, data: Any) -> None:
    draw = data.draw
    experts = draw(st.integers(*METHODS[method]))
    inputs = draw(st.lists(st.sampled_from(STORED), min_size=1, max_size=3))
    seed = draw(st.integers(0, 3))
    base = model(folder / "base.safetensors", seed, inputs, None)
    paths = [folder / f"e{i}.safetensors" for i in range(experts)]
    for number, path in enumerate(paths):
        mixed = draw(st.lists(st.sampled_from(STORED), min_size=1, max_size=3))
        model(path, 10 * seed + number + 1, mixed, base)
    types = {"dtype": draw(st.sampled_from([None, None, "bfloat16", "float16"]))}
    types["out_dtype"] = draw(st.sampled_from([None, *FLOATS]))
    with_base = get(method).base != "ordinary"
    blend = cuvee.merge(
        paths,
        base=folder / "base.safetensors" if with_base else None,
        method=method,
        seed=seed,
        **types,
        **values(method, draw, experts),
    )
    try:
        blend.build().close()
    except cuvee.CuveeError:  # weights that cancel and the like
        return
    options = RunOptions(
        threads=draw(st.integers(1, 2)),
        block=draw(st.sampled_from([None, 1024, 3072])),
        memory=draw(st.sampled_from([1 << 12, 128 << 20])),
        non_finite=draw(st.sampled_from(["stop", "allow"])),
    )
    expected = outcome(
        blend, folder / "out.safetensors", RunOptions(kernels=False, non_finite=options.non_finite)
    )
    found = outcome(blend, folder / "out.safetensors", options)
    if isinstance(found, str) and isinstance(
        expected, str
    ):  # which tensor is told first depends on the schedule
        found, expected = found.split(":")[0], expected.split(":")[0]
    assert found == expected


@pytest.mark.parametrize(
    ("stored", "method"),
    [*(("bfloat16", m) for m in METHODS), *(("float8_e4m3fn", m) for m in ("ties", "slerp"))],
)
def test_every_tensor_of_a_fused_method_is_fused(
    stored: str, method: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Counting(monkeypatch)
    base = model(folder / "base.safetensors", 0, ["bfloat16"], None)
    paths = [folder / f"e{i}.safetensors" for i in range(METHODS[method][0])]
    for number, path in enumerate(paths):
        model(path, number + 1, [stored], base)
    needed = NEEDED.get(method, {}) | {"out_dtype": "bfloat16"}
    with_base = get(method).base != "ordinary"
    cuvee.merge(paths, base=folder / "base.safetensors" if with_base else None, method=method, **needed).save(
        folder / "out.safetensors", overwrite=True, resume=False
    )
    assert (made.made, made.left) == (len(SHAPES) + 1, 0)


@pytest.mark.parametrize("kind", ["even", "uneven", "coarse", "mostly equal", "ascending"])
@pytest.mark.parametrize("limits", [(8 << 20, 4 << 20), (0, 4 << 20), (8 << 20, 50)])
def test_selection_from_a_sample_is_exact(
    kind: str, limits: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the sample is good, where it misleads, where most magnitudes tie, and where too much would be held."""
    monkeypatch.setattr(selection, "spacing", lambda total: max(1, min(5, total // 2048)))
    monkeypatch.setattr(selection, "_HELD", limits[0])
    monkeypatch.setattr(probes, "_MOST", limits[1])
    draw = torch.Generator().manual_seed(3)
    base = {"a": torch.randn(40, 1000, generator=draw), "b": torch.randn(7001, generator=draw)}
    save_file(base, tmp_path / "base.safetensors")
    for name in "pq":
        changed = {k: v + _change(kind, v.shape, draw) for k, v in base.items()}
        save_file(changed, tmp_path / f"{name}.safetensors")
    experts = [tmp_path / "p.safetensors", tmp_path / "q.safetensors"]
    for method, values in (
        ("ties", {"density": [0.3, 0.02], "scope": "model"}),
        ("ties", {"density": [0.61, 0.99], "scope": "tensor", "rescale": "l1", "count": "official"}),
        ("breadcrumbs", {"density": [0.5, 0.8], "gamma": [0.01, 0.3]}),
    ):
        blend = cuvee.merge(experts, base=tmp_path / "base.safetensors", method=method, **values)
        for memory in (1 << 12, 128 << 20):
            said = [
                outcome(blend, tmp_path / "out.safetensors", RunOptions(kernels=on, memory=memory))
                for on in (True, False)
            ]
            assert said[0] == said[1]
            assert isinstance(said[0], bytes)


@pytest.mark.parametrize("rescale", ["inverse_q", "l1"])
def test_rows_of_magnitudes_that_hardly_differ_are_ranked_in_order(rescale: str, tmp_path: Path) -> None:
    """Long rows, descending in their last bits; some tied; and one where some are out of order by more."""
    zero = {
        "a": torch.zeros(3, 4099),
        "b": torch.zeros(5000),
        "c": torch.zeros(2, 8193),
        "d": torch.zeros(3, 3584),
    }
    near = {
        k: 1 + torch.arange(v.numel(), 0, -1).reshape(v.shape).div(3, rounding_mode="floor") * 2.0**-23
        for k, v in zero.items()
    }
    near["d"] = torch.randn(zero["d"].shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    save_file(zero, tmp_path / "base.safetensors")
    save_file(near, tmp_path / "one.safetensors")
    blend = cuvee.merge(
        [tmp_path / "one.safetensors"],
        base=tmp_path / "base.safetensors",
        method="della_linear",
        density=0.5,
        epsilon=0.4,
        rescale=rescale,
    )
    said = [outcome(blend, tmp_path / "out.safetensors", RunOptions(kernels=on)) for on in (True, False)]
    assert said[0] == said[1]


def _change(kind: str, shape: tuple[int, ...], draw: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=draw)
    count = noise.numel()
    if kind == "uneven":  # later elements change a thousand times as much
        return noise * torch.logspace(-3, 0, count).reshape(shape)
    if kind == "coarse":
        return (noise * 3).round() / 4
    if kind == "mostly equal":
        return torch.where(torch.rand(shape, generator=draw) < 0.8, 0.0, noise)
    return torch.arange(count).reshape(shape) / count if kind == "ascending" else noise


def test_a_value_that_is_not_finite_is_told_in_the_same_words(folder: Path) -> None:
    tensors = {"a": torch.ones(5000), "b": torch.zeros(3)}
    tensors["a"][4321] = math.nan
    save_file(tensors, folder / "nan.safetensors")
    save_file({k: torch.ones_like(v) for k, v in tensors.items()}, folder / "ones.safetensors")
    for method in ("linear", "ties", "slerp"):
        needed = {"t": 0.5} if method == "slerp" else {}
        base = {} if method != "ties" else {"base": folder / "ones.safetensors"}
        first = [] if base else [folder / "ones.safetensors"]
        blend = cuvee.merge([*first, folder / "nan.safetensors"], method=method, **base, **needed)
        told = {}
        for on in (True, False):
            with pytest.raises(NonFinite) as caught:
                blend.save(
                    folder / "out.safetensors",
                    run=RunOptions(kernels=on, block=1024),
                    overwrite=True,
                    resume=False,
                )
            told[on] = str(caught.value)
        assert told[True] == told[False]
        assert "4321" in told[True]


def test_integers_that_differ_are_refused_in_the_same_words(folder: Path) -> None:
    for name, step in (("p", 1), ("q", 2)):
        save_file({"steps": torch.tensor([0, step]), "w": torch.ones(3)}, folder / f"{name}.safetensors")
    models = [{"model": f"./{name}.safetensors", "parameters": {"weight": 1.0}} for name in "pq"]
    (folder / "integers.yaml").write_text(json.dumps({"merge_method": "linear", "models": models}))
    blend = cuvee.load(folder / "integers.yaml")
    said = [outcome(blend, folder / "out.safetensors", RunOptions(kernels=on)) for on in (True, False)]
    assert said[0] == said[1]
    assert "CV-E020" in str(said[0])


def test_an_allowed_nan_is_merged_and_progress_still_adds_up(folder: Path) -> None:
    tensor = torch.ones(5000)
    tensor[4321] = math.inf
    save_file({"a": tensor}, folder / "inf.safetensors")
    blend = cuvee.merge([folder / "inf.safetensors"], method="linear", weight=0.5, normalize=False)
    seen: list[Event] = []
    options = RunOptions(block=1024, non_finite="warn")
    blend.save(folder / "out.safetensors", run=options, overwrite=True, resume=False, listener=seen.append)
    assert sum(event.bytes for event in seen if isinstance(event, Progress)) == 20000
    assert any(isinstance(event, Finding) for event in seen)


TORCHLESS: dict[
    str, tuple[int, dict[str, Any], dict[str, Any]]
] = {  # experts, and parameters of all and of each
    "linear": (2, {}, {"weight": 0.5}),
    "task_arithmetic": (1, {}, {"weight": 0.5}),
    "ties": (1, {}, {"weight": 0.5, "density": 0.3}),
    "dare_ties": (1, {}, {"weight": 0.5, "density": 0.3}),
    "breadcrumbs": (1, {}, {"weight": 0.5, "density": 0.3}),
    "slerp": (1, {"t": 0.3}, {}),
    "nuslerp": (2, {}, {"weight": 0.5}),
    "multislerp": (2, {}, {"weight": 0.5}),
    "model_stock": (2, {}, {}),
    "karcher": (2, {}, {}),
}


@pytest.mark.parametrize("method", TORCHLESS)
def test_the_command_does_not_import_torch(method: str, tmp_path: Path) -> None:
    base = model(tmp_path / "base.safetensors", 0, ["bfloat16"], None)
    count, shared, own = TORCHLESS[method]
    for number in range(count):
        model(tmp_path / f"{number}.safetensors", 1 + number, ["bfloat16"], base)
    models = [{"model": f"./{n}.safetensors", "parameters": own} for n in range(count)]
    recipe: dict[str, Any] = {"merge_method": method, "parameters": shared, "models": models}
    if method not in ("linear", "karcher"):
        recipe["base_model"] = "./base.safetensors"
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "from cuvee.cli import main\n"
        "main()"
    )
    arguments = ["merge", "recipe.yaml", "-o", "out.safetensors", "--quiet", "--offline"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "False"


def test_the_methods_that_are_fused_are_the_ones_listed() -> None:
    assert set(METHODS) <= set(names())


@pytest.mark.parametrize("experts", [1, 3, 9])
def test_a_strict_count_drops_the_least_at_density_one(experts: int) -> None:
    base = {"w": torch.zeros(2048)}
    others = [{"w": (k + 1) * torch.arange(1.0, 2049.0)} for k in range(experts)]
    blend = cuvee.merge(others, base=base, method="ties", density=1.0, count="strict")
    plain = blend.load(RunOptions(kernels=False))["w"]
    assert plain[0] == 0
    assert torch.equal(blend.load()["w"], plain)

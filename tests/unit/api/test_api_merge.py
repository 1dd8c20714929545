"""`cuvee.merge` in Python, against plain torch arithmetic written here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cuvee
from cuvee.errors import PlanError, RecipeError, UsageError

Tensors = dict[str, Tensor]


def tensors(seed: int, **shapes: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def model(seed: int) -> Tensors:
    layers = {f"layers.{i}.{part}.weight": (3, 4) for i in range(4) for part in ("mlp", "attn")}
    return tensors(seed, **{"embed.weight": (5, 4), **layers, "norm.weight": (4,)})


A, B, C, BASE = model(1), model(2), model(3), model(0)


def same(found: Tensors, expected: Tensors, tolerance: float = 2e-6) -> None:
    assert list(found) == list(expected) or set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        torch.testing.assert_close(
            found[name], value, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_mean_of_dictionaries() -> None:
    same(cuvee.merge([A, B, C]).load(), {n: (A[n] + B[n] + C[n]) / 3 for n in A})


def test_one_value_for_each_expert() -> None:
    found = cuvee.merge([A, B], weight=[3.0, 1.0]).load()
    same(found, {n: 0.75 * A[n] + 0.25 * B[n] for n in A})
    raw = cuvee.merge({"a": A, "b": B}, weight=[3.0, 1.0], normalize=False).load()
    same(raw, {n: 3 * A[n] + B[n] for n in A}, 1e-5)


def test_task_vectors_from_a_base() -> None:
    found = cuvee.merge([A, B], base=BASE, method="task_arithmetic", weight=[0.5, 0.25], lam=0.8).load()
    same(found, {n: BASE[n] + 0.8 * (0.5 * (A[n] - BASE[n]) + 0.25 * (B[n] - BASE[n])) for n in A}, 1e-5)


def test_patterns_with_a_default_wherever_it_stands() -> None:
    pattern = {"default": 0.0, "*.mlp.*": 1.0, "embed": 0.5}
    found = cuvee.merge([A, B], method="slerp", t=pattern).load()
    for name in A:
        t = 1.0 if ".mlp." in name else 0.5 if name.startswith("embed") else 0.0
        if t in (0.0, 1.0):
            torch.testing.assert_close(found[name], B[name] if t else A[name], rtol=1e-5, atol=1e-6)
    x, y = A["embed.weight"].flatten().double(), B["embed.weight"].flatten().double()
    angle = torch.acos(x @ y / (x.norm() * y.norm()))
    middle = (torch.sin(angle / 2) / torch.sin(angle) * (x + y)).reshape(5, 4).float()
    torch.testing.assert_close(found["embed.weight"], middle, rtol=1e-5, atol=1e-6)


SHARES = {"linear": [0, 1 / 3, 2 / 3, 1], "step": [0, 0, 0, 1], "cosine": [0, 0.25, 0.75, 1]}


@pytest.mark.parametrize(("shape", "shares"), SHARES.items())
def test_a_curve_over_the_layers(shape: str, shares: list[float]) -> None:
    weight = cuvee.curve([0.0, 1.0], shape)
    found = cuvee.merge([A], base=BASE, method="task_arithmetic", weight=weight).load()
    for layer, share in enumerate(shares):
        name = f"layers.{layer}.mlp.weight"
        torch.testing.assert_close(
            found[name], BASE[name] + share * (A[name] - BASE[name]), rtol=1e-5, atol=1e-6
        )
    as_list = cuvee.merge(
        {"a": A, "b": B}, base=BASE, method="task_arithmetic", lam=[0.0, 1.0], weight=1.0
    ).load()
    name = "layers.3.attn.weight"
    torch.testing.assert_close(as_list[name], A[name] + B[name] - BASE[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(as_list["layers.0.attn.weight"], BASE["layers.0.attn.weight"])


def test_a_chain_of_stages() -> None:
    chain = [("trim", {"density": 0.5, "scope": "tensor"}), "weighted_sum", ("scale", {"lambda": 0.5})]
    found = cuvee.merge([A, B], base=BASE, method=chain).load()
    for name in A:
        total = torch.zeros_like(A[name])
        for expert in (A, B):
            delta = (expert[name] - BASE[name]).flatten()
            kept = torch.zeros_like(delta)
            best = delta.abs().topk(max(1, round(0.5 * delta.numel()))).indices
            kept[best] = delta[best]
            total += kept.reshape(total.shape)
        torch.testing.assert_close(found[name], BASE[name] + 0.5 * total, rtol=1e-5, atol=1e-5)


def test_merges_nest() -> None:
    inner = cuvee.merge([A, B])
    found = cuvee.merge([inner, C], weight=[2.0, 1.0]).load()
    same(found, {n: (2 * (A[n] + B[n]) / 2 + C[n]) / 3 for n in A}, 1e-5)
    as_base = cuvee.merge([C], base=inner, method="task_arithmetic", weight=0.5).load()
    same(as_base, {n: (A[n] + B[n]) / 2 * 0.5 + 0.5 * C[n] for n in A}, 1e-5)


def test_paths_modules_and_checkpoints(zoo: Path) -> None:
    base, math = (cuvee.open(zoo / name) for name in ("base", "math"))
    with base, math:
        expected = {n: (base.tensor(n) + math.tensor(n)) / 2 for n in base.source.tensors}
        same(cuvee.merge([base, math]).load(), expected)
        same(cuvee.merge([zoo / "base", str(zoo / "math")]).load(), expected)
        same(cuvee.merge([{n: base.tensor(n) for n in expected}, zoo / "math"]).load(), expected)


class Net(nn.Module):
    def __init__(self, seed: int, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def test_modules_in_and_out() -> None:
    with torch.random.fork_rng():
        one, two, target = Net(1), Net(2), Net(3)
    blend = cuvee.merge([one, two])
    returned = blend.into(target)
    assert returned is target
    state = {n: t for n, t in one.state_dict().items() if t.is_floating_point()}
    for name in state:
        torch.testing.assert_close(
            target.state_dict()[name], (one.state_dict()[name] + two.state_dict()[name]) / 2
        )
    with torch.random.fork_rng(), pytest.raises(UsageError) as caught:
        blend.into(nn.Linear(4, 6))
    assert caught.value.diagnostics[0].code == "CV-U012"


def test_tied_modules() -> None:
    with torch.random.fork_rng():
        one, two, target = Net(1, tied=True), Net(2, tied=True), Net(3, tied=True)
    cuvee.merge([one, two]).into(target)
    expected = (one.embed.weight + two.embed.weight) / 2
    torch.testing.assert_close(target.embed.weight, expected)
    assert target.head.weight is target.embed.weight


def test_inputs_are_left_alone() -> None:
    before = {n: t.clone() for n, t in A.items()}
    cuvee.merge([A, B], base=BASE, method="ties", density=0.3).load()
    for name, tensor in before.items():
        assert torch.equal(A[name], tensor)


def test_types(tmp_path: Path) -> None:
    half = cuvee.merge([A, B], out_dtype="bfloat16").load()
    assert {t.dtype for t in half.values()} == {torch.bfloat16}
    same({n: t.float() for n, t in half.items()}, {n: ((A[n] + B[n]) / 2).bfloat16().float() for n in A}, 0)
    wide = cuvee.merge([A, B], dtype=torch.float64, out_dtype=torch.float64).load()
    same(wide, {n: (A[n].double() + B[n].double()) / 2 for n in A}, 1e-15)


def test_the_seed_decides_random_masks() -> None:
    def run(seed: int) -> Tensors:
        return cuvee.merge({"a": A}, base=BASE, method="dare_linear", density=0.5, seed=seed).load()

    same(run(3), run(3), 0)
    assert any(not torch.equal(run(3)[n], run(4)[n]) for n in A)
    for name, tensor in run(3).items():
        change = tensor - BASE[name]
        full = 2 * (A[name] - BASE[name])  # kept entries are rescaled by 1 / density
        dropped = change.abs() < 1e-6
        torch.testing.assert_close(
            torch.where(dropped, 0.0, change), torch.where(dropped, 0.0, full), rtol=1e-4, atol=1e-5
        )


def test_saving_and_loading_agree(tmp_path: Path, zoo: Path) -> None:
    from safetensors.torch import load_file

    blend = cuvee.merge([zoo / "math", zoo / "code"], base=zoo / "base", method="ties", density=0.4)
    saved = blend.save(tmp_path / "out")
    assert saved.path == tmp_path / "out"
    same(load_file(tmp_path / "out" / "model.safetensors"), blend.load(), 0)
    assert cuvee.verify(tmp_path / "out") == []
    with pytest.raises(cuvee.CuveeError) as caught:
        blend.save(tmp_path / "out")
    assert caught.value.diagnostics[0].code == "CV-E006"
    blend.save(tmp_path / "out", overwrite=True)
    blend.save(tmp_path / "one.safetensors")
    same(load_file(tmp_path / "one.safetensors"), blend.load(), 0)


def test_a_recipe_file(here: Path) -> None:
    (here / "r.yaml").write_text("merge_method: linear\nmodels:\n" + "".join(
        f"  - {{model: ./{name}, parameters: {{weight: {weight}}}}}\n" for name, weight in (("math", 1), ("code", 3))
    ))  # fmt: skip
    found = cuvee.load("r.yaml").load()
    with cuvee.open("./math") as math, cuvee.open("./code") as code:
        same(found, {n: (math.tensor(n) + 3 * code.tensor(n)) / 4 for n in found})
    assert cuvee.load("r.yaml").plan().tensors == tuple(found)
    changed = cuvee.load("r.yaml").with_(seed=7)
    assert changed.recipe.seed == 7


def test_views(zoo: Path) -> None:
    blend = cuvee.merge([zoo / "math", zoo / "code"], base=zoo / "base", method="ties", density=0.4)
    plan = blend.plan()
    assert "ties" in str(plan)
    assert str(plan).splitlines()[0].startswith("recipe")
    assert plan.as_json()
    for page in (
        plan._repr_html_(),
        blend._repr_html_(),
        cuvee.diff(zoo / "base", zoo / "math")._repr_html_(),
    ):
        assert page.count("<") == page.count(">")
        assert page.startswith("<")
    summary = cuvee.inspect(zoo / "base")
    assert summary["schema"] == "cuvee.inspect/1"
    assert summary["family"]["name"] == "llama"
    assert summary["parameters"] == sum(
        t.numel() for t in cuvee.merge([zoo / "base"], method="passthrough").load().values()
    )


def test_diff_in_figures() -> None:
    x, y = {"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([3.0, 0.0]), "v": torch.ones(2)}
    found = {t.name: t for t in cuvee.diff(x, y).tensors}
    assert (found["w"].norm_a, found["w"].norm_b, found["w"].norm_difference) == (5.0, 3.0, 4.0)
    assert found["w"].cosine == pytest.approx(9 / 15)
    assert (found["w"].max_change, found["w"].changed, found["v"].status) == (4.0, 1, "only_b")
    assert cuvee.diff(x, x).same


WRONG: dict[str, tuple[type[Exception], str, str | None, dict[str, Any]]] = {
    "parameter": (RecipeError, "CV-R007", "did you mean `density`?", {"method": "ties", "densty": 0.3}),
    "lambda": (RecipeError, "CV-R007", "did you mean `lam`?", {"method": "ties", "lm": 0.3}),
    "range": (RecipeError, "CV-R010", None, {"method": "ties", "density": 1.5}),
    "type": (RecipeError, "CV-R010", None, {"method": "ties", "density": "lots"}),
    "count": (RecipeError, "CV-R010", None, {"method": "linear", "weight": [1.0]}),
    "pattern": (RecipeError, "CV-R010", None, {"method": "ties", "density": {"*": -1}}),
    "method": (RecipeError, "CV-R060", "did you mean `ties`?", {"method": "tise"}),
    "stage": (RecipeError, "CV-R061", "did you mean `trim`?", {"method": ["trm", "elect"]}),
    "stage parameter": (
        RecipeError,
        "CV-R007",
        "did you mean `density`?",
        {"method": [("trim", {"dnsity": 1})]},
    ),
    "parameter of a chain": (RecipeError, "CV-R007", None, {"method": ["trim", "elect"], "density": 0.5}),
    "dtype": (UsageError, "CV-U011", None, {"dtype": "int8"}),
    "unmatched": (
        PlanError,
        "CV-P021",
        None,
        {"method": "ties", "density": {"*.mpl.*": 0.3, "default": 0.5}},
    ),
    "no base": (PlanError, "CV-P034", None, {"method": "ties", "base": None}),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes(name: str) -> None:
    kind, code, hint, arguments = WRONG[name]
    with pytest.raises(kind) as caught:
        cuvee.merge([A, B], **{"base": BASE, **arguments}).plan()
    first = caught.value.diagnostics[0]  # type: ignore[attr-defined]
    assert first.code == code
    if hint is not None:
        assert first.hint == hint


def test_mistakes_are_told_together() -> None:
    with pytest.raises(RecipeError) as caught:
        cuvee.merge([A, B], base=BASE, method="ties", densty=0.3, lam="x", weight=[1])
    assert [d.code for d in caught.value.diagnostics] == ["CV-R007", "CV-R010", "CV-R010"]


def test_models_that_are_none() -> None:
    for models, code in (([], "CV-U010"), ("./a", "CV-U010"), ([3], "CV-S037"), ([{"a": "b"}], "CV-S037")):
        with pytest.raises(cuvee.CuveeError) as caught:
            cuvee.merge(models).plan()  # type: ignore[arg-type]
        assert caught.value.diagnostics[0].code == code, models


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(PlanError) as caught:
        cuvee.merge([A, {**B, "norm.weight": torch.ones(5)}]).plan()
    assert caught.value.diagnostics[0].code == "CV-P038"


def test_plan_of_a_file(here: Path) -> None:
    (here / "r.yaml").write_text("merge_method: passthrough\nmodels: [{model: ./math}]\n")
    assert len(cuvee.load("r.yaml").plan().tensors) == 21


def test_public_names_are_there_and_import_nothing_heavy() -> None:
    import subprocess
    import sys

    program = "import sys, cuvee; dir(cuvee); cuvee.merge; print('torch' in sys.modules)"
    source = str(Path(cuvee.__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == "False"
    assert len(cuvee.__all__) <= 20
    for name in cuvee.__all__:
        assert getattr(cuvee, name) is not None
    with pytest.raises(AttributeError):
        _ = cuvee.nothing  # type: ignore[attr-defined]

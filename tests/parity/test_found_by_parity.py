"""What the comparison with MergeKit once found wrong, each on its smallest case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Shape, values, write, write_family
from safetensors.torch import load_file, save_file

from cuvee.errors import PlanError
from cuvee.testing.stages import run_method

ONE = Shape(layers=1)


def merged(folder: Path, text: str, **flags: Any) -> dict[str, torch.Tensor]:
    """The tensors a MergeKit recipe gives in a folder."""
    from click.testing import CliRunner

    from cuvee.cli.app import app

    (folder / "recipe.yml").write_text(text)
    arguments = ["merge", str(folder / "recipe.yml"), "-o", str(folder / "out"), "--quiet"]
    arguments += [f"--{name.replace('_', '-')}" for name in flags]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0, result.output
    return {n: t for f in sorted((folder / "out").glob("*.safetensors")) for n, t in load_file(f).items()}


@pytest.mark.parametrize("method", ["ties", "task_arithmetic", "sce", "ram", "della"])
def test_a_base_without_experts_is_copied(tmp_path: Path, method: str) -> None:
    write_family(tmp_path / "m", ONE, experts="")
    found = merged(tmp_path, f"merge_method: {method}\nbase_model: m/base\nmodels: [{{model: m/base}}]\n")
    expected = values(ONE, 1)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_half_arithmetic_leaves_half_precision_in_a_wider_output(tmp_path: Path) -> None:
    write_family(tmp_path / "m", ONE, experts="ab")
    models = "models:\n- {model: m/a, parameters: {weight: 0.3}}\n- {model: m/b, parameters: {weight: 0.6}}\n"
    found = merged(tmp_path, f"merge_method: linear\n{models}dtype: bfloat16\nout_dtype: float32\n")
    for tensor in found.values():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, tensor.bfloat16().float())


def test_a_tensor_of_one_model_keeps_its_weight_in_a_sum(tmp_path: Path) -> None:
    save_file({"x": torch.ones(3)}, tmp_path / "one.safetensors")
    save_file({"x": torch.ones(3), "y": torch.full((2,), 10.0)}, tmp_path / "two.safetensors")
    text = (
        "merge_method: linear\nmodels:\n- {model: one.safetensors, parameters: {weight: 0.5}}\n"
        "- {model: two.safetensors, parameters: {weight: 0.3}}\n"
    )
    summed = merged(tmp_path, text + "parameters: {normalize: false}\n", tensor_union=True)
    assert torch.allclose(summed["x"], torch.full((3,), 0.8))
    assert torch.allclose(summed["y"], torch.full((2,), 3.0))


@pytest.mark.parametrize("first", ["bare", "b"])
def test_models_that_differ_by_a_prefix_are_merged(tmp_path: Path, first: str) -> None:
    write_family(tmp_path, Shape(layers=2), experts="ab")
    content = values(Shape(layers=2), 1, 1)
    bare = {n.removeprefix("model."): t for n, t in content.items()}
    write(tmp_path / "bare", bare, Shape(layers=2))
    second = "b" if first == "bare" else "bare"
    text = f"merge_method: linear\nmodels: [{{model: {first}}}, {{model: {second}}}]\nparameters: {{weight: 0.5}}\n"
    found = merged(tmp_path, text)
    other = values(Shape(layers=2), 1, 2)
    assert found.keys() == (bare.keys() if first == "bare" else other.keys())
    for name, tensor in content.items():
        written = name.removeprefix("model.") if first == "bare" else name
        assert torch.allclose(found[written], (tensor + other[name]) / 2)


def test_sce_counts_in_float32_as_mergekit_does() -> None:
    """0.29 of 100 are 28 in float64 and 29 in float32."""
    generator = torch.Generator().manual_seed(3)
    base = torch.zeros(100)
    experts = [torch.randn(100, generator=generator) for _ in range(2)]
    found = run_method("sce", experts, base, {"select_topk": 0.29}, dialect="mergekit")
    assert int((found != 0).sum()) == 29
    assert int((run_method("sce", experts, base, {"select_topk": 0.29}) != 0).sum()) == 28


@pytest.mark.parametrize(
    ("method", "name", "given", "same_as"),
    [("nearswap", "t", -0.5, 0.0), ("sce", "select_topk", 1.5, 1.0), ("multislerp", "eps", 0.0, 1e-30),
     ("ramplus_tl", "epsilon", 0.0, 1e-30)],
)  # fmt: skip
def test_values_beyond_the_ends_mean_what_they_mean_in_mergekit(
    method: str, name: str, given: float, same_as: float
) -> None:
    generator = torch.Generator().manual_seed(4)
    count = 1 if method == "nearswap" else 2
    base, *experts = [torch.randn(64, generator=generator) for _ in range(count + 1)]
    weights = {"weight": [1.0] * count} if method == "multislerp" else {}
    a, b = (
        run_method(method, experts, base, {name: value, **weights}, dialect="mergekit")
        for value in (given, same_as)
    )
    assert torch.equal(a, b)


def test_rows_filled_by_a_mean_are_as_exact_as_the_arithmetic(tmp_path: Path) -> None:
    """Padding rows of a bfloat16 model are the mean of its rows in float32, not rounded to bfloat16."""
    write(tmp_path / "m", values(ONE, 1), ONE, "bfloat16")
    words = {f"w{i}": i for i in range(ONE.vocabulary)}
    model = {"type": "BPE", "vocab": words, "merges": [], "unk_token": "w0"}
    (tmp_path / "m" / "tokenizer.json").write_text(json.dumps({"model": model, "added_tokens": []}))
    (tmp_path / "m" / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    text = "merge_method: passthrough\nmodels: [{model: m}]\ndtype: float32\n"
    found = merged(tmp_path, text + "tokenizer: {source: ./m, pad_to_multiple_of: 64}\n")
    rows = found["model.embed_tokens.weight"]
    assert rows.shape[0] == 64
    torch.testing.assert_close(rows[-1], rows[: ONE.vocabulary].mean(0), rtol=1e-6, atol=1e-8)
    assert not torch.equal(rows[-1], rows[-1].bfloat16().float())


def test_a_missing_parameter_is_said_once_and_breaks_nothing(tmp_path: Path) -> None:
    """Without a weight `linear` was told once and then checked with nothing in its place."""
    write_family(tmp_path / "m", ONE, experts="ab")
    with pytest.raises(PlanError) as caught:
        merged(tmp_path, "merge_method: linear\nmodels: [{model: m/a}, {model: m/b}]\n")
    assert [d.code for d in caught.value.diagnostics] == ["CV-P030", "CV-P030"]  # one for each model

"""NaN and infinity are found and named; the default stops, the other policies are explicit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.engine.events import Event, Finding
from cuvee.engine.options import RunOptions, parse_bytes
from cuvee.errors import CuveeError, NonFinite, RunError

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2)


def pair(folder: Path, dtype: torch.dtype, value: float, index: int = 17) -> tuple[Path, Path]:
    good = {"layers.0.w": torch.linspace(-1, 1, 60).reshape(6, 10)}
    bad = {"layers.0.w": good["layers.0.w"].clone()}
    bad["layers.0.w"].view(-1)[index] = value
    for name, tensors in (("good", good), ("bad", bad)):
        save_file({k: v.to(dtype) for k, v in tensors.items()}, folder / f"{name}.safetensors")
    return folder / "good.safetensors", folder / "bad.safetensors"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_in_a_source_stops_and_is_named(dtype: torch.dtype, tmp_path: Path) -> None:
    good, bad = pair(tmp_path, dtype, float("nan"))
    with pytest.raises(NonFinite) as caught:
        cuvee.merge([good, bad], method="linear").save(tmp_path / "out.safetensors")
    (found,) = caught.value.diagnostics
    assert "index 17" in found.message
    assert "layers.0.w" in found.message
    assert "bad" in found.message
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("policy", ["warn", "allow"])
def test_policies_go_on(policy: str, tmp_path: Path) -> None:
    good, bad = pair(tmp_path, torch.float32, float("inf"))
    seen: list[Event] = []
    options = RunOptions(non_finite=policy)  # type: ignore[arg-type]
    cuvee.merge([good, bad], method="linear").save(
        tmp_path / "out.safetensors", run=options, listener=seen.append
    )
    findings = [e for e in seen if isinstance(e, Finding)]
    assert bool(findings) == (policy == "warn")
    assert torch.isinf(cuvee.open(tmp_path / "out.safetensors").tensor("layers.0.w")).sum() == 1


def test_the_whole_tensor_is_counted_and_the_file_is_named(tmp_path: Path) -> None:
    """Blocks of 64 elements see one bad value each; the message speaks of the tensor."""
    values = torch.zeros(300)
    values[[70, 200, 299]] = torch.tensor([float("nan"), float("inf"), float("-inf")])
    save_file({"w": values}, tmp_path / "a.safetensors")
    options = RunOptions(block=64, kernels=False)
    with pytest.raises(
        NonFinite, match="holds 3 values that are NaN or infinite, the first at index 70"
    ) as caught:
        cuvee.merge([tmp_path / "a.safetensors"], method="linear").load(options)
    where = caught.value.diagnostics[0].where
    assert where is not None
    assert (where.tensor, where.file) == ("w", str(tmp_path / "a.safetensors"))
    save_file({"w": values[:100]}, tmp_path / "a.safetensors")
    with pytest.raises(NonFinite, match="holds 1 value that is NaN or infinite, the first at index 70"):
        cuvee.merge([tmp_path / "a.safetensors"], method="linear").load(options)


def test_of_a_result_only_the_block_at_hand_is_counted(tmp_path: Path) -> None:
    values = torch.zeros(3000)
    values[[70, 200, 2900]] = 1e5
    save_file({"w": values}, tmp_path / "a.safetensors")
    blend = cuvee.merge([tmp_path / "a.safetensors"], method="linear", out_dtype="float16")
    with pytest.raises(NonFinite, match="at least 2 values of the result `w` are NaN or infinite"):
        blend.load(RunOptions(block=1024, kernels=False))
    save_file({"w": values[:71]}, tmp_path / "a.safetensors")
    with pytest.raises(
        NonFinite, match=r"CV-E021: 1 value of the result `w` is NaN or infinite \(it overflows"
    ):
        blend.load()


def test_overflow_of_the_output_type_is_counted(tmp_path: Path) -> None:
    save_file({"w": torch.tensor([1.0, 70000.0, 80000.0])}, tmp_path / "a.safetensors")
    with pytest.raises(NonFinite, match="2 of them overflow `float16`"):
        cuvee.merge([tmp_path / "a.safetensors"], method="linear", out_dtype="float16").load()


def test_integer_tensors_that_differ_stop_a_mergekit_merge(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 2)):
        save_file({"steps": torch.tensor([value]), "w": torch.ones(3)}, tmp_path / f"{name}.safetensors")
    recipe = tmp_path / "r.yml"
    lines = [f"  - model: {tmp_path}/{n}.safetensors\n    parameters: {{weight: 1}}\n" for n in ("a", "b")]
    recipe.write_text("merge_method: linear\nmodels:\n" + "".join(lines))
    with pytest.raises(RunError, match="integer tensor differs"):
        cuvee.load(recipe).load()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("128MiB", 128 << 20), ("5GB", 5_000_000_000), ("1.5k", 1500), ("7", 7), ("2 TiB", 2 << 40)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "x", "5QB", "-1GB", "1e9"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(CuveeError):
        parse_bytes(text)

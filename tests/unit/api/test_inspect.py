"""What a checkpoint is said to hold: types and sizes as stored, adapters with their ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.formats.gguf_types import packed_bytes


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A GGUF file of an architecture that keeps its names: one Q8_0, one Q4_0, one float32 tensor."""
    path = tmp_path / "packed.gguf"
    writer = gguf.GGUFWriter(path, "made-up")
    numbers = numpy.random.default_rng(0).normal(size=(8, 64)).astype(numpy.float32)
    for kind in ("Q8_0", "Q4_0"):
        chosen = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(kind.lower(), gguf.quantize(numbers, chosen), raw_dtype=chosen)
    writer.add_tensor("plain", numbers[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_packed_tensors_show_how_they_are_stored(packed: Path, cli: Any) -> None:
    found = cuvee.inspect(str(packed))
    assert found["stored_types"] == {"Q8_0": 1, "Q4_0": 1, "float32": 1}
    assert found["dtypes"] == {"float32": 3}
    real = sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(packed).tensors)
    assert found["stored_bytes"] == real
    assert found["bytes"] == 4 * (2 * 8 * 64 + 64)
    screen = cli("inspect", packed).out
    assert "tensors     3 (1 Q8_0, 1 Q4_0, 1 float32)" in screen
    assert "Q4_0 as float32" in screen
    assert f"in {real / 1000:.1f} kB" in screen
    plan = str(cuvee.merge([str(packed)], method="linear").plan())
    assert f"{real / 1000:.1f} kB Q4_0/Q8_0/float32" in plan
    assert f"reads {real / 1000:.1f} kB" in plan


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4"])
def test_sizes_of_packings_are_those_of_the_package(kind: str) -> None:
    elements, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    assert packed_bytes(kind, 3 * elements) == 3 * size
    assert packed_bytes(kind, 3 * elements - 1) == 3 * size


def test_scaled_float8_is_stored_in_one_byte(tmp_path: Path, cli: Any) -> None:
    tensors = {
        "w.weight": torch.ones(128, 128).to(torch.float8_e4m3fn),
        "w.weight_scale_inv": torch.ones(1, 1),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    config = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = cuvee.inspect(str(tmp_path))
    assert found["stored_types"] == {"float8_e4m3fn": 1}
    assert (found["stored_bytes"], found["bytes"]) == (128 * 128, 4 * 128 * 128)
    assert "float8_e4m3fn as float32" in cli("inspect", tmp_path).out


def test_adapters_are_shown_with_their_rank(tmp_path: Path, cli: Any) -> None:
    save_file({"layers.0.up.weight": torch.ones(6, 4)}, tmp_path / "base.safetensors")
    lora = tmp_path / "lora"
    lora.mkdir()
    name = "base_model.model.layers.0.up"
    factors = {f"{name}.lora_A.weight": torch.ones(3, 4), f"{name}.lora_B.weight": torch.ones(6, 3)}
    save_file(factors, lora / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 3, "lora_alpha": 3, "target_modules": ["up"]}
    (lora / "adapter_config.json").write_text(json.dumps(config))
    reference = f"{tmp_path / 'base.safetensors'}+{lora}"
    (overlay,) = cuvee.inspect(reference)["overlays"]
    assert overlay == {"name": "lora", "ranks": (3,), "nbytes": 4 * (12 + 18), "changed": 1, "replaced": 0}
    assert "adapter     lora: rank 3, 120 B, changes 1 tensors, replaces 0" in cli("inspect", reference).out

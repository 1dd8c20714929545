"""Block-scaled float8 against a plain float64 expansion of the scales."""

import json

import pytest
import torch
from safetensors.torch import save_file
from source_checkpoints import whole

from cuvee.errors import CorruptFile, SourceError
from cuvee.sources.open import open_source

F8 = torch.float8_e4m3fn


def write(folder, tensors, quantisation=None):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": "x"} | ({"quantization_config": quantisation} if quantisation else {})
    (folder / "config.json").write_text(json.dumps(config))
    return open_source(folder.name, anchor=folder.parent)


def expanded(weight, scale, rows, columns):
    """value × scale, element by element."""
    out = weight.double().clone()
    for index in torch.cartesian_prod(*(torch.arange(n) for n in weight.shape)).reshape(-1, weight.dim()):
        *outer, i, j = index.tolist()
        out[*outer, i, j] *= scale[*outer, i // rows, j // columns].double()
    return out


FP8 = {"quant_method": "fp8", "weight_block_size": [3, 4]}


@pytest.mark.parametrize("shape", [(7, 10), (6, 8), (1, 1), (2, 7, 10)])
@pytest.mark.parametrize("kind", [F8, torch.float8_e5m2])
def test_blocks(tmp_path, shape, kind):
    torch.manual_seed(0)
    grid = (*shape[:-2], -(-shape[-2] // 3), -(-shape[-1] // 4))
    weight, scale = torch.randn(shape).to(kind), torch.rand(grid) + 0.1
    tensors = {"w.weight": weight, "w.weight_scale_inv": scale, "n.weight": torch.ones(3)}
    source = write(tmp_path / "m", tensors, FP8)
    assert set(source.tensors) == {"w.weight", "n.weight"}
    assert source.tensors["w.weight"].dtype.name == "float32"
    wanted = expanded(weight, scale, 3, 4)
    assert torch.equal(whole(source, "w.weight"), wanted.float())
    for start in range(0, weight.numel(), 5):
        for stop in range(start, weight.numel() + 1, 7):
            assert torch.equal(source.read("w.weight", start, stop), wanted.float().reshape(-1)[start:stop])
    assert source.extent("w.weight") is None and source.extent("n.weight") is not None
    assert "quantization_config" not in source.config and [n.code for n in source.notes] == ["CV-S030"]


def test_the_usual_block_is_128(tmp_path):
    torch.manual_seed(0)
    weight, scale = torch.randn(130, 260).to(F8), torch.rand(2, 3)
    source = write(tmp_path / "m", {"w.weight": weight, "w.weight_scale_inv": scale}, {"quant_method": "fp8"})
    wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[:130, :260]
    assert torch.equal(whole(source, "w.weight"), weight.float() * wide)


@pytest.mark.parametrize("scale", [torch.tensor(0.5), torch.tensor([0.5]), torch.tensor([[0.5]])])
@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 6), (5,)])
def test_one_scale_per_tensor(tmp_path, scale, shape):
    weight = torch.randn(shape).to(F8)
    tensors = {"w.weight": weight, "w.weight_scale": scale, "w.input_scale": torch.tensor(2.0)}
    source = write(tmp_path / "m", tensors)
    assert set(source.tensors) == {"w.weight"}
    assert torch.equal(whole(source, "w.weight"), weight.float() * 0.5)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_scale_per_row(tmp_path, shape):
    weight, scale = torch.randn(4, 6).to(F8), torch.rand(shape)
    quantisation = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    source = write(tmp_path / "m", {"w.weight": weight, "w.weight_scale": scale}, quantisation)
    assert torch.equal(whole(source, "w.weight"), weight.float() * scale.reshape(4, 1))


def test_plain_float8_stays_as_it_is(tmp_path):
    weight = torch.randn(4, 6).to(F8)
    source = write(tmp_path / "m", {"w.weight": weight})
    assert source.tensors["w.weight"].dtype.code == "F8_E4M3" and source.notes == ()


@pytest.mark.parametrize("scale", [torch.ones(3, 3), torch.ones(2), torch.ones(3, 2, dtype=torch.int32)])
def test_scales_that_do_not_fit(tmp_path, scale):
    with pytest.raises(CorruptFile) as caught:
        write(tmp_path / "m", {"w.weight": torch.ones(7, 8).to(F8), "w.weight_scale_inv": scale}, FP8)
    assert caught.value.diagnostics[0].code == "CV-S032"


def test_a_missing_scale_is_corrupt(tmp_path):
    with pytest.raises(CorruptFile) as caught:
        write(tmp_path / "m", {"w.weight": torch.ones(7, 8).to(F8)}, FP8)
    assert caught.value.diagnostics[0].where.tensor == "w.weight"


@pytest.mark.parametrize("size", [[0, 128], [128], "x", [1.5, 2]])
def test_block_sizes_that_make_no_sense(tmp_path, size):
    with pytest.raises(CorruptFile):
        write(tmp_path / "m", {"a": torch.ones(1)}, {"quant_method": "fp8", "weight_block_size": size})


@pytest.mark.parametrize(
    "kind", ["gptq", "awq", "bitsandbytes", "mxfp4", "hqq", "", "compressed-tensors", "modelopt"]
)
def test_other_schemes_are_refused_with_a_remedy(tmp_path, kind):
    with pytest.raises(SourceError) as caught:
        write(tmp_path / "m", {"a": torch.ones(1)}, {"quant_method": kind, "format": "pack-quantized"})
    found = caught.value.diagnostics[0]
    assert found.code == "CV-S031" and "bfloat16" in found.hint

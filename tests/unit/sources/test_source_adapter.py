"""base + adapter against PEFT's own merge_and_unload, variant by variant, on tiny models."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from source_checkpoints import whole

from cuvee.core.dtypes import FLOAT32
from cuvee.errors import CuveeError
from cuvee.sources.low_rank import FactorCache, LowRank
from cuvee.sources.open import open_source

pytestmark = [pytest.mark.transformers, pytest.mark.filterwarnings("ignore::UserWarning")]


def llama(tied=False):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=tied,
        )
    )


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=8))


class Convs(torch.nn.Module):
    """Convolutions of one and two dimensions, a linear layer with a bias."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Conv2d(3, 6, 3)
        self.b = torch.nn.Conv2d(6, 4, 1)
        self.c = torch.nn.Conv1d(4, 5, 3)
        self.d = torch.nn.Linear(5, 7)

    def forward(self, x):
        return x


def lora(**fields):
    from peft import LoraConfig

    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **fields})


def randomise(model, names=("lora_", "modules_to_save")):
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(n in name for n in names) or parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.3)


def saved(model, config, folder, dtype=torch.float32, **save):
    """base and adapter in folders; the live PEFT model."""
    from peft import get_peft_model

    model = model.to(dtype)
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder / "base")
    else:
        (folder / "base").mkdir(exist_ok=True)
        save_file(model.state_dict(), folder / "base" / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = get_peft_model(model, config)
        randomise(live)
        live.save_pretrained(folder / "adapter", **save)
    return live


def merged(live):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {n: t.detach().clone() for n, t in live.merge_and_unload().state_dict().items()}


def check(folder, live, what="base + adapter", changed=None):
    source = open_source(what, anchor=folder)
    before = open_source("base", anchor=folder)
    wanted = merged(live)
    different = set()
    for name, meta in source.tensors.items():
        values = whole(source, name)
        torch.testing.assert_close(values.float(), wanted[name].float(), rtol=1e-6, atol=1e-6, msg=name)
        if name not in before.tensors or not torch.equal(values.float(), whole(before, name).float()):
            different.add(name)
            assert meta.dtype is FLOAT32 and values.dtype == torch.float32
    assert different, "the adapter changed nothing"
    if changed is not None:
        assert {n for n in source.tensors if any(c in n for c in changed)} == different
    return source


VARIANTS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "rank pattern": {"rank_pattern": {"down_proj": 2, "layers.0.self_attn.q_proj": 3}},
    "alpha pattern": {"alpha_pattern": {"q_proj": 11}, "use_rslora": True},
    "regex patterns": {
        "rank_pattern": {r".*layers\.(0|7)\..*_proj": 2},
        "alpha_pattern": {r"layers\.[1-9]\.mlp\.\w+": 9},
    },
    "first pattern wins": {
        "rank_pattern": {"self_attn.q_proj": 2, "q_proj": 8},  # saved the other way round
        "alpha_pattern": {"^model.*": 3},
    },
    "one letter layers": {"target_modules": "all-linear"},
    "modules to save": {"modules_to_save": ["lm_head", "norm"]},
    "layers": {"layers_to_transform": [1]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "gaussian": {"init_lora_weights": "gaussian", "lora_alpha": 5},
    "wrong flag": {"fan_in_fan_out": True, "target_modules": ["down_proj", "k_proj"]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_llama_variants(tmp_path, variant):
    live = saved(llama(), lora(**VARIANTS[variant]), tmp_path, save_embedding_layers=False)
    source = check(tmp_path, live)
    assert not [n for n in source.notes if n.severity == "warning"]


def test_only_the_adapted_tensors_change(tmp_path):
    check(tmp_path, saved(llama(), lora(), tmp_path), changed=["q_proj.weight", "down_proj.weight"])


def test_saved_embeddings_are_taken_whole(tmp_path):
    live = saved(llama(), lora(target_modules=["embed_tokens"]), tmp_path, save_embedding_layers=True)
    assert any("base_layer" in n for n in load_file(tmp_path / "adapter/adapter_model.safetensors"))
    check(tmp_path, live, changed=["embed_tokens"])


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_gpt2_is_turned_and_biases_are_replaced(tmp_path, bias):
    config = lora(target_modules=["c_attn", "c_proj", "c_fc"], fan_in_fan_out=True, bias=bias)
    check(tmp_path, saved(gpt2(), config, tmp_path))


def test_lora_bias(tmp_path):
    config = lora(target_modules=["c_fc"], fan_in_fan_out=True, lora_bias=True)
    check(tmp_path, saved(gpt2(), config, tmp_path), changed=["c_fc.weight", "c_fc.bias"])


def test_convolutions(tmp_path):
    check(tmp_path, saved(Convs(), lora(target_modules=["a", "b", "c", "d"], r=2), tmp_path))


def test_bfloat16_base_gives_the_exact_sum(tmp_path):
    live = saved(llama(), lora(), tmp_path, torch.bfloat16)
    source = open_source("base + adapter", anchor=tmp_path)
    base = load_file(tmp_path / "base/model.safetensors")
    factors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    name = "model.layers.1.mlp.down_proj"
    a, b = (factors[f"base_model.model.{name}.lora_{x}.weight"].double() for x in "AB")
    wanted = base[f"{name}.weight"].double() + 1.5 * (b @ a)
    values = whole(source, f"{name}.weight")
    torch.testing.assert_close(values.double(), wanted, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(values.bfloat16(), merged(live)[f"{name}.weight"], rtol=2**-6, atol=1e-3)
    assert source.extent(f"{name}.weight") is None
    assert source.extent("model.norm.weight") is not None


def test_several_adapters_in_sequence(tmp_path):
    live = saved(llama(), lora(), tmp_path)
    (tmp_path / "adapter").rename(tmp_path / "first")
    live.add_adapter("two", lora(r=2, target_modules=["q_proj", "up_proj"]))
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in live.named_parameters():
            if ".two." in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g))
    live.save_pretrained(tmp_path / "second", selected_adapters=["two"])
    live.base_model.set_adapter(["default", "two"])
    source = check(tmp_path, live, "base + first + second/two")
    identity = source.identity()
    assert identity["name"] == "base + first + two"
    assert identity["base"]["adapter"]["name"] == "first"


def test_a_headless_base_takes_the_adapter_of_a_head_model(tmp_path):
    model = gpt2()
    live = saved(model, lora(target_modules=["c_attn"], fan_in_fan_out=True), tmp_path)
    made = load_file(tmp_path / "base/model.safetensors")
    stripped = {n.removeprefix("transformer."): t for n, t in made.items()}
    (tmp_path / "headless").mkdir()
    save_file(stripped, tmp_path / "headless/model.safetensors")
    source = open_source("headless + adapter", anchor=tmp_path)
    wanted = merged(live)
    for name in stripped:
        torch.testing.assert_close(whole(source, name), wanted[f"transformer.{name}"], rtol=1e-6, atol=1e-6)
    assert "CV-S020" in [n.code for n in source.notes]
    adapters = load_file(tmp_path / "adapter/adapter_model.safetensors")
    bare = {n.replace("transformer.", ""): t for n, t in adapters.items()}
    save_file(bare, tmp_path / "adapter/adapter_model.safetensors")
    assert "CV-S020" in [n.code for n in open_source("base + adapter", anchor=tmp_path).notes]


def test_an_adapted_embedding_of_a_tied_model_is_warned_about(tmp_path):
    live = saved(
        llama(tied=True), lora(target_modules=["embed_tokens"]), tmp_path, save_embedding_layers=False
    )
    source = check(tmp_path, live)
    assert "CV-S024" in [n.code for n in source.notes if n.severity == "warning"]


def test_a_grown_vocabulary_brings_its_tokenizer(tmp_path):
    live = saved(llama(), lora(modules_to_save=["embed_tokens", "lm_head"]), tmp_path)
    del live
    path = tmp_path / "adapter/adapter_model.safetensors"
    grown = {
        n: torch.randn(44, 16) if n.endswith(("embed_tokens.weight", "lm_head.weight")) else t
        for n, t in load_file(path).items()
    }
    save_file(grown, path)
    (tmp_path / "adapter/tokenizer.json").write_text("grown")
    (tmp_path / "base/tokenizer.json").write_text("base")
    source = open_source("base + adapter", anchor=tmp_path)
    assert source.tensors["lm_head.weight"].shape == (44, 16)
    assert source.file("tokenizer.json") == b"grown"


# --- refusals --------------------


@pytest.fixture
def pair(tmp_path):
    """A base and an adapter in files, with a hook to change either."""
    g = torch.Generator().manual_seed(0)
    (tmp_path / "base").mkdir()
    (tmp_path / "adapter").mkdir()
    made = {"model.q.weight": torch.randn(6, 4, generator=g), "model.embed_tokens.weight": torch.randn(5, 4)}
    save_file(made, tmp_path / "base/model.safetensors")
    (tmp_path / "base/config.json").write_text("{}")

    def write(tensors=None, **config):
        factors = {
            "base_model.model.model.q.lora_A.weight": torch.randn(2, 4, generator=g),
            "base_model.model.model.q.lora_B.weight": torch.randn(6, 2, generator=g),
        }
        factors = {n: t for n, t in {**factors, **(tensors or {})}.items() if t is not None}
        save_file(factors, tmp_path / "adapter/adapter_model.safetensors")
        raw = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
        (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(raw))

        def act():
            return open_source("base + adapter", anchor=tmp_path)

        return act

    write.folder = tmp_path
    return write


def refusal(act):
    with pytest.raises(CuveeError) as caught:
        act()
    return caught.value.diagnostics[0]


REFUSED = {
    "use_dora": True,  # without magnitudes
    "trainable_token_indices": [1],
    "layer_replication": [[0, 2]],
    "target_parameters": ["experts.w"],
    "use_qalora": True,
    "alora_invocation_tokens": [1],
    "use_bdlora": {"nblocks": 2},
    "arrow_config": {"top_k": 1},
    "kasa_config": {"beta": 1},
    "peft_type": "ADALORA",
    "init_lora_weights": "pissa_niter_4",
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_plain_lora_is_refused_with_a_reason(pair, key):
    found = refusal(pair(**{key: REFUSED[key]}))
    assert found.code == "CV-S025" and ": " in found.message and found.hint
    assert found.where.source in ("base + adapter", "adapter")


@pytest.mark.parametrize("kind", ["IA3", "ADALORA", "OFT", "PREFIX_TUNING", "SOMETHING_NEW"])
def test_other_adapter_types_are_refused(pair, kind):
    assert refusal(pair(peft_type=kind)).code == "CV-S025"


def test_dora_magnitudes_without_the_flag_are_refused(pair):
    extra = {"base_model.model.model.q.lora_magnitude_vector": torch.ones(6)}
    assert refusal(pair(extra)).code == "CV-S025"


def test_unmatched_tensors_are_named(pair):
    extra = {f"base_model.model.model.k{i}.lora_{x}.weight": torch.ones(2, 2) for i in range(4) for x in "AB"}
    found = refusal(pair(extra))
    assert (
        found.code == "CV-S023"
        and "`model.k0.lora_A.weight`" in found.message
        and "and 4 more" in found.message
    )


def test_a_head_tied_in_the_base_is_explained(pair):
    extra = {"base_model.model.lm_head.lora_A.weight": torch.ones(2, 4)}
    extra["base_model.model.lm_head.lora_B.weight"] = torch.ones(5, 2)
    assert "ties its output head" in refusal(pair(extra)).hint


def test_a_whole_tensor_without_a_place_is_refused_unless_listed(pair):
    extra = {"base_model.model.score.weight": torch.ones(2, 4)}
    assert refusal(pair(extra)).code == "CV-S023"
    source = pair(extra, modules_to_save=["score"])()
    assert torch.equal(whole(source, "score.weight"), extra["base_model.model.score.weight"])
    assert "CV-S021" in [n.code for n in source.notes]


A, B = "base_model.model.model.q.lora_A.weight", "base_model.model.model.q.lora_B.weight"


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        ({A: torch.ones(3, 4)}, {}),
        ({A: torch.ones(2, 5)}, {}),
        ({B: torch.ones(5, 2)}, {}),
        ({B: None}, {}),
        ({}, {"rank_pattern": {"q": 3}}),
        ({A: torch.ones(2, 4, 1)}, {}),
        ({A.replace("lora_A.", "lora_A.default."): torch.ones(2, 4)}, {}),
        ({n.removeprefix("base_model.model."): torch.ones(s) for n, s in ((A, (2, 4)), (B, (6, 2)))}, {}),
    ],
)
def test_factors_that_do_not_fit(pair, tensors, config):
    assert refusal(pair(tensors, **config)).code in ("CV-S028", "CV-S029")


@pytest.mark.parametrize(
    "config",
    [
        {"r": 0},
        {"r": "8"},
        {"r": True},
        {"lora_alpha": "x"},
        {"rank_pattern": {"(": 2}},
        {"alpha_pattern": [1]},
    ],
)
def test_configurations_that_make_no_sense(pair, config):
    assert refusal(pair(**config)).code == "CV-S027"


def test_unknown_keys_are_warned_about(pair):
    source = pair(brand_new_trick=True)()
    assert [(n.code, n.severity) for n in source.notes] == [("CV-S026", "warning")]
    assert not pair(brand_new_trick=None)().notes


def test_factors_saved_under_the_name_of_the_adapter(pair):
    pair()
    path = pair.folder / "adapter/adapter_model.safetensors"
    factors = load_file(path)
    save_file({n.replace(".weight", ".default.weight"): t for n, t in factors.items()}, path)
    wanted = (
        load_file(pair.folder / "base/model.safetensors")["model.q.weight"] + 2.0 * factors[B] @ factors[A]
    )
    found = whole(open_source("base + adapter", anchor=pair.folder), "model.q.weight")
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)


def test_rows_are_computed_in_tiles_that_do_not_depend_on_the_range(monkeypatch):
    monkeypatch.setattr("cuvee.sources.low_rank._TILE", 64)
    torch.manual_seed(0)
    left, right = torch.randn(50, 3), torch.randn(3, 7)
    made = []

    def load():
        made.append(1)
        return left

    delta = LowRank(load, lambda: right, 0.5, 7, FactorCache())
    everything = delta.slice(0, 350, torch.float32)
    torch.testing.assert_close(everything, (0.5 * left @ right).reshape(-1))
    for start in range(0, 350, 13):
        for stop in range(start, 350, 37):
            assert torch.equal(delta.slice(start, stop, torch.float32), everything[start:stop])
    assert len(made) == 1


def test_tiles_begin_at_multiples_of_their_height(monkeypatch):
    monkeypatch.setattr("cuvee.sources.low_rank._TILE", 64)
    starts = []

    class Recorder:
        def to(self, dtype):
            return self

        def contiguous(self):
            return self

        def __getitem__(self, rows):
            starts.append((rows.start, rows.stop))
            return torch.ones(50, 3)[rows]

    delta = LowRank(Recorder, lambda: torch.ones(3, 7), 1.0, 7, FactorCache())
    for start, stop in ((5, 6), (70, 200), (349, 350)):
        delta.slice(start, stop, torch.float32)
    assert starts == [(0, 9), (9, 18), (18, 27), (27, 36), (45, 54)]


def test_only_a_few_factors_are_kept():
    cache = FactorCache(kept=2)
    for key in "abca":
        cache.get(key, lambda key=key: (key, key))
    assert list(cache._pairs) == ["c", "a"]

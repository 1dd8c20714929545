"""Dictionaries, arrays, live modules and live PEFT models, against the objects themselves."""

import copy
import warnings

import numpy as np
import pytest
import torch
from source_checkpoints import same, tensors, whole

from cuvee.errors import SourceError, UsageError
from cuvee.sources.memory import elements
from cuvee.sources.open import open_source


def opened(what, tmp_path):
    return open_source(what, anchor=tmp_path)


def test_a_dictionary_is_read_as_it_is(tmp_path):
    made = tensors()
    source = opened(made, tmp_path)
    assert list(source.tensors) == list(made)
    assert all(same(whole(source, name), made[name]) for name in made)
    assert source.read("model.ids").data_ptr() == made["model.ids"].data_ptr()
    assert source.config is None and source.files() == [] and source.extent("model.ids") is None


def test_arrays_become_tensors(tmp_path):
    fixed = np.arange(4, dtype=np.float32)
    fixed.flags.writeable = False
    made = {
        "a": np.arange(6, dtype=np.float16).reshape(2, 3),
        "b": fixed,
        "c": np.arange(8.0).reshape(2, 4)[:, ::2],
    }
    source = opened(made, tmp_path)
    for name, array in made.items():
        assert np.array_equal(whole(source, name).numpy(), array)
    assert source.tensors["a"].dtype.name == "float16"


@pytest.mark.parametrize(
    "bad", [{"a": "text"}, {"a": np.array(["x"])}, {3: torch.ones(1)}, {"a": [1.0]}, 7, object()]
)
def test_other_things_are_usage_errors(tmp_path, bad):
    with pytest.raises(UsageError) as caught:
        opened(bad, tmp_path)
    assert caught.value.diagnostics[0].code == "CV-S037"


@pytest.mark.parametrize("bad", [torch.empty(2, device="meta"), torch.eye(2).to_sparse()])
def test_tensors_without_dense_values_are_refused(tmp_path, bad):
    with pytest.raises(SourceError) as caught:
        opened({"a": bad}, tmp_path)
    assert caught.value.diagnostics[0].code == "CV-S038"


@pytest.mark.parametrize(
    "strided",
    [torch.arange(24.0).reshape(4, 6).T, torch.arange(48.0).reshape(2, 4, 6).permute(1, 2, 0)[:, ::2]],
)
def test_strided_tensors_are_read_row_by_row(strided):
    flat = strided.contiguous().reshape(-1)
    for start in range(len(flat) + 1):
        for stop in range(start, len(flat) + 1):
            assert torch.equal(elements(strided, start, stop), flat[start:stop])


def test_prefixes_of_wrapped_modules_are_stripped(tmp_path):
    module = torch.nn.Sequential(torch.nn.Linear(2, 3))
    wrapped = torch.nn.DataParallel(module)
    source = opened(wrapped, tmp_path)
    assert set(source.tensors) == {"0.weight", "0.bias"}
    assert torch.equal(whole(source, "0.weight"), module[0].weight.detach())
    assert not source.read("0.weight").requires_grad


def test_tied_weights_of_a_module_appear_once(tmp_path):
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(4, 3)
            self.head = torch.nn.Linear(3, 4, bias=False)
            self.head.weight = self.embed.weight
            self.part = torch.nn.Linear(3, 4, bias=False)
            self.part.weight.data = self.embed.weight.data[:2]

    source = opened(Tied(), tmp_path)
    assert list(source.tensors) == ["embed.weight", "part.weight"]
    assert [n.code for n in source.notes] == ["CV-S035"]
    assert "`head.weight` is tied to `embed.weight`" in source.notes[0].message


@pytest.mark.transformers
def test_the_config_of_a_live_model_comes_along(tmp_path):
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=9
    )
    source = opened(BertModel(config), tmp_path)
    assert source.config["model_type"] == "bert" and source.config["vocab_size"] == 9


# --- live PEFT models --------------------


def model():
    torch.manual_seed(0)

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(7, 6)
            self.q = torch.nn.Linear(6, 6)
            self.conv = torch.nn.Conv2d(2, 4, 3)
            self.norm = torch.nn.LayerNorm(6)
            self.head = torch.nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.norm(self.q(self.embed(x))))

    return torch.nn.ModuleDict({"block": Block()})


def live(*configs):
    from peft import LoraConfig, get_peft_model

    g = torch.Generator().manual_seed(2)
    made = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, fields in enumerate(configs):
            config = LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": ["q"], **fields})
            if made is None:
                made = get_peft_model(model(), config)
            else:
                made.add_adapter(f"a{number}", config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g))
    return made


def reference(peft):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(peft).merge_and_unload().state_dict()


CASES = {
    "plain": [{}],
    "convolution and embedding": [{"target_modules": ["q", "conv", "embed"]}],
    "saved modules": [{"modules_to_save": ["head", "norm"]}],
    "lora bias, rslora": [{"lora_bias": True, "use_rslora": True}],
    "two, one active": [{}, {"target_modules": ["q", "head"]}],
}


@pytest.mark.transformers
@pytest.mark.parametrize("case", CASES)
def test_a_live_peft_model_is_what_merging_would_give(tmp_path, case):
    peft = live(*CASES[case])
    before = {n: t.clone() for n, t in peft.state_dict().items()}
    source = opened(peft, tmp_path)
    wanted = reference(peft)
    assert set(source.tensors) == set(wanted)
    for name, tensor in wanted.items():
        torch.testing.assert_close(whole(source, name), tensor, rtol=1e-6, atol=1e-6, msg=name)
    assert not torch.equal(
        whole(source, "block.q.weight"), before["base_model.model.block.q.base_layer.weight"]
    )
    assert all(torch.equal(t, before[n]) for n, t in peft.state_dict().items())
    assert not [n for n in source.notes if n.severity == "warning"]


@pytest.mark.transformers
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_active_merged_and_disabled_adapters(tmp_path):
    peft = live({}, {"target_modules": ["q", "head"], "lora_alpha": 7})
    peft.base_model.set_adapter(["default", "a1"])
    both = reference(peft)
    for name, tensor in both.items():
        torch.testing.assert_close(whole(opened(peft, tmp_path), name), tensor, rtol=1e-5, atol=1e-5)
    peft.base_model.merge_adapter(["default"])
    for name, tensor in both.items():
        torch.testing.assert_close(whole(opened(peft, tmp_path), name), tensor, rtol=1e-5, atol=1e-5)
    peft.base_model.unmerge_adapter()
    with peft.disable_adapter():
        plain = opened(peft, tmp_path)
        torch.testing.assert_close(whole(plain, "block.q.weight"), model()["block"].q.weight.detach())


@pytest.mark.transformers
@pytest.mark.parametrize("fields", [{"init_lora_weights": "pissa"}])
def test_live_models_that_are_not_plain_lora_are_refused(tmp_path, fields):
    with pytest.raises(SourceError) as caught:
        opened(live(fields), tmp_path)
    assert caught.value.diagnostics[0].code == "CV-S025"


@pytest.mark.transformers
def test_other_peft_types_are_refused(tmp_path):
    from peft import OFTConfig, get_peft_model

    with pytest.raises(SourceError):
        opened(get_peft_model(model(), OFTConfig(oft_block_size=2, r=0, target_modules=["q"])), tmp_path)

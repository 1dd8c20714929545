"""The published contract of sources, over every kind of source."""

import io
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cuvee.sources.open import open_source
from cuvee.testing.hub import LocalHub
from cuvee.testing.source_contract import SOURCE_CHECKS


def made(**extra):
    g = torch.Generator().manual_seed(0)
    found = {
        "embed.weight": torch.randn(70, 33, generator=g).to(torch.bfloat16),
        "layers.0.q.weight": torch.randn(48, 33, generator=g),
        "layers.0.q.bias": torch.randn(48, generator=g).half(),
        "layers.10.w": torch.randn(5, 7, 3, generator=g, dtype=torch.float64),
        "scalar": torch.tensor(2.5),
        "ids": torch.arange(10, dtype=torch.int32),
        "mask": torch.tensor([True, False, True]),
        "low": torch.randn(6, 5, generator=g).to(torch.float8_e4m3fn),
    }
    return found | extra


def folder(path, tensors, config=None):
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config or {"model_type": "x"}))
    (path / "tokenizer.json").write_text("{}")


def adapter(path):
    g = torch.Generator().manual_seed(1)
    factors = {
        "layers.0.q.lora_A.weight": torch.randn(4, 33, generator=g),
        "layers.0.q.lora_B.weight": torch.randn(48, 4, generator=g),
        "embed.lora_embedding_A": torch.randn(4, 70, generator=g),
        "embed.lora_embedding_B": torch.randn(33, 4, generator=g),
    }
    path.mkdir()
    save_file({f"base_model.model.{n}": t for n, t in factors.items()}, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 3}
    (path / "adapter_config.json").write_text(json.dumps(config))


def a_folder(place):
    folder(place / "m", made())
    return "m"


def a_sharded_folder(place):
    tensors = made()
    folder(place / "m", {"unused": torch.ones(1)})
    (place / "m/model.safetensors").unlink()
    where = {}
    for number, name in enumerate(tensors, 1):
        where[name] = f"model-{number:05d}-of-{len(tensors):05d}.safetensors"
        save_file({name: tensors[name]}, place / "m" / where[name])
    (place / "m/model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return "m"


def a_wrapped_folder(place):
    folder(place / "m", {f"module._orig_mod.{n}": t for n, t in made().items()})
    return "m"


def a_single_file(place):
    save_file(made(), place / "w.safetensors")
    return "w.safetensors"


def a_torch_file(place):
    torch.save(made(), place / "w.pt")
    return "w.pt"


def an_adapted_folder(place):
    folder(place / "m", made())
    adapter(place / "a")
    return "m + a"


def two_adapters_on_float8(place):
    weight = torch.randn(48, 33).to(torch.float8_e4m3fn)
    tensors = made(**{"layers.0.q.weight": weight, "layers.0.q.weight_scale_inv": torch.rand(6, 5)})
    quantisation = {"quant_method": "fp8", "weight_block_size": [8, 7]}
    del tensors["low"]
    folder(place / "m", tensors, {"quantization_config": quantisation})
    adapter(place / "a")
    adapter(place / "b")
    return "m + a + b"


def a_dictionary(place):
    return made(strided=torch.arange(60.0).reshape(3, 4, 5).permute(2, 0, 1))


def arrays(place):
    return {"a": np.arange(60, dtype=np.float32).reshape(3, 20)[:, ::2], "b": np.arange(7)}


def a_live_module(place):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Embedding(20, 9), torch.nn.Linear(9, 5))


def a_gguf_file(place):
    import gguf

    writer = gguf.GGUFWriter(place / "w.gguf", "unknown-arch")
    g = np.random.default_rng(0)
    writer.add_tensor("plain", g.standard_normal((6, 64)).astype(np.float32))
    writer.add_tensor("half", g.standard_normal((3, 32)).astype(np.float16))
    packed = gguf.quants.quantize(
        g.standard_normal((4, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("packed", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return "w.gguf"


KINDS = (
    a_folder,
    a_sharded_folder,
    a_wrapped_folder,
    a_single_file,
    a_torch_file,
    an_adapted_folder,
    two_adapters_on_float8,
    a_dictionary,
    arrays,
    a_live_module,
    a_gguf_file,
)


@pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_source(kind, check, tmp_path):
    what = kind(tmp_path)
    check(lambda: open_source(what, anchor=tmp_path))


@pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__)
def test_hub_source(check, tmp_path, monkeypatch):
    buffer = io.BytesIO()
    torch.save(made(), buffer)
    with LocalHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        hub.add("o/n", {"pytorch_model.bin": buffer.getvalue(), "config.json": b"{}"})
        check(lambda: open_source("hf://o/n", anchor=tmp_path))


@pytest.mark.transformers
@pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__)
def test_live_peft_model(check, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(9, 5), torch.nn.Linear(5, 9))
    model = get_peft_model(
        module, LoraConfig(target_modules=["0"], modules_to_save=["1"], init_lora_weights=False)
    )
    check(lambda: open_source(model, anchor=tmp_path))


class Broken:
    """A source whose every promise can be broken by name."""

    def __init__(self, source, **broken):
        self._source = source
        self._broken = broken

    def __getattr__(self, name):
        return self._broken.get(name, getattr(self._source, name))


def broken(place, **how):
    folder(place / "m", made())

    def act():
        source = open_source("m", anchor=place)
        return Broken(source, **{name: make(source) for name, make in how.items()})

    return act


BREAKS = {
    "any_range_equals_the_same_part_of_the_whole": {
        "read": lambda s: (
            lambda n, a=0, b=None: (
                s.read(n, a, b) if a == 0 else s.read(n, a - 1, None if b is None else b - 1)
            )
        )
    },
    "read_gives_what_is_promised": {"read": lambda s: lambda n, a=0, b=None: s.read(n, a, b).double()},
    "ranges_outside_are_refused": {"read": lambda s: lambda n, a=0, b=None: s.read(n)[a:b]},
    "unknown_names_are_errors": {"extent": lambda s: lambda n: None},
    "extents_hold_the_bytes": {"extent": lambda s: lambda n: s.extent("scalar" if n == "scalar" else "ids")},
    "identity_is_stable_json": {"identity": lambda s: lambda: {**s.identity(), "at": "/tmp/x"}},
    "side_files_are_safe": {"file": lambda s: lambda n: b""},
    "names_and_metas_agree": {"tensors": lambda s: {f"x{n}": m for n, m in s.tensors.items()}},
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_check_notices_what_it_is_for(name, tmp_path):
    check = next(c for c in SOURCE_CHECKS if c.__name__ == name)
    with pytest.raises(AssertionError):
        check(broken(tmp_path, **BREAKS[name]))

"""DoRA, LoHa and LoKr, from files and live, against PEFT's own merged weights; each comes back from a merge of one."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.sources.adapted import AdaptedSource
from cuvee.sources.open import open_source

pytestmark = [pytest.mark.transformers, pytest.mark.filterwarnings("ignore::UserWarning")]


class Net(torch.nn.Module):
    """Every layer that an adapter may lie on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = torch.nn.Embedding(11, 6)
        self.a = torch.nn.Linear(6, 8)
        self.b = torch.nn.Linear(8, 8, bias=False)
        self.conv = torch.nn.Conv2d(4, 6, 3)
        self.point = torch.nn.Conv2d(6, 4, 1)
        self.line = torch.nn.Conv1d(4, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Gpt(torch.nn.Module):
    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        torch.manual_seed(0)
        self.c_attn = Conv1D(12, 6)
        self.c_proj = Conv1D(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


def configs() -> dict[str, tuple[Any, type[torch.nn.Module]]]:
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    every = ["table", "a", "b", "conv", "point", "line"]
    layers = every[1:]
    pattern = {"rank_pattern": {"a": 3}, "alpha_pattern": {"b": 5}}
    return {
        "lora": (LoraConfig(r=2, lora_alpha=3, target_modules=every, use_rslora=True), Net),
        "lora_bias_all": (LoraConfig(r=2, target_modules=["a", "conv"], bias="all"), Net),
        "lora_bias_only": (LoraConfig(r=2, target_modules=["a"], bias="lora_only"), Net),
        "dora": (LoraConfig(r=2, lora_alpha=3, target_modules=layers, use_dora=True, **pattern), Net),
        "dora_table": (LoraConfig(r=2, target_modules=["table"], use_dora=True), Net),
        "dora_turned": (
            LoraConfig(r=2, target_modules=["c_attn", "c_proj"], use_dora=True, fan_in_fan_out=True),
            Gpt,
        ),
        "loha": (LoHaConfig(r=2, alpha=3, target_modules=layers, **pattern), Net),
        "loha_core": (LoHaConfig(r=2, alpha=3, target_modules=layers, use_effective_conv2d=True), Net),
        "lokr": (LoKrConfig(r=2, alpha=3, target_modules=layers), Net),
        "lokr_both": (LoKrConfig(r=1, alpha=3, target_modules=layers, decompose_both=True), Net),
        "lokr_core": (LoKrConfig(r=1, alpha=3, target_modules=["a", "conv"], use_effective_conv2d=True), Net),
        "lokr_whole": (LoKrConfig(r=20, alpha=3, target_modules=layers), Net),
    }


KINDS = [
    "lora",
    "lora_bias_all",
    "lora_bias_only",
    "dora",
    "dora_table",
    "dora_turned",
    "loha",
    "loha_core",
    "lokr",
    "lokr_both",
    "lokr_core",
    "lokr_whole",
]


def made(kind: str, folder: Path | None) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The live model, its base weights, and those PEFT merges; with a folder, base and adapter are in it."""
    from peft import get_peft_model

    config, network = configs()[kind]
    model = network()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        live = get_peft_model(model, config)
        draw = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in live.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.rand(parameter.shape, generator=draw) + 0.1)
        if folder is not None:
            (folder / "base").mkdir()
            save_file(base, folder / "base" / "model.safetensors")
            live.save_pretrained(folder / "adapter")
            merged = {n: t.detach().clone() for n, t in live.merge_and_unload().state_dict().items()}
            return live, base, merged
        reference = made_state(kind)
    return live, base, reference


def made_state(kind: str) -> dict[str, torch.Tensor]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return made(kind, Path(folder))[2]


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_what_peft_merges(kind: str, tmp_path: Path) -> None:
    _, base, merged = made(kind, tmp_path)
    source = open_source("base + adapter", anchor=tmp_path)
    changed = 0
    for name, meta in source.tensors.items():
        found = source.read(name, 0, meta.numel).reshape(meta.shape)
        torch.testing.assert_close(found, merged[name], rtol=2e-6, atol=2e-6, msg=name)
        changed += not torch.equal(found, base[name])
        middle = source.read(name, meta.numel // 3, meta.numel - 1)
        assert torch.equal(middle, found.reshape(-1)[meta.numel // 3 : meta.numel - 1]), name
    assert changed


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "lora_bias_all"])
def test_a_live_model_gives_what_peft_merges(kind: str) -> None:
    live, _, merged = made(kind, None)
    found = cuvee.merge([live], method="linear").load()
    assert found.keys() == merged.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-6, atol=2e-6, msg=name)


# Methods that give a single expert back: K = 1 with these values is the identity in function space.
IDENTITIES: list[tuple[Any, dict[str, Any]]] = [
    ("task_arithmetic", {}),
    ("ties", {"density": 1.0}),
    ("dare_linear", {"density": 1.0}),
    ("dare_ties", {"density": 1.0}),
    ("della", {"density": 1.0}),
    ("breadcrumbs", {"density": 1.0, "gamma": 0.0}),
    ("sce", {"select_topk": 1.0}),
    ("knots_ties", {"density": 1.0}),
    ("knots_ta", {}),
    ("core_space_ties", {"density": 1.0}),
    ("core_space_ta", {}),
]


@pytest.mark.parametrize("kind", ["lora", "dora", "dora_turned", "loha_core", "lokr", "lokr_whole"])
def test_one_adapter_comes_back_from_every_method(kind: str, tmp_path: Path) -> None:
    _, _, merged = made(kind, tmp_path)
    base, tuned = tmp_path / "base", f"{tmp_path / 'base'} + {tmp_path / 'adapter'}"
    for method, given in IDENTITIES:
        found = cuvee.merge({"one": tuned}, base=str(base), method=method, **given).load()
        for name, tensor in merged.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=2e-5, msg=f"{method} {name}")


def test_a_task_vector_of_an_adapter_is_its_own_product(tmp_path: Path) -> None:
    made("lora", tmp_path)
    base, tuned = (open_source(n, anchor=tmp_path) for n in ("base", "base + adapter"))
    assert isinstance(tuned, AdaptedSource)
    (change,) = tuned.changes("a.weight", base) or ()
    delta = change.slice(0, 48, torch.float64)
    whole = tuned.read("a.weight", 0, 48).double() - base.read("a.weight", 0, 48).double()
    torch.testing.assert_close(delta, whole, rtol=0, atol=1e-6)
    assert tuned.changes("a.bias", base) == ()


def test_an_adapter_of_another_base_is_subtracted(tmp_path: Path) -> None:
    _, base, _ = made("lora", tmp_path)
    (tmp_path / "elsewhere" / "base").mkdir(parents=True)
    other = {name: tensor + 1 for name, tensor in base.items()}
    save_file(other, tmp_path / "elsewhere" / "base" / "model.safetensors")
    tuned = open_source("base + adapter", anchor=tmp_path)
    stranger = open_source("elsewhere/base", anchor=tmp_path)
    assert tuned.changes("a.weight", stranger) is None  # type: ignore[attr-defined]

"""Merges written as adapters, and adapters extracted from models, loaded by PEFT itself."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

import cuvee
from cuvee.api.extract import extract_lora
from cuvee.bundle.manifest import verify_folder
from cuvee.engine.events import Progress
from cuvee.engine.options import RunOptions
from cuvee.errors import CuveeError
from cuvee.methods.contract import Factors
from cuvee.methods.decompositions import Plain
from cuvee.methods.recompression import Bound, compress, compress_product
from cuvee.sinks.target import MANIFEST

peft_test = [pytest.mark.transformers, pytest.mark.filterwarnings("ignore::UserWarning")]


def noisy(folder: Path, out: Path, seed: int, scale: float = 0.05, only: str = "") -> Path:
    """A copy of a model folder, with changes of full rank."""
    out.mkdir()
    for file in folder.iterdir():
        if file.suffix == ".json":
            (out / file.name).write_bytes(file.read_bytes())
    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    changed = {
        n: t + scale * torch.randn(t.shape, generator=draw) if only in n else t for n, t in tensors.items()
    }
    save_file(changed, out / "model.safetensors", {"format": "pt"})
    return out


def model_folder(kind: str, folder: Path) -> Any:
    import transformers

    torch.manual_seed(0)
    if kind == "llama":
        config: Any = transformers.LlamaConfig(
            vocab_size=40,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=False,
            attention_bias=True,
        )
        model: Any = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=8)
        model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder)
    return model


def through_peft(model: Any, adapter: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*fan_in_fan_out.*")
        live = PeftModel.from_pretrained(model, adapter)
        state: dict[str, torch.Tensor] = live.merge_and_unload().state_dict()
        return state


@pytest.mark.parametrize("kind", ["llama"])
@pytest.mark.transformers
def test_an_extracted_adapter_gives_the_model_back_in_peft(kind: str, tmp_path: Path) -> None:
    model = model_folder(kind, tmp_path / "base")
    tuned = noisy(tmp_path / "base", tmp_path / "tuned", 1)
    (saved,) = extract_lora(str(tmp_path / "base"), str(tuned), tmp_path / "out", error=1e-6)
    assert saved.report.error < 1e-5 and not saved.report.dropped
    found, wanted = through_peft(model, tmp_path / "out"), load_file(tuned / "model.safetensors")
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6, msg=name)
    assert not verify_folder(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["numerics"]["adapter"]["error"] == saved.report.error
    back = cuvee.open(f"{tmp_path / 'base'} + {tmp_path / 'out'}")
    assert back is not None


@pytest.mark.transformers
def test_a_grown_vocabulary_is_cut_on_request(tmp_path: Path) -> None:
    model = model_folder("llama", tmp_path / "base")
    tuned = noisy(tmp_path / "base", tmp_path / "tuned", 1)
    wanted = load_file(tuned / "model.safetensors")
    grown = {n: torch.cat([t, torch.ones(3, 16)]) if len(t) == 40 else t for n, t in wanted.items()}
    save_file(grown, tuned / "model.safetensors", {"format": "pt"})
    config = json.loads((tuned / "config.json").read_text())
    (tuned / "config.json").write_text(json.dumps({**config, "vocab_size": 43}))
    models = (str(tmp_path / "base"), str(tuned), tmp_path / "out")
    with pytest.raises(CuveeError, match="CV-P038"):
        extract_lora(*models, error=1e-6)
    extract_lora(*models, error=1e-6, truncate_vocabulary=True)
    found = through_peft(model, tmp_path / "out")
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6, msg=name)


@pytest.mark.transformers
def test_gpt2_with_its_tied_head(tmp_path: Path) -> None:
    model = model_folder("gpt2", tmp_path / "base")
    tuned = noisy(tmp_path / "base", tmp_path / "tuned", 1, only=".h.")
    (saved,) = extract_lora(str(tmp_path / "base"), str(tuned), tmp_path / "out", energy=1.0)
    found, wanted = through_peft(model, tmp_path / "out"), load_file(tuned / "model.safetensors")
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6, msg=name)
    assert len({part.target.rank for part in saved.report.parts}) == 1


@pytest.mark.transformers
@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "knots_ties", "core_space_ties"])
def test_a_merge_of_adapters_is_written_as_an_adapter(method: str, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model_folder("llama", tmp_path / "base")
    for number, rank in ((1, 2), (2, 3)):
        live: Any = get_peft_model(
            model_folder("llama", tmp_path / "base"),
            LoraConfig(r=rank, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
        )
        draw = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for name, parameter in live.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.3)
        live.save_pretrained(tmp_path / f"a{number}")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "version: 1\nbase: ./base\nexperts:\n  one: ./base + ./a1\n  two: ./base + ./a2\n"
        f"merge:\n  method: {method}\noutput:\n  kind: adapter\n  error: 0.00001\n"
    )
    blend = cuvee.load(recipe)
    saved = blend.save(tmp_path / "out")
    full = blend.load()
    found = through_peft(model_folder("llama", tmp_path / "base"), tmp_path / "out")
    for name, tensor in full.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5, msg=name)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert len(config["target_modules"]) == 4 and config["modules_to_save"] is None
    if method == "task_arithmetic":
        assert config["r"] == 5 and not config["rank_pattern"]
    assert any(note.code == "CV-P175" for note in saved.notes)


class Convs(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Conv2d(3, 6, 3)
        self.b = torch.nn.Conv1d(6, 5, 3)
        self.c = torch.nn.Linear(5, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.mark.transformers
def test_convolutions(tmp_path: Path) -> None:
    base, tuned = Convs(), Convs()
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    extract_lora(dict(base.state_dict()), dict(tuned.state_dict()), tmp_path / "out", error=1e-6)
    found = through_peft(base, tmp_path / "out")
    for name, tensor in tuned.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6, msg=name)


def pair(shape: tuple[int, int] = (12, 9)) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    base = {"l.weight": torch.randn(shape, generator=draw), "n.weight": torch.randn(5, generator=draw)}
    return base, {n: t + 0.1 * torch.randn(t.shape, generator=draw) for n, t in base.items()}


@pytest.mark.parametrize("bound", [{"rank": 4}, {"energy": 0.9}, {"error": 0.3}])
def test_the_product_is_the_best_one_and_its_error_is_told(bound: dict[str, Any], tmp_path: Path) -> None:
    base, tuned = pair()
    (saved,) = extract_lora(base, tuned, tmp_path / "out", **bound)
    (part,) = saved.report.parts
    delta = (tuned["l.weight"] - base["l.weight"]).double().numpy()
    s = numpy.linalg.svd(delta, compute_uv=False)
    tail = numpy.sqrt(numpy.append(numpy.cumsum((s**2)[::-1])[::-1], 0.0))  # what is missing at each rank
    if "rank" in bound:
        rank = 4
    else:
        allowed = bound["error"] if "error" in bound else numpy.sqrt(1 - bound["energy"])
        rank = int(numpy.argmax(tail / tail[0] <= allowed))
    assert part.target.rank == rank
    file = load_file(tmp_path / "out" / "adapter_model.safetensors")
    a, b = (file[f"base_model.model.l.lora_{x}.weight"].double().numpy() for x in "AB")
    assert numpy.isclose(numpy.linalg.norm(delta - b @ a), tail[rank], rtol=1e-5)
    assert numpy.isclose(part.error, tail[rank] / tail[0], rtol=1e-5)
    assert saved.report.saved == ("n.weight",)


def test_what_no_adapter_holds_is_dropped_with_its_norm(tmp_path: Path) -> None:
    base, tuned = pair()
    (saved,) = extract_lora(base, tuned, tmp_path / "out", rank=9, rest="drop")
    norm = float((tuned["n.weight"] - base["n.weight"]).norm())
    assert saved.report.dropped == {"n.weight": pytest.approx(norm, rel=1e-6)}
    assert any(note.code == "CV-P176" and "n.weight" in note.message for note in saved.notes)
    total = numpy.sqrt(norm**2 + float((tuned["l.weight"] - base["l.weight"]).norm()) ** 2)
    assert saved.report.error == pytest.approx(norm / total, rel=1e-4)


def test_several_models_go_to_folders_of_their_own(tmp_path: Path) -> None:
    base, tuned = pair()
    saved = extract_lora(base, {"x": tuned, "y": {n: 2 * t for n, t in tuned.items()}}, tmp_path, rank=2)
    assert [one.path.name for one in saved] == ["x", "y"]
    assert all((tmp_path / name / "adapter_config.json").is_file() for name in "xy")


def test_little_memory_changes_nothing(tmp_path: Path) -> None:
    base, tuned = pair()
    extract_lora(base, tuned, tmp_path / "a", rank=3)
    extract_lora(base, tuned, tmp_path / "b", rank=3, run=RunOptions(memory=10))
    files = [(tmp_path / x / "adapter_model.safetensors").read_bytes() for x in "ab"]
    assert files[0] == files[1]


def test_threads_change_nothing_and_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {f"layers.{i}.weight": torch.randn(24, 20, generator=draw) for i in range(6)}
    for number, name in enumerate(("base", "tuned")):
        (tmp_path / name).mkdir()
        changed = {n: t + 0.1 * number * torch.randn(t.shape, generator=draw) for n, t in tensors.items()}
        save_file(changed, tmp_path / name / "model.safetensors")
    models = str(tmp_path / "base"), str(tmp_path / "tuned")
    for threads in (1, 2):
        extract_lora(*models, tmp_path / f"out{threads}", rank=3, run=RunOptions(threads=threads))
    files = [(tmp_path / out / "adapter_model.safetensors").read_bytes() for out in ("out1", "out2")]
    assert files[0] == files[1]

    def stop(event: Any) -> None:
        if isinstance(event, Progress) and "3" in event.tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_lora(*models, tmp_path / "again", rank=3, run=RunOptions(threads=1), listener=stop)
    assert not (tmp_path / "again").exists()
    (saved,) = extract_lora(*models, tmp_path / "again", rank=3)
    assert saved.finished.resumed_bytes > 0
    assert (tmp_path / "again" / "adapter_model.safetensors").read_bytes() == files[0]


def test_a_run_with_another_bound_does_not_go_on(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {f"layers.{i}.weight": torch.randn(24, 20, generator=draw) for i in range(6)}
    low = {n: torch.randn(24, 3, generator=draw) @ torch.randn(3, 20, generator=draw) for n in tensors}
    for name, tau in (("base", 0.0), ("tuned", 1.0)):
        (tmp_path / name).mkdir()
        save_file({n: t + tau * low[n] for n, t in tensors.items()}, tmp_path / name / "model.safetensors")
    models = str(tmp_path / "base"), str(tmp_path / "tuned")

    def stop(event: Any) -> None:
        if isinstance(event, Progress) and "3" in event.tensor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_lora(*models, tmp_path / "out", rank=3, run=RunOptions(threads=1), listener=stop)
    with pytest.raises(CuveeError, match="CV-E008"):  # though its ranks, and so the layout, would be the same
        extract_lora(*models, tmp_path / "out", error=1e-3)


def test_refusals(tmp_path: Path) -> None:
    base, tuned = pair()
    for wrong in ({}, {"rank": 1, "energy": 0.5}, {"rank": 0}, {"error": 2.0}):
        with pytest.raises(CuveeError, match="CV-U170"):
            extract_lora(base, tuned, tmp_path / "out", **wrong)  # type: ignore[arg-type]
    with pytest.raises(CuveeError, match="CV-E170"):
        extract_lora(base, base, tmp_path / "out", rank=1)
    with pytest.raises(CuveeError, match="CV-P174"):
        extract_lora(base, tuned, tmp_path / "out.safetensors", rank=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("bound", [Bound(rank=3), Bound(energy=0.8), Bound(error=1e-4)])
def test_the_product_of_stacked_factors_needs_no_full_matrix(bound: Bound) -> None:
    draw = torch.Generator().manual_seed(0)
    left = torch.randn(30, 6, generator=draw, dtype=torch.float64)
    right = torch.randn(6, 20, generator=draw, dtype=torch.float64)
    direct, short = (
        compress(left @ right, bound, Plain()),
        compress_product(Factors(left, right), bound, Plain()),
    )
    assert direct.rank == short.rank and numpy.isclose(direct.missing, short.missing, atol=1e-9)
    products = [c.factors.left @ c.factors.right for c in (direct, short)]
    torch.testing.assert_close(*products)

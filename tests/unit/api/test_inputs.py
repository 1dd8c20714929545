"""Outputs never replace what they are made from, and a live module is touched only by a merge that fits it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import cuvee
from cuvee.api.inputs import resume_key, stamps
from cuvee.errors import OutputBusy, RunError, UsageError

NAMES = [f"layers.{i}.w.weight" for i in range(3)]


def model(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(4, 5) for name in NAMES}


def folder(path: Path, seed: int) -> Path:
    """A model of one shard for each tensor."""
    path.mkdir(parents=True)
    files = {name: f"model-0000{i}-of-00003.safetensors" for i, name in enumerate(NAMES, 1)}
    for name, tensor in model(seed).items():
        save_file({name: tensor}, path / files[name])
    index = {"metadata": {}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def adapter(path: Path) -> Path:
    path.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["w"]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {
        f"base_model.model.layers.0.w.lora_{k}.weight": torch.randn(s)
        for k, s in (("A", (2, 5)), ("B", (4, 2)))
    }
    save_file(tensors, path / "adapter_model.safetensors")
    return path


def test_no_output_over_an_input(tmp_path: Path) -> None:
    base, tune = folder(tmp_path / "models" / "base", 0), folder(tmp_path / "models" / "tune", 1)
    (tmp_path / "link").symlink_to(tune, target_is_directory=True)
    cache = tmp_path / "models--o--m"  # as the hub keeps it: files are links to another folder
    snapshot = cache / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    save_file(model(2), cache / "blobs" / "abc")
    (snapshot / "model.safetensors").symlink_to(Path("../../blobs/abc"))
    blend = cuvee.merge([base, tmp_path / "link", snapshot])
    wrong = [base, tune, tmp_path / "link", tmp_path / "models", snapshot, cache / "blobs", cache]
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for out in wrong:
        with pytest.raises(OutputBusy) as caught:
            blend.save(out, overwrite=True)
        assert caught.value.diagnostics[0].code == "CV-E031", out
    with pytest.raises(OutputBusy):
        blend.save(tune / "model-00002-of-00003.safetensors", overwrite=True)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    blend.save(tmp_path / "models" / "out")


def test_no_output_over_an_adapter_or_what_it_adapts(tmp_path: Path) -> None:
    folder(tmp_path / "base", 0)
    lora = adapter(tmp_path / "lora")
    recipe = tmp_path / "r.yaml"
    recipe.write_text("version: 1\nexperts: {a: ./base + ./lora}\nmerge: {method: passthrough}\n")
    for out in (tmp_path / "base", lora):
        with pytest.raises(OutputBusy):
            cuvee.load(recipe).save(out, overwrite=True)
    cuvee.load(recipe).save(tmp_path / "out")


def test_stamps_know_contents_the_digest_does_not(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for seed, path in enumerate(paths):
        save_file(model(seed), path)
    blend = cuvee.merge(paths)
    first = blend.build()
    key = resume_key(first, stamps(first), {})
    assert resume_key(blend.build(), stamps(blend.build()), {}) == key
    assert resume_key(first, stamps(first), {"torch": "0"}) != key
    save_file(model(7), paths[1])
    changed = blend.build()
    assert changed.digest == first.digest  # what makes the stamps necessary
    assert resume_key(changed, stamps(changed), {}) != key


def test_tensors_in_memory_are_told_apart_by_their_values() -> None:
    keys = []
    for seed in (0, 0, 1):
        plan = cuvee.merge([model(seed), model(5)]).build()
        keys.append(resume_key(plan, stamps(plan), {}))
    assert keys[0] == keys[1] != keys[2]


def test_an_input_that_changes_during_the_run_stops_it(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for seed, path in enumerate(paths):
        save_file(model(seed), path)
    with pytest.raises(RunError, match="changed while it was merged"):
        cuvee.merge(paths).save(
            tmp_path / "out.safetensors", listener=lambda event: save_file(model(9), paths[1])
        )
    assert not (tmp_path / "out.safetensors").exists()


class Two(nn.Module):
    def __init__(self, rows: int = 4) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, rows, bias=False), nn.Linear(5, 4, bias=False)


@pytest.mark.parametrize(
    "names", [("one.weight",), ("one.weight", "two.weight", "three.weight"), ("one.weight", "two.weight")]
)
def test_a_module_that_does_not_fit_is_left_as_it_was(names: tuple[str, ...]) -> None:
    module = Two(rows=3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        cuvee.merge([{name: torch.ones(4, 5) for name in names}]).into(module)
    assert caught.value.diagnostics[0].code == "CV-U012"
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_module_that_fits_is_filled_tied_weights_too() -> None:
    module = Two()
    module.two.weight = module.one.weight
    merged = cuvee.merge([module, {"one.weight": torch.ones(4, 5)}])
    expected = (module.one.weight.detach() + 1) / 2
    assert merged.into(module) is module
    torch.testing.assert_close(module.two.weight.detach(), expected)


def test_no_model_is_lost_to_a_name(tmp_path: Path) -> None:
    for name in ("expert_2", "a"):
        save_file(model(3), tmp_path / f"{name}.safetensors")
        (tmp_path / name).mkdir()
        save_file(model(3), tmp_path / name / "model.safetensors")
    blend = cuvee.merge([tmp_path / "expert_2", model(1), tmp_path / "a"])
    assert len(blend.recipe.sources) == 3
    assert "a" in blend.recipe.sources
    with pytest.raises(UsageError, match="cannot be called `base`"):
        cuvee.merge({"base": model(0), "x": model(1)}, base=model(2), method="ties")


def test_comparing_closes_what_it_opened_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file(model(0), path)
    with cuvee.open(path) as opened:
        assert cuvee.diff(opened, path).same
        assert torch.equal(opened.tensor(NAMES[0]), model(0)[NAMES[0]])
    held = [p for p in Path("/proc/self/fd").iterdir() if p.is_symlink() and str(path) in str(p.readlink())]
    assert held == []

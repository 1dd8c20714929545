"""Figures that a stage records reach the manifest, and a later run goes on from them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import cuvee
from cuvee.engine.options import RunOptions

SHAPES = {"layers.0.a": (7, 5), "layers.0.b": (4, 6), "bias": (3,)}


def model(seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def merge(experts, out: Path, **values):
    blend = cuvee.merge(experts, base=model(0), method="opcm", **values)
    blend.save(str(out), run=RunOptions(threads=2), overwrite=True)
    manifest = json.loads((out / "cuvee-manifest.json").read_text())
    with cuvee.open(str(out)) as made:
        return manifest["numerics"], {name: made.tensor(name) for name in SHAPES}


def test_experts_are_added_to_an_earlier_output(tmp_path):
    experts = [model(seed) for seed in (1, 2, 3, 4)]
    _, whole = merge(experts, tmp_path / "whole")
    numerics, half = merge(experts[:2], tmp_path / "half")
    (figures,) = numerics["figures"]["opcm"]
    assert figures["seen"] == 2 and 1 < figures["seen_lambda"] < 2
    _, later = merge([half, *experts[2:]], tmp_path / "later", **figures)
    for name in SHAPES:
        torch.testing.assert_close(later[name], whole[name], rtol=1e-4, atol=1e-5)


def test_methods_that_record_nothing_leave_the_manifest_as_it_was(tmp_path):
    cuvee.merge([model(1)], base=model(0), method="iso_c").save(str(tmp_path / "out"))
    assert "figures" not in json.loads((tmp_path / "out" / "cuvee-manifest.json").read_text())["numerics"]

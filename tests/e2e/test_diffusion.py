"""Pipelines and single files of diffusion models, merged and converted, against the diffusers library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.transformers, pytest.mark.filterwarnings("ignore")]

KINDS = ("sd1", "sd2", "sdxl", "sd3", "flux")
Pair = tuple[Path, Path]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    """Two tiny pipelines of a kind, built once."""
    from cuvee.testing.tiny_pipelines import tiny_pipeline

    done: dict[str, Pair] = {}

    def make(kind: str) -> Pair:
        if kind not in done:
            root = tmp_path_factory.mktemp(kind)
            done[kind] = tiny_pipeline(kind, root / "a", 0), tiny_pipeline(kind, root / "b", 1)
        return done[kind]

    return make


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a pipeline's folder, `<component>/<name>`, read by the safetensors library."""
    from safetensors.torch import load_file

    return {
        f"{path.parent.name}/{name}": tensor
        for path in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def recipe(path: Path, text: str) -> Path:
    path.write_text("version: 1\n" + text)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_pipeline_is_the_average_and_runs(kind: str, pair, cli, tmp_path: Path) -> None:
    from cuvee.testing.tiny_pipelines import run

    a, b = pair(kind)
    text = f"experts: {{a: {{source: {a}, weight: 0.25}}, b: {{source: {b}, weight: 0.75}}}}\n"
    made = cli("merge", recipe(tmp_path / "r.yaml", text + "merge: {method: linear}"), "-o", tmp_path / "out")
    assert made.code == 0, made.err
    ours, ones, others = weights(tmp_path / "out"), weights(a), weights(b)
    assert ours.keys() == ones.keys()
    for name, tensor in ours.items():
        mean = (ones[name].double() * 0.25 + others[name].double() * 0.75).float()
        torch.testing.assert_close(tensor, mean, rtol=1e-6, atol=1e-7)
    for path in a.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert json.loads((tmp_path / "out" / path.relative_to(a)).read_text()) == json.loads(
                path.read_text()
            )
    image = run(tmp_path / "out", steps=2)
    assert image.isfinite().all()
    assert not torch.equal(image, run(a, steps=2))
    assert cli("verify", tmp_path / "out").code == 0

"""What a plan says it will read, against the bytes a run asks its sources for, without compiled kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.engine.inputs import Inputs
from cuvee.engine.options import RunOptions
from cuvee.plan.cost import Rates, predict
from cuvee.plan.nodes import Read

SHAPE = (520, 512)  # more than a block
ROOMY, TIGHT = RunOptions(kernels=False), RunOptions(kernels=False, memory=1 << 20)
TRIMMED = [
    ("trim", {"density": 0.5, "scope": "tensor"}),
    ("elect", {"zero_sign": "plus"}),
    ("truncate", {"rank": 4}),
]
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "arcee_fusion": ("arcee_fusion", {}),
    "onebit_task_vector": ("onebit_task_vector", {}),
    "slerp_fold": ("slerp_fold", {}),
    "varm": ("varm", {}),
    "localize_stitch_datafree": ("localize_stitch_datafree", {}),
    "lwptv": ("lwptv", {}),
    "pcb": ("pcb", {}),
    "sce": ("sce", {"select_topk": 0.5}),
    "tsv_m": ("tsv_m", {}),
    "cart": ("cart", {}),
    "lore": ("lore", {"steps": 2}),
    "trim, elect, truncate": (TRIMMED, {}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(SHAPE, generator=draw)
    made = []
    for number in range(4):
        path = folder / f"{number}.safetensors"
        save_file(
            {"model.layers.0.mlp.up_proj.weight": base + 0.1 * torch.randn(SHAPE, generator=draw)}, path
        )
        made.append(path)
    return made


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [ROOMY, TIGHT], ids=["roomy", "tight"])
def test_as_many_bytes_are_read_as_were_predicted(
    case: str, options: RunOptions, models: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    method, values = CASES[case]
    read = 0
    checked = Inputs._checked

    def counted(self: Inputs, node: Read, leaf: Any, start: int, stop: int) -> torch.Tensor:
        nonlocal read
        read += (stop - start) * node.meta.dtype.size
        return checked(self, node, leaf, start, stop)

    monkeypatch.setattr(Inputs, "_checked", counted)
    experts = models[1:2] if method == "arcee_fusion" else models[1:]
    blend = cuvee.merge(experts, base=models[0], method=method, **values)
    plan = blend.build()
    said = predict(plan, options, Rates()).bytes_read
    plan.close()
    blend.load(options)
    assert read == pytest.approx(said, rel=0.07)  # equal magnitudes at a threshold take a part of a pass more


def test_a_link_that_was_led_elsewhere_is_another_file(tmp_path: Path) -> None:
    for name, value in (("v1", 1.0), ("v2", 3.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((8,), value)}, tmp_path / name / "model.safetensors")
    link = tmp_path / "now"
    for to, wanted in (("v1", 1.0), ("v2", 2.0)):
        link.unlink(missing_ok=True)
        link.symlink_to(to)
        blend = cuvee.merge([link, tmp_path / "v1"], method="average")
        assert blend.load(RunOptions(kernels=False))["w"].eq(wanted).all()

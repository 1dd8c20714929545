"""Bare weights, where names alone say how many layers there are: models that lack some or all tensors of a layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

import cuvee

torch.set_num_threads(1)
LAYER = "model.layers.{}.mlp.up_proj.weight"
FULL = {"norm": torch.tensor([1.0]), LAYER.format(0): torch.ones(2, 2), LAYER.format(1): torch.ones(2, 2)}
SHORT = {"norm": torch.tensor([4.0]), LAYER.format(0): 4 * torch.ones(2, 2)}
LAST = LAYER.format(1)


def merged(names: Literal["strict", "union", "intersection"], method: str, **given: Any) -> dict[str, Any]:
    base = {name: torch.zeros_like(tensor) for name, tensor in FULL.items()}
    start = base if method != "linear" else None
    blend = cuvee.merge({"full": FULL, "short": SHORT}, base=start, method=method, **given)
    return cuvee.Blend(replace(blend.recipe, names=names)).load()


def test_a_model_without_the_last_layer_lacks_its_tensors() -> None:
    with pytest.raises(cuvee.CuveeError, match=f"CV-P036: `{LAST}` is missing from `short`"):
        merged("strict", "linear")


@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_what_some_models_have_is_merged_of_those(method: str) -> None:
    found = merged("union", method, weight=[0.5, 0.25], normalize=False)
    assert found["norm"].tolist() == [1.5]
    assert torch.equal(found[LAST], 0.5 * FULL[LAST])


def test_what_some_models_lack_is_left_out() -> None:
    assert merged("intersection", "linear").keys() == SHORT.keys()


def test_names_of_layers_that_the_first_model_has_none_of() -> None:
    """Once IndexError: the first model, whose names the output has, knew no layers at all."""
    first, second = {"norm": torch.ones(1), "scalar": torch.ones(())}, {LAST: torch.ones(2, 2)}
    blend = cuvee.merge({"first": first, "second": second}, method="linear")
    with pytest.raises(cuvee.CuveeError, match=f"`{LAST}` is missing from `first`"):
        blend.load()
    found = cuvee.Blend(replace(blend.recipe, names="union")).load()
    assert found.keys() == {"norm", "scalar", LAST}

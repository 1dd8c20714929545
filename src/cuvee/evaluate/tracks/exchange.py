"""Giving a live network other weights, the same for every track. Knows no track."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cuvee.core.names import printable
from cuvee.errors import EvaluationError
from cuvee.evaluate.track import sides

if TYPE_CHECKING:
    from torch import Tensor, nn


def exchange(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy tensors of any float type into the network, as float32; others stay. Sides of length 1 may be left out.

    Raises EvaluationError CV-B012 for a tensor that the network does not have, or has in another shape.
    """
    shapes = {name: tensor.shape for name, tensor in network.named_parameters()}
    for name, tensor in weights.items():
        if sides(tensor.shape) != sides(shapes.get(name, tensor.shape)):
            raise EvaluationError(
                "CV-B012",
                f"`{printable(name)}` has the shape {tuple(tensor.shape)}, in the track's model it has "
                f"{tuple(shapes[name])}",
            )
    shaped = {n: t.float().reshape(shapes.get(n, t.shape)) for n, t in weights.items()}
    strange = network.load_state_dict(shaped, strict=False).unexpected_keys
    if strange:
        raise EvaluationError("CV-B012", f"the track's model has no tensor `{printable(strange[0])}`")

"""Which tensors stand in one layer, told from their places. Must not know any method."""

from __future__ import annotations

from cuvee.methods.contract import Place


def layer_of(place: Place) -> tuple[str, int] | None:
    """The layer a tensor stands in, or None outside the layers: the name before the layer's number, and the number.

    The name keeps the stacks of a composed model apart.
    """
    if place.layer is None:
        return None
    stack, found, _ = place.name.partition(f".{place.layer}.")
    return stack if found else "", place.layer


def depth_of(place: Place) -> float:
    """How deep in its stack a tensor stands: 0 in the first layer (and in an only one), 1 in the last.

    Tensors outside the layers count as 0.
    """
    if place.layer is None or place.layers < 2:
        return 0.0
    return place.layer / (place.layers - 1)

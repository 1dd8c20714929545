"""A list with one value for each layer gives every layer its own."""

from __future__ import annotations

import pytest

from cuvee.recipe.model import Curve
from cuvee.recipe.settings import at_depth


@pytest.mark.parametrize("layers", range(2, 130))
def test_a_list_as_long_as_the_layers_gives_each_its_value(layers):
    numbers = Curve(tuple(range(layers)), "step")
    words = Curve(tuple(f"value {i}" for i in range(layers)))
    line = Curve(tuple(float(i) for i in range(layers)))
    for layer in range(layers):
        depth = layer / (layers - 1)
        assert at_depth(numbers, depth) == layer
        assert at_depth(words, depth) == f"value {layer}"
        assert at_depth(line, depth) == pytest.approx(layer, abs=1e-12)

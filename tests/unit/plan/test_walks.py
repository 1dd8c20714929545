"""Walking expressions: the order, what is shared, and that nothing is kept of expressions that are gone."""

from __future__ import annotations

import gc
import pickle
import weakref

from cuvee.core.dtypes import FLOAT32
from cuvee.core.tensors import TensorMeta
from cuvee.plan import nodes
from cuvee.plan.nodes import Difference, Node, Read, Sum, walk


def _expression() -> tuple[Node, list[Node]]:
    base, one, two = (Read(name, TensorMeta("w", FLOAT32, (2, 3))) for name in ("base", "one", "two"))
    first, second = Difference(one, base), Difference(two, base)
    root = Sum(((1.0, base), (0.5, first), (0.5, second)))
    return root, [base, one, first, two, second, root]


def test_children_come_first_and_shared_nodes_once() -> None:
    root, expected = _expression()
    for _ in range(2):  # made, and remembered
        assert list(map(id, walk(root))) == list(map(id, expected))


def test_an_expression_that_was_walked_is_not_kept_alive() -> None:
    gc.collect()
    before = len(nodes._below)
    root, _ = _expression()
    list(walk(root))
    gone = weakref.ref(root)
    del root, _
    gc.collect()
    assert gone() is None and len(nodes._below) == before


def test_any_number_of_expressions_is_walked_once_each() -> None:
    """Checkpoints with experts have a hundred thousand tensors, and plans ask a dozen times for each."""
    roots = [_expression()[0] for _ in range(6000)]
    for root in roots:
        list(walk(root))
    assert all(root in nodes._below for root in roots)


def test_an_expression_survives_pickling_after_a_walk() -> None:
    root, _ = _expression()
    list(walk(root))
    again = pickle.loads(pickle.dumps(root))
    assert nodes.describe(again) == nodes.describe(root)

"""A stage's own function run on traced values: what it would compute becomes operations of the machine.

For stages that work on single elements, and for linear combinations whose coefficients come from a summary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from cuvee.engine.fused.builder import Unfusable
from cuvee.engine.fused.graph import Graph, emit
from cuvee.engine.fused.traced import Traced
from cuvee.errors import CuveeError
from cuvee.methods.contract import Block
from cuvee.methods.registry import stage

if TYPE_CHECKING:
    from cuvee.engine.fused.builder import Builder, Value
    from cuvee.plan.nodes import Apply

# Stages that are taken this way, where they work on single elements.
TRACED = frozenset(
    {
        "analogy", "decay_mean", "emr_expert", "energy_mean", "exponential_mean", "forget", "keep_near", "layer_top",
        "lines", "metric_mean", "newest_mean", "one_bit", "recency_mean", "slack", "slerp_fold", "tall_masks",
        "window_mean",
    }
)  # fmt: skip


def trace(builder: Builder, node: Apply, place: int, summary: Mapping[str, Any]) -> Value:
    """Run the stage on traced values and emit what it made of them; its result is to be released once.

    `place`: of the tensor among those that share the summary.
    """
    step = stage(node.stage)
    wanted = inspect.signature(step.function).parameters
    graph = Graph(len(node.inputs))
    tensors: Any = [Traced(graph, index) for index in range(graph.inputs)]
    extra: dict[str, Any] = {}
    if "summary" in wanted:
        extra["summary"] = summary
    if "block" in wanted:
        extra["block"] = Block(tensors, 0, node.shape, place, node.place)
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in node.values}
    argument = tensors if step.role == "combine" else tensors[0]
    result = traced(lambda: step.function(argument, **values, **extra))
    if not step.upcast and result.index >= graph.inputs:
        raise Unfusable("arithmetic in the inputs' type")
    root = floats(result).index
    (value,) = emit(builder, graph, node.inputs, [root], _summed(builder, node, graph, root))
    return value


def _summed(builder: Builder, node: Apply, graph: Graph, root: int) -> tuple[int, Value] | None:
    """The weighted sum of all inputs that a step is, emitted at once; None where there is none, or it takes more."""
    from cuvee.engine.fused.crowd import mixed  # which asks `figures`, which ask what is traced

    found = graph.weighted_sum([root])
    value = None if found is None else mixed(builder, node, found[1], first=True)
    return None if found is None or value is None else (found[0], value)


def traced(function: Callable[[], Any]) -> Any:
    """What a function makes of traced values; Unfusable where it does with them what only tensors can."""
    try:
        return function()
    except (AttributeError, TypeError, RuntimeError, ValueError, LookupError, ArithmeticError) as error:
        raise Unfusable(str(error)) from error
    except CuveeError as error:
        raise Unfusable("the generic path says it") from error


def floats(result: Any) -> Traced:
    """A result of float32; Unfusable where it is something else."""
    if not isinstance(result, Traced) or result.kind != "float":
        raise Unfusable("a result that is not float32")
    return result

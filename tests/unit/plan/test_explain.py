"""What a plan says of itself: costs, HTML, graphs, chains, rules."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest
import torch

import cuvee
from cuvee.errors import PlanError
from cuvee.plan.build import PlanOptions
from cuvee.plan.cost import cost
from cuvee.plan.explain import dot, explain_html, explain_text, graph, size
from cuvee.plan.nodes import Apply, Convert, Read, walk

HOSTILE = '<script>alert(1)</script>"];x[label="\x1b[31m\u202e\n'


def model(seed: int, dtype: torch.dtype = torch.float32, name: str = "w") -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return {name: torch.randn(30, 20).to(dtype), "steps": torch.tensor([1, 2])}


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.add(tag)


def test_names_from_files_cannot_leave_their_place() -> None:
    models = [model(0, name=HOSTILE), model(1, name=HOSTILE)]
    plan = cuvee.merge({HOSTILE: models[0], "b": models[1]}, method="linear").build()
    tags = Tags()
    tags.feed(explain_html(plan))
    assert tags.seen <= {"div"}
    for text in (explain_text(plan), *graph(plan.tensors[0].node)):
        assert not set("\x1b\u202e") & set(text)
    drawn = dot(plan.tensors[0].node)
    assert not set("\x1b\u202e") & set(drawn)
    assert drawn.count("\n") == len(drawn.splitlines()) - 1
    for line in drawn.splitlines()[2:-1]:
        unescaped = line.replace("\\\\", "").replace('\\"', "")
        assert unescaped.count('"') in (0, 2), line


def test_the_cost_is_counted_from_headers() -> None:
    models = [model(i, torch.bfloat16) for i in range(3)]
    plan = cuvee.merge(models[1:], base=models[0], method="ties").build()
    figures = cost(plan)
    assert figures.reads == 3 * 30 * 20 * 2 + 16  # the buffer is read from the base alone
    assert figures.writes == plan.layout.total_bytes
    assert (figures.merged, figures.copied, figures.converted, figures.summarised) == (1, 1, 0, 1)
    assert figures.largest_whole == 0
    whole = cuvee.merge(models[1:], method="nuslerp", flatten=False, axis="first").build()
    assert cost(whole).largest_whole > 4 * 30 * 20


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (16_060_000_000, "16.1 GB"), (5e15, "5000.0 TB")],
)
def test_sizes(bytes_: float, text: str) -> None:
    assert size(bytes_) == text


def test_a_named_method_is_its_chain() -> None:
    base, one, two = (model(i) for i in range(3))
    named = cuvee.merge([one, two], base=base, method="ties", density=0.3).load()
    chain = [("trim", {"density": 0.3}), "elect", "scale"]
    chained = cuvee.merge([one, two], base=base, method=chain).load()
    assert torch.equal(named["w"], chained["w"])


@pytest.mark.parametrize(
    ("chain", "code", "step"),
    [
        (["trim"], "CV-P010", "combine stage (`cuvee methods --stages`) behind `trim`"),
        (["scale"], "CV-P010", "combine stage (`cuvee methods --stages`) before `scale`"),
        (["knots", "scale"], "CV-P010", "combine stage (`cuvee methods --stages`) behind `knots`"),
        (["elect", "weighted_sum"], "CV-P010", "keep one of `elect` and `weighted_sum`"),
        (["elect", "trim"], "CV-P011", "put `trim` before `elect`"),
        (["scale", "elect"], "CV-P011", "put `scale` behind `elect`"),
        (["trim", "slerp"], "CV-P012", "combine with `weighted_sum`"),
    ],
)
def test_senseless_chains_are_refused_with_the_step_to_take(chain: list[str], code: str, step: str) -> None:
    with pytest.raises(PlanError) as caught:
        cuvee.merge([model(1), model(2)], base=model(0), method=chain).plan()
    (found,) = caught.value.diagnostics
    assert found.code == code
    assert step in (found.hint or "")


def test_each_rule_saves_work_and_can_be_switched_off() -> None:
    def node(*off: str) -> Any:
        blend = cuvee.merge([model(0, torch.bfloat16)], method="passthrough")
        return cuvee.Blend(blend.recipe, options=PlanOptions(rules_off=off)).build().tensors[0].node

    assert isinstance(node(), Read)
    assert isinstance(node("collapse_casts"), Convert)
    assert any(isinstance(n, Apply) for n in walk(node("copy_passthrough")))


@pytest.mark.parametrize(
    ("dtype", "wide"), [("float8_e4m3fn", "float16"), ("float16", "bfloat16"), ("float32", "bfloat16")]
)
def test_only_lossless_casts_collapse(dtype: str, wide: str) -> None:
    values = {"w": torch.linspace(-3, 3, 50).to(getattr(torch, dtype))}
    found = cuvee.merge([values], method="passthrough", dtype=wide, out_dtype="float32").load()["w"]
    assert torch.equal(found, values["w"].to(getattr(torch, wide)).float())
    plan = cuvee.merge(
        [values], method="passthrough", dtype=wide, out_dtype=dtype if dtype != "float8_e4m3fn" else wide
    ).build()
    lossless = torch.equal(values["w"].float(), values["w"].to(getattr(torch, wide)).float())
    assert (plan.tensors[0].action == "copied") == (lossless and dtype != "float8_e4m3fn")


def test_each_stage_of_a_chain_may_have_a_value_for_each_expert() -> None:
    base, one, two = (model(i) for i in range(3))
    named = cuvee.merge([one, two], base=base, method="ties", density=[0.3, 0.6], weight=[1, 2]).load()
    chain = [("trim", {"density": [0.3, 0.6]}), ("elect", {"weight": [1, 2]}), "scale"]
    assert torch.equal(named["w"], cuvee.merge([one, two], base=base, method=chain).load()["w"])

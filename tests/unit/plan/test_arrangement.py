"""Layers and slices: which source layer each output tensor comes from, at which depth, and what the config says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import cuvee
from cuvee.errors import CuveeError, PlanError
from cuvee.recipe.model import Input, ModuleRecipe, Rule, Slice

Layers = list[tuple[str, int]]  # model and layer of each output layer


def loaded(path: Path, text: str) -> cuvee.Blend:
    (path / "r.yaml").write_text(f"version: 1\n{text}\n")
    return cuvee.load(path / "r.yaml")


def tensors(here: Path, name: str) -> dict[str, Tensor]:
    with cuvee.open(here / name) as model:
        return {n: model.tensor(n) for n in model.source.tensors}


def save(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def stacked(here: Path, order: Layers, first: str, last: str) -> dict[str, Tensor]:
    """A stack of layers, with what stands before it and after it, renamed by hand."""
    models = {name: tensors(here, name) for name in {*dict(order), first, last}}
    out = {"model.embed_tokens.weight": models[first]["model.embed_tokens.weight"]}
    for number, (name, layer) in enumerate(order):
        head = f"model.layers.{layer}."
        own = {n: t for n, t in models[name].items() if n.startswith(head)}
        out |= {f"model.layers.{number}.{n.removeprefix(head)}": t for n, t in own.items()}
    return out | {n: models[last][n] for n in ("model.norm.weight", "lm_head.weight")}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_slices_of_several_models(here: Path) -> None:
    blend = loaded(here, "experts: {math: ./math, deep: ./deep}\nmerge: {method: passthrough}\nlayers:\n"
                         "  - {from: deep, range: [1, 3]}\n  - {from: math, range: [0, 1]}\n"
                         "  - {from: deep, range: [0, 1]}")  # fmt: skip
    order = [("deep", 1), ("deep", 2), ("math", 0), ("deep", 0)]
    assert_same(blend.load(), stacked(here, order, "deep", "deep"))
    config = blend.build().config
    assert config is not None
    assert config["num_hidden_layers"] == 4


def test_donors_with_ranges_of_their_own_are_merged_layer_by_layer(here: Path) -> None:
    blend = loaded(here, "experts: {math: ./math, deep: ./deep}\nmerge: {method: linear}\nlayers:\n"
                         "  - {from: {math: [0, 2], deep: [1, 3]}}")  # fmt: skip
    one = stacked(here, [("math", 0), ("math", 1)], "math", "math")
    two = stacked(here, [("deep", 1), ("deep", 2)], "deep", "deep")
    for name, value in blend.load().items():
        torch.testing.assert_close(value, (one[name] + two[name]) / 2)


@pytest.mark.parametrize(
    ("layers", "code", "word"),
    [
        ("{math: [0, 1], deep: [0, 2]}", "CV-P024", "`deep` 2"),
        ("{math: [1, 3]}", "CV-P023", "beyond the 2 layers"),
        ("{deep: [3, 1]}", "CV-P023", "[3, 1]"),
        ("{deep: [-2, 1]}", "CV-P023", "[-2, 1]"),
    ],
)
def test_impossible_ranges(layers: str, code: str, word: str, here: Path) -> None:
    blend = loaded(here, "experts: {math: ./math, deep: ./deep}\nmerge: {method: linear}\n"
                         f"layers: [{{from: {layers}}}, {{from: [math, deep], range: [0, 1]}}]")  # fmt: skip
    with pytest.raises(PlanError) as caught:
        blend.plan()
    found = [d for d in caught.value.diagnostics if d.code == code]
    assert [word in d.message for d in found] == [True]
    assert found[0].where is not None
    assert found[0].where.line


def test_depth_up_scaling(here: Path) -> None:
    blend = loaded(here, "experts: {deep: ./deep}\nmerge: {method: dus, layers: 3, drop: 1}")
    assert_same(blend.load(), stacked(here, [("deep", i) for i in (0, 1, 1, 2)], "deep", "deep"))
    with pytest.raises(CuveeError, match="less than `layers`"):
        loaded(here, "experts: {deep: ./deep}\nmerge: {method: dus, layers: 3, drop: 3}").plan()


@pytest.mark.parametrize(
    ("values", "owners"),
    [
        ("bottom: 1, top: 1", "OIO"),
        ("bottom: 0, top: 1", "IIO"),
        ("bottom: 1, top: 0", "OII"),
        ("bottom: 1, top: 0, transition: 1", "O½I"),
        ("bottom: 0, top: 1, transition: 2", "½½O"),
    ],
)
def test_layer_swap(values: str, owners: str, tmp_path: Path, make_llama: Callable[..., Any]) -> None:
    for seed, name in enumerate(("in", "out")):
        made = make_llama(tmp_path / name, seed, layers=3)
        made["model.layers.0.mlp.up_proj.weight"][0, 0] = -0.0
        save_file(made, tmp_path / name / "model.safetensors")
    (tmp_path / "out" / "tokenizer.json").write_text('{"whose": "outer"}')
    blend = loaded(tmp_path, "experts: {in: ./in, out: ./out}\n"
                             f"merge: {{method: layer_swap, layers: 3, {values}, outer: out}}")  # fmt: skip
    order = [("in" if owner == "I" else "out", i) for i, owner in enumerate(owners)]
    expected = stacked(tmp_path, order, "out", "out")
    found, inner = blend.load(), tensors(tmp_path, "in")
    for name, value in expected.items():
        if any(f"layers.{i}." in name for i, owner in enumerate(owners) if owner == "½"):
            torch.testing.assert_close(found[name], (value + inner[name]) / 2)
        else:
            assert torch.equal(found[name], value), name
    if owners[0] == "O" and owners[-1] == "O":  # bit for bit where one parent alone gives a layer
        zero = found["model.layers.0.mlp.up_proj.weight"][0, 0]
        assert torch.signbit(zero)
    assert blend.build().side_files["tokenizer.json"] == b'{"whose": "outer"}'


@pytest.mark.parametrize(("edges", "after"), [("ends", 0.9), ("first", 0.1)])
def test_curves_reach_from_the_first_layer_to_the_last(edges: str, after: float, here: Path) -> None:
    blend = loaded(here, f"edges: {edges}\nexperts: {{deep: ./deep, other: ./deep}}\n"
                         "merge: {method: slerp, t: [0.1, 0.9]}")  # fmt: skip
    found = {t.meta.name: t.parameters["t"] for t in blend.build().tensors}
    values = {n: one.value for n, one in found.items() if hasattr(one, "value")}
    assert [values[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == pytest.approx(
        [0.1, 0.5, 0.9]
    )
    assert values["model.embed_tokens.weight"] == pytest.approx(0.1)
    assert values["model.norm.weight"] == values["lm_head.weight"] == pytest.approx(after)


def test_a_curve_runs_over_the_whole_output_or_over_each_slice(here: Path) -> None:
    text = ("experts: {deep: ./deep, other: ./deep}\nmerge: {method: slerp, t: [0, 1]}\nlayers:\n"
            "  - {from: [deep, other], range: [0, 2]}\n  - {from: [deep, other], range: [0, 3]}")  # fmt: skip
    for more, expected in (("", [0, 0.25, 0.5, 0.75, 1]), ("curves: slices\n", [0, 1, 0, 0.5, 1])):
        found = {t.meta.name: t.parameters["t"] for t in loaded(here, more + text).build().tensors}
        values = [found[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(5)]
        assert [one.value for one in values if hasattr(one, "value")] == expected


def test_a_method_told_of_another_number_of_layers_says_so(here: Path) -> None:
    for merge in ("{method: dus, layers: 2, drop: 1}", "{method: dus, layers: 4, drop: 1}"):
        with pytest.raises(PlanError, match="but `deep` has 3 layers") as caught:
            loaded(here, f"experts: {{deep: ./deep}}\nmerge: {merge}").plan()
        (found,) = caught.value.diagnostics
        assert (found.code, found.where and found.where.path) == ("CV-P110", "merge.layers")
    with pytest.raises(CuveeError, match="no place beside a method"):
        loaded(
            here, "experts: {deep: ./deep}\nmerge: {method: dus, layers: 3, drop: 1}\nlayers: [{from: deep}]"
        )


def towers(folder: Path, seed: int) -> dict[str, Tensor]:
    """A model of two stacks of two layers each."""
    draw = torch.Generator().manual_seed(seed)
    names = [f"{part}.block.{i}.layer.0.SelfAttention.{n}.weight" for part in ("encoder", "decoder") for i in (0, 1)
             for n in "qk"]  # fmt: skip
    made = {"shared.weight": torch.randn(9, 4, generator=draw)}
    made |= {name: torch.randn(4, 4, generator=draw) for name in names}
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "vocab_size": 9,
              "num_layers": 2, "num_decoder_layers": 2}  # fmt: skip
    save(folder, made, config)
    return made


def test_modules_with_layers_and_values_of_their_own(tmp_path: Path) -> None:
    a, b = (towers(tmp_path / name, seed) for seed, name in enumerate("ab"))
    blend = loaded(tmp_path, "experts: {a: {source: ./a, weight: 1}, b: {source: ./b, weight: 1}}\n"
                             "merge: {method: linear}\nmodules:\n"
                             "  encoder: {from: {a: {weight: 3}, b: {}}}\n"
                             "  decoder:\n    layers:\n      - {from: {b: [1, 2]}}\n"
                             "      - {from: {a: {layers: [0, 1], weight: {'*.q.*': 1, default: 9}}, b: [1, 2]}}\n"
                             "      - {from: a, range: [1, 2]}\n")  # fmt: skip
    found, plan = blend.load(), blend.build()

    def name(part: str, layer: int, letter: str) -> str:
        return f"{part}.block.{layer}.layer.0.SelfAttention.{letter}.weight"

    for layer in (0, 1):
        at = name("encoder", layer, "k")
        torch.testing.assert_close(found[at], 0.75 * a[at] + 0.25 * b[at])
    first, second = name("decoder", 0, "q"), name("decoder", 1, "q")
    assert torch.equal(found[first], b[second])
    torch.testing.assert_close(found[second], (a[first] + b[second]) / 2)
    torch.testing.assert_close(
        found[name("decoder", 1, "k")], 0.9 * a[name("decoder", 0, "k")] + 0.1 * b[name("decoder", 1, "k")]
    )
    assert torch.equal(found[name("decoder", 2, "k")], a[name("decoder", 1, "k")])
    assert torch.equal(found["shared.weight"], a["shared.weight"])  # not listed, so copied, and said
    assert "CV-P025" in [d.code for d in plan.notes if d.severity == "warning"]
    assert plan.config is not None
    assert (plan.config["num_layers"], plan.config["num_decoder_layers"]) == (2, 3)


@pytest.mark.parametrize(
    ("modules", "code"),
    [
        ("{encodr: {}}", "CV-P022"),
        ("{encoder: {from: [c]}}", "CV-R014"),
        ("{encoder: {from: {a: {wieght: 1}}}}", "CV-R004"),
        ("{encoder: {from: a, layers: [{from: a}]}}", "CV-R110"),
        ("{encoder: {layers: []}}", "CV-R010"),
        ("{encoder: {layers: [{from: {a: [0, 3]}}]}}", "CV-P023"),
        ("{encoder: {parameters: {wieght: 1}}}", "CV-R007"),
    ],
)
def test_mistakes_in_modules(modules: str, code: str, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        towers(tmp_path / name, seed)
    text = f"experts: {{a: ./a, b: ./b}}\nmerge: {{method: average}}\nmodules: {modules}"
    with pytest.raises(CuveeError) as caught:
        loaded(tmp_path, text.replace("average", "linear")).plan()
    assert code in [d.code for d in caught.value.diagnostics]
    with pytest.raises(CuveeError, match="exclude each other"):
        loaded(tmp_path, text + "\nlayers: [{from: a}]")


def test_modules_left_out_are_copied_and_share_the_output_s_vocabulary(here: Path) -> None:
    module = ModuleRecipe((Slice((Input("math"), Input("code"))),))
    blend = cuvee.merge([here / "math", here / "code"])
    with pytest.raises(PlanError, match="has no module `encoder`; it has `default`"):
        blend.with_(modules={"encoder": module}).plan()
    text = {"shared.weight": torch.randn(9, 4)}
    blocks = {f"{part}.block.0.layer.0.SelfAttention.q.weight": (4, 4) for part in ("encoder", "decoder")}
    models = [{**text, **{n: torch.randn(s) for n, s in blocks.items()}} for _ in range(2)]
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "vocab_size": 9}
    for i, model in enumerate(models):
        save(here / f"t{i}", model if i == 0 else {**model, "shared.weight": torch.randn(7, 4)}, config)
    part = ModuleRecipe((Slice((Input("t0"), Input("t1"))),))
    blend = cuvee.merge([here / "t0", here / "t1"]).with_(modules={"encoder": part}, truncate_vocabulary=True)
    plan, found = blend.build(), blend.load()
    assert "CV-P025" in [d.code for d in plan.notes if d.severity == "warning"]
    decoder = "decoder.block.0.layer.0.SelfAttention.q.weight"
    assert torch.equal(found[decoder], models[0][decoder])
    assert plan.config is not None
    assert plan.config["vocab_size"] == found["shared.weight"].shape[0] == 7


def test_rules_of_models_go_by_the_output_s_names(here: Path) -> None:
    """As `layers` does: output layer 0 comes from layer 1 of one model and layer 0 of the other."""
    rule = {"weight": (Rule(0.0, name="model.layers.0.*"), Rule(1.0))}
    part = Slice((Input("a", (1, 2), rule), Input("b", (0, 1), {"weight": (Rule(1.0),)})))
    blend = cuvee.merge({"a": here / "math", "b": here / "code"}).with_(modules={"*": ModuleRecipe((part,))})
    found, code = blend.load(), tensors(here, "code")
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(found[name], code[name])

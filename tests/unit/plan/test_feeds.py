"""What feeds an output tensor: heads, buffers, ties, missing tensors, vocabularies, arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import cuvee
from cuvee.errors import PlanError, UsageError

BERT = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "num_hidden_layers": 1,
    "vocab_size": 11,
}
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 1,
    "hidden_size": 4,
}


def save(folder: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def classifier(classes: int, seed: int, positions: int = 6) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "bert.embeddings.word_embeddings.weight": torch.randn(11, 4),
        "bert.embeddings.position_ids": torch.arange(positions).reshape(1, -1),
        "bert.encoder.layer.0.output.dense.weight": torch.randn(4, 4),
        "classifier.weight": torch.randn(classes, 4),
        "classifier.bias": torch.randn(classes),
    }


def llama(rows: int, seed: int, *, head: bool, layers: int = 1) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    found = {"model.embed_tokens.weight": torch.randn(rows, 4), "model.norm.weight": torch.randn(4)}
    found |= {f"model.layers.{i}.mlp.up_proj.weight": torch.randn(6, 4) for i in range(layers)}
    return found | ({"lm_head.weight": torch.randn(rows, 4)} if head else {})


def messages(blend: cuvee.Blend, severity: str) -> str:
    return "\n".join(n.message for n in blend.build().notes if n.severity == severity)


def test_heads_and_buffers_of_other_shapes_are_copied_with_a_warning(tmp_path: Path) -> None:
    models = {
        n: classifier(c, s, p) for s, (n, c, p) in enumerate([("base", 2, 6), ("a", 3, 6), ("b", 2, 9)])
    }
    paths = {name: save(tmp_path / name, tensors, BERT) for name, tensors in models.items()}
    for base in (paths["base"], None):
        method = "task_arithmetic" if base else "linear"
        blend = cuvee.merge({"a": paths["a"], "b": paths["b"]}, base=base, method=method)
        kept = models["base" if base else "a"]
        found = blend.load()
        for name in ("classifier.weight", "classifier.bias", "bert.embeddings.position_ids"):
            assert torch.equal(found[name], kept[name])
            assert name in messages(blend, "warning")
        assert not torch.equal(
            found["bert.encoder.layer.0.output.dense.weight"],
            kept["bert.encoder.layer.0.output.dense.weight"],
        )


def test_mergekit_recipes_refuse_heads_of_other_shapes(tmp_path: Path) -> None:
    for seed, (name, classes) in enumerate([("a", 2), ("b", 3)]):
        save(tmp_path / name, classifier(classes, seed), BERT)
    recipe = tmp_path / "r.yml"
    recipe.write_text(
        "merge_method: linear\nmodels: [{model: ./a, parameters: {weight: 1}}, {model: ./b, parameters: {weight: 1}}]"
    )
    with pytest.raises(PlanError, match=r"`classifier.weight` has different shapes: .*\[2, 4\].*\[3, 4\]"):
        cuvee.load(recipe).plan()


def test_a_body_of_other_shapes_is_refused_in_every_recipe(tmp_path: Path) -> None:
    one, two = classifier(2, 0), classifier(2, 1)
    two["bert.encoder.layer.0.output.dense.weight"] = torch.randn(4, 5)
    paths = [save(tmp_path / n, t, BERT) for n, t in (("a", one), ("b", two))]
    with pytest.raises(PlanError, match=r"output\.dense"):
        cuvee.merge(paths).plan()


@pytest.mark.parametrize("tied", [[True, True], [True, False], [False, True], [False, False]])
def test_a_head_is_untied_where_one_model_has_its_own(tied: list[bool], tmp_path: Path) -> None:
    models = [llama(9, seed, head=not one) for seed, one in enumerate(tied)]
    configs = [{**LLAMA, "vocab_size": 9, "tie_word_embeddings": one} for one in tied]
    paths = [save(tmp_path / f"m{i}", m, c) for i, (m, c) in enumerate(zip(models, configs, strict=True))]
    blend = cuvee.merge(paths)
    config, found = blend.build().config, blend.load()
    assert config is not None
    assert config["tie_word_embeddings"] is all(tied)
    assert ("lm_head.weight" in found) is not all(tied)
    if not all(tied):
        heads = [m.get("lm_head.weight", m["model.embed_tokens.weight"]) for m in models]
        torch.testing.assert_close(found["lm_head.weight"], (heads[0] + heads[1]) / 2)


def test_untying_reaches_a_nested_text_config(tmp_path: Path) -> None:
    nested = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
    text = {"model_type": "llama", "num_hidden_layers": 1, "vocab_size": 9}
    names = {"model.": "model.language_model."}
    for i, tied in enumerate([True, False]):
        tensors = {n.replace("model.", names["model."], 1): t for n, t in llama(9, i, head=not tied).items()}
        tensors["model.multi_modal_projector.linear_1.weight"] = torch.randn(4, 4)
        config = {**nested, "text_config": {**text, "tie_word_embeddings": tied}}
        save(tmp_path / f"m{i}", tensors, config)
    config = cuvee.merge([tmp_path / "m0", tmp_path / "m1"]).build().config
    assert config is not None
    assert config["text_config"]["tie_word_embeddings"] is False
    assert config["tie_word_embeddings"] is False


def test_t5_keeps_its_tie_when_one_file_repeats_the_shared_embedding(tmp_path: Path) -> None:
    config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "num_layers": 1, "vocab_size": 9,
              "num_decoder_layers": 1, "tie_word_embeddings": True}  # fmt: skip
    block = {
        f"{part}.block.0.layer.0.SelfAttention.q.weight": torch.randn(4, 4) for part in ("encoder", "decoder")
    }
    one, two = {"shared.weight": torch.randn(9, 4)}, {"shared.weight": torch.randn(9, 4)}
    two["encoder.embed_tokens.weight"] = two["shared.weight"].clone()
    old = {"encoder.embed_tokens.weight": two["shared.weight"]}  # a file that has the derived name alone
    paths = {n: save(tmp_path / n, {**t, **block}, config) for n, t in (("a", one), ("b", two), ("c", old))}
    mean = (one["shared.weight"] + two["shared.weight"]) / 2
    for pair in (("a", "b"), ("b", "a"), ("a", "c"), ("c", "a")):
        blend = cuvee.merge([paths[name] for name in pair])
        made, found = blend.build().config, blend.load()
        assert made is not None
        assert made["tie_word_embeddings"] is True, pair
        torch.testing.assert_close(found["shared.weight"], mean)


@pytest.mark.parametrize("heads", [(True, True), (True, False), (False, True)])
def test_a_cut_vocabulary_is_as_long_everywhere(heads: tuple[bool, bool], tmp_path: Path) -> None:
    sizes = (9, 7)
    for i, (rows, head) in enumerate(zip(sizes, heads, strict=True)):
        save(
            tmp_path / f"m{i}",
            llama(rows, i, head=head),
            {**LLAMA, "vocab_size": rows, "tie_word_embeddings": not head},
        )
    blend = cuvee.merge([tmp_path / "m0", tmp_path / "m1"]).with_(truncate_vocabulary=True)
    found, config = blend.load(), blend.build().config
    assert config is not None
    assert config["vocab_size"] == 7
    assert {t.shape[0] for n, t in found.items() if "embed" in n or "head" in n} == {7}


def test_a_head_that_only_some_models_have_is_cut_too(tmp_path: Path) -> None:
    configs = {**LLAMA, "tie_word_embeddings": False}
    for i, (rows, head) in enumerate([(9, True), (7, False)]):
        save(tmp_path / f"m{i}", llama(rows, i, head=head), {**configs, "vocab_size": rows})
    blend = cuvee.merge([tmp_path / "m0", tmp_path / "m1"]).with_(truncate_vocabulary=True, names="union")
    found = blend.load()
    assert found["lm_head.weight"].shape == (7, 4)
    assert torch.equal(found["lm_head.weight"], llama(9, 0, head=True)["lm_head.weight"][:7])


@pytest.mark.parametrize("names", ["strict", "union", "intersection"])
def test_tensors_that_one_model_lacks(names: Any) -> None:
    one, two = llama(9, 0, head=False), llama(9, 1, head=False)
    two["extra.weight"] = torch.randn(3)
    blend = cuvee.merge([one, two], names=names)
    if names == "strict":
        with pytest.raises(PlanError, match=r"`extra.weight` is missing from `expert_1`"):
            blend.plan()
        return
    found = blend.load()
    assert ("extra.weight" in found) is (names == "union")
    if names == "union":
        assert torch.equal(found["extra.weight"], two["extra.weight"])
        assert "extra.weight" in messages(blend, "note")


def test_another_word_for_tensors_that_one_model_lacks() -> None:
    one = llama(9, 0, head=False)
    with pytest.raises(
        UsageError, match=r"`names` is one of strict, union, intersection, not `unoin`"
    ) as caught:
        cuvee.merge([one, one], names="unoin")  # type: ignore[arg-type]
    assert "union" in str(caught.value.diagnostics[0].hint)


def test_a_base_that_lacks_a_tensor_lets_it_be_copied() -> None:
    base, one, two = (llama(9, seed, head=False) for seed in range(3))
    one["extra.weight"], two["extra.weight"] = torch.randn(3), torch.randn(3)
    blend = cuvee.merge([one, two], base=base, method="task_arithmetic").with_(names="union")
    assert torch.equal(blend.load()["extra.weight"], one["extra.weight"])
    assert "is not in the base" in messages(blend, "note")


def test_arithmetic_is_as_wide_as_its_widest_part(tmp_path: Path) -> None:
    a = {"w": torch.tensor([1.0, 2.0])}
    b = {"w": torch.tensor([2.0**-40, 2.0**-30], dtype=torch.float64)}
    for name, tensors in (("a", a), ("b", b)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    recipe = tmp_path / "r.yaml"
    for text, sign in (("a + b", 1), ("b - a", None)):
        recipe.write_text(
            "version: 1\nsources: {a: ./a.safetensors, b: ./b.safetensors}\n"
            f"experts: {{c: {{arithmetic: '{text}'}}}}\nmerge: {{method: passthrough}}\n"
        )
        expected = a["w"].double() + b["w"] if sign else b["w"] - a["w"].double()
        assert torch.equal(cuvee.load(recipe).load()["w"], expected)

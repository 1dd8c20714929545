"""Everything of the output that is not a weight: config.json, tokenizer, chat template, generation config, licence.

Decided from headers and small files; the bytes are ready when the plan is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cuvee.bundle import chat_template, pipeline
from cuvee.bundle.config_files import generation_config, updated_config, with_special_ids
from cuvee.bundle.json_files import dump_json, load_object
from cuvee.bundle.side_files import travelling
from cuvee.bundle.vocabulary.plan import VocabularyPlan
from cuvee.bundle.vocabulary.write import role_ids, tokenizer_files
from cuvee.core.tensors import TensorMeta
from cuvee.errors import Diagnostic
from cuvee.families import Family
from cuvee.families.config import with_layers, with_vocabulary
from cuvee.plan.views import View
from cuvee.plan.vocabulary import Realigner
from cuvee.recipe.model import Recipe


@dataclass(slots=True)
class Companions:
    """The output's config and side files, with what a person should know about them."""

    config: dict[str, Any] | None = None
    files: dict[str, bytes] = field(default_factory=dict)
    notes: list[Diagnostic] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Facts:
    """What weights decide about the config: source layers of each module, tying, the tensors written."""

    layers: Mapping[str, Sequence[int]]
    untied: bool
    tensors: Sequence[TensorMeta]


def companions(
    recipe: Recipe, views: Mapping[str, View], donor: View, family: Family, realigner: Realigner, facts: Facts
) -> Companions:
    """The companions of an output whose config and files start from `donor`."""
    out = Companions()
    if pipeline.is_pipeline(donor.config):
        _pipeline(donor, facts, out)
        return out
    vocabulary = realigner.plan
    names = {alias: view.files() for alias, view in views.items()}
    generation: dict[str, Mapping[str, Any] | None] = {}
    for item in travelling(names, donor.alias):
        data = views[item.model].file(item.name)
        if data is None or (item.group in ("tokenizer", "template") and not recipe.output.tokenizer):
            continue
        if item.group == "generation":
            generation[item.model] = load_object(data, item.name)
        elif item.group != "tokenizer" or vocabulary is None:
            out.files[item.name] = data
    if vocabulary is not None and recipe.output.tokenizer:
        out.files.update(tokenizer_files(vocabulary, views[vocabulary.donor]))
    _template(recipe, views, donor, out)
    written = generation_config(generation, dtype=main_dtype(facts.tensors))
    if written is not None:
        content = _moved(written[1], written[0], vocabulary, out)
        out.files["generation_config.json"] = dump_json(content)
    if donor.config is not None:
        out.config = _config(donor, family, realigner, facts, out)
    return out


def _pipeline(donor: View, facts: Facts, out: Companions) -> None:
    """The files of a pipeline, every one from the donor; it has no config.json of its own."""
    inside: dict[str, list[TensorMeta]] = {}
    for meta in facts.tensors:
        inside.setdefault(meta.name.partition(".")[0], []).append(meta)
    dtypes = {part: main_dtype(metas) for part, metas in inside.items()}
    out.config = dict(donor.config or {})
    components = out.config[pipeline.COMPONENTS]
    out.files.update(pipeline.pipeline_files(donor.files(), donor.file, components, dtypes))


def _template(recipe: Recipe, views: Mapping[str, View], donor: View, out: Companions) -> None:
    if recipe.chat_template is None:
        return
    if not recipe.output.tokenizer:
        message = "the chat template is not written, because no tokenizer is"
        out.notes.append(Diagnostic("CV-P041", message, severity="warning"))
        return
    ordered = sorted(views.values(), key=lambda view: view.alias != donor.alias)
    texts = {view.alias: chat_template.template_of(view) for view in ordered}
    text, notes = chat_template.choose(recipe.chat_template, texts, where=recipe.places.get("chat_template"))
    out.notes += notes
    if text is not None:
        out.files.update(chat_template.placed(text, out.files))


def _moved(
    content: Mapping[str, Any], model: str, vocabulary: VocabularyPlan | None, out: Companions
) -> dict[str, Any]:
    """The configuration with its special ids in the output's vocabulary."""
    if vocabulary is None or model not in vocabulary.vocabularies:
        return dict(content)
    before = vocabulary.vocabularies[model].by_id()
    moved, notes = with_special_ids(content, before, vocabulary.output.ids, role_ids(vocabulary))
    out.notes += notes
    return moved


def _config(
    donor: View, family: Family, realigner: Realigner, facts: Facts, out: Companions
) -> dict[str, Any]:
    if pipeline.is_component(donor.config):
        return pipeline.component_config(donor.config or {}, None)
    config = _moved(donor.config or {}, donor.alias, realigner.plan, out)
    for module, order in facts.layers.items():
        if list(order) != list(range(family.layer_count(donor.tensors, module))):
            config = with_layers(config, family, module, list(order))
            if module in family.modules and family.modules[module].layers_key is None:
                message = (
                    f"the config key of the layer count is not known for this architecture; the output has "
                    f"{len(order)} layers in `{module}`"
                )
                out.notes.append(Diagnostic("CV-P042", message, severity="warning"))
    if realigner.rows is not None:
        config = with_vocabulary(config, family, realigner.rows)
    nested = config.get("text_config")
    inner = facts.untied and isinstance(nested, Mapping) and "tie_word_embeddings" in nested
    edits = {"text_config.tie_word_embeddings": False} if inner else {}
    return updated_config(config, edits, main_dtype(facts.tensors), tied=False if facts.untied else None)


def main_dtype(tensors: Sequence[TensorMeta]) -> str:
    """The float type that most bytes of the output have."""
    sizes: Counter[str] = Counter()
    for meta in tensors:
        if meta.dtype.is_float:
            sizes[meta.dtype.name] += meta.nbytes
    return sizes.most_common(1)[0][0] if sizes else "float32"

"""Facts of a plan → the output's model card."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import PurePath

import cuvee
from cuvee.bundle.card import CardFacts, CardMethod, CardSource, model_card
from cuvee.bundle.licence import Licence, agreed, licence_of
from cuvee.bundle.vocabulary.tokens import FileReader
from cuvee.core.names import printable
from cuvee.errors import CuveeError
from cuvee.methods.registry import get, stage
from cuvee.plan.plan import Opened, Plan
from cuvee.recipe.model import Recipe, Reference, SourceSpec


def card_text(plan: Plan, name: str) -> str:
    """The text of README.md."""
    recipe = plan.recipe
    licence, _ = agreed({key: _licence(opened) for key, opened in plan.sources.items()})
    return model_card(
        CardFacts(
            name=name,
            methods=methods_of(recipe),
            sources=[_source(plan, key, opened) for key, opened in plan.sources.items()],
            recipe=recipe.text or f"# built in Python: {plan.method_label}",
            recipe_name="mergekit_config.yml" if recipe.dialect == "mergekit" else "cuvee.yaml",
            recipe_digest=sha256(recipe.text.encode()).hexdigest() if recipe.text else None,
            version=cuvee.__version__,
            licence=licence,
            notes=[d.message for d in plan.notes if d.severity == "warning"],
        )
    )


def methods_of(recipe: Recipe) -> list[CardMethod]:
    """The method of the recipe and of the recipes nested in it, each once."""
    found: dict[str, CardMethod] = {}
    for spec in _tree(recipe):
        if spec.method is not None:
            method = get(spec.method)
            formula = method.doc.strip().split("\n\n")[0]
            found[method.name] = CardMethod(
                method.name, method.summary, formula, method.paper, method.bibtex, method.status
            )
        for call in spec.chain:
            found[call.stage] = CardMethod(call.stage, stage(call.stage).doc.strip().splitlines()[0])
    return list(found.values())


def _tree(recipe: Recipe) -> Iterator[Recipe]:
    """A recipe, then the recipes among its sources, and theirs."""
    yield recipe
    for spec in recipe.sources.values():
        if isinstance(spec, Recipe):
            yield from _tree(spec)


class _Files:
    def __init__(self, opened: Opened) -> None:
        self.opened = opened

    def read(self, name: str) -> bytes | None:
        return self.opened.source.file(name)

    def names(self) -> list[str]:
        return self.opened.source.files()


def _licence(opened: Opened) -> Licence | None:
    reader: FileReader = _Files(opened)
    try:
        return licence_of(reader)
    except CuveeError:
        return None  # an unreadable card states nothing


def _source(plan: Plan, key: str, opened: Opened) -> CardSource:
    identity = opened.source.identity()
    spec = plan.recipe.sources.get(key)
    hub = str(identity["name"]) if identity.get("kind") == "hub" else None
    size = sum(meta.nbytes for meta in opened.source.tensors.values())
    family = opened.family.name if opened.family else "unknown"
    return CardSource(
        alias=key,
        location=_location(key, spec),
        hub_id=hub,
        revision=identity.get("revision"),
        part="base" if key == plan.recipe.base else "expert",
        detail=f"{family}, {size / 1e9:.2f} GB",
    )


def _location(key: str, spec: SourceSpec | None) -> str:
    """As written for hub names; only the last part of local paths, which are nobody's business."""
    text = spec.text if isinstance(spec, Reference) else key
    if text.startswith("hf://"):
        return text
    return " + ".join(printable(PurePath(part.strip()).name or part) for part in text.split("+"))

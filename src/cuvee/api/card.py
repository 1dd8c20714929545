"""Facts of a plan, or of a finished output, → the model card."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePath
from typing import Any

import cuvee
from cuvee.bundle.card import CardFacts, CardMethod, CardSource, model_card
from cuvee.bundle.licence import Licence, agreed, licence_of
from cuvee.bundle.manifest_form import parse
from cuvee.bundle.vocabulary.tokens import FileReader
from cuvee.core.names import printable
from cuvee.errors import CuveeError, UsageError
from cuvee.methods.registry import get, stage
from cuvee.plan.plan import Opened, Plan
from cuvee.plan.summary import size
from cuvee.recipe.load import parse_recipe
from cuvee.recipe.model import Recipe, Reference, SourceSpec
from cuvee.recipe.override import CHANGES
from cuvee.sinks.target import MANIFEST, beside
from cuvee.sources.reference import WEIGHT_SUFFIXES

_OPTIONS = {"changes": "set", "out_dtype": "dtype"}  # where the option has another name
_WITHIN = "CV-P203"  # what a budget left out, and the bound of its error


def card_text(plan: Plan, name: str) -> str:
    """The text of README.md."""
    licence, _ = agreed({key: _licence(opened) for key, opened in plan.sources.items()})
    facts = _facts(
        plan.recipe,
        name,
        [_source(plan, key, opened) for key, opened in plan.sources.items()],
        cuvee.__version__,
    )
    notes = [d.message for d in plan.notes if d.severity == "warning" or d.code == _WITHIN]
    recipe = plan.recipe.text or f"# built in Python: {plan.method_label}"
    within = any(d.code == _WITHIN for d in plan.notes)  # a budget, which may have lost nothing
    is_exact = not (within and any("spared" in o.source.identity() for o in plan.sources.values()))
    return model_card(replace(facts, recipe=recipe, licence=licence, notes=notes, is_exact=is_exact))


def card_of_output(output: Path, name: str) -> str:
    """The card of an output, from its manifest and recipe alone; what went in need not be there any more.

    Its licence is the one the output's own card states. UsageError (CV-U009) when no recipe is kept with it.
    """
    path = output / MANIFEST if output.is_dir() else beside(output)
    try:
        manifest = parse(path.read_bytes(), path.name)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        hint = "name a recipe, or an output of `cuvee merge`"
        raise UsageError(
            "CV-U009", f"`{printable(str(output))}` has no manifest: {reason}", hint=hint
        ) from None
    text = str(manifest.content["recipe"].get("text", ""))
    if not text:
        raise UsageError(
            "CV-U009", f"`{printable(str(output))}` holds no recipe", hint="it was built in Python"
        )
    recipe = parse_recipe(text)
    identities = manifest.content["lock"].get("sources", {})
    order = [key for key in recipe.sources if key in identities]
    order += [key for key in identities if key not in order]
    sources = [_recorded(recipe, key, identities[key]) for key in order]
    version = str(manifest.content["cuvee"].get("version", ""))
    licence = licence_of(_Folder(output)) if output.is_dir() else None
    notes = [f"made within a budget: {manifest.left_out}"] if manifest.left_out else []
    changes = manifest.content["lock"].get("changes")
    recipe = replace(recipe, changes=changes if isinstance(changes, Mapping) else {})
    facts = _facts(recipe, name, sources, version)
    return model_card(replace(facts, licence=licence, notes=notes, is_exact=not notes))


def _facts(recipe: Recipe, name: str, sources: list[CardSource], version: str) -> CardFacts:
    """What a card says of a recipe and its sources."""
    return CardFacts(
        name=name,
        methods=methods_of(recipe),
        sources=sources,
        recipe=recipe.text,
        recipe_name=_file_name(recipe),
        recipe_digest=sha256(recipe.text.encode()).hexdigest() if recipe.text else None,
        version=version,
        changes=list(_changes(recipe.changes)),
        is_local=any(source.hub_id is None for source in sources),
    )


def _changes(said: Mapping[str, Any]) -> Iterator[str]:
    """What the command line changed of a recipe, as options of it."""
    for name in CHANGES:
        value = said.get(name, [])
        option = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
        if value is True:
            yield option
            continue
        for one in value if isinstance(value, list) else [value]:
            yield f"{option} {shlex.quote(str(one))}"


def _file_name(recipe: Recipe) -> str | None:
    """The recipe's file beside the card; None where a recipe from Python cannot be written down."""
    if not recipe.text:
        return None
    return "mergekit_config.yml" if recipe.dialect == "mergekit" else "cuvee.yaml"


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


class _Folder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.is_file() else None

    def names(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]


def _licence(opened: Opened) -> Licence | None:
    reader: FileReader = _Files(opened)
    try:
        return licence_of(reader)
    except CuveeError:
        return None  # an unreadable card states nothing


def _source(plan: Plan, key: str, opened: Opened) -> CardSource:
    total = sum(meta.nbytes for meta in opened.source.tensors.values())
    family = opened.family.name if opened.family else "unknown"
    made = _recorded(plan.recipe, key, opened.source.identity())
    return replace(made, detail=f"{family}, {made.detail or size(total)}")


def _recorded(recipe: Recipe, key: str, identity: Mapping[str, Any]) -> CardSource:
    """A source from its identity in a lock."""
    return CardSource(
        alias=key,
        location=_location(key, recipe.sources.get(key)),
        hub_id=str(identity["name"]) if identity.get("kind") == "hub" else None,
        revision=identity.get("revision"),
        part="base" if key == recipe.base else "expert",
        detail=size(total) if (total := _recorded_size(identity)) else "",
    )


def _recorded_size(identity: Mapping[str, Any]) -> int:
    files = [
        file for file in identity.get("files", ()) if str(file.get("name", "")).endswith(WEIGHT_SUFFIXES)
    ]
    inner = identity.get("base")
    return sum(int(f.get("size", 0)) for f in files) + (_recorded_size(inner) if inner else 0)


def _location(key: str, spec: SourceSpec | None) -> str:
    """As written for hub names; only the last part of local paths, which are nobody's business."""
    text = spec.text if isinstance(spec, Reference) else key
    if text.startswith("hf://"):
        return text
    return " + ".join(printable(PurePath(part.strip()).name or part) for part in text.split("+"))

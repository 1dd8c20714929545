"""MergeKit's YAML → recipe, with a report of every difference in meaning.

Reproduces what MergeKit 0.1.5 computes (per-tensor trim, weighted sign vote, precedence source > slice > module >
global, filters on input names, curves over a slice whose first value also goes to tensors outside the layers), and
refuses what it refuses. What it does by accident is mended; `notes` of the recipe say where.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cuvee.core.dtypes import parse_dtype
from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic, RecipeError
from cuvee.methods.contract import Dialect, Method
from cuvee.methods.registry import get, names
from cuvee.recipe.document import Document, Path, problem
from cuvee.recipe.mergekit_schema import (
    LONG_REFERENCE,
    MODEL_PATH,
    RECIPE,
    InputModel,
    InputSlice,
    LongReference,
    MergeKitRecipe,
    ModelPath,
    OutputModule,
    OutputSlice,
)
from cuvee.recipe.mergekit_settings import SettingsReader
from cuvee.recipe.mergekit_tokenizer import vocabulary_of
from cuvee.recipe.model import Input, ModuleRecipe, Output, Recipe, Reference, Slice, SourceSpec
from cuvee.recipe.shape import validate

DIALECT = "mergekit"


def translate(document: Document, named: Mapping[str, Recipe] | None = None) -> Recipe:
    """The recipe a MergeKit document means; RecipeError with every mistake in it.

    `named` are recipes of other documents of the file that this one may name as models.
    """
    found: list[Diagnostic] = []
    config: MergeKitRecipe | None = validate(RECIPE, document, found)
    method = _method(document, found)
    if config is None or method is None:
        raise RecipeError.collected([d for d in found if d.severity == "error"])
    recipe = _Translator(document, config, method, dict(named or {}), found).recipe()
    errors = [d for d in found if d.severity == "error"]
    if errors:
        raise RecipeError.collected(errors)
    return replace(recipe, notes=tuple(found))


def _method(document: Document, found: list[Diagnostic]) -> Dialect | None:
    data = document.data
    name = data.get("merge_method") if isinstance(data, dict) else None
    if not isinstance(name, str):
        return None
    try:
        found_method: Method | None = get(name)
    except RecipeError:
        found_method = None
    if found_method is not None and DIALECT in found_method.dialects:
        return found_method.dialects[DIALECT]
    hint = did_you_mean(name, [m for m in names() if DIALECT in get(m).dialects])
    message = f"`merge_method` must be one of MergeKit's methods, got `{printable(name)}`"
    if found_method is not None:
        hint = "Cuvée's own methods are used in its own recipes; see `cuvee import mergekit`"
    found.append(problem(document, "CV-R011", ("merge_method",), message, hint=hint))
    return None


@dataclass(slots=True)
class _Translator:
    document: Document
    config: MergeKitRecipe
    dialect: Dialect
    named: dict[str, Recipe]
    found: list[Diagnostic]
    sources: dict[str, SourceSpec] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        config = self.config
        base = self.alias(config.base_model, ("base_model",)) if config.base_model is not None else None
        settings = self.reader().read(config.parameters, ("parameters",), "shared")
        modules = self.modules(base)
        vocabulary = vocabulary_of(config, self.document, self.alias, self.found)
        compute = parse_dtype(config.dtype) if config.dtype else None
        stored = parse_dtype(config.out_dtype) if config.out_dtype else compute
        self.report()
        return Recipe(
            sources=self.ordered(base),
            modules=modules,
            method=config.merge_method,
            base=base,
            settings=settings,
            dialect=DIALECT,
            compute=compute.name if compute else None,
            vocabulary=vocabulary,
            chat_template=config.chat_template,
            edges="first",
            curves="slices",
            differing_buffers="error",
            output=Output(dtype=stored.name if stored else None),
            text=self.document.text,
            file=self.document.file,
            places=self.document.places("chat_template"),
        )

    def ordered(self, base: str | None) -> dict[str, SourceSpec]:
        """Sources with the base first: config and tokenizer come from the first."""
        return dict(sorted(self.sources.items(), key=lambda item: item[0] != base))

    def reader(self) -> SettingsReader:
        return SettingsReader(self.document, self.config.merge_method, self.dialect, self.found)

    def modules(self, base: str | None) -> dict[str, ModuleRecipe]:
        config = self.config
        if config.models:
            return {"*": ModuleRecipe((self.whole(config.models, ("models",), base),))}
        if config.slices:
            return {"*": ModuleRecipe(tuple(self.slices(config.slices, ("slices",))))}
        return {
            name: self.module(module, ("modules", name), base)
            for name, module in (config.modules or {}).items()
        }

    def module(self, module: OutputModule, path: Path, base: str | None) -> ModuleRecipe:
        settings = self.reader().read(module.parameters, (*path, "parameters"), "shared")
        if module.models:
            return ModuleRecipe((self.whole(module.models, (*path, "models"), base),), settings)
        return ModuleRecipe(tuple(self.slices(module.slices or [], (*path, "slices"))), settings)

    def whole(self, models: list[InputModel], path: Path, base: str | None) -> Slice:
        """`models`: one slice over all layers, the base appended when it is not among them."""
        inputs = [self.input(m, (*path, i)) for i, m in enumerate(models)]
        if base is not None and all(i.source != base for i in inputs):
            inputs.append(Input(base, where=self.document.where(("base_model",))))
        return Slice(tuple(inputs), where=self.document.where(path, key=True))

    def slices(self, slices: list[OutputSlice], path: Path) -> list[Slice]:
        out = []
        for i, part in enumerate(slices):
            here = (*path, i)
            if part.residual_weight is not None:
                where = self.document.where((*here, "residual_weight"), key=True)
                message = "`residual_weight` has no effect (nor has it in MergeKit)"
                self.found.append(Diagnostic("CV-R030", message, where, severity="warning"))
            base = self.alias(part.base_model, (*here, "base_model")) if part.base_model is not None else None
            inputs = tuple(self.input(s, (*here, "sources", j)) for j, s in enumerate(part.sources))
            settings = self.reader().read(part.parameters, (*here, "parameters"), "shared")
            out.append(Slice(inputs, base, settings, self.document.where(here)))
        return out

    def input(self, entry: InputModel | InputSlice, path: Path) -> Input:
        settings = self.reader().read(entry.parameters, (*path, "parameters"), "model")
        layers = None
        if isinstance(entry, InputSlice):
            layers = (entry.layer_range[0], entry.layer_range[1])
        alias = self.alias(entry.model, (*path, "model"))
        return Input(alias, layers, settings, self.document.where((*path, "model")))

    def alias(self, written: Any, path: Path) -> str:
        """The alias of a model reference, which becomes a source."""
        reference = self.reference(written, path)
        alias = _shown(reference)
        if reference.text in self.named:
            inner = self.named[reference.text]
            if reference.adapters:
                message = (
                    f"an adapter on `{printable(reference.text)}`, a merge of this file, is not supported"
                )
                hint = "write that merge to a folder first"
                self.found.append(problem(self.document, "CV-R111", path, message, hint=hint))
            self.sources[alias] = inner
        else:
            self.sources.setdefault(alias, reference)
        return alias

    def reference(self, written: Any, path: Path) -> Reference:
        where = self.document.where(path)
        if isinstance(written, str):
            for mark, limit in (("@", 1), ("+", 1)):
                parts = written.split("+") if mark == "@" else [written]
                if any(p.count(mark) > limit for p in parts):
                    hint = "write it in the long form `{model: {path: ..., revision: ...}, lora: ...}`"
                    message = f"`{printable(written)}` has more than one `{mark}`"
                    self.found.append(problem(self.document, "CV-R012", path, message, hint=hint))
            return Reference(written, where=where)
        inner = Document(written, self.document.text, self.document.file, {}, {})
        before = len(self.found)
        if isinstance(written, dict) and "path" in written and "model" not in written:
            plain = validate(MODEL_PATH, inner, self.found)
            long = LongReference(model=plain) if plain else None
        else:
            long = validate(LONG_REFERENCE, inner, self.found)
        self.found[before:] = [replace(d, where=self._inside(d, path)) for d in self.found[before:]]
        if long is None:
            return Reference("", where=where)
        model = _path_of(long.model)
        adapters = (replace(_path_of(long.lora), where=where),) if long.lora else ()
        return replace(model, adapters=adapters, architecture=long.override_architecture, where=where)

    def _inside(self, finding: Diagnostic, path: Path) -> Any:
        """The place within the long form, which was validated on its own."""
        inner = finding.where.path if finding.where and finding.where.path else ""
        parts = tuple(p for p in inner.split(".") if p)
        return self.document.where((*path, *parts), key=finding.code == "CV-R004")

    def report(self) -> None:
        """Differences in meaning that this recipe meets."""
        config = self.config
        if config.dtype in ("bfloat16", "float16", "torch.bfloat16", "torch.float16"):
            self.note(
                f"arithmetic in `{config.dtype}`, as MergeKit does for `dtype`; leave `dtype` out and write "
                f"`out_dtype: {config.dtype}` for float32 arithmetic",
                ("dtype",),
            )
        if config.dtype is None:
            self.note("arithmetic in float32; MergeKit would compute in the type of the checkpoints", ())
        if config.merge_method.startswith(("dare", "della")):
            self.note(
                "random masks come from a stream of their own for each weight (`seed`), not from a global one, so "
                "they differ from MergeKit's, whose masks depend on the order of execution",
                ("merge_method",),
            )
        if config.merge_method == "arcee_fusion":
            self.note("quantiles are exact; MergeKit estimates them from a random sample", ("merge_method",))
        if config.base_model is None:
            self.note("config and tokenizer come from the first model; MergeKit picks one at random", ())

    def note(self, message: str, path: Path) -> None:
        where = self.document.where(path, key=True) if path else None
        self.found.append(Diagnostic("CV-R031", message, where, severity="note"))


def _path_of(written: str | ModelPath) -> Reference:
    if isinstance(written, ModelPath):
        return Reference(written.path, written.revision)
    path, _, revision = written.partition("@")
    return Reference(path, revision or None)


def _shown(reference: Reference) -> str:
    text = reference.text + (f"@{reference.revision}" if reference.revision else "")
    return "+".join([text, *(_shown(a) for a in reference.adapters)])

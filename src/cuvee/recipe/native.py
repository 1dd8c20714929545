"""Cuvée's own YAML → recipe. Structure is checked by `schema.py`, parameters here against the method or its stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path as FilePath
from typing import Any

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import CuveeError, Diagnostic, RecipeError
from cuvee.methods.contract import Method
from cuvee.methods.parameters import Parameter
from cuvee.methods.registry import get, names, parameters_for, stage
from cuvee.recipe import packages
from cuvee.recipe.chains import own_parameters
from cuvee.recipe.document import Document, Path, problem
from cuvee.recipe.expressions import BadExpression, terms
from cuvee.recipe.layouts import LAYOUTS, Layout
from cuvee.recipe.model import (
    AdapterOutput,
    Arithmetic,
    Input,
    ModuleRecipe,
    Output,
    PackageOutput,
    Recipe,
    Reference,
    Setting,
    Settings,
    Slice,
    SourceSpec,
    StageCall,
    TokenRule,
    Vocabulary,
)
from cuvee.recipe.native_layout import BASE, LayoutReader
from cuvee.recipe.native_settings import ValueReader
from cuvee.recipe.packaging import packaged, packaged_method, problem_of
from cuvee.recipe.schema import NATIVE, NativeRecipe, size_of
from cuvee.recipe.shape import validate

_SOURCE_KEYS = ("source", "recipe", "arithmetic")
LoadFile = Callable[[FilePath], Recipe]


def read_native(document: Document, load: LoadFile) -> Recipe:
    """The recipe of a document with `version: 1`; RecipeError with every mistake. `load` reads nested recipe files."""
    found: list[Diagnostic] = []
    schema: NativeRecipe | None = validate(NATIVE, document, found)
    if schema is None:
        raise RecipeError.collected(found)
    recipe = _Reader(document, schema, load, found).recipe()
    errors = [d for d in found if d.severity == "error"]
    if errors or recipe is None:
        raise RecipeError.collected(errors)
    return replace(recipe, notes=tuple(found))


@dataclass(slots=True)
class _Reader:
    document: Document
    schema: NativeRecipe
    load: LoadFile
    found: list[Diagnostic]
    sources: dict[str, SourceSpec] = field(default_factory=dict)
    per_expert: dict[str, Settings] = field(default_factory=dict)

    def recipe(self) -> Recipe | None:
        schema = self.schema
        layout, method, chain, settings = self.merge()
        if method is None and not chain and layout is None:
            return None
        known = self.parameters(method, chain)
        if schema.base is not None:
            self.source(BASE, schema.base, (BASE,), {})
        for name, spec in schema.experts.items():
            if name == BASE:
                message = "an expert cannot be called `base`; the base has a key of its own"
                self.say("CV-R018", ("experts", name), message, key=True)
                continue
            self.source(name, spec, ("experts", name), known)
        for name, spec in schema.sources.items():
            self.source(name, spec, ("sources", name), {})
        base = BASE if schema.base is not None else None
        recipe = Recipe(
            sources=self.sources,
            modules=self.modules(layout, method, known),
            method=method.name if method else None,
            base=base,
            chain=chain,
            settings=settings,
            compute=schema.dtype,
            vocabulary=self.vocabulary(),
            chat_template=schema.chat_template,
            seed=schema.seed,
            edges=schema.edges,
            curves=schema.curves,
            output=self.output(),
            text=self.document.text,
            file=self.document.file,
            places=self.document.places("chat_template"),
        )
        made = layout(recipe, self.found) if layout else recipe
        if made.output.package is None:
            return made
        problem = problem_of(made, self.document.where(("merge",)))
        self.found += [problem] if problem else []
        return made if problem else packaged(made)

    def modules(
        self, layout: Layout | None, method: Method | None, known: Mapping[str, Parameter]
    ) -> dict[str, ModuleRecipe]:
        if layout is not None:  # it makes the slices itself
            for key in ("layers", "modules"):
                if getattr(self.schema, key) is not None:
                    message = f"`{key}` has no place beside a method that arranges the layers itself"
                    self.say("CV-R110", (key,), message, key=True)
            return {"*": ModuleRecipe((self.everything(),))}
        reader = LayoutReader(self.document, self.schema, self.found, method, known, self.per_expert)
        return reader.modules()

    def everything(self) -> Slice:
        where = self.document.where(("merge",))
        return Slice(tuple(Input(name, where=where) for name in self.schema.experts), where=where)

    # -- what is merged, and how ------------------------------------------------------------------------------

    def merge(self) -> tuple[Layout | None, Method | None, tuple[StageCall, ...], Settings]:
        merge, path = self.schema.merge, ("merge",)
        if isinstance(merge, list):
            return None, None, tuple(self.stages(merge, path)), {}
        name = merge.get("method")
        if "method" in merge and not isinstance(name, str):
            return self.no_name(name, (*path, "method"))
        if not isinstance(name, str):
            hint = next((h for k in merge if (h := did_you_mean(str(k), ("method",)))), None)
            self.say("CV-R005", path, "the key `method` is missing", key=True, hint=hint)
            return None, None, (), {}
        rest = {k: v for k, v in merge.items() if k != "method"}
        if self.schema.output.kind == "package":
            name = packaged_method(name)
        if name in LAYOUTS:
            values = {k: v for k, v in rest.items() if k in LAYOUTS[name].parameters}
            for key in rest.keys() - values.keys():
                hint = did_you_mean(key, LAYOUTS[name].parameters)
                self.say(
                    "CV-R007",
                    (*path, key),
                    f"`{name}` has no parameter `{printable(key)}`",
                    key=True,
                    hint=hint,
                )
            return LAYOUTS[name].bound(values, self.document), None, (), {}
        method = self.looked_up(name, (*path, "method"), get)
        if method is None:
            return None, None, (), {}
        settings = self.settings(rest, parameters_for(method), method.name, path)
        return None, method, (), settings

    def no_name(self, found: Any, path: Path) -> tuple[None, None, tuple[()], Settings]:
        """Tell that a method is not a name; a chain of stages there is meant to stand one place further out."""
        chain = isinstance(found, list)
        shown = "a list" if chain else "nothing" if found is None else f"`{printable(str(found), 60)}`"
        hint = (
            "a chain of stages takes the place of `method`: write `merge: [trim, elect]`" if chain else None
        )
        self.say("CV-R010", path, f"`method` must be the name of a method, got {shown}", hint=hint)
        return None, None, (), {}

    def stages(self, merge: list[Any], path: Path) -> list[StageCall]:
        calls = []
        for i, item in enumerate(merge):
            here = (*path, i)
            entry = {item: {}} if isinstance(item, str) else item
            if not (isinstance(entry, dict) and len(entry) == 1):
                self.say("CV-R010", here, "a stage is written `name` or `name: {parameter: value}`")
                continue
            ((name, raw),) = entry.items()
            found = self.looked_up(str(name), here, stage)
            if found is None:
                continue
            if not isinstance(raw, (dict, type(None))):
                self.say("CV-R010", (*here, name), f"the parameters of `{found.name}` must be a mapping")
                continue
            known = {p.name: p for p in found.parameters}
            inside: Path = (*here, name) if isinstance(item, dict) else here
            settings = self.settings(raw or {}, known, found.name, inside)
            calls.append(StageCall(found.name, settings, self.document.where(here)))
        return calls

    def looked_up(self, name: str, path: Path, find: Callable[[str], Any]) -> Any:
        """A method or stage by name; None and a diagnostic when there is none."""
        try:
            return find(name)
        except CuveeError as error:
            (first,) = error.diagnostics
            hint = first.hint
            if find is get:
                hint = did_you_mean(name, (*names(), *LAYOUTS)) or "`cuvee methods` lists them"
            self.say(first.code, path, first.message, hint=hint)
            return None

    def settings(
        self, raw: Mapping[str, Any], known: Mapping[str, Parameter], owner: str, path: Path
    ) -> dict[str, Setting]:
        return ValueReader(self.document, self.found).settings(raw, known, owner, path)

    def parameters(self, method: Method | None, chain: tuple[StageCall, ...]) -> dict[str, Parameter]:
        """Parameters that an expert may have of its own."""
        every = parameters_for(method) if method else own_parameters([call.stage for call in chain])
        return {name: p for name, p in every.items() if p.per_expert}

    # -- sources ----------------------------------------------------------------------------------------------

    def source(self, name: str, spec: Any, path: Path, known: Mapping[str, Parameter]) -> None:
        if name in self.sources:
            self.say("CV-R018", path, f"`{printable(name)}` names two sources", key=True)
            return
        where = self.document.where(path)
        if isinstance(spec, str):
            self.sources[name] = Reference(spec, where=where)
            return
        given = [k for k in _SOURCE_KEYS if k in spec]
        if "package" in spec and not given:
            text = packages.reference_text(spec, self.document, path, self.found)
            self.sources[name] = Reference(text, where=where)
            return
        if "path" in spec and not given:
            self.sources[name] = self.reference(spec, path)
            return
        if len(given) != 1:
            message = f"`{printable(name)}` needs exactly one of `source`, `recipe` and `arithmetic`"
            hint = next((h for k in spec if (h := did_you_mean(k, (*_SOURCE_KEYS, "path", "package")))), None)
            self.say("CV-R012", path, message, hint=hint)
            return
        rest = {k: v for k, v in spec.items() if k != given[0]}
        legal = {**known}
        own = {k: v for k, v in rest.items() if k in legal}
        for key in rest.keys() - own.keys():
            hint = did_you_mean(key, (*_SOURCE_KEYS, *legal))
            self.say("CV-R004", (*path, key), f"unknown key `{printable(key)}`", key=True, hint=hint)
        self.per_expert[name] = self.settings(own, legal, name, path)
        made = self.made(given[0], spec[given[0]], (*path, given[0]))
        if made is not None:
            self.sources[name] = made

    def made(self, kind: str, value: Any, path: Path) -> SourceSpec | None:
        """The source that `source`, `recipe` or `arithmetic` means."""
        if kind == "source":
            if isinstance(value, dict):
                return self.reference(value, path)
            if isinstance(value, str):
                return Reference(value, where=self.document.where(path))
        if kind == "arithmetic" and isinstance(value, str):
            try:
                return Arithmetic(terms(value), self.document.where(path))
            except BadExpression as error:
                self.say(
                    "CV-R013", path, f"the arithmetic {error}", hint="write for instance `c + 0.5 * (b - a)`"
                )
                return None
        if kind == "recipe":
            return self.nested(value, path)
        self.say("CV-R010", path, f"`{kind}` must be a text")
        return None

    def nested(self, value: Any, path: Path) -> SourceSpec | None:
        try:
            if isinstance(value, str):
                folder = FilePath(self.document.file).parent if self.document.file else FilePath()
                return self.load(folder / value)
            if isinstance(value, dict):
                return read_native(self.part(value, path), self.load)
        except CuveeError as error:
            where = self.document.where(path)
            self.found += [
                d if d.where and d.where.line else replace(d, where=where) for d in error.diagnostics
            ]
            return None
        self.say("CV-R010", path, "`recipe` must be the path of a recipe, or a recipe")
        return None

    def part(self, value: Any, path: Path) -> Document:
        """A part of the document as a document of its own, with its positions; `version` may be left out."""
        cut = len(path)
        keys = {p[cut:]: s for p, s in self.document.keys.items() if p[:cut] == path}
        values = {p[cut:]: s for p, s in self.document.values.items() if p[:cut] == path}
        return Document({"version": 1, **value}, self.document.text, self.document.file, keys, values)

    def reference(self, value: Mapping[str, Any], path: Path) -> Reference:
        keys = ("path", "revision", "adapter", "adapters")
        for key in value:
            if key not in keys:
                hint = did_you_mean(key, keys)
                self.say("CV-R004", (*path, key), f"unknown key `{printable(key)}`", key=True, hint=hint)
        if not isinstance(value.get("path"), str):
            self.say("CV-R010", path, "`path` must be a text")
            return Reference("")
        listed = value.get("adapters", [])
        raw = ([value["adapter"]] if "adapter" in value else []) + (
            listed if isinstance(listed, list) else [listed]
        )
        adapters = tuple(
            self.reference(a, (*path, "adapters", i)) if isinstance(a, dict) else Reference(str(a))
            for i, a in enumerate(raw)
        )
        revision = value.get("revision")
        return Reference(
            value["path"],
            None if revision is None else str(revision),
            adapters,
            where=self.document.where(path),
        )

    # -- tokenizer, output -------------------------------------------------------------------------------------

    def vocabulary(self) -> Vocabulary | None:
        section = self.schema.tokenizer
        if section is None:
            return None
        known = ("union", "base", *self.schema.experts)
        if section.source not in known:
            message = (
                f"the tokenizer's source `{printable(section.source)}` is not `union`, `base` or an expert"
            )
            self.say("CV-R014", ("tokenizer",), message, hint=did_you_mean(section.source, known))
        tokens = {
            word: TokenRule(rule.source, rule.token, rule.token_id, rule.zero, rule.force)
            for word, rule in section.tokens.items()
        }
        where = self.document.where(("tokenizer",), key=True)
        return Vocabulary(section.source, tokens, section.pad_to_multiple_of, where)

    def output(self) -> Output:
        spec = self.schema.output
        like = Reference(spec.like, where=self.document.where(("output", "like"))) if spec.like else None
        return Output(
            dtype=spec.dtype,
            shard_bytes=size_of(spec.shard_size),
            card=spec.card,
            tokenizer=spec.tokenizer,
            form=spec.form,
            like=like,
            adapter=AdapterOutput(spec.rank, spec.energy, spec.error, spec.rest)
            if spec.kind == "adapter"
            else None,
            package=PackageOutput(spec.include_base) if spec.kind == "package" else None,
        )

    def say(self, code: str, path: Path, message: str, **more: Any) -> None:
        self.found.append(problem(self.document, code, path, message, **more))

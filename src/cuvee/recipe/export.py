"""A recipe → the text of Cuvée's own YAML: what `cuvee import` writes. Merging the text gives the same bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from typing import Any

from cuvee.core.names import printable
from cuvee.errors import Diagnostic, RecipeError
from cuvee.methods.contract import Dialect, Method
from cuvee.methods.registry import get, parameters_for, stage
from cuvee.recipe.curves import written
from cuvee.recipe.model import (
    Curve,
    Input,
    ModuleRecipe,
    Recipe,
    Reference,
    Rule,
    Setting,
    Settings,
    Slice,
    SourceSpec,
    TokenRule,
    Vocabulary,
)
from cuvee.sources.reference import WEIGHT_SUFFIXES

MODELINE = "# yaml-language-server: $schema=./recipe.schema.json   (write it with: cuvee schema > recipe.schema.json)\n"


def native_text(recipe: Recipe) -> tuple[str, list[Diagnostic]]:
    """The recipe as YAML text, and notes on what could only be said differently.

    RecipeError (CV-R017) for a recipe that has no form in Cuvée's language: of a base alone, or with live objects.
    """
    notes: list[Diagnostic] = []
    return MODELINE + _dump(_Exporter(recipe, notes).content()), notes


def _dump(content: Mapping[str, Any]) -> str:
    from ruamel.yaml import YAML

    writer = YAML()
    writer.default_flow_style = False
    writer.width = 110
    stream = io.StringIO()
    writer.dump(content, stream)
    return stream.getvalue()


class _Exporter:
    def __init__(self, recipe: Recipe, notes: list[Diagnostic]) -> None:
        self.recipe, self.notes = recipe, notes
        self.method = get(recipe.method) if recipe.method else None  # None: a chain
        self.dialect: Dialect | None = self.method.dialects.get(recipe.dialect) if self.method else None
        self.names = self._aliases()
        files = [spec.text for spec in recipe.sources.values() if isinstance(spec, Reference)]
        self.bare = (
            recipe.dialect == "mergekit" and bool(files) and all(f.endswith(WEIGHT_SUFFIXES) for f in files)
        )
        self.moved = any(_moves(module) for module in recipe.modules.values())
        self._complete()

    def _complete(self) -> None:
        """RecipeError where a model lacks a value the dialect demands: here it would silently get the default."""
        if self.method is None or self.dialect is None:
            return
        wanted = [s.name for s in self.dialect.parameters if s.required]
        for module in self.recipe.modules.values():
            for part in module.slices:
                given = {*self.recipe.settings, *module.settings, *part.settings}
                for one in part.inputs:
                    lacking = [n for n in wanted if n not in given and n not in one.settings]
                    apart = one.source == (part.base or self.recipe.base) and self.dialect.base == "required"
                    if lacking and not apart:
                        raise RecipeError(
                            "CV-R113",
                            f"`{self.method.name}` needs `{lacking[0]}` of `{printable(self._text(one.source))}`",
                            where=one.where or part.where,
                            hint="add it to the model, or leave the model out; `cuvee check` says the same",
                        )

    def _text(self, alias: str) -> str:
        spec = self.recipe.sources[alias]
        return spec.text if isinstance(spec, Reference) else alias

    def _aliases(self) -> dict[str, str]:
        """A name for each source: the last part of its path where that is unique, `base` for a base set apart.

        Experts of random methods keep the names they have, since masks depend on them; those of Cuvée's own recipes do.
        """
        if self.recipe.dialect == "cuvee":
            return {alias: alias for alias in self.recipe.sources}
        words = {alias: alias.rstrip("/").split("/")[-1].split("@")[0] for alias in self.recipe.sources}
        calls = self.method.steps if self.method else self.recipe.chain
        random = any(stage(call.stage).random for call in calls)
        out: dict[str, str] = {}
        for number, (alias, word) in enumerate(words.items(), 1):
            unique = list(words.values()).count(word) == 1 and word not in ("base", "")
            out[alias] = alias if random and alias != "base" else word if unique else f"model_{number}"
        asked = self.dialect.base if self.dialect else self.base_of()
        if self.recipe.base is not None and asked != "ordinary" and not self.base_first():
            out[self.recipe.base] = "base"
        return out

    def content(self) -> dict[str, Any]:
        recipe = self.recipe
        out: dict[str, Any] = {"version": 1}
        base = recipe.base if recipe.base is not None and self.names[recipe.base] == "base" else None
        inside = self.base_inside()
        if recipe.base is not None and not inside:  # as an expert too: config and tokenizer come from it
            out["base"] = self.source(recipe.sources[recipe.base])
        every = recipe.modules.get("*")
        simple = every.slices[0] if every is not None and _is_whole(every) and not inside else None
        out["experts"] = {
            self.names[alias]: self.expert(alias, simple) for alias in self.ordered() if alias != base
        }
        if not out["experts"]:
            raise RecipeError("CV-R017", "a recipe of a base alone has no form in Cuvée's own language")
        out["merge"] = self.merge()
        if every is None:
            out["modules"] = {name: self.module(module) for name, module in recipe.modules.items()}
        elif simple is None:
            out["layers"] = [self.layers(part) for part in every.slices]
        out.update(self.rest())
        return out

    def merge(self) -> Any:
        """The method with its shared values, or the stages of a chain, each with its own."""
        if self.method is not None:
            return {"method": self.method.name, **self.with_defaults(self.method, self.recipe.settings)}
        calls = [(call.stage, self.settings(call.settings)) for call in self.recipe.chain]
        return [{name: values} if values else name for name, values in calls]

    def base_of(self) -> str:
        """What the method takes a base as; a chain takes task vectors from it."""
        return self.method.base if self.method else "required"

    def base_first(self) -> bool:
        """Whether the base is the first of the models combined, which Cuvée's recipes list as an expert."""
        return self.base_of() == "ordinary" and self.dialect is not None and self.dialect.base == "required"

    def base_inside(self) -> bool:
        """Whether the base is one of the models combined there, but task vectors would be taken from it here.

        Then it is an expert, the first, since config and tokenizer come from the first.
        """
        spoken = self.dialect is not None and self.dialect.base == "ordinary"
        return self.recipe.base is not None and spoken and self.base_of() != "ordinary"

    def ordered(self) -> list[str]:
        slices = (part for module in self.recipe.modules.values() for part in module.slices)
        used = [i.source for part in slices for i in part.inputs]
        others = [alias for alias in self.recipe.sources if alias != self.recipe.base]
        order = list(dict.fromkeys(used + others))
        leads = self.base_first() or self.base_inside()
        return sorted(order, key=lambda alias: alias != self.recipe.base) if leads else order

    def expert(self, alias: str, part: Slice | None) -> Any:
        written = self.source(self.recipe.sources[alias])
        own = next((i.settings for i in part.inputs if i.source == alias), {}) if part else {}
        settings = self.settings(own)
        if not settings:
            return written
        return {**({"source": written} if not _nested(written) else written), **settings}

    def source(self, spec: SourceSpec) -> Any:
        if isinstance(spec, Reference):
            if spec.revision is None and not spec.adapters:
                return spec.text
            out: dict[str, Any] = {"path": spec.text}
            if spec.revision:
                out["revision"] = spec.revision
            if spec.adapters:
                out["adapters"] = [self.source(a) for a in spec.adapters]
            return out
        if isinstance(spec, Recipe):
            inner = _Exporter(spec, self.notes).content()
            inner.pop("version")
            return {"recipe": inner}
        raise RecipeError("CV-R017", "a source that lives only in Python cannot be written down")

    def module(self, module: ModuleRecipe) -> dict[str, Any]:
        """One module: all its layers from some of the models, or runs of them."""
        if _is_whole(module):
            out = self.layers(module.slices[0])
        else:
            out = {"layers": [self.layers(part) for part in module.slices]}
        settings = self.settings(module.settings)
        return {**out, "parameters": settings} if settings else out

    def layers(self, part: Slice) -> dict[str, Any]:
        """One run of layers: its models with their layers and values, its base, its parameters."""
        base = part.base or self.recipe.base
        inputs = sorted(part.inputs, key=lambda i: i.source != base) if self.base_first() else part.inputs
        apart = {i.layers for i in inputs if self.listed(i, base)} != {i.layers for i in inputs}
        donors = {self.names[i.source]: self.donor(i) for i in inputs if apart or self.listed(i, base)}
        plain = all(entry is None for entry in donors.values())
        out: dict[str, Any] = {"from": list(donors) if plain else {n: e or {} for n, e in donors.items()}}
        if part.base is not None:
            out["base"] = self.names[part.base]
        settings = self.settings(part.settings)
        return {**out, "parameters": settings} if settings else out

    def donor(self, one: Input) -> Any:
        """A model's layers in a run, with the values it has there alone; None where it is there as a whole."""
        settings = self.settings(one.settings)
        if not settings:
            return None if one.layers is None else list(one.layers)
        return {**({} if one.layers is None else {"layers": list(one.layers)}), **settings}

    def listed(self, one: Input, base: str | None) -> bool:
        return one.source != base or self.names.get(one.source) != "base"

    def settings(self, settings: Settings) -> dict[str, Any]:
        """Settings under our parameter names and values."""
        out = {}
        for name, setting in settings.items():
            spelling = self.dialect.spelling(name) if self.dialect else None
            ours = spelling.ours if spelling else name
            if ours is None:
                continue
            translate = spelling.translate if spelling else (lambda value: value)
            out[ours] = self.value(setting, translate)
        return out

    def value(self, setting: Setting, translate: Any) -> Any:
        if len(setting) == 1 and setting[0].name in (None, "*"):
            return self.plain(setting[0].value, translate)
        return [self.rule(rule, translate) for rule in setting]

    def rule(self, rule: Rule, translate: Any) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if rule.substring and re.search(r"\d", rule.name or "") and self.moved:
            message = (
                f"the filter `{rule.name}` is for names of the output here, there for those each model has: where "
                "layers move, it is for others"
            )
            self.notes.append(Diagnostic("CV-R112", message, rule.where, severity="warning"))
        if rule.name not in (None, "*"):
            out["name"] = f"*{rule.name}*" if rule.substring else rule.name
        if rule.roles:
            out["role"] = list(rule.roles)
        if rule.layers is not None:
            out["layers"] = list(rule.layers)
        out["value"] = self.plain(rule.value, translate)
        return out

    def plain(self, value: Any, translate: Any) -> Any:
        if not isinstance(value, Curve):
            return translate(value)
        if self.bare and not any(note.code == "CV-R112" for note in self.notes):
            message = (
                "curves over bare weight files run over their layers here; there they are their first value"
            )
            self.notes.append(Diagnostic("CV-R112", message, severity="warning"))
        points = written(value, [translate(p) for p in value.points])
        return points if value.shape == "linear" else {"curve": value.shape, "points": points}

    def with_defaults(self, method: Method, settings: Settings) -> dict[str, Any]:
        """The shared settings, with the dialect's defaults where they say nothing and ours would differ."""
        shared, ours = self.settings(settings), parameters_for(method)
        for name, default in (self.dialect.defaults if self.dialect else {}).items():
            if name not in ours or default == ours[name].default:
                continue
            rules = shared.setdefault(name, default)
            filtered = isinstance(rules, list) and rules and all(isinstance(r, dict) for r in rules)
            if filtered and all(r.keys() != {"value"} for r in rules):
                shared[name] = [*rules, {"value": default}]
        return shared

    def rest(self) -> dict[str, Any]:
        recipe = self.recipe
        out: dict[str, Any] = {}
        if recipe.edges == "first":
            out["edges"] = "first"
        if recipe.curves == "slices" and any(len(module.slices) > 1 for module in recipe.modules.values()):
            out["curves"] = "slices"
        if recipe.vocabulary is not None:
            out["tokenizer"] = self.tokenizer(recipe.vocabulary)
        if recipe.chat_template is not None:
            out["chat_template"] = recipe.chat_template
        if recipe.compute is not None:
            out["dtype"] = recipe.compute
        if recipe.seed:
            out["seed"] = recipe.seed
        if recipe.output.dtype is not None and recipe.output.dtype != recipe.compute:
            out["output"] = {"dtype": recipe.output.dtype}
        return out

    def tokenizer(self, section: Vocabulary) -> dict[str, Any]:
        if section.source == self.recipe.base and section.source not in ("union", "base"):
            message = (
                "tokens of the base beyond its embedding are left out here; there they become rows of zeros"
            )
            self.notes.append(Diagnostic("CV-R112", message, section.where, severity="warning"))
        out: dict[str, Any] = {"source": self.names.get(section.source, section.source)}
        if section.tokens:
            out["tokens"] = {token: self.token(rule) for token, rule in section.tokens.items()}
        if section.pad_to_multiple_of:
            out["pad_to_multiple_of"] = section.pad_to_multiple_of
        return out

    def token(self, rule: TokenRule) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if rule.source is not None:
            out["source"] = self.names.get(rule.source, rule.source)
        out.update({k: v for k in ("token", "token_id") if (v := getattr(rule, k)) is not None})
        out.update({k: True for k in ("zero", "force") if getattr(rule, k)})
        return out


def _moves(module: ModuleRecipe) -> bool:
    """Whether some layer has another number in the output than in a model."""
    start = 0
    for part in module.slices:
        spans = [one.layers for one in part.inputs if one.layers is not None]
        if any(first != start for first, _ in spans):
            return True
        start += spans[0][1] - spans[0][0] if spans else 0
    return False


def _is_whole(module: ModuleRecipe) -> bool:
    """Whether a module is one slice over all its layers."""
    return len(module.slices) == 1 and all(one.layers is None for one in module.slices[0].inputs)


def _nested(written: Any) -> bool:
    return isinstance(written, dict) and "recipe" in written

"""A recipe → the text of Cuvée's own YAML: what `cuvee import` writes. Merging the text gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from cuvee.core.names import printable
from cuvee.errors import Diagnostic, RecipeError
from cuvee.methods.contract import Dialect
from cuvee.methods.registry import get, parameters_for, stage
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
)

MODELINE = "# yaml-language-server: $schema=./recipe.schema.json   (write it with: cuvee schema > recipe.schema.json)\n"


def native_text(recipe: Recipe) -> tuple[str, list[Diagnostic]]:
    """The recipe as YAML text, and notes on what could only be said differently.

    RecipeError (CV-R017) for a recipe of several modules, which has no form in Cuvée's language.
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
        if recipe.method is None or set(recipe.modules) != {"*"}:
            raise RecipeError(
                "CV-R017",
                "a recipe with `modules` has no form in Cuvée's own language",
                hint="run it as it is with `cuvee merge`",
            )
        self.recipe, self.notes = recipe, notes
        self.method = get(recipe.method)
        self.dialect: Dialect | None = self.method.dialects.get(recipe.dialect)
        self.names = self._aliases()

    def _aliases(self) -> dict[str, str]:
        """A name for each source: the last part of its path where that is unique, `base` for a base set apart.

        Experts of random methods keep the names they have, since masks depend on them.
        """
        words = {alias: alias.rstrip("/").split("/")[-1].split("@")[0] for alias in self.recipe.sources}
        random = any(stage(step.stage).random for step in self.method.steps)
        out: dict[str, str] = {}
        for number, (alias, word) in enumerate(words.items(), 1):
            unique = list(words.values()).count(word) == 1 and word not in ("base", "")
            out[alias] = alias if random and alias != "base" else word if unique else f"model_{number}"
        asked = self.dialect.base if self.dialect else self.method.base
        if self.recipe.base is not None and asked != "ordinary" and not self.base_first():
            out[self.recipe.base] = "base"
        return out

    def content(self) -> dict[str, Any]:
        recipe = self.recipe
        module = recipe.modules["*"]
        out: dict[str, Any] = {"version": 1}
        base = recipe.base if recipe.base is not None and self.names[recipe.base] == "base" else None
        first = self.base_first()
        if recipe.base is not None:  # also where it is one of the experts: config and tokenizer come from it
            out["base"] = self.source(recipe.sources[recipe.base])
        whole = len(module.slices) == 1 and all(i.layers is None for i in module.slices[0].inputs)
        out["experts"] = {
            self.names[alias]: self.expert(alias, module.slices[0] if whole else None)
            for alias in self.ordered(module, first)
            if alias != base
        }
        out["merge"] = {"method": self.method.name, **self.with_defaults(self.settings(recipe.settings))}
        if not whole:
            out["layers"] = [self.layers(part) for part in module.slices]
        out.update(self.rest())
        return out

    def base_first(self) -> bool:
        """Whether the base is the first of the models combined, which Cuvée's recipes list as an expert."""
        return self.method.base == "ordinary" and self.dialect is not None and self.dialect.base == "required"

    def ordered(self, module: ModuleRecipe, first: bool) -> list[str]:
        used = [i.source for part in module.slices for i in part.inputs]
        order = list(dict.fromkeys(used + list(self.recipe.sources)))
        return sorted(order, key=lambda alias: alias != self.recipe.base) if first else order

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

    def layers(self, part: Slice) -> dict[str, Any]:
        base = part.base or self.recipe.base
        inputs = sorted(part.inputs, key=lambda i: i.source != base) if self.base_first() else part.inputs
        donors = {self.names[i.source]: list(i.layers or ()) for i in inputs if self.listed(i, base)}
        out: dict[str, Any] = {"from": donors}
        if part.base is not None:
            out["base"] = self.names[part.base]
        settings = {**self.settings(part.settings)}
        for one in part.inputs:
            for name, value in self.settings(one.settings).items():
                message = f"the value of `{name}` for `{printable(one.source)}` in one slice is given to all its models"
                if settings.get(name, value) != value:
                    raise RecipeError("CV-R017", message)
                settings[name] = value
        if settings:
            out["parameters"] = settings
        return out

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
        points = [translate(p) for p in value.points]
        return points if value.shape == "linear" else {"curve": value.shape, "points": points}

    def with_defaults(self, shared: dict[str, Any]) -> dict[str, Any]:
        """The shared settings, with the dialect's defaults where they say nothing and ours would differ."""
        ours = parameters_for(self.method)
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
        if recipe.vocabulary is not None:
            section = recipe.vocabulary
            source = self.names.get(section.source, section.source)
            out["tokenizer"] = {"source": source}
            if section.tokens:
                out["tokenizer"]["tokens"] = {t: self.token(r) for t, r in section.tokens.items()}
            if section.pad_to_multiple_of:
                out["tokenizer"]["pad_to_multiple_of"] = section.pad_to_multiple_of
        if recipe.chat_template is not None:
            out["chat_template"] = recipe.chat_template
        if recipe.compute is not None:
            out["dtype"] = recipe.compute
        if recipe.seed:
            out["seed"] = recipe.seed
        if recipe.output.dtype is not None and recipe.output.dtype != recipe.compute:
            out["output"] = {"dtype": recipe.output.dtype}
        return out

    def token(self, rule: TokenRule) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if rule.source is not None:
            out["source"] = self.names.get(rule.source, rule.source)
        out.update({k: v for k in ("token", "token_id") if (v := getattr(rule, k)) is not None})
        out.update({k: True for k in ("zero", "force") if getattr(rule, k)})
        return out


def _nested(written: Any) -> bool:
    return isinstance(written, dict) and "recipe" in written

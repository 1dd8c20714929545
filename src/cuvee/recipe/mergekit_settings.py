"""MergeKit's parameter values → settings: scalars, gradients, filters, checked against what the method knows.

A parameter of another method is accepted with a warning (MergeKit ignores it, and shared recipes carry such); a
name no method has is an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic
from cuvee.methods.contract import Dialect, Spelling
from cuvee.methods.registry import get, names
from cuvee.recipe.coerce import Refused, coerce
from cuvee.recipe.document import Document, Path, problem
from cuvee.recipe.model import Curve, Rule, Scalar, Setting, Settings

HISTORIC = ("embed_slerp", "consensus_method", "residual_weight")


@dataclass(slots=True)
class SettingsReader:
    """Reads the `parameters` sections of one document for one method."""

    document: Document
    method: str
    dialect: Dialect
    found: list[Diagnostic]

    def read(self, raw: dict[str, Any] | None, path: Path, level: Literal["model", "shared"]) -> Settings:
        """The settings of one section; mistakes are collected."""
        out: dict[str, Setting] = {}
        for name, value in (raw or {}).items():
            here = (*path, name)
            spelling = self.dialect.spelling(name)
            if spelling is None:
                self._unknown(name, here)
                continue
            if spelling.ours is None:
                continue
            if level == "model" and spelling.scope == "shared":
                self._warn(here, f"`{name}` is one value for the whole merge; here it has no effect")
                continue
            setting = self._setting(value, spelling, here)
            if setting:
                out[name] = setting
        return out

    def _unknown(self, name: str, path: Path) -> None:
        if name in HISTORIC:
            self._warn(path, f"`{name}` no longer has an effect (nor has it in MergeKit)")
            return
        elsewhere = [m for m in names() if _knows(m, name)]
        if elsewhere:
            known = ", ".join(f"`{n}`" for n in self.dialect.names) or "none"
            message = f"`{self.method}` has no parameter `{name}`, so it has no effect; it knows {known}"
            self._warn(path, message)
            return
        hint = did_you_mean(name, self.dialect.names or _every_name())
        message = f"`{self.method}` has no parameter `{printable(name)}`"
        self.found.append(problem(self.document, "CV-R007", path, message, key=True, hint=hint))

    def _warn(self, path: Path, message: str) -> None:
        where = self.document.where(path, key=True)
        self.found.append(Diagnostic("CV-R030", message, where, severity="warning"))

    def _setting(self, value: Any, spelling: Spelling, path: Path) -> Setting:
        if isinstance(value, dict):
            return self._rules([value], spelling, path, single=True)
        if isinstance(value, list) and any(isinstance(v, dict) for v in value):
            return self._rules(value, spelling, path)
        plain = self._value(value, spelling, path)
        return () if plain is None else (Rule(plain, where=self.document.where(path)),)

    def _rules(self, items: list[Any], spelling: Spelling, path: Path, single: bool = False) -> Setting:
        out: list[Rule] = []
        for i, item in enumerate(items):
            here = path if single else (*path, i)
            if not isinstance(item, dict):
                message = "a list must hold values only, or `{filter, value}` entries only"
                self.found.append(problem(self.document, "CV-R010", here, message))
                continue
            for key in item:
                if key not in ("filter", "value"):
                    hint = did_you_mean(key, ("filter", "value"))
                    message = f"unknown key `{printable(key)}`"
                    self.found.append(
                        problem(self.document, "CV-R004", (*here, key), message, key=True, hint=hint)
                    )
            name = item.get("filter")
            if name is not None and not isinstance(name, str):
                self.found.append(
                    problem(self.document, "CV-R010", (*here, "filter"), "`filter` must be a text")
                )
                continue
            if "value" not in item:
                self.found.append(problem(self.document, "CV-R005", here, "the key `value` is missing"))
                continue
            plain = self._value(item["value"], spelling, (*here, "value"))
            if plain is not None:
                where = self.document.where((*here, "filter") if name is not None else here)
                out.append(Rule(plain, name=name, substring=True, where=where))
        return tuple(out)

    def _value(self, value: Any, spelling: Spelling, path: Path) -> Scalar | Curve | None:
        if isinstance(value, list):
            points = [self._scalar(v, spelling, (*path, i)) for i, v in enumerate(value)]
            good = tuple(p for p in points if p is not None)
            return Curve(good) if good and len(good) == len(points) else None
        return self._scalar(value, spelling, path)

    def _scalar(self, value: Any, spelling: Spelling, path: Path) -> Scalar:
        try:
            return coerce(value, spelling.type)
        except Refused as error:
            shown = "nothing" if value is None else f"`{printable(str(value), 60)}`"
            message = f"`{spelling.name}` {error}, got {shown}"
            self.found.append(problem(self.document, "CV-R010", path, message))
            return None


def _knows(method: str, name: str) -> bool:
    dialect = get(method).dialects.get("mergekit")
    return dialect is not None and name in dialect.names


def _every_name() -> list[str]:
    found: dict[str, None] = {}
    for method in names():
        dialect = get(method).dialects.get("mergekit")
        found.update(dict.fromkeys(dialect.names if dialect else ()))
    return list(found)

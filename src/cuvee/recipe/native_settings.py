"""Parameter values of Cuvée's own recipes → settings.

A value is a scalar, a curve over the layers (`[0, 0.5, 1]`, `[[0, 0.2], [0.6, 1]]` with depths, or `{curve: cosine,
points: [0, 1]}`), a mapping of name patterns to values (`{"*.mlp.*": 0.3, default: 0.5}`), or a list of rules
(`[{role: mlp, value: 0.3}, {value: 0.5}]`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic
from cuvee.families.roles import ROLES
from cuvee.methods.parameters import Parameter
from cuvee.recipe.curves import SHAPES, DepthsError, knots
from cuvee.recipe.document import Document, Path, problem
from cuvee.recipe.model import BlockValues, Curve, Rule, Scalar, Setting

_RULE = ("name", "role", "layers", "module", "block", "value")
_NOT_PATTERNS = {"curve", "points", "blocks", "base"}  # keys of a mapping that is one value
DEFAULT = "default"


@dataclass(slots=True)
class ValueReader:
    """Reads values of parameters in one document; mistakes are collected."""

    document: Document
    found: list[Diagnostic]

    def setting(self, value: Any, parameter: Parameter, path: Path) -> Setting:
        """The setting a value means."""
        if isinstance(value, dict) and not _NOT_PATTERNS & value.keys():
            return self._patterns(value, parameter, path)
        if isinstance(value, list) and any(isinstance(v, dict) for v in value):
            return tuple(
                rule
                for i, item in enumerate(value)
                if (rule := self._rule(item, parameter, (*path, i))) is not None
            )
        plain = self._value(value, parameter, path)
        return (Rule(plain, where=self.document.where(path)),) if plain is not _BAD else ()

    def settings(
        self, raw: Mapping[str, Any], known: Mapping[str, Parameter], owner: str, path: Path
    ) -> dict[str, Setting]:
        """The settings of a mapping of parameters; names the owner does not have are told."""
        out = {}
        for name, value in raw.items():
            if name not in known:
                self.unknown(name, known, owner, (*path, name))
                continue
            setting = self.setting(value, known[name], (*path, name))
            if setting:
                out[name] = setting
        return out

    def unknown(self, name: str, known: Mapping[str, Any] | tuple[str, ...], owner: str, path: Path) -> None:
        """Say that a key is not a parameter of its owner."""
        hint = did_you_mean(name, known)
        self._problem("CV-R007", path, f"`{owner}` has no parameter `{printable(name)}`", key=True, hint=hint)

    def _patterns(self, value: Mapping[str, Any], parameter: Parameter, path: Path) -> Setting:
        rules = []
        for pattern, inner in value.items():
            here = (*path, pattern)
            plain = self._value(inner, parameter, here)
            if plain is not _BAD:
                name = None if pattern in (DEFAULT, "*") else pattern
                rules.append(Rule(plain, name=name, where=self.document.where(here, key=True)))
        # The default comes last wherever it was written, or it would hide the patterns behind it.
        return tuple(sorted(rules, key=lambda r: r.name is None))

    def _rule(self, item: Any, parameter: Parameter, path: Path) -> Rule | None:
        if not isinstance(item, dict):
            self._problem(
                "CV-R010", path, "a list must hold values only, or rules `{role: mlp, value: 0.3}` only"
            )
            return None
        for key in item:
            if key not in _RULE:
                message = f"unknown key `{printable(key)}`"
                self._problem("CV-R004", (*path, key), message, key=True, hint=did_you_mean(key, _RULE))
        if "value" not in item:
            self._problem("CV-R005", path, "the key `value` is missing")
            return None
        plain = self._value(item["value"], parameter, (*path, "value"))
        layers = self._layers(item.get("layers"), (*path, "layers"))
        if plain is _BAD:
            return None
        return Rule(
            plain,
            name=self._text(item, "name", path),
            roles=self._roles(item.get("role"), (*path, "role")),
            layers=layers,
            module=self._text(item, "module", path),
            blocks=self._labels(item.get("block"), (*path, "block")),
            where=self.document.where(path),
        )

    def _text(self, item: Mapping[str, Any], key: str, path: Path) -> str | None:
        """A condition of a rule that is a text, or None where the rule has none."""
        value = item.get(key)
        if value is None or isinstance(value, str):
            return value
        self._problem("CV-R010", (*path, key), f"`{key}` must be a text")
        return None

    def _labels(self, written: Any, path: Path) -> tuple[str, ...]:
        labels = written if isinstance(written, list) else [] if written is None else [written]
        if all(isinstance(label, str) for label in labels):
            return tuple(labels)
        self._problem(
            "CV-R010", path, "`block` must be a block's label or a list of them, such as `IN04` or `OUT*`"
        )
        return ()

    def _roles(self, written: Any, path: Path) -> tuple[str, ...]:
        if written is None:
            return ()
        roles = []
        for word in written if isinstance(written, list) else [written]:
            if not isinstance(word, str):
                self._problem("CV-R010", path, "`role` must be a role or a list of roles")
                continue
            expanded = GROUPS.get(word)
            if expanded is None and word not in ROLES:
                hint = did_you_mean(word, (*ROLES, *GROUPS))
                self._problem("CV-R010", path, f"`{printable(word)}` is not a role", hint=hint)
                continue
            roles += list(expanded or (word,))
        return tuple(roles)

    def _layers(self, written: Any, path: Path) -> tuple[int, int] | None:
        if written is None:
            return None
        if type(written) is int and written >= 0:
            return written, written + 1
        if (
            isinstance(written, list)
            and len(written) == 2
            and all(type(v) is int for v in written)
            and 0 <= written[0] < written[1]
        ):
            return written[0], written[1]
        self._problem("CV-R010", path, "`layers` must be a layer or `[first, end]`, the end not included")
        return None

    def _value(self, value: Any, parameter: Parameter, path: Path) -> Any:
        if isinstance(value, list) and parameter.listed:
            return self._listed(value, parameter, path)
        if isinstance(value, list):
            return self._curve(value, "linear", parameter, path)
        if isinstance(value, dict) and {"blocks", "base"} & value.keys():
            return self._block_values(value, parameter, path)
        if isinstance(value, dict):
            for key in value:
                if key not in ("curve", "points"):
                    hint = did_you_mean(key, ("curve", "points"))
                    self._problem(
                        "CV-R004", (*path, key), f"unknown key `{printable(key)}`", key=True, hint=hint
                    )
            shape = value.get("curve", "linear")
            if shape not in SHAPES:
                shown = ", ".join(f"`{s}`" for s in SHAPES)
                hint = did_you_mean(str(shape), SHAPES)
                self._problem("CV-R010", (*path, "curve"), f"`curve` must be one of {shown}", hint=hint)
                return _BAD
            points = value.get("points")
            if not isinstance(points, list) or not points:
                self._problem("CV-R010", path, "a curve needs `points`, a list of at least one value")
                return _BAD
            return self._curve(points, shape, parameter, (*path, "points"))
        return self._scalar(value, parameter, path)

    def _listed(self, value: list[Any], parameter: Parameter, path: Path) -> Any:
        """The text of a list that is one value."""
        wrong = [
            v for v in value if not isinstance(v, (int, float)) or isinstance(v, bool) or not isfinite(v)
        ]
        if value and not wrong:
            return f"[{', '.join(map(repr, value))}]"
        got = f"got {wrong[0]!r} in it" if wrong else "got an empty one"
        self._problem("CV-R335", path, f"a list for `{parameter.name}` must hold numbers, {printable(got)}")
        return _BAD

    def _block_values(self, value: Mapping[str, Any], parameter: Parameter, path: Path) -> Any:
        """`{blocks: [...], base: x}`; the list may be a text of numbers, as other tools write it, or a curve."""
        for key in value:
            if key not in ("blocks", "base"):
                hint = did_you_mean(key, ("blocks", "base"))
                self._problem("CV-R004", (*path, key), f"unknown key `{printable(key)}`", key=True, hint=hint)
        if len({"blocks", "base"} & value.keys()) < 2:
            message = "values by block need both `blocks` and `base`, the value of all that is in no block"
            self._problem("CV-R005", path, message)
            return _BAD
        base = self._scalar(value["base"], parameter, (*path, "base"))
        given = value["blocks"]
        listed = _numbers(given) if isinstance(given, str) else given
        if not isinstance(listed, (list, dict)):
            self._problem("CV-R010", (*path, "blocks"), "`blocks` must be a list of values, or a curve")
            return _BAD
        inner = self._value(listed, parameter, (*path, "blocks"))
        if base is _BAD or inner is _BAD or isinstance(inner, BlockValues):
            return _BAD
        return BlockValues(inner.points if isinstance(listed, list) and not inner.at else inner, base)

    def _curve(self, points: list[Any], shape: Any, parameter: Parameter, path: Path) -> Any:
        if not points:
            self._problem("CV-R010", path, f"`{parameter.name}` needs at least one value")
            return _BAD
        try:
            written, at = knots(points)
        except DepthsError as error:
            self._problem("CV-R260", (*path, error.index), str(error), hint=error.hint)
            return _BAD
        inside = (1,) if at else ()
        values = [self._scalar(v, parameter, (*path, i, *inside)) for i, v in enumerate(written)]
        return _BAD if any(v is _BAD for v in values) else Curve(tuple(values), shape, at)

    def _scalar(self, value: Any, parameter: Parameter, path: Path) -> Any:
        wrong = parameter.problem(value)
        if wrong:
            hint = did_you_mean(str(value), parameter.choices) if parameter.choices else None
            self._problem("CV-R010", path, f"`{parameter.name}` {wrong}", hint=hint)
            return _BAD
        return value

    def _problem(self, code: str, path: Path, message: str, **more: Any) -> None:
        self.found.append(problem(self.document, code, path, message, **more))


def _numbers(text: str) -> list[Any] | None:
    """The numbers of a text such as `0, 0.5, 1`, None where it holds anything else."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        return None


_BAD: Scalar = "\0bad"  # no text in a recipe can hold it

# Words people use for several roles at once.
GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("q", "k", "v", "o", "qkv"),
    "mlp": ("gate", "up", "down", "gate_up"),
    "experts": ("expert_gate", "expert_up", "expert_down"),
}

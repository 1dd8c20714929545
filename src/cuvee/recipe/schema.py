"""The shape of Cuvée's own recipes (`version: 1`), as strict models. Parameters are checked in `native.py`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cuvee.core.dtypes import parse_dtype
from cuvee.core.names import did_you_mean
from cuvee.recipe.scalars import TEXT, TRUTH, one_of, whole
from cuvee.recipe.shape import Checked, Listed, Named, Refusal, Section, part, shown

STORED = ("float16", "bfloat16", "float32", "float64")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.I)


def _dtype(value: Any) -> Any:
    meant = parse_dtype(value) if isinstance(value, str) else None
    if meant is None or meant.name not in STORED:
        hint = did_you_mean(value, STORED) if isinstance(value, str) else None
        raise Refusal(f"must be one of {', '.join(STORED)}, got {shown(value)}", hint)
    return meant.name


def _share(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1:
        return float(value)
    raise Refusal(f"must be more than 0 and at most 1, got {shown(value)}")


def _size(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, str) and _SIZE.fullmatch(value):
        return value
    raise Refusal(f"must be a size such as `5GB` or `500MiB`, got {shown(value)}")


def _range(value: Any) -> Any:
    good = isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)
    if not good or not 0 <= value[0] <= value[1]:
        raise Refusal("must be two whole numbers `[first, end]`, the end not included")
    return value


def _mapping(value: Any) -> Any:
    if not isinstance(value, dict):
        raise Refusal("must be a mapping of keys to values")
    return value


def _merge(value: Any) -> Any:
    if isinstance(value, (dict, list)) and value:
        return value
    raise Refusal(
        "must name a method, `{method: ties, density: 0.3}`, or list stages, `[trim: {density: 0.3}, elect]`"
    )


def _donors(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if isinstance(value, dict) or (names and all(isinstance(n, str) for n in names)):
        return value
    raise Refusal(
        "must name an expert, a list of experts, or map experts to their layers `{name: [first, end]}`"
    )


def _spec(value: Any) -> Any:
    if isinstance(value, (str, dict)):
        return value
    raise Refusal("must be a path, a hub URI, or a mapping with `source`, `recipe` or `arithmetic`")


DTYPE = Checked(_dtype, {"enum": list(STORED)})
SIZE = Checked(_size, {"type": ["string", "integer"]})
SHARE = Checked(_share, {"type": "number", "exclusiveMinimum": 0, "maximum": 1})
SOURCE = Checked(_spec, {"type": ["string", "object"]})
RANGE = Checked(_range, {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2})
SETTINGS = Checked(_mapping, {"type": "object"})
DONORS = Checked(_donors, {"type": ["string", "array", "object"]})


@dataclass(frozen=True, slots=True)
class Token:
    """Where one token's embedding comes from."""

    source: str | None = part(TEXT, None)
    token: str | None = part(TEXT, None)
    token_id: int | None = part(whole(), None)
    zero: bool = part(TRUTH, False)
    force: bool = part(TRUTH, False)


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """How vocabularies are brought together."""

    source: str = part(TEXT, "union")
    tokens: dict[str, Token] = part(Named(Section(Token)), {})
    pad_to_multiple_of: int | None = part(whole(1), None)


def _tokenizer(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Layers:
    """A run of output layers: which experts, which of their layers."""

    from_: Any = part(DONORS, key="from")
    range: list[int] | None = part(RANGE, None)
    base: str | None = part(TEXT, None)
    parameters: dict[str, Any] = part(SETTINGS, {})


@dataclass(frozen=True, slots=True)
class Module:
    """One module of the architecture: all its layers, or runs of them; one without an entry is copied."""

    from_: Any = part(DONORS, None, key="from")
    base: str | None = part(TEXT, None)
    layers: list[Layers] | None = part(Listed(Section(Layers), least=1), None)
    parameters: dict[str, Any] = part(SETTINGS, {})


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """What is written."""

    dtype: str | None = part(DTYPE, None)
    shard_size: Any = part(SIZE, "5GB")
    card: bool = part(TRUTH, True)
    tokenizer: bool = part(TRUTH, True)
    form: Literal["single_file"] | None = part(one_of("single_file"), None)
    like: str | None = part(TEXT, None)
    kind: Literal["model", "adapter", "package"] = part(one_of("model", "adapter", "package"), "model")
    rank: int | None = part(whole(1), None)
    energy: float | None = part(SHARE, None)
    error: float | None = part(SHARE, None)
    rest: Literal["save", "drop"] = part(one_of("save", "drop"), "save")
    include_base: bool = part(TRUTH, False)


def _one_bound(output: OutputSpec) -> None:
    given = [name for name in ("rank", "energy", "error") if getattr(output, name) is not None]
    if output.kind == "adapter" and len(given) != 1:
        raise Refusal("an adapter needs one of `rank`, `energy` and `error`")
    if output.kind != "adapter" and (given or output.rest != "save"):
        raise Refusal(f"`{(given or ['rest'])[0]}` is for `kind: adapter`")
    if output.kind != "package" and output.include_base:
        raise Refusal("`include_base` is for `kind: package`")


@dataclass(frozen=True, slots=True)
class NativeRecipe:
    """A recipe of Cuvée's own."""

    foreign: ClassVar[dict[str, str]] = {
        "random_seed": "the key is `seed`"
    }  # keys of elsewhere, with the hint

    version: int = part(one_of(1))
    merge: Any = part(Checked(_merge))
    experts: dict[str, Any] = part(Named(SOURCE))
    base: Any = part(SOURCE, None)
    sources: dict[str, Any] = part(Named(SOURCE), {})
    layers: list[Layers] | None = part(Listed(Section(Layers)), None)
    modules: dict[str, Module] | None = part(Named(Section(Module)), None)
    tokenizer: Tokenizer | None = part(Section(Tokenizer, before=_tokenizer), None)
    chat_template: str | None = part(TEXT, None)
    dtype: str | None = part(DTYPE, None)
    seed: int = part(whole(0), 0)
    edges: Literal["ends", "first"] = part(one_of("ends", "first"), "ends")
    curves: Literal["output", "slices"] = part(one_of("output", "slices"), "output")
    output: OutputSpec = part(Section(OutputSpec, _one_bound), OutputSpec())


def _someone(recipe: NativeRecipe) -> None:
    if not recipe.experts:
        raise Refusal("needs at least one entry in `experts`")


NATIVE = Section(NativeRecipe, _someone)


def is_size(value: Any) -> bool:
    """Whether a value is a size as recipes write it."""
    return type(value) is int or (isinstance(value, str) and _SIZE.fullmatch(value) is not None)


def size_of(value: int | str) -> int:
    """`5GB` → 5 000 000 000 bytes."""
    if isinstance(value, int):
        return value
    match = _SIZE.fullmatch(value)
    assert match is not None
    unit = (match.group(2) or "").lower()
    power = " kmgt".index(unit[:1] or " ")
    return int(float(match.group(1)) * (1024 if unit.endswith("i") else 1000) ** power)

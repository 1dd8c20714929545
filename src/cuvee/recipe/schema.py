"""The shape of Cuvée's own recipes (`version: 1`), as strict models. Parameters are checked in `native.py`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cuvee.core.dtypes import BY_NAME, parse_dtype
from cuvee.core.names import did_you_mean
from cuvee.recipe.validation import Strict, refuse, shown

STORED = ("float16", "bfloat16", "float32", "float64")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", re.I)


def _dtype(value: Any) -> Any:
    meant = parse_dtype(value) if isinstance(value, str) else None
    if meant is None or meant.name not in STORED:
        hint = did_you_mean(value, STORED) if isinstance(value, str) else None
        raise refuse(f"must be one of {', '.join(STORED)}, got {shown(value)}", hint)
    return meant.name


def _size(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    if isinstance(value, str) and _SIZE.fullmatch(value):
        return value
    raise refuse(f"must be a size such as `5GB` or `500MiB`, got {shown(value)}")


def _range(value: Any) -> Any:
    good = isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)
    if not good or not 0 <= value[0] <= value[1]:
        raise refuse("must be two whole numbers `[first, end]`, the end not included")
    return value


def _mapping(value: Any) -> Any:
    if not isinstance(value, dict):
        raise refuse("must be a mapping of keys to values")
    return value


def _merge(value: Any) -> Any:
    if isinstance(value, (dict, list)) and value:
        return value
    raise refuse(
        "must name a method, `{method: ties, density: 0.3}`, or list stages, `[trim: {density: 0.3}, elect]`"
    )


def _donors(value: Any) -> Any:
    names = value if isinstance(value, list) else [value]
    if isinstance(value, dict) or (names and all(isinstance(n, str) for n in names)):
        return value
    raise refuse(
        "must name an expert, a list of experts, or map experts to their layers `{name: [first, end]}`"
    )


def _spec(value: Any) -> Any:
    if isinstance(value, (str, dict)):
        return value
    raise refuse("must be a path, a hub URI, or a mapping with `source`, `recipe` or `arithmetic`")


DTypeName = Annotated[str, BeforeValidator(_dtype), Field(json_schema_extra={"enum": sorted(BY_NAME)})]
SourceSpec = Annotated[Any, BeforeValidator(_spec)]


class Token(Strict):
    """Where one token's embedding comes from."""

    source: str | None = None
    token: str | None = None
    token_id: int | None = None
    zero: bool = False
    force: bool = False


class Tokenizer(Strict):
    """How vocabularies are brought together."""

    source: str = "union"
    tokens: dict[str, Token] = Field(default_factory=dict)
    pad_to_multiple_of: Annotated[int, Field(ge=1)] | None = None


def _tokenizer(value: Any) -> Any:
    return {"source": value} if isinstance(value, str) else value


class Layers(Strict):
    """A run of output layers: which experts, which of their layers."""

    from_: Annotated[Any, BeforeValidator(_donors)] = Field(alias="from")
    range: Annotated[list[int], BeforeValidator(_range)] | None = None
    base: str | None = None
    parameters: Annotated[dict[str, Any], BeforeValidator(_mapping)] = Field(default_factory=dict)


class OutputSpec(Strict):
    """What is written."""

    dtype: DTypeName | None = None
    shard_size: Annotated[Any, BeforeValidator(_size)] = "5GB"
    card: bool = True
    tokenizer: bool = True


class NativeRecipe(Strict):
    """A recipe of Cuvée's own."""

    version: Literal[1]
    merge: Annotated[Any, BeforeValidator(_merge)]
    experts: dict[str, SourceSpec]
    base: SourceSpec | None = None
    sources: dict[str, SourceSpec] = Field(default_factory=dict)
    layers: list[Layers] | None = None
    tokenizer: Annotated[Tokenizer, BeforeValidator(_tokenizer)] | None = None
    chat_template: str | None = None
    dtype: DTypeName | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    edges: Literal["ends", "first"] = "ends"
    output: OutputSpec = Field(default_factory=OutputSpec)

    @model_validator(mode="after")
    def _someone(self) -> NativeRecipe:
        if not self.experts:
            raise refuse("needs at least one entry in `experts`")
        return self


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

"""The shape of MergeKit's YAML (0.1.5), as strict models: what its users write, with unknown keys refused.

Only structure is checked here; parameters are checked against the method in `mergekit.py`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from cuvee.core.dtypes import parse_dtype
from cuvee.recipe.coerce import Refused, coerce
from cuvee.recipe.validation import Strict, refuse

DTYPES = ("float16", "bfloat16", "float32", "float64")


def _reference(value: Any) -> Any:
    if isinstance(value, (str, dict)):
        return value
    raise refuse("must be the path or name of a model, or the long form `{model: {path, revision}, lora}`")


def _read(value: Any, kind: Literal["float", "int", "bool"]) -> Any:
    """A scalar as MergeKit reads it: `"64"` is a number, `yes` is true; what is neither is left to be refused."""
    try:
        return value if value is None or isinstance(value, bool) else coerce(value, kind)
    except Refused:
        return value


def _number(value: Any) -> Any:
    return _read(value, "float")


def _whole(value: Any) -> Any:
    return _read(value, "int")


def _truth(value: Any) -> Any:
    return _read(value, "bool")


def _layer_range(value: Any) -> Any:
    if isinstance(value, list):
        value = [_whole(v) for v in value]
    if not (isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)):
        raise refuse("must be two whole numbers `[first, end]`, the end not included")
    if not 0 <= value[0] <= value[1]:
        raise refuse(f"must go upwards from 0 or more, got {value}")
    return value


def _padding(value: Any) -> Any:
    found = _whole(value)
    return None if found == 0 and not isinstance(found, bool) else found


def _dtype(value: Any) -> Any:
    word = value.removeprefix("torch.") if isinstance(value, str) else value
    if word in DTYPES:
        return value
    meant = parse_dtype(value) if isinstance(value, str) else None
    hint = f"did you mean `{meant}`?" if meant and meant.name in DTYPES else None
    raise refuse(f"must be one of {', '.join(DTYPES)}, got `{value}`", hint)


def _settings(value: Any) -> Any:
    if not isinstance(value, dict):
        raise refuse("must be a mapping of parameter names to values")
    return value


class ModelPath(Strict):
    """`{path, revision}`."""

    path: str
    revision: str | None = None


class LongReference(Strict):
    """`{model, lora, override_architecture}`; `model` and `lora` may be texts or `{path, revision}`."""

    model: str | ModelPath
    lora: str | ModelPath | None = None
    override_architecture: str | None = None


ModelRef = Annotated[
    Any, BeforeValidator(_reference), Field(json_schema_extra={"type": ["string", "object"]})
]
Parameters = Annotated[
    dict[str, Any], BeforeValidator(_settings), Field(json_schema_extra={"type": "object"})
]
LayerRange = Annotated[list[int], BeforeValidator(_layer_range)]
DTypeName = Annotated[str, BeforeValidator(_dtype)]


class InputModel(Strict):
    """An entry of `models`."""

    model: ModelRef
    parameters: Parameters | None = None


class InputSlice(Strict):
    """An entry of `sources`."""

    model: ModelRef
    layer_range: LayerRange
    parameters: Parameters | None = None


class OutputSlice(Strict):
    """An entry of `slices`."""

    sources: list[InputSlice] = Field(min_length=1)
    base_model: ModelRef | None = None
    residual_weight: Annotated[float | None, BeforeValidator(_number)] = None
    parameters: Parameters | None = None


class OutputModule(Strict):
    """An entry of `modules`: exactly one of `slices` and `models`."""

    slices: list[OutputSlice] | None = None
    models: list[InputModel] | None = None
    parameters: Parameters | None = None

    @model_validator(mode="after")
    def _one_of(self) -> OutputModule:
        if bool(self.slices) == bool(self.models):
            raise refuse("needs exactly one of `slices` and `models`")
        return self


class ModelToken(Strict):
    """`{kind: model_token, model, token | token_id}`."""

    kind: Literal["model_token"]
    model: ModelRef
    token: str | None = None
    token_id: Annotated[int | None, BeforeValidator(_whole)] = None

    @model_validator(mode="after")
    def _one_of(self) -> ModelToken:
        if (self.token is None) == (self.token_id is None):
            raise refuse("needs exactly one of `token` and `token_id`")
        return self


class ZeroToken(Strict):
    """`{kind: zero}`."""

    kind: Literal["zero"]


class TokenEmbedding(Strict):
    """An entry of `tokenizer.tokens`."""

    source: Any = None
    force: Annotated[bool, BeforeValidator(_truth)] = False


class Tokenizer(Strict):
    """The `tokenizer` section."""

    source: ModelRef = "union"
    tokens: dict[str, TokenEmbedding] | None = None
    pad_to_multiple_of: Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_padding)] = None


class MergeKitRecipe(Strict):
    """A document of mergekit-yaml, mergekit-multi or mergekit-pytorch."""

    merge_method: str
    name: str | None = None
    models: list[InputModel] | None = None
    slices: list[OutputSlice] | None = None
    modules: dict[str, OutputModule] | None = None
    base_model: ModelRef | None = None
    dtype: DTypeName | None = None
    out_dtype: DTypeName | None = None
    tokenizer_source: ModelRef | None = None
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None
    parameters: Parameters | None = None

    @model_validator(mode="after")
    def _one_layout(self) -> MergeKitRecipe:
        given = [n for n in ("models", "slices", "modules") if getattr(self, n)]
        if len(given) != 1:
            shown = " and ".join(f"`{n}`" for n in given) or "none of them"
            raise refuse(f"needs exactly one of `models`, `slices` and `modules`, got {shown}")
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise refuse("cannot have both `tokenizer_source` and `tokenizer`")
        return self

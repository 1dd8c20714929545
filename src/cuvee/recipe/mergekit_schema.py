"""The shape of MergeKit's YAML (0.1.5), as strict models: what its users write, with unknown keys refused.

Only structure is checked here; parameters are checked against the method in `mergekit.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from cuvee.core.dtypes import parse_dtype
from cuvee.recipe.coerce import Refused, coerce
from cuvee.recipe.scalars import ANYTHING, TEXT, one_of
from cuvee.recipe.shape import Checked, Listed, Named, Refusal, Section, part, wrong_type

DTYPES = ("float16", "bfloat16", "float32", "float64")


def _reference(value: Any) -> Any:
    if isinstance(value, (str, dict)):
        return value
    raise Refusal("must be the path or name of a model, or the long form `{model: {path, revision}, lora}`")


def _read(value: Any, kind: Literal["float", "int", "bool"]) -> Any:
    """A scalar as MergeKit reads it: `"64"` is a number, `yes` is true; what is neither is left to be refused."""
    try:
        return value if value is None or isinstance(value, bool) else coerce(value, kind)
    except Refused:
        return value


def _number(value: Any) -> Any:
    found = _read(value, "float")
    if isinstance(found, (int, float)) and not isinstance(found, bool):
        return found
    raise wrong_type("must be a number", value)


def _whole(value: Any) -> Any:
    return _read(value, "int")


def _id(value: Any) -> Any:
    if type(_whole(value)) is int:
        return _whole(value)
    raise wrong_type("must be a whole number", value)


def _truth(value: Any) -> Any:
    found = _read(value, "bool")
    if isinstance(found, bool):
        return found
    raise wrong_type("must be true or false", value)


def _layer_range(value: Any) -> Any:
    if isinstance(value, list):
        value = [_whole(v) for v in value]
    if not (isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)):
        raise Refusal("must be two whole numbers `[first, end]`, the end not included")
    if not 0 <= value[0] <= value[1]:
        raise Refusal(f"must go upwards from 0 or more, got {value}")
    return value


def _padding(value: Any) -> Any:
    found = _id(value)
    if found < 0:
        raise wrong_type("must be at least 1", value)
    return found or None  # 0 stands for no padding there


def _dtype(value: Any) -> Any:
    word = value.removeprefix("torch.") if isinstance(value, str) else value
    if word in DTYPES:
        return value
    meant = parse_dtype(value) if isinstance(value, str) else None
    hint = f"did you mean `{meant}`?" if meant and meant.name in DTYPES else None
    raise Refusal(f"must be one of {', '.join(DTYPES)}, got `{value}`", hint)


def _settings(value: Any) -> Any:
    if not isinstance(value, dict):
        raise Refusal("must be a mapping of parameter names to values")
    return value


REFERENCE = Checked(_reference, {"type": ["string", "object"]})
SETTINGS = Checked(_settings, {"type": "object"})
LAYERS = Checked(_layer_range, {"type": "array", "items": {"type": "integer"}})
DTYPE = Checked(_dtype, {"type": "string"})


@dataclass(frozen=True, slots=True)
class ModelPath:
    """`{path, revision}`."""

    path: str = part(TEXT)
    revision: str | None = part(TEXT, None)


class _Place:
    """A text, or `{path, revision}`."""

    inner = Section(ModelPath)

    def read(self, value: Any, path: Any, reading: Any) -> Any:
        if isinstance(value, dict):
            return self.inner.read(value, path, reading)
        return TEXT.read(value, path, reading)

    def schema(self, definitions: dict[str, Any]) -> dict[str, Any]:
        return {"anyOf": [TEXT.schema(definitions), self.inner.schema(definitions)]}


@dataclass(frozen=True, slots=True)
class LongReference:
    """`{model, lora, override_architecture}`; `model` and `lora` may be texts or `{path, revision}`."""

    model: str | ModelPath = part(_Place())
    lora: str | ModelPath | None = part(_Place(), None)
    override_architecture: str | None = part(TEXT, None)


@dataclass(frozen=True, slots=True)
class InputModel:
    """An entry of `models`."""

    model: Any = part(REFERENCE)
    parameters: dict[str, Any] | None = part(SETTINGS, None)


@dataclass(frozen=True, slots=True)
class InputSlice:
    """An entry of `sources`."""

    model: Any = part(REFERENCE)
    layer_range: list[int] = part(LAYERS)
    parameters: dict[str, Any] | None = part(SETTINGS, None)


@dataclass(frozen=True, slots=True)
class OutputSlice:
    """An entry of `slices`."""

    sources: list[InputSlice] = part(Listed(Section(InputSlice), least=1))
    base_model: Any = part(REFERENCE, None)
    residual_weight: float | None = part(Checked(_number, {"type": "number"}), None)
    parameters: dict[str, Any] | None = part(SETTINGS, None)


@dataclass(frozen=True, slots=True)
class OutputModule:
    """An entry of `modules`: exactly one of `slices` and `models`."""

    slices: list[OutputSlice] | None = part(Listed(Section(OutputSlice)), None)
    models: list[InputModel] | None = part(Listed(Section(InputModel)), None)
    parameters: dict[str, Any] | None = part(SETTINGS, None)


def _one_layout_of(module: OutputModule) -> None:
    if bool(module.slices) == bool(module.models):
        raise Refusal("needs exactly one of `slices` and `models`")


@dataclass(frozen=True, slots=True)
class ModelToken:
    """`{kind: model_token, model, token | token_id}`."""

    kind: str = part(one_of("model_token"))
    model: Any = part(REFERENCE)
    token: str | None = part(TEXT, None)
    token_id: int | None = part(Checked(_id, {"type": "integer"}), None)


def _one_token(token: ModelToken) -> None:
    if (token.token is None) == (token.token_id is None):
        raise Refusal("needs exactly one of `token` and `token_id`")


@dataclass(frozen=True, slots=True)
class ZeroToken:
    """`{kind: zero}`."""

    kind: str = part(one_of("zero"))


@dataclass(frozen=True, slots=True)
class TokenEmbedding:
    """An entry of `tokenizer.tokens`."""

    source: Any = part(ANYTHING, None)
    force: bool = part(Checked(_truth, {"type": "boolean"}), False)


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """The `tokenizer` section."""

    source: Any = part(REFERENCE, "union")
    tokens: dict[str, TokenEmbedding] | None = part(Named(Section(TokenEmbedding)), None)
    pad_to_multiple_of: int | None = part(Checked(_padding, {"type": "integer", "minimum": 0}), None)


@dataclass(frozen=True, slots=True)
class MergeKitRecipe:
    """A document of mergekit-yaml, mergekit-multi or mergekit-pytorch."""

    foreign: ClassVar[dict[str, str]] = dict.fromkeys(
        ("random_seed", "seed"),
        "seeds are no part of MergeKit's recipes; pass `--seed N` (there: `--random-seed N`)",
    )  # keys of other places, with the hint
    merge_method: str = part(TEXT)
    name: str | None = part(TEXT, None)
    models: list[InputModel] | None = part(Listed(Section(InputModel)), None)
    slices: list[OutputSlice] | None = part(Listed(Section(OutputSlice)), None)
    modules: dict[str, OutputModule] | None = part(Named(Section(OutputModule, _one_layout_of)), None)
    base_model: Any = part(REFERENCE, None)
    dtype: str | None = part(DTYPE, None)
    out_dtype: str | None = part(DTYPE, None)
    tokenizer_source: Any = part(REFERENCE, None)
    tokenizer: Tokenizer | None = part(Section(Tokenizer), None)
    chat_template: str | None = part(TEXT, None)
    parameters: dict[str, Any] | None = part(SETTINGS, None)


def _one_layout(recipe: MergeKitRecipe) -> None:
    given = [name for name in ("models", "slices", "modules") if getattr(recipe, name)]
    if len(given) != 1:
        shown = " and ".join(f"`{name}`" for name in given) or "none of them"
        raise Refusal(f"needs exactly one of `models`, `slices` and `modules`, got {shown}")
    if recipe.tokenizer_source is not None and recipe.tokenizer is not None:
        raise Refusal("cannot have both `tokenizer_source` and `tokenizer`")


RECIPE = Section(MergeKitRecipe, _one_layout)
LONG_REFERENCE = Section(LongReference)
MODEL_PATH = Section(ModelPath)
MODEL_TOKEN = Section(ModelToken, _one_token)
ZERO_TOKEN = Section(ZeroToken)

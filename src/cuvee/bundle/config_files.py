"""config.json and generation_config.json of the output: edits of the donor's, with special ids moved.

Owns which keys must change when weights do. Knows nothing about architectures: the caller names keys by
dotted path.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from cuvee.core.names import printable
from cuvee.errors import Diagnostic, PlanError, Where

_DROPPED = ("_name_or_path", "transformers_weights", "_commit_hash")
_ID_KEYS = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "decoder_start_token_id",
    "forced_bos_token_id",
    "forced_eos_token_id",
)
DELETE = object()  # an edit with this value removes its key


def updated_config(
    config: Mapping[str, Any],
    edits: Mapping[str, Any],
    dtype: str,
    *,
    dequantised: bool = True,
    tied: bool | None = None,
) -> dict[str, Any]:
    """The donor's configuration with edits by dotted path (`text_config.vocab_size`), the rest as it was.

    Args:
        config: the donor's config.json; not changed.
        edits: dotted path → value, or `DELETE`. Paths that do not exist yet are made.
        dtype: the output's dtype; written as `dtype`, and as `torch_dtype` where that key was there, at every
            level that had either.
        dequantised: the weights written are plain, so a quantization_config must not survive.
        tied: whether the head is left out because it equals the input embedding; None keeps what is stated.

    Raises:
        PlanError: CV-T032 a path runs through something that is not an object.
    """
    out = copy.deepcopy(dict(config))
    for key in _DROPPED:
        out.pop(key, None)
    if dequantised:
        _drop_everywhere(out, "quantization_config")
    _set_dtype(out, dtype)
    if tied is not None:
        out["tie_word_embeddings"] = tied
    for path, value in edits.items():
        _edit(out, path, value)
    return out


def with_special_ids(
    config: Mapping[str, Any], before: Mapping[int, str], after: Mapping[str, int], roles: Mapping[str, int]
) -> tuple[dict[str, Any], list[Diagnostic]]:
    """A config or generation config whose `*_token_id` values mean the same tokens in another vocabulary.

    Args:
        config: any configuration with such keys, at any level; lists of ids are handled.
        before: token of each id under the configuration's own tokenizer.
        after: id of each token under the output's tokenizer.
        roles: id of each role (`eos_token`) there; stands in where a token is gone.

    A key whose token is gone and whose role nobody has is removed, with a warning. An id that never was a
    token (padding rows) stays.
    """
    notes: list[Diagnostic] = []

    def moved(key: str, row: Any) -> Any:
        if type(row) is not int or row not in before:
            return row
        if before[row] in after:
            return after[before[row]]
        stand_in = roles.get(key.removesuffix("_id"))
        notes.append(_lost(key, before[row], stand_in))
        return stand_in

    def walk(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        out: dict[str, Any] = {}
        for key, value in node.items():
            if key not in _ID_KEYS:
                out[key] = walk(value)
            elif isinstance(value, list):
                rows = [new for row in value if (new := moved(key, row)) is not None]
                out[key] = list(dict.fromkeys(rows))
            elif value is None or (value := moved(key, value)) is not None:
                out[key] = value
        return out

    return walk(config), notes


def generation_config(
    candidates: Mapping[str, Mapping[str, Any] | None], *, dtype: str | None = None
) -> tuple[str, dict[str, Any]] | None:
    """The generation config to write and the model it is from: the first one (base, then recipe order)."""
    for model, content in candidates.items():
        if content is not None:
            out = {k: copy.deepcopy(v) for k, v in content.items() if k not in _DROPPED}
            stated = [key for key in ("dtype", "torch_dtype") if dtype is not None and key in out]
            out.update(dict.fromkeys(stated, dtype))
            return model, out
    return None


def _edit(config: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    node: Any = config
    for depth, key in enumerate(parents):
        node = node.setdefault(key, {}) if value is not DELETE else node.get(key, {})
        if not isinstance(node, dict):
            stopped = ".".join(parents[: depth + 1])
            raise PlanError(
                "CV-T032",
                f"`{printable(path)}` cannot be set, because `{printable(stopped)}` is not an object",
                where=Where(file="config.json", path=path),
            )
    if value is DELETE:
        node.pop(last, None)
    else:
        node[last] = value


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    if "torch_dtype" in config:
        config["torch_dtype"] = dtype
    config["dtype"] = dtype
    for inner in config.values():  # the parts of a model of several modules
        if isinstance(inner, dict):
            stated = [key for key in ("dtype", "torch_dtype") if isinstance(inner.get(key), str)]
            inner.update(dict.fromkeys(stated, dtype))


def _drop_everywhere(node: dict[str, Any], key: str) -> None:
    node.pop(key, None)
    for inner in node.values():
        if isinstance(inner, dict):
            _drop_everywhere(inner, key)


def _lost(key: str, token: str, stand_in: int | None) -> Diagnostic:
    what = "the key is left out" if stand_in is None else f"{stand_in} stands in"
    return Diagnostic(
        "CV-T031",
        f"`{key}` meant `{printable(token, 40)}`, which the output's tokenizer does not have; {what}",
        severity="warning",
    )

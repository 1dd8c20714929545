"""The output's tokenizer files: the donor's, byte for byte where nothing changed, else edited as JSON.

Owns the edits. Keeps the order of keys, so that the same plan gives the same bytes. Decides nothing about
ids: they come from the plan, and each file states them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cuvee.bundle.json_files import dump_json, load_object
from cuvee.bundle.side_files import checked_name, group_of
from cuvee.bundle.vocabulary.plan import VocabularyPlan
from cuvee.bundle.vocabulary.tokens import ROLES, FileReader
from cuvee.errors import CorruptFile, Where


def tokenizer_files(plan: VocabularyPlan, files: FileReader) -> dict[str, bytes]:
    """Name → bytes of every tokenizer file of the output, given the files of the plan's donor.

    Chat templates are not among them (`bundle.chat_template`).

    Raises:
        CorruptFile: CV-T002 a file to be edited contradicts its format.
    """
    names = sorted(name for name in files.names() if group_of(name) == "tokenizer")
    out = {checked_name(name): data for name in names if (data := files.read(name)) is not None}
    if not plan.edited:
        return out
    edit = _Edit(plan)
    if "tokenizer.json" in out:
        content = load_object(out["tokenizer.json"], "tokenizer.json")
        out["tokenizer.json"] = dump_json(edit.tokenizer_json(content))
    return {**out, **edit.companions(out)}


class _Edit:
    """The changes a plan asks for: tokens that are gone (from the model, altogether) and the added ones."""

    def __init__(self, plan: VocabularyPlan) -> None:
        output, original = plan.output, plan.original
        self.gone = frozenset(original.ids.keys() - output.ids.keys())
        self.unmodelled = frozenset(original.model.keys() - output.model.keys())
        self.added = sorted(output.added.values(), key=lambda token: token.id)
        self.output = output

    def tokenizer_json(self, content: dict[str, Any]) -> dict[str, Any]:
        """The file with tokens taken out of the model and its merges, and the output's added tokens."""
        content["added_tokens"] = [token.entry() for token in self.added]
        if self.unmodelled:  # only byte-pair models can lose tokens
            model = content["model"]
            model["vocab"] = {t: row for t, row in model["vocab"].items() if t not in self.unmodelled}
            model["merges"] = [m for m in model.get("merges") or [] if self._keeps(m)]
        padding = content.get("padding")
        if isinstance(padding, dict):
            row = self.output.ids.get(str(padding.get("pad_token")))
            content["padding"] = None if row is None else {**padding, "pad_id": row}
        return content

    def _keeps(self, merge: Any) -> bool:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)):
            raise _corrupt("tokenizer.json", "has a merge that is not a pair of tokens")
        return self.unmodelled.isdisjoint((*pair, "".join(pair)))

    def companions(self, files: Mapping[str, bytes]) -> dict[str, bytes]:
        """The small files beside the vocabulary: those there are, or all when there is no tokenizer.json."""
        alone = "tokenizer.json" not in files
        legacy = _object(files, "special_tokens_map.json")
        config = _object(files, "tokenizer_config.json")
        out: dict[str, bytes] = {}
        if legacy:
            out["special_tokens_map.json"] = dump_json(self._without_lost(legacy))
        if config or alone:
            if alone:  # whoever lists added tokens here is not asked for the legacy map, so roles move over
                config = {**legacy, **config}
            if alone or "added_tokens_decoder" in config:
                config["added_tokens_decoder"] = {str(t.id): t.flags() for t in self.added}
            out["tokenizer_config.json"] = dump_json(self._without_lost(config))
        if alone or "added_tokens.json" in files:
            extra = {t.content: t.id for t in self.added if t.content not in self.output.model}
            out["added_tokens.json"] = dump_json(extra)
        return out

    def _without_lost(self, content: dict[str, Any]) -> dict[str, Any]:
        """The file without roles and extra special tokens that the output's vocabulary no longer has."""
        kept = {k: v for k, v in content.items() if not (k in ROLES and _text(v) in self.gone)}
        for key in ("extra_special_tokens", "additional_special_tokens"):
            if isinstance(kept.get(key), list):
                kept[key] = [v for v in kept[key] if _text(v) not in self.gone]
        return kept


def role_ids(plan: VocabularyPlan) -> dict[str, int]:
    """The output's id of each special token that the donor's tokenizer names (`eos_token` → 2)."""
    ids = plan.output.ids
    return {role: ids[text] for role, text in plan.original.roles.items() if text in ids}


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return load_object(files[name], name) if name in files else {}


def _text(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value


def _corrupt(file: str, what: str) -> CorruptFile:
    return CorruptFile("CV-T002", f"`{file}` {what}", where=Where(file=file))

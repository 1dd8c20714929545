"""How text is split before byte-pair merges: the names that GGUF files use, as steps of a tokenizer.json.

A table, used in both directions. The patterns are facts of the published tokenizers. Must not read files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDINGS}"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class Splitting:
    """One way to split: a pattern, or the byte-level one of GPT-2 (after single digits, when `digits`).

    `whole`: a piece that is in the vocabulary is never merged anew; `composed`: text is put into NFC first;
    `begins`: a text begins with the bos token unless the file says otherwise.
    """

    pattern: str | None = None
    digits: bool = False
    whole: bool = False
    composed: bool = False
    begins: bool = False

    def steps(self) -> list[dict[str, Any]]:
        """The pre-tokenizers, in order, as tokenizer.json spells them."""
        out: list[dict[str, Any]] = []
        if self.digits:
            out.append({"type": "Digits", "individual_digits": True})
        if self.pattern is not None:
            split = {"pattern": {"Regex": self.pattern}, "behavior": "Isolated", "invert": False}
            out.append({"type": "Split", **split})
        flags = {"add_prefix_space": False, "trim_offsets": True, "use_regex": self.pattern is None}
        return [*out, {"type": "ByteLevel", **flags}]


_GPT2 = Splitting()
_DIGITS = Splitting(digits=True)
_LLAMA = Splitting(_LLAMA3, whole=True, begins=True)
_QWEN = Splitting(_QWEN2, composed=True)

# The first name of each is the one that is written.
SPLITTINGS: Mapping[str, Splitting] = {
    **dict.fromkeys(("gpt-2", "gpt2", "olmo", "mpt", "phi-2", "jais", "trillion", "gigachat"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _DIGITS),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"), _LLAMA),
    **dict.fromkeys(("dbrx", "smaug-bpe"), Splitting(_LLAMA3)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez", "kormo"), _QWEN),
    "stablelm2": Splitting(_QWEN2),
    "tekken": Splitting(_TEKKEN, whole=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2"), Splitting(_GPT4O)),
}
ASSUMED = "gpt-2"  # for files that say `default`, nothing, or a name that is not in the table


def name_of(steps: Sequence[Mapping[str, Any]], *, whole: bool) -> str | None:
    """The name under which a tokenizer's splitting is known, given its pre-tokenizers; None for any other.

    `whole`: pieces that are in the vocabulary are never merged anew (a second choice when no name says so).
    """
    own = [_essence(step) for step in steps]
    same = [n for n, s in SPLITTINGS.items() if own == [_essence(step) for step in s.steps()]]
    return next((name for name in same if SPLITTINGS[name].whole == whole), same[0] if same else None)


def _essence(step: Mapping[str, Any]) -> tuple[Any, ...]:
    """What of a pre-tokenizer decides where text is split."""
    kind = step.get("type")
    if kind == "Split":
        pattern = step.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, Mapping) else None
        removed = str(step.get("behavior")) == "Removed" and step.get("invert") is True
        return kind, regex, "isolated" if removed else str(step.get("behavior")).lower()
    if kind == "Digits":
        return kind, bool(step.get("individual_digits"))
    return kind, bool(step.get("use_regex", True))

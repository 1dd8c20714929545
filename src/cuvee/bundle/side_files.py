"""Which files travel with the weights, and from which model: an allow-list, never a copy of a folder.

Owns the list and the rule of donors. Files that are made anew (config.json, the card, the manifest) are not
its business; tokenizer files are listed here and written by `vocabulary.write`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cuvee.core.names import printable
from cuvee.errors import UnsafeFile, Where

Group = Literal["tokenizer", "template", "generation", "processor", "licence", "code"]

_PATTERNS: dict[Group, tuple[str, ...]] = {
    "tokenizer": (
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "tokenizer.model.v*",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "vocab.bpe",
        "merges.txt",
        "spiece.model",
        "source.spm",
        "target.spm",
        "sentencepiece*.model",
        "tekken.json",
        "*.tiktoken",
        "tiktoken.model",
        "normalizer.json",
    ),
    "template": (
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/*.jinja",
    ),
    "generation": ("generation_config.json",),
    "processor": (
        "preprocessor_config.json",
        "processor_config.json",
        "image_processor_config.json",
        "video_preprocessor_config.json",
        "video_processor_config.json",
        "audio_preprocessor_config.json",
        "feature_extractor_config.json",
    ),
    "licence": ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*"),
    "code": ("*.py",),
}
_TEXT = frozenset({"", ".md", ".txt", ".rst", ".html", ".pdf"})  # endings a licence file may have
_WILD = frozenset("*?[")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+() -]*(?<![. ])")
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}
)


@dataclass(frozen=True, slots=True)
class SideFile:
    """One file that travels: its name in the output, the model it is copied from, and why it travels."""

    name: str
    model: str
    group: Group


def group_of(name: str) -> Group | None:
    """The group a file name belongs to, or None when such files stay behind (weights, caches, leftovers)."""
    for group, patterns in _PATTERNS.items():
        if any(_fits(name, pattern) for pattern in patterns):
            if group == "licence" and not _reads_like_text(name):
                return None
            return group
    return None


def travelling(
    models: Mapping[str, Iterable[str]], donor: str | None = None, *, code: bool = False
) -> list[SideFile]:
    """The files to copy, by name, given the names of each model's files with the models in recipe order.

    Everything of one group comes from one model, so that files that belong together stay together: from the
    donor if it has any of the group, else from the first model that has. `code` lets custom modelling files
    travel. Tokenizer files come from the donor or not at all (`vocabulary.plan` names the donor).

    Raises:
        UnsafeFile: CV-T030 a listed name would leave the output folder or cannot exist everywhere.
    """
    order = sorted(models, key=lambda model: model != donor)  # stable: the donor first, then as in the recipe
    found: dict[Group, list[SideFile]] = {}
    for model in order:
        mine: dict[Group, list[SideFile]] = {}
        for name in sorted(models[model]):
            group = group_of(name)
            if group is None or (group == "code" and not code):
                continue
            mine.setdefault(group, []).append(SideFile(checked_name(name, model), model, group))
        for group, files in mine.items():
            if group not in ("tokenizer", "template") or model == order[0]:
                found.setdefault(group, files)
    return sorted((file for files in found.values() for file in files), key=lambda file: file.name)


def checked_name(name: str, source: str | None = None) -> str:
    """The name itself, if it is a plain one (or one in `additional_chat_templates`); UnsafeFile otherwise."""
    folder, _, last = name.rpartition("/")
    stem = last.split(".")[0].strip().lower()
    plain = _NAME.fullmatch(last) is not None and ".." not in last and len(last) <= 255
    if plain and stem not in _DEVICES and folder in ("", "additional_chat_templates"):
        return name
    raise UnsafeFile(
        "CV-T030",
        f"a file named `{printable(name)}` cannot be copied: side files have plain names of letters, digits, "
        "`.`, `_` and `-`",
        where=Where(source=source),
    )


def _fits(name: str, pattern: str) -> bool:
    if not _WILD.intersection(pattern):  # most are names, which need no regular expression
        return name == pattern
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def _reads_like_text(name: str) -> bool:
    ending = name[name.rfind(".") :].lower() if "." in name else ""
    return ending in _TEXT or ending[1:].isdigit()  # LICENSE-2.0

"""What lies beside the weights in a folder: configs, tokenizer files, templates, licences.

Names come from users and from other files, so every one is checked to stay in the folder, and sizes are
capped. Must not interpret any of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from blake3 import blake3

from cuvee.core.limits import Limits
from cuvee.core.names import printable
from cuvee.errors import CorruptFile, UnsafeFile, Where
from cuvee.formats.bytes_file import ByteFile
from cuvee.formats.member_path import safe_member

_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx|onnx_data|tflite|ot|npz|mlmodel|index\.json)",
    re.IGNORECASE,
)
_BELOW = ("additional_chat_templates",)
# Files whose content changes what the model is; their digests belong to its identity.
_MEANING = re.compile(r"[^/]*\.(json|model|jinja)|(vocab|merges|added_tokens|spiece)[^/]*\.txt|.*/.*\.jinja")


class SideFiles:
    """The side files of one folder (or of nothing, when `folder` is None)."""

    def __init__(self, folder: Path | None, label: str, limits: Limits) -> None:
        self._folder = folder
        self._label = label
        self._limits = limits

    def files(self) -> list[str]:
        """Names of regular files that are not weights, sorted; none hidden, no links out of the folder."""
        if self._folder is None:
            return []
        found = []
        for folder in (self._folder, *(self._folder / below for below in _BELOW)):
            if folder.is_dir():
                found += [
                    path.relative_to(self._folder).as_posix() for path in folder.iterdir() if path.is_file()
                ]
        return sorted(
            name for name in found if not name.startswith(".") and not is_weights(name) and self._safe(name)
        )

    def file(self, name: str) -> bytes | None:
        """The bytes of a side file, None when there is none; UnsafeFile when the name leaves the folder."""
        if self._folder is None:
            return None
        path = safe_member(self._folder, name)
        if is_weights(name) or not path.is_file():
            return None
        raw = ByteFile(path)
        try:
            if raw.size > self._limits.json_bytes:
                raise CorruptFile(
                    "CV-S047",
                    f"`{printable(name)}` has {raw.size:,} bytes, the limit is {self._limits.json_bytes:,}",
                    where=Where(source=self._label, file=printable(name)),
                )
            return raw.bytes_at(0, raw.size)
        finally:
            raw.close()

    def identity(self) -> list[dict[str, Any]]:
        """Name, size and BLAKE3 of the files that change what the model is (over the cap: size alone)."""
        entries: list[dict[str, Any]] = []
        for name in self.files():
            if _MEANING.fullmatch(name) and self._folder is not None:
                size = (self._folder / name).stat().st_size
                entry: dict[str, Any] = {"name": name, "size": size}
                if size <= self._limits.json_bytes:
                    entry["digest"] = "blake3:" + blake3(self.file(name) or b"").hexdigest()
                entries.append(entry)
        return entries

    def _safe(self, name: str) -> bool:
        try:
            return self._folder is not None and bool(safe_member(self._folder, name))
        except UnsafeFile:
            return False


def is_weights(name: str) -> bool:
    """Whether a file of this name holds tensors, an index of them, or a model in another format."""
    return _WEIGHTS.fullmatch(name) is not None

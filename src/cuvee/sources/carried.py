"""Side files of a GGUF source: those beside it, and the tokenizer that the file itself carries.

A tokenizer that lies beside the weights wins as a whole; files are made when they are asked for. Must not know
how a tokenizer is made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from blake3 import blake3

from cuvee.formats.gguf_tokenizer import tokenizer_file, tokenizer_names
from cuvee.sources.side_files import SideFiles

_OWN = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class CarriedFiles:
    """As `SideFiles`, with the files that the metadata of a GGUF file stand for."""

    def __init__(self, beside: SideFiles, metadata: Mapping[str, Any]) -> None:
        self._beside = beside
        self._metadata = metadata
        self._made: dict[str, bytes] = {}
        self._names: list[str] | None = None

    @property
    def complete(self) -> bool:
        """Whether a tokenizer lies beside the weights, so that none need be made."""
        here = self._beside.files()
        return any(name in here for name in _OWN)

    def files(self) -> list[str]:
        """Names of side files, sorted."""
        return sorted({*self._beside.files(), *self._carried()})

    def file(self, name: str) -> bytes | None:
        """The bytes of a side file, from beside the weights if it is there; None when there is none."""
        found = self._beside.file(name)
        if found is not None or name not in self._carried():
            return found
        if name not in self._made:
            self._made[name] = tokenizer_file(self._metadata, name) or b""
        return self._made[name]

    def identity(self) -> list[dict[str, Any]]:
        """Name, size and BLAKE3 of the files that change what the model is; the carried tokenizer as one.

        What the file says of its tokenizer is hashed, not what is made of it: that would cost a quarter second.
        """
        if not self._carried():
            return self._beside.identity()
        said = {key: value for key, value in self._metadata.items() if key.startswith("tokenizer.")}
        data = json.dumps(said, sort_keys=True, separators=(",", ":")).encode()
        digest = "blake3:" + blake3(data).hexdigest()
        return [*self._beside.identity(), {"name": "tokenizer", "size": len(data), "digest": digest}]

    def _carried(self) -> list[str]:
        if self._names is None:
            made = [] if self.complete else tokenizer_names(self._metadata)
            here = self._beside.files()
            self._names = [name for name in made if name not in here]
        return self._names

"""PEFT adapters (LoRA, DoRA, LoHa, LoKr) in files, applied to a base without writing a merged copy.

Owns the names inside an adapter file and which base tensor each one changes. The mathematics is in
`low_rank`, the rules of the configuration in `peft_config`. Every tensor of the adapter must find its
place, or nothing is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from cuvee.core.names import printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import CorruptFile, Diagnostic, SourceError, Where
from cuvee.sources.adapted import AdaptedSource, Overlay, OverlayFacts, Replacement
from cuvee.sources.adapter_places import Places
from cuvee.sources.folder import Origin
from cuvee.sources.low_rank import Delta, FactorCache, LowRank, Scaled
from cuvee.sources.lycoris import ShapesError, relative_delta
from cuvee.sources.other_deltas import Rescaled
from cuvee.sources.peft_config import AdapterConfig, adapter_config, refused
from cuvee.sources.side_files import SideFiles
from cuvee.sources.source import Source, note
from cuvee.sources.stored import StoredTensors

if TYPE_CHECKING:
    from torch import Tensor

_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<leaf>weight|bias))?"
)
_TOKENIZER = re.compile(
    r"(tokenizer.*|special_tokens_map|added_tokens|vocab|merges|chat_template)\.\w+|.*\.model"
)
_TRAINABLE_TOKENS = ("trainable_tokens_delta", "trainable_tokens_original")


@dataclass(slots=True)
class _Contents:
    """An adapter file taken apart: factors by module and part, and whole tensors by base name."""

    factors: dict[str, dict[str, str]] = field(default_factory=dict)
    whole: dict[str, str] = field(default_factory=dict)


def apply_adapter(
    base: Source, stored: StoredTensors, raw: Mapping[str, Any], side: SideFiles, origin: Origin
) -> AdaptedSource:
    """base + adapter; SourceError when the adapter is not plain LoRA or does not fit the base."""
    config, notes = adapter_config(raw, stored.label)
    contents = _take_apart(stored)
    places = Places(base, stored.label, [*contents.factors, *(n.rpartition(".")[0] for n in contents.whole)])
    replaced = _replacements(stored, contents, places, config)
    shapes = {**base.tensors, **{name: made.meta for name, made in replaced.items()}}
    made = _Deltas(stored, config, places, shapes, _reader(base, replaced))
    deltas = made.all(contents.factors)
    places.refuse_unmatched()
    overlay = Overlay(
        replaced=replaced,
        deltas=deltas,
        identity={**asdict(origin), "files": _files(stored, side)},
        notes=(*notes, *places.notes, *_warnings(base, replaced, deltas, stored.label)),
        read_file=side.file,
        file_names=_tokenizer_files(base, replaced, side),
        close=stored.close,
        facts=_facts(stored, contents, len(deltas), len(replaced)),
        weights=stored.weight_files,
        sizes=made.sizes,
    )
    return AdaptedSource(base, overlay, f"{base.label} + {stored.label}")


def _reader(base: Source, replaced: Mapping[str, Replacement]) -> Callable[[str, int, int], Tensor]:
    """Elements of a tensor that an adapter lies on."""

    def read(name: str, start: int, stop: int) -> Tensor:
        made = replaced.get(name)
        return base.read(name, start, stop) if made is None else made.read(start, stop)

    return read


def _take_apart(stored: StoredTensors) -> _Contents:
    contents = _Contents()
    for name in stored.tensors:
        match = _FACTOR.fullmatch(name)
        if name.rpartition(".")[2] in _TRAINABLE_TOKENS:
            raise SourceError(
                "CV-S025",
                f"the adapter `{printable(stored.label)}` holds single trained rows of the embedding,"
                " which cannot be applied to weights here",
                where=Where(source=stored.label, tensor=printable(name)),
                hint="merge it into its base with PEFT (`merge_and_unload`) and name the merged folder",
            )
        if match:
            part = match["part"] + ("_bias" if match["leaf"] == "bias" else "")
            parts = contents.factors.setdefault(match["module"], {})
            _put(parts, part, name, stored.label)
        else:
            _put(contents.whole, _plain(name), name, stored.label)
    return contents


def _facts(stored: StoredTensors, contents: _Contents, changed: int, replaced: int) -> OverlayFacts:
    first = ("lora_A", "lora_embedding_A", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")  # (rank, inputs), all
    named = (parts[part] for parts in contents.factors.values() for part in first if part in parts)
    ranks = {stored.tensors[name].shape[0] for name in named}
    total = sum(stored.stored(name).nbytes for name in stored.tensors)
    return OverlayFacts(PurePath(stored.label).name, tuple(sorted(ranks)), total, changed, replaced)


def _plain(name: str) -> str:
    """`x.base_layer.weight` and `x.modules_to_save.default.weight` → `x.weight`."""
    return re.sub(r"\.(?:base_layer|modules_to_save(?:\.default)?)(?=\.)", "", name)


def _put(table: dict[str, str], key: str, name: str, label: str) -> None:
    if key in table:
        raise CorruptFile(
            "CV-S028",
            f"`{printable(name)}` and `{printable(table[key])}` of the adapter stand for the same tensor",
            where=Where(source=label, tensor=printable(name)),
        )
    table[key] = name


def _replacements(
    stored: StoredTensors, contents: _Contents, places: Places, config: AdapterConfig
) -> dict[str, Replacement]:
    """Trained modules, biases and embeddings, whole; modules that the base lacks must be listed as saved."""
    found = {}
    for plain, name in contents.whole.items():
        saved = any(f".{module}." in f".{plain}" for module in config.modules_to_save)
        target = places.whole(plain, name, new=saved)
        if target is not None:
            meta = replace(stored.tensors[name], name=target)
            found[target] = Replacement(meta, partial(stored.read, name), partial(stored.extent, name))
    return found


class _Deltas:
    """From factors by module to deltas by base tensor."""

    def __init__(
        self,
        stored: StoredTensors,
        config: AdapterConfig,
        places: Places,
        shapes: Mapping[str, TensorMeta],
        weight: Callable[[str, int, int], Tensor],
    ) -> None:
        self.stored = stored
        self.weight = weight
        self.config = config
        self.places = places
        self.shapes = shapes
        self.cache = FactorCache()
        self.sizes: dict[str, int] = {}  # bytes that each delta is made of

    def all(self, factors: Mapping[str, dict[str, str]]) -> dict[str, Delta]:
        """Every delta; modules without a place are remembered by `places`."""
        found: dict[str, Delta] = {}
        for module, parts in factors.items():
            target = self.places.weight(module, parts.values(), self.shapes)
            if target in found:
                raise self.misfit(module, f"two modules of the adapter change `{printable(target)}`")
            if target is not None:
                self.sizes[target] = self.size(parts, self.shapes[target])
            if target is not None and self.config.kind != "LORA":
                found[target] = self.relative(module, parts, self.shapes[target])
            elif target is not None:
                made = self.low_rank(module, parts, self.shapes[target])
                found[target] = self.with_magnitude(module, parts, self.shapes[target], made)
                if "lora_B_bias" in parts:
                    bias = self.places.bias(module, parts["lora_B_bias"], self.shapes)
                    if bias is not None:
                        found[bias] = self.bias(module, parts["lora_B_bias"], self.shapes[bias], made.scale)
                        self.sizes[bias] = self.stored.stored(parts["lora_B_bias"]).nbytes
        return found

    def size(self, parts: Mapping[str, str], base: TensorMeta) -> int:
        """Bytes of a module's parts; of DoRA also what it is scaled by, which takes the base twice more."""
        own = sum(self.stored.stored(name).nbytes for part, name in parts.items() if part != "lora_B_bias")
        return own + (2 * base.nbytes if "lora_magnitude_vector" in parts else 0)

    def low_rank(self, module: str, parts: Mapping[str, str], base: TensorMeta) -> LowRank:
        """The product of a module's factors, turned the way the base tensor lies."""
        embedding = "lora_embedding_A" in parts or "lora_embedding_B" in parts
        kind = "lora_embedding" if embedding else "lora"
        a, b = parts.get(f"{kind}_A"), parts.get(f"{kind}_B")
        if (
            a is None
            or b is None
            or not parts.keys()
            <= {
                f"{kind}_A",
                f"{kind}_B",
                "lora_B_bias",
                "lora_magnitude_vector",
            }
        ):
            raise self.misfit(module, f"`{printable(module)}` of the adapter is not one pair of factors")
        if not base.dtype.is_float or not base.shape:
            raise self.misfit(
                module, f"`{printable(base.name)}` is no matrix of floats, so nothing can be added"
            )
        rows, columns = base.shape[0], math.prod(base.shape[1:])
        rank, turned = self.orientation(module, a, b, base, embedding=embedding)
        left: Any = partial(self.factor, a, (rank, rows), turned=True)
        right: Any = partial(self.factor, b, (columns, rank), turned=True)
        if not turned:
            left = partial(self.factor, b, (rows, rank), turned=False)
            right = partial(self.factor, a, (rank, columns), turned=False)
        return LowRank(left, right, self.config.scale_of(_bare(module), rank), columns, self.cache)

    def with_magnitude(
        self, module: str, parts: Mapping[str, str], base: TensorMeta, made: LowRank
    ) -> LowRank | Rescaled:
        """DoRA on top of a product, where the module has magnitudes: one for each output."""
        name = parts.get("lora_magnitude_vector")
        if (name is not None) != self.config.dora:
            what = "holds magnitudes but does not set" if name else "has a module without magnitudes but sets"
            raise refused(
                self.stored.label, f"{what} `use_dora`", "it is not clear whether it is LoRA or DoRA"
            )
        if name is None:
            return made
        embedding = "lora_embedding_A" in parts
        a, b = (parts[f"lora_embedding_{x}" if embedding else f"lora_{x}"] for x in "AB")
        _, turned = self.orientation(module, a, b, base, embedding=embedding)
        rows, columns = base.shape[0], math.prod(base.shape[1:])
        if self.stored.tensors[name].numel != (columns if turned else rows):
            raise self.misfit(
                module, f"the magnitudes of `{printable(module)}` do not fit `{printable(base.name)}`"
            )
        return Rescaled(
            made,
            partial(self.weight, base.name),
            partial(self.stored.read, name),
            (rows, columns),
            turned,
            self.cache,
        )

    def relative(self, module: str, parts: Mapping[str, str], base: TensorMeta) -> Delta:
        """LoHa or LoKr."""
        if not base.dtype.is_float or not base.shape:
            raise self.misfit(
                module, f"`{printable(base.name)}` is no matrix of floats, so nothing can be added"
            )
        try:
            expected = "hada_w1_a" if self.config.kind == "LOHA" else "lokr_w"
            if not any(part.startswith(expected) for part in parts):
                raise ShapesError(f"found {', '.join(sorted(parts))}")
            scale = partial(self.scale, module)
            return relative_delta(self.stored, parts, base, scale, self.cache, spread=True)[0]
        except ShapesError as error:
            message = f"the factors of `{printable(module)}` do not fit `{printable(base.name)}`: {error}"
            raise self.misfit(module, message) from None

    def scale(self, module: str, rank: int | None) -> float:
        """The scale of a rank; of whole matrices, which show none, the rank is the configuration's."""
        ranks = self.config.ranks_of(_bare(module)) if rank is None else {rank}
        if len(ranks) > 1:
            raise ShapesError(
                "several patterns of `rank_pattern` match it, and whole matrices do not tell which"
            )
        return self.config.scale_of(_bare(module), min(ranks))

    def orientation(
        self, module: str, a: str, b: str, base: TensorMeta, *, embedding: bool
    ) -> tuple[int, bool]:
        """The rank, and whether the base tensor is (in, out): embeddings, and GPT-2's Conv1D.

        Shapes decide; a square matrix asks `fan_in_fan_out`.
        """
        first, second = self.stored.tensors[a].shape, self.stored.tensors[b].shape
        ranks = self.config.ranks_of(_bare(module))
        if len(first) < 2 or len(second) != len(first) or first[0] not in ranks or second[1] != first[0]:
            found = f"{list(first)} and {list(second)}"
            expected = " or ".join(map(str, sorted(ranks)))
            message = f"expected factors of rank {expected} for `{printable(module)}`, got {found}"
            raise self.misfit(module, message)
        straight = (second[0], *first[1:]) == base.shape and all(n == 1 for n in second[2:])
        turned = len(first) == 2 and (first[1], second[0]) == base.shape
        if not (turned if embedding else straight or turned):
            message = (
                f"the factors {list(first)} and {list(second)} of `{printable(module)}` do not fit"
                f" `{printable(base.name)}`, which is {list(base.shape)}"
            )
            raise self.misfit(module, message)
        return first[0], turned and (embedding or not straight or self.config.fan_in_fan_out)

    def factor(self, name: str, shape: tuple[int, int], *, turned: bool) -> Tensor:
        """One factor as a matrix; convolution kernels are flattened behind their first axis."""
        matrix = self.stored.read(name).reshape(shape)
        return matrix.T if turned else matrix

    def bias(self, module: str, name: str, base: TensorMeta, scale: float) -> Scaled:
        """What `lora_bias` adds to the bias of the base."""
        if self.stored.tensors[name].shape != base.shape:
            raise self.misfit(
                module, f"the bias of `{printable(module)}` does not fit `{printable(base.name)}`"
            )
        return Scaled(partial(self.stored.read, name), scale)

    def misfit(self, module: str, message: str) -> CorruptFile:
        hint = "is the adapter from this base?"
        return CorruptFile(
            "CV-S029", message, where=Where(source=self.stored.label, tensor=printable(module)), hint=hint
        )


def _bare(module: str) -> str:
    return module.removeprefix("base_model.model.")


def _warnings(
    base: Source, replaced: Mapping[str, Replacement], deltas: Mapping[str, Delta], label: str
) -> list[Diagnostic]:
    """An adapted embedding that the output head shares changes the head too."""
    config = base.config or {}
    text = config.get("text_config")
    tied = config.get("tie_word_embeddings") is True or (
        isinstance(text, Mapping) and text.get("tie_word_embeddings") is True
    )
    changed = [n for n in (*deltas, *replaced) if n.endswith(("embed_tokens.weight", "wte.weight"))]
    if not tied or not changed or any("lm_head" in n for n in (*base.tensors, *replaced)):
        return []
    message = (
        f"the base ties its output head to `{changed[0]}`, so the adapter's change reaches the head as well"
    )
    return [note("CV-S024", message, label, warning=True)]


def _tokenizer_files(base: Source, replaced: Mapping[str, Replacement], side: SideFiles) -> tuple[str, ...]:
    """The adapter's tokenizer belongs to the result when the adapter resized the vocabulary."""
    grown = any(
        n in base.tensors and made.meta.shape != base.tensors[n].shape for n, made in replaced.items()
    )
    return tuple(name for name in side.files() if _TOKENIZER.fullmatch(name)) if grown else ()


def _files(stored: StoredTensors, side: SideFiles) -> list[dict[str, Any]]:
    return [
        *stored.identity(),
        *(entry for entry in side.identity() if entry["name"] == "adapter_config.json"),
    ]

"""The recipe as both front doors understand it: frozen data, no YAML, no checkpoints.

A recipe names sources, says how the output is laid out (modules → slices of layers → inputs), by which chain of
stages inputs are merged, and holds every parameter as a *setting*: an ordered list of rules, first match wins, whose
values may be curves over the layers. `settings.py` evaluates them for a tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, Union

from cuvee.errors import Diagnostic, Where

Scalar: TypeAlias = bool | int | float | str | None
Names: TypeAlias = Literal["strict", "union", "intersection"]


@dataclass(frozen=True, slots=True)
class Curve:
    """Values over the depth of the layer stack: at equal distances from the first to the last layer, or at depths `at`
    (0…1, rising; as many as points).
    """

    points: tuple[Scalar, ...]
    shape: Literal["linear", "cosine", "step"] = "linear"
    at: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class BlockValues:
    """One value for each block of a U-Net or transformer, or a curve over them; `base` for all that is in no block."""

    values: tuple[Scalar, ...] | Curve
    base: Scalar


@dataclass(frozen=True, slots=True)
class Rule:
    """One value and the tensors it is for; empty conditions match everything."""

    value: Scalar | Curve | BlockValues
    name: str | None = None  # substring (MergeKit) or pattern (own recipes), see `substring`
    substring: bool = False
    roles: tuple[str, ...] = ()
    layers: tuple[int, int] | None = None  # half-open range of output layers
    module: str | None = None
    blocks: tuple[str, ...] = ()  # labels, or patterns of them: `IN04`, `OUT*`
    where: Where | None = None


Setting = tuple[Rule, ...]
Settings = Mapping[str, Setting]  # parameter name → setting


@dataclass(frozen=True, slots=True)
class Reference:
    """A source as written: a text (path, hub URI, `base + adapter`), with what the long form can add."""

    text: str
    revision: str | None = None
    adapters: tuple[Reference, ...] = ()
    architecture: str | None = None
    where: Where | None = None


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A weighted sum of other sources, by alias: `c + (b − a)` is ((1, c), (1, b), (−1, a))."""

    terms: tuple[tuple[float, str], ...]
    where: Where | None = None


@dataclass(frozen=True, slots=True)
class InMemory:
    """A dictionary of tensors or a live module; lives only in Python recipes."""

    value: Any = field(compare=False)


SourceSpec = Union[Reference, Arithmetic, InMemory, "Recipe"]


@dataclass(frozen=True, slots=True)
class Input:
    """One model's part in a slice; `layers` is a half-open range, None for all."""

    source: str
    layers: tuple[int, int] | None = None
    settings: Settings = field(default_factory=dict)
    where: Where | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """A run of output layers, merged from the same number of layers of each input."""

    inputs: tuple[Input, ...]
    base: str | None = None
    settings: Settings = field(default_factory=dict)
    where: Where | None = None


@dataclass(frozen=True, slots=True)
class ModuleRecipe:
    """The slices of one module of the architecture, in output order."""

    slices: tuple[Slice, ...]
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StageCall:
    """One stage of a chain the user wrote, with its own settings."""

    stage: str
    settings: Settings = field(default_factory=dict)
    where: Where | None = None


@dataclass(frozen=True, slots=True)
class TokenRule:
    """Where the embedding of one token comes from."""

    source: str | None = None  # alias of a model
    token: str | None = None  # another token of that model
    token_id: int | None = None
    zero: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """How tokenizers are brought together: `union`, `base` or the alias of a model."""

    source: str = "union"
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None
    where: Where | None = None


@dataclass(frozen=True, slots=True)
class AdapterOutput:
    """The merge is written as a LoRA adapter of its base: of a rank, a share of energy kept, or a relative error.

    `rest` says what happens to tensors that no adapter can hold: saved whole, or dropped.
    """

    rank: int | None = None
    energy: float | None = None
    error: float | None = None
    rest: Literal["save", "drop"] = "save"


@dataclass(frozen=True, slots=True)
class PackageOutput:
    """All experts are written as one package; with `include_base` it holds their base too."""

    include_base: bool = False


@dataclass(frozen=True, slots=True)
class Output:
    """What is written besides the tensors' values."""

    dtype: str | None = None
    shard_bytes: int | None = 5_000_000_000
    card: bool = True
    tokenizer: bool = True  # copy or build tokenizer files
    single_file: bool = False  # one weights file, no folder (raw merges)
    form: Literal["single_file"] | None = None  # of diffusion models; None: that of the base or first source
    like: Reference | None = None  # a pipeline whose names, configurations and files the output takes
    adapter: AdapterOutput | None = None  # write a LoRA adapter instead of a model
    package: PackageOutput | None = None  # write all experts, as a package


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything a plan needs to know from the user."""

    sources: Mapping[str, SourceSpec]
    modules: Mapping[str, ModuleRecipe]  # "*" stands for every module of the architecture
    method: str | None  # a preset's name; None when `chain` is given
    base: str | None = None
    chain: tuple[StageCall, ...] = ()
    settings: Settings = field(default_factory=dict)
    dialect: str = "cuvee"
    compute: str | None = None  # dtype of inputs and arithmetic; None: float32
    vocabulary: Vocabulary | None = None
    truncate_vocabulary: bool = False
    layer_count: int | None = None  # that the models have, where the method's parameters say so
    chat_template: str | None = None
    seed: int = 0
    edges: Literal["first", "ends"] = "ends"  # which curve value tensors outside the layers take
    curves: Literal["output", "slices"] = "output"  # over what a curve runs: all layers, or each slice anew
    names: Names = "strict"  # tensors missing from some inputs
    differing_buffers: Literal["error", "base"] = "base"
    output: Output = field(default_factory=Output)
    text: str = ""
    file: str | None = None
    notes: tuple[Diagnostic, ...] = ()
    places: Mapping[str, Where] = field(default_factory=dict)  # of keys whose values only a plan can check
    changes: Mapping[str, Any] = field(default_factory=dict)  # what the command line changed, as JSON data

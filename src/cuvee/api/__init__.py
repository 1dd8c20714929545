"""The façade of command line and notebooks: `open`, `merge`, `load`, `inspect`, `diff`, `verify`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.api.blend import Blend
from cuvee.api.checkpoint import Checkpoint
from cuvee.errors import Diagnostic
from cuvee.recipe.load import load_recipe
from cuvee.recipe.model import Curve, Names

if TYPE_CHECKING:
    from cuvee.api.adapter_out import AdapterSaved
    from cuvee.api.compare import Diff

__all__ = [
    "Blend",
    "Checkpoint",
    "curve",
    "diff",
    "extract_lora",
    "inspect",
    "load",
    "merge",
    "open",
    "verify",
]


def open(reference: Any, *, offline: bool = False) -> Checkpoint:  # noqa: A001 (the verb of the façade)
    """A checkpoint by path, hub URI, `base + adapter`, or a live object; only headers are read."""
    return Checkpoint.opened(reference, offline=offline)


def merge(
    models: Sequence[Any] | Mapping[str, Any],
    *,
    base: Any = None,
    method: str | Mapping[str, Any] | Sequence[Any] = "linear",
    seed: int = 0,
    dtype: Any = None,
    out_dtype: Any = None,
    names: Names = "strict",
    offline: bool = False,
    **parameters: Any,
) -> Blend:
    """A merge of models (paths, hub URIs, dictionaries of tensors, modules, or other merges).

    Args:
        models: the experts, as a list or by name.
        base: their common ancestor, where the method needs one.
        method: whatever `merge` of a recipe may be: a method's name, a mapping `{"method": "ties", "density": 0.3}`, or
            a chain of stages `["trim", {"elect": {"vote": "unweighted"}}]` (also `("elect", {…})`).
        seed: of random stages.
        dtype: type that inputs are read as and arithmetic is done in; float32 when not given.
        out_dtype: type of the result; `dtype`, else that of the inputs when not given.
        names: tensors that some models lack: an error, merged from the models that have them, or left out.
        offline: never touch the network.
        parameters: of the method. A scalar, one value for each model, a curve over the layers, a mapping from name
            patterns to values (`{"*.mlp.*": 0.3, "default": 0.5}`), rules (`[{"role": "mlp", "value": 0.3}, …]`);
            `lam` stands for `lambda`.

    Raises:
        RecipeError: a parameter is unknown or out of range.
        UsageError: CV-U380, `names` is another word.
    """
    from cuvee.api.python_recipe import recipe_from

    options = {"seed": seed, "dtype": dtype, "out_dtype": out_dtype, "names": names}
    return Blend(recipe_from(models, base, method, parameters, options), offline=offline)


def load(path: str | Path, *, offline: bool = False) -> Blend:
    """The merge that a recipe file describes (Cuvée's or MergeKit's YAML)."""
    return Blend(load_recipe(Path(path)), Path(path).parent, offline)


def inspect(reference: Any) -> dict[str, Any]:
    """What a checkpoint holds, as plain data: tensors, dtypes, family, side files, notes."""
    with Checkpoint.opened(reference) as checkpoint:
        return checkpoint.summary()


def verify(folder: str | Path, *, sample: float | None = None) -> list[Diagnostic]:
    """What in an output is not as its manifest says; empty when all is well.

    Args:
        folder: of an output, or one weight file with its manifest beside it.
        sample: hash only this share of the tensors, drawn at random (0 < sample <= 1).

    Raises:
        UsageError: CV-U100, there is nothing at this path.
        RunError: CV-E005, the system refused to read it.
    """
    from cuvee.api.outputs import verified

    return verified(Path(folder), sample)


def diff(a: Any, b: Any, *, values: bool = True) -> Diff:
    """Two checkpoints tensor by tensor; with `values=False` names, shapes and dtypes only."""
    from cuvee.api.compare import compare

    return compare(a, b, values=values)


def extract_lora(base: Any, tuned: Any, out: str | Path, **bounds: Any) -> list[AdapterSaved]:
    """What fine-tuned models add to their base, written as LoRA adapters that PEFT loads: one folder for one model, a
    folder for each below `out` for several (a list, or a mapping of names to models).

    Args:
        base: the model that was fine-tuned.
        tuned: one fine-tuned model or several.
        out: the folder to write.
        bounds: one of `rank`, `energy` and `error`; further `rest` (`save` or `drop` what no adapter can hold),
            `dtype` of the factors, `overwrite`, `offline`, `run`, `listener`.
    """
    from cuvee.api import extract

    return extract.extract_lora(base, tuned, out, **bounds)


def curve(points: Sequence[Any], shape: Any = "linear") -> Curve:
    """A parameter's values over the depth of the model, first layer to last.

    Args:
        points: values at equal distances, or pairs of a depth (0 to 1, rising) and a value.
        shape: `linear`, `cosine` or `step`; RecipeError CV-R260 where depths do not rise from 0 to 1.
    """
    from cuvee.api.python_recipe import curve_of

    return curve_of(points, shape)

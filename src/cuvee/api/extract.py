"""Adapters out of fine-tuned models: what each adds to its base, recompressed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, Literal

from cuvee.api.adapter_out import AdapterSaved, save_adapter
from cuvee.api.blend import Blend
from cuvee.api.python_recipe import recipe_from
from cuvee.engine.events import Listener, ignore
from cuvee.engine.options import RunOptions
from cuvee.errors import UsageError
from cuvee.recipe.model import AdapterOutput


def extract_lora(  # noqa: PLR0913 (each is a choice of its own)
    base: Any,
    tuned: Any | Sequence[Any] | Mapping[str, Any],
    out: str | Path,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    rest: Literal["save", "drop"] = "save",
    dtype: str | None = None,
    truncate_vocabulary: bool = False,
    overwrite: bool = False,
    offline: bool = False,
    run: RunOptions | None = None,
    listener: Listener = ignore,
) -> list[AdapterSaved]:
    """Write the difference of fine-tuned models from their base as LoRA adapters that PEFT loads.

    Args:
        base: the model that was fine-tuned (path, hub URI, dictionary of tensors, module).
        tuned: one fine-tuned model, or several as a list or by name; several go to folders of their own below `out`.
        rank: largest rank of each matrix.
        energy: or the share of each matrix's squared singular values that is kept, such as 0.99.
        error: or the largest relative error of each matrix in the Frobenius norm, such as 1e-3.
        rest: tensors that no adapter can hold (norms, biases): save them whole, or drop them and say so.
        dtype: of the factors; float32 when not given.
        truncate_vocabulary: where vocabularies differ in size, the rows that all have; trusts that their tokens agree.

    Raises:
        UsageError: CV-U170, not exactly one of rank, energy and error.
        RunError: CV-E170, a model equals its base.
    """
    given = [bound for bound in (rank, energy, error) if bound is not None]
    if (
        len(given) != 1
        or not (rank is None or rank >= 1)
        or any(bound <= 0 for bound in given)
        or _above(energy, error)
    ):
        raise UsageError(
            "CV-U170",
            "an adapter needs one bound: a rank of at least 1, or an energy or error above 0 and at most 1",
            hint="`--rank 16` and `--energy 0.99` are common",
        )
    form = AdapterOutput(rank, energy, error, rest)
    models = named(tuned)
    saved = []
    for name, model in models.items():
        recipe = recipe_from({name: model}, base, "task_arithmetic", {}, {"out_dtype": dtype})
        output = replace(recipe.output, adapter=form)
        recipe = replace(recipe, output=output, truncate_vocabulary=truncate_vocabulary)
        plan = Blend(recipe, offline=offline).build()
        try:
            place = Path(out) if len(models) == 1 else Path(out) / name
            saved.append(save_adapter(plan, place, form, run, overwrite=overwrite, listener=listener))
        finally:
            plan.close()
    return saved


def named(tuned: Any | Sequence[Any] | Mapping[str, Any]) -> dict[str, Any]:
    """Models by name: that of their folders, told apart where two are the same."""
    if isinstance(tuned, Mapping) and not _is_model(tuned):
        return dict(tuned)
    several = list(tuned) if isinstance(tuned, (list, tuple)) else [tuned]
    found: dict[str, Any] = {}
    for number, model in enumerate(several, 1):
        text = str(model).rpartition("+")[2].strip() if isinstance(model, (str, Path)) else ""
        name = PurePath(text.partition("@")[0]).name or f"expert_{number}"
        found[name if name not in found and name != "base" else f"{name}_{number}"] = model
    return found


def _is_model(value: Mapping[str, Any]) -> bool:
    """Whether a mapping is a model's tensors rather than models by name."""
    return all(hasattr(one, "shape") for one in value.values())


def _above(*shares: float | None) -> bool:
    return any(share is not None and share > 1 for share in shares)

"""The analysis of a base and its experts: opens them, walks the tensors once, joins what was found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cuvee.analyze.figures import Measured, measure
from cuvee.analyze.interference import Kept, remains
from cuvee.analyze.reading import Deltas, Matched, Skipped, match
from cuvee.analyze.result import Analysis
from cuvee.analyze.spectra import Spectrum, is_matrix, spectrum
from cuvee.api import load
from cuvee.api.checkpoint import Checkpoint
from cuvee.api.extract import named
from cuvee.engine.decompositions import decomposer
from cuvee.engine.options import RunOptions
from cuvee.errors import EvaluationError, UsageError

Progress = Callable[[int, int], None]


def models(
    base: Any,
    experts: Sequence[Any] | Mapping[str, Any],
    *,
    spectra: bool = False,
    merge: Any = None,
    offline: bool = False,
    progress: Progress = lambda done, total: None,
) -> Analysis:
    """Compare what fine-tuned models changed, and forecast how they will merge.

    Memory is bounded whatever the models' size, but for `spectra` (one matrix and its decomposition) and for a `merge`
    given as a recipe, which is run in memory.

    Args:
        base: the common ancestor (path, hub URI, dictionary of tensors, module).
        experts: its fine-tunes, as a list or by name.
        spectra: decompose every matrix; through the store of decompositions that merges use.
        merge: a merge of these experts, as a model or as the path of a recipe: what it leaves of each.
        offline: never touch the network.
        progress: called with the number of tensors done, and of all.

    Raises:
        UsageError: no expert was given (CV-B234).
        EvaluationError: nothing can be compared (CV-B230), or the merge is of other models (CV-B235).
    """
    none = isinstance(experts, Mapping) and not experts  # no tensors by name are no model either
    given = {} if none else named(experts)
    if not given:
        raise UsageError("CV-B234", "an analysis needs at least one expert beside the base")
    with ExitStack() as stack:
        first = _opened(base, stack, offline)
        others = {name: _opened(model, stack, offline) for name, model in given.items()}
        merged = None if merge is None else _opened(_tensors(merge, offline), stack, offline)
        matched = match(first, others)
        return _walk(first, others, merged, matched, spectra, progress)


def _walk(
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    merged: Checkpoint | None,
    matched: Matched,
    spectra: bool,
    progress: Progress,
) -> Analysis:
    decompose = decomposer(RunOptions.from_settings())
    found: list[Measured] = []
    shapes: list[Spectrum] = []
    left: list[Kept] = []
    skipped = list(matched.skipped)
    for done, spot in enumerate(matched.spots):
        progress(done, len(matched.spots))
        deltas = Deltas(spot, base, list(experts.values()))
        sums = measure(deltas)
        if sums is None:
            skipped.append(Skipped(spot.name, "has NaN or infinity"))
            continue
        found.append(Measured(spot, sums))
        if spectra and is_matrix(spot):
            shapes.append(spectrum(deltas, decompose))
        if merged is not None and _has(merged, spot.name, spot.shape):
            left.append(Kept(spot, remains(Deltas(spot, base, [*experts.values(), merged]))))
    progress(len(matched.spots), len(matched.spots))
    _check(found, left, merged, base)
    return Analysis(
        base=base.source.label,
        experts=tuple(experts),
        tensors=tuple(found),
        skipped=tuple(skipped),
        coverage=matched.coverage,
        spectra=tuple(shapes) if spectra else None,
        merge=tuple(left) if merged is not None else None,
    )


def _check(
    found: Sequence[Measured], left: Sequence[Kept], merged: Checkpoint | None, base: Checkpoint
) -> None:
    if not found:
        raise EvaluationError(
            "CV-B236", "every tensor that could be compared has NaN or infinity in one of the models"
        )
    if merged is not None and not left:
        raise EvaluationError(
            "CV-B235", f"the merge and `{base.source.label}` have no tensor of the same name and shape"
        )


def _has(merged: Checkpoint, name: str, shape: tuple[int, ...]) -> bool:
    meta = merged.source.tensors.get(name)
    return meta is not None and meta.shape == shape and meta.dtype.is_float


def _tensors(merge: Any, offline: bool) -> Any:
    """A model as it is; a recipe is run in memory."""
    is_recipe = isinstance(merge, (str, Path)) and Path(merge).suffix in (".yaml", ".yml")
    return load(merge, offline=offline).load() if is_recipe else merge


def _opened(what: Any, stack: ExitStack, offline: bool) -> Checkpoint:
    """The checkpoint; it is closed with the stack unless it came open."""
    found = Checkpoint.opened(what, offline=offline)
    return found if found is what else stack.enter_context(found)

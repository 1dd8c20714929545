"""What a run of a plan will take on this machine: the prediction, at the rate that runs here have shown.

Owns `rates.json` in the cache, which holds one number and is written after a large run that was
foretold. A missing, damaged or unwritable cache changes nothing but the estimate.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cuvee.bundle.json_files import dump_json, load_object
from cuvee.core.cache import folder
from cuvee.core.disk import REAL, make_folders, write_file
from cuvee.engine.options import RunOptions
from cuvee.errors import CuveeError
from cuvee.plan.cost import Outlook, Prediction, Rates, decoded, floor_of, inputs_of, predict
from cuvee.plan.plan import Plan
from cuvee.plan.reads import exactly

if TYPE_CHECKING:
    from cuvee.engine.tables import Tables

_FILE = "rates.json"
LARGE = 500_000_000  # bytes: smaller runs measure how fast Python starts
_LEAST = 0.25  # of a run that its floor takes at least, however much arithmetic was expected
_SHARE = 0.5  # of the newest run in the remembered rate


def outlook(
    plan: Plan,
    target: Path | None = None,
    options: RunOptions | None = None,
    tables: Tables | None = None,
    ahead: int = 0,
) -> Outlook:
    """The prediction for a run into `target` (the working folder where it is not known yet), with the thresholds that
    follow from a catalogue's `tables`, and so many bytes read besides what the plan tells, as if `ahead` of it.
    """
    # The kernels' side of the engine, which checking does without.
    from cuvee.engine.foresight import foreseen

    rates = known_rates()
    chosen = options or RunOptions.from_settings()
    means = foreseen(plan, chosen, tables)
    means = replace(means, before=means.before + exactly(ahead))
    prediction = predict(plan, chosen, rates, means)
    try:
        free: int | None = REAL.free((target or Path()).absolute().parent if target else Path().absolute())
    except (CuveeError, OSError):
        free = None
    return Outlook(prediction, rates, free)


def known_rates() -> Rates:
    """The rate earlier runs had, else the one assumed."""
    path = folder() / _FILE
    try:
        found = load_object(path.read_bytes(), str(path)).get("bytes_per_second")
    except (OSError, CuveeError):
        return Rates()
    usable = isinstance(found, (int, float)) and math.isfinite(found) and found > 0
    return Rates(float(found), measured=True) if usable and found is not None else Rates()


def teaches(plan: Plan) -> bool:
    """Whether a run of the plan moves so much, each input read once, that `remember` learns from it.

    Inputs that are decoded, such as packed experts, tell how fast the processor is, not the disk.
    """
    read = sum(meta.nbytes for meta in inputs_of(plan.tensors).values())
    return not decoded(plan) and read + plan.layout.total_bytes >= LARGE


def remember(prediction: Prediction, seconds: float) -> None:
    """Take a finished run into the remembered rate, that of the floor beside which it would take so long.

    Small ones say nothing about the disk and are left out, and so are those that computed so long that the disk can
    have been as fast as it is known to be, or faster.
    """
    moved = prediction.passing
    if moved < LARGE or seconds <= 0:
        return
    before = known_rates()
    floor = floor_of(prediction, seconds)
    if floor < _LEAST * seconds:
        if before.measured and moved / before.bytes_per_second <= _LEAST * seconds:
            return
        floor = _LEAST * seconds
    rate = moved / floor
    if before.measured:
        rate = _SHARE * rate + (1 - _SHARE) * before.bytes_per_second
    try:
        make_folders(folder())
        write_file(folder() / _FILE, dump_json({"bytes_per_second": round(rate)}))
    except (CuveeError, OSError):
        return  # a cache that cannot be written is no reason to fail

"""Results as data: one row for each method, set and task, with every item's number, as JSON and as Parquet."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from cuvee.evaluate import failures
from cuvee.evaluate.cells import Cell, Store
from cuvee.evaluate.paired import Results, told_apart
from cuvee.evaluate.scorecard import Scorecard
from cuvee.evaluate.statistics import calibration_error
from cuvee.evaluate.units import number_of

SCHEMA = "cuvee.bench.results/1"
_OF_ITEMS = {"scores", "units", "weights"}  # lists as long as the task


def rows(results: Results) -> Iterator[dict[str, Any]]:
    """Plain rows, in the order of the results; `scores` holds every item's number in the order of the test part.

    `units` says which group each belongs to (None: each to its own), `groups` how many they are; `weights` how much
    each counts in the mean (None: all the same). `address` is the name of the cell's file.
    """
    for (kept, _), (cell, card) in zip(results, told_apart(results), strict=True):
        for name, score in card.tasks.items():
            yield {
                "address": kept.address,  # of the cell as it is kept: its label here may say how it was tuned
                **_place(cell, card),
                "task": name,
                "unseen": score.unseen,
                "shift_of": score.shift_of,
                "metric": score.metric.name,
                "better": score.metric.better,
                "mean": score.mean,
                "items": len(score.scores),
                "groups": number_of([score.strata]),
                "calibration_error": None
                if score.confidence is None
                else calibration_error(score.confidence, score.scores),
                **card.spent.as_json(),
                "scores": [float(x) for x in score.scores],
                "units": None if score.units is None else [int(x) for x in score.units],
                "weights": None if bool((score.weights == 1).all()) else [float(x) for x in score.weights],
            }


def _place(cell: Cell, card: Scorecard) -> dict[str, Any]:
    return {
        "track": cell.track,
        "digest": cell.digest,
        "seed": cell.seed,
        "set": ",".join(cell.tasks),
        "experts": len(cell.tasks),
        "method": cell.method,
        "label": cell.label,
        "settings": json.dumps(dict(card.settings), sort_keys=True, default=str),
        "search": cell.search,
        "budget": cell.budget,
        "protocol": cell.protocol,
    }


def as_json(store: Store) -> bytes:
    """Rows without the items' numbers (they are in the cells), failed cells, what tracks and cells are made of."""
    content = {
        "schema": SCHEMA,
        **manifests(store),
        "rows": [{k: v for k, v in row.items() if k not in _OF_ITEMS} for row in rows(store.results())],
        "failed": [one.as_json() for one in failures.kept(store)],
    }
    return json.dumps(content, indent=1, sort_keys=True).encode()


def manifests(store: Store) -> dict[str, Any]:
    """The tracks of the folder, and the addresses of the cells that each environment made."""
    made: dict[str, list[str]] = {}
    for address, origin in store.origins().items():
        made.setdefault(json.dumps(origin, sort_keys=True), []).append(address)
    environments = [{**json.loads(text), "cells": sorted(found)} for text, found in sorted(made.items())]
    return {"tracks": store.tracks(), "made_with": environments}


def parquet_available() -> bool:
    """Whether pyarrow is installed."""
    return find_spec("pyarrow") is not None


def as_parquet(store: Store) -> bytes:
    """The same rows as one Parquet file, items' numbers as a list column, the manifests in its metadata."""
    import pyarrow
    from pyarrow import parquet

    found = list(rows(store.results()))
    metadata: Mapping[str, str] = {
        "cuvee": json.dumps({"schema": SCHEMA, **manifests(store)}, sort_keys=True)
    }
    table = pyarrow.Table.from_pylist(found).replace_schema_metadata(metadata)
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()

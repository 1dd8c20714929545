"""A prediction is made where it is shown, or where a large run is the first to learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.api import outlook, ways
from cuvee.cli.running import Manner, merge_into
from cuvee.engine.options import RunOptions

MANNERS = {"shown": Manner(), "quiet": Manner(quiet=True), "json": Manner(as_json=True)}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("manner", MANNERS)
def test_it_is_made_where_somebody_asks(
    manner: str, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two"):
        save_file({"w": torch.ones(64, 64)}, tmp_path / f"{name}.safetensors")
    made: list[Any] = []
    genuine = ways.outlook

    def counted(*given: Any) -> Any:
        made.append(given)
        return genuine(*given)

    monkeypatch.setattr(ways, "outlook", counted)
    if large:
        monkeypatch.setattr(outlook, "LARGE", 3 * 64 * 64 * 4)  # what is read and written
    blend = cuvee.merge([str(tmp_path / f"{n}.safetensors") for n in ("one", "two")], method="linear")
    assert merge_into(blend, tmp_path / "out.safetensors", RunOptions(threads=1), MANNERS[manner]) == 0
    assert len(made) == (manner == "shown" or large)
    assert (tmp_path / "cache" / "rates.json").is_file() == large
    made.clear()
    merge_into(blend, tmp_path / "again.safetensors", RunOptions(threads=1), MANNERS[manner])
    assert len(made) == (manner == "shown")

"""The flags of `merge` for clusters."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import cluster_models
import pytest
from cluster_models import recipe

from cuvee.engine.cluster import crew


@pytest.fixture
def written(tmp_path: Path) -> Path:
    cluster_models.models(tmp_path, wide=16, layers=1)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe(tmp_path, "linear"))
    return path


def test_flags_of_clusters_need_one(cli, written: Path, tmp_path: Path) -> None:
    outcome = cli("merge", written, "-o", tmp_path / "out", "--workers", 2)
    assert outcome.code == 2 and "CV-U213" in outcome.err


@pytest.mark.parametrize(
    "error", [Exception("The current node timed out during startup.\nMore."), TimeoutError(), OSError("full")]
)
def test_a_cluster_that_does_not_start_is_no_bug(
    cli, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Ray raises a bare Exception when its own processes take too long to start."""

    def init(**_: object) -> None:
        raise error

    ray = SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setattr(crew, "_ray", lambda: ray)
    outcome = cli("merge", written, "-o", tmp_path / "out", "--engine", "ray")
    assert outcome.code == 2 and "CV-U212" in outcome.err and "cannot be reached" in outcome.err
    assert not (tmp_path / "out").exists()


def test_without_ray_the_way_to_get_it_is_said(
    cli, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = cli("merge", written, "-o", tmp_path / "out", "--engine", "ray")
    assert outcome.code == 2 and "CV-U210" in outcome.err and "cuvee[cluster]" in outcome.err
    assert not (tmp_path / "out").exists()

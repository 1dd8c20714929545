"""A Ray cluster of two nodes: the bytes of a local run, whatever is killed on the way."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cluster_models
import pytest
from cluster_models import recipe, uneven, weights, within
from safetensors.torch import load_file, save_file

from cuvee.api.blend import Blend
from cuvee.api.ways import Reading
from cuvee.engine.cluster.job import ClusterOptions
from cuvee.engine.events import Progress, Started
from cuvee.engine.options import RunOptions
from cuvee.errors import Interrupted, RunError
from cuvee.recipe.load import parse_recipe
from cuvee.sources.catalogue import catalogue
from cuvee.sources.open import open_source

ray = pytest.importorskip("ray")
psutil = pytest.importorskip("psutil")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    made.add_node(num_cpus=1, object_store_memory=80 << 20)
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()
    patch.undo()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    cluster_models.models(root, wide=12_000)
    return root


def writing() -> list[int]:
    """Workers of this test's cluster that have a staged weight file open for writing right now."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, OSError):
            if process.name().startswith("ray::_Remote") and any(
                file.path.endswith(".safetensors") and file.mode != "r" for file in process.open_files()
            ):
                found.append(process.pid)
    time.sleep(0.002)
    return found


class Killer:
    """Kills workers in mid-write, a number of times; a context manager."""

    def __init__(self, times: int) -> None:
        self.times, self.killed, self.over = times, 0, False
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        while self.killed < self.times and not self.over:
            for pid in writing()[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    self.killed += 1

    def __enter__(self) -> Killer:
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.over = True
        self.thread.join()


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "slerp", "tsv_m"])
def test_bytes_are_local_ones_though_workers_are_killed(root: Path, tmp_path: Path, method: str) -> None:
    blend = Blend(parse_recipe(recipe(root, method)))
    blend.save(tmp_path / "local")
    with Killer(2 if method in ("linear", "ties") else 0) as killer:
        blend.save(tmp_path / "cluster", cluster=ClusterOptions(workers=2))
    assert weights(tmp_path / "cluster") == weights(tmp_path / "local")
    assert (killer.killed > 0) == (killer.times > 0)


def test_an_interrupted_run_is_resumed(root: Path, tmp_path: Path) -> None:
    blend = Blend(parse_recipe(recipe(root, "linear")))
    blend.save(tmp_path / "local")
    sent: list[int] = []

    def stop(event: Any) -> None:  # the largest tensor comes first
        if isinstance(event, Progress) and event.tensor != "embed.weight" and not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted):
        blend.save(tmp_path / "out", cluster=ClusterOptions(workers=2), listener=stop)
    assert not (tmp_path / "out").exists()
    events: list[Any] = []
    blend.save(tmp_path / "out", cluster=ClusterOptions(workers=2), listener=events.append)
    assert weights(tmp_path / "out") == weights(tmp_path / "local")
    assert next(e for e in events if isinstance(e, Started)).resumed_bytes > 0


def test_work_that_kills_every_worker_ends_the_run(root: Path, tmp_path: Path) -> None:
    blend = Blend(parse_recipe(recipe(root, "linear")))
    with Killer(50), pytest.raises(RunError, match="died while they worked on") as caught:
        blend.save(tmp_path / "out", cluster=ClusterOptions(workers=2, retries=0))
    assert caught.value.diagnostics[0].code == "CV-E210"
    assert not (tmp_path / "out").exists()


def test_what_is_known_is_neither_read_nor_made_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thresholds from a catalogue; then one changed block of an expert, the rest from the earlier output."""
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(root, tmp_path / "models")
    models, expert = tmp_path / "models", tmp_path / "models/two/model.safetensors"
    merge = recipe(models, "ties").replace("density: 0.4", "density: 0.4, scope: tensor, count: official")
    other = recipe(models, "linear")

    def catalogued() -> None:
        opened = [open_source(f"./{name}", anchor=models) for name in ("base", "one", "two")]
        catalogue(opened[0], opened[1:])

    catalogued()
    for name, text in (("ties", merge), ("linear", other)):
        own = Blend(parse_recipe(text))
        own.save(tmp_path / f"local-{name}", run=RunOptions(catalogue=False))
        own.save(tmp_path / name, run=RunOptions(), lineage=True, cluster=ClusterOptions(workers=2))
        assert weights(tmp_path / name) == weights(tmp_path / f"local-{name}")
    tensors = load_file(expert)
    tensors["embed.weight"][100] += 1.0
    save_file(tensors, expert)
    catalogued()
    own = Blend(parse_recipe(other))
    with own.way(RunOptions(), Reading(earlier=tmp_path / "linear")) as found:
        assert any(tensor.parts for tensor in found.less.tensors)
    with Killer(1):
        own.save(
            tmp_path / "two", run=RunOptions(), earlier=tmp_path / "linear", cluster=ClusterOptions(workers=2)
        )
    own.save(tmp_path / "full", run=RunOptions(catalogue=False))
    assert weights(tmp_path / "two") == weights(tmp_path / "full") != weights(tmp_path / "linear")


def test_a_budget_reads_the_same_blocks_on_a_cluster(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers leave out what the driver chose, use its thresholds, and the driver measures the same error."""
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(root, tmp_path / "models")
    uneven(tmp_path / "models")
    text = recipe(tmp_path / "models", "ties_tensor")
    with Killer(1):
        assert within(text, tmp_path / "cluster", ClusterOptions(workers=2)) == within(
            text, tmp_path / "local"
        )

"""A Ray cluster of two nodes: the bytes of a local run, whatever is killed on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cluster_models
import pytest
from cluster_models import recipe, weights

from cuvee.api.blend import Blend
from cuvee.engine.cluster.job import ClusterOptions
from cuvee.engine.events import Progress, Started
from cuvee.errors import Interrupted, RunError
from cuvee.recipe.load import parse_recipe

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

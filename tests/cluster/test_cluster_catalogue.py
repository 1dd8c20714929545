"""Runs on a cluster that leave out what a catalogue, or an earlier output, makes needless: the bytes of a local run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cluster_models
import pytest
import torch
from cluster_models import weights
from safetensors.torch import load_file, save_file
from test_cluster_work import CREWS, HereCrew

import cuvee.engine.cluster.drive as driving
from cuvee.api.blend import Blend
from cuvee.api.ways import Reading
from cuvee.engine.cluster.job import ClusterOptions
from cuvee.engine.fused.fuse import Fused
from cuvee.engine.options import RunOptions
from cuvee.errors import RunError
from cuvee.recipe.load import parse_recipe
from cuvee.sources.catalogue import catalogue
from cuvee.sources.open import open_source
from cuvee.sources.spared import SparedSource

OPTIONS = RunOptions()
MIB = 1 << 19  # elements of a block of bfloat16


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    CREWS.clear()
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(driving, "Crew", HereCrew)
    folder = tmp_path / "models"
    cluster_models.models(folder)
    shared(folder)
    catalog(folder)
    yield folder


def shared(root: Path) -> None:
    """Let the first block of the wide tensor be the base's in both experts, and the last one be small in one."""
    base = load_file(root / "base/model.safetensors")["embed.weight"].reshape(-1)
    for name in ("one", "two"):
        tensors = load_file(root / name / "model.safetensors")
        flat = tensors["embed.weight"].reshape(-1)
        flat[:MIB] = base[:MIB]
        save_file(tensors, root / name / "model.safetensors")


def catalog(root: Path) -> None:
    base, *experts = opened = [open_source(f"./{n}", anchor=root) for n in ("base", "one", "two")]
    catalogue(base, experts)
    for source in opened:
        source.close()


def changed(root: Path, first: int, count: int = 100) -> None:
    """Another expert: some elements of the wide tensor are others."""
    tensors = load_file(root / "two/model.safetensors")
    tensors["embed.weight"].reshape(-1)[first : first + count] *= 2.0
    save_file(tensors, root / "two/model.safetensors")
    catalog(root)


PER_TENSOR = "{method: ties, density: 0.3, scope: tensor}"


def made(root: Path, merge: str) -> Blend:
    """A blend of the two experts."""
    experts = f"{{one: {root}/one, two: {root}/two}}"
    text = f"version: 1\nbase: {root}/base\nexperts: {experts}\nmerge: {merge}\noutput: {{shard_size: 2MB}}\n"
    return Blend(parse_recipe(text))


@pytest.mark.parametrize(
    "merge", ["{method: task_arithmetic}", "{method: ties, density: 0.3}", PER_TENSOR, "{method: dare_ties}"]
)
@pytest.mark.parametrize("storage", ["auto", "driver"])
def test_workers_read_what_a_local_run_reads(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge: str, storage: Any
) -> None:
    full = made(root, merge).save(tmp_path / "full", run=RunOptions(catalogue=False))
    local = made(root, merge).save(tmp_path / "local", run=OPTIONS)
    monkeypatch.setattr(Fused, "_figures", lambda *_: pytest.fail("a threshold is looked for"))
    done = made(root, merge).save(tmp_path / "out", run=OPTIONS, cluster=ClusterOptions(storage=storage))
    assert weights(tmp_path / "out") == weights(tmp_path / "local") == weights(tmp_path / "full")
    assert done.finished.read_bytes == local.finished.read_bytes < full.finished.read_bytes
    workers = CREWS[0].workers
    assert any(isinstance(o.source, SparedSource) for w in workers for o in w.plan.sources.values())
    assert not {"sweep", "summary"} & set(CREWS[0].tasks)  # thresholds of the model are known
    assert bool(CREWS[0].job.known.cuts) == (merge == PER_TENSOR)


def test_without_a_catalogue_workers_read_everything(root: Path, tmp_path: Path) -> None:
    options = RunOptions(catalogue=False)
    made(root, PER_TENSOR).save(tmp_path / "local", run=options)
    made(root, PER_TENSOR).save(tmp_path / "out", run=options, cluster=ClusterOptions())
    assert weights(tmp_path / "out") == weights(tmp_path / "local")
    assert not CREWS[0].job.known.stand_ins and not CREWS[0].job.known.cuts


def again(root: Path, out: Path, merge: str, earlier: Path | None, *, storage: Any = "auto") -> int:
    """A merge with lineage on the cluster; how many tensors an earlier one has."""
    own, cluster = made(root, merge), ClusterOptions(storage=storage)
    own.save(out, run=OPTIONS, lineage=True, earlier=earlier, cluster=cluster)
    with own.way(OPTIONS, Reading(lineage=True, earlier=earlier)) as found:
        return sum(tensor.action == "copied" for tensor in found.less.tensors)


@pytest.mark.parametrize("storage", ["auto", "driver"])
@pytest.mark.parametrize("first", [0, MIB + 5, 2 * MIB + 400_000], ids=["first", "middle", "last"])
def test_a_merge_made_again_is_that_of_one_machine(
    root: Path, tmp_path: Path, first: int, storage: Any
) -> None:
    merge = "{method: task_arithmetic, weight: 0.5}"
    again(root, tmp_path / "one", merge, None)
    changed(root, first)
    CREWS.clear()
    copied = again(root, tmp_path / "two", merge, tmp_path / "one", storage=storage)
    made(root, merge).save(tmp_path / "full", run=RunOptions(catalogue=False))
    assert weights(tmp_path / "two") == weights(tmp_path / "full") != weights(tmp_path / "one")
    assert copied == 12
    regions = CREWS[0].regions
    assert {r.tensor for r in regions} == {"embed.weight"}
    begin = first // MIB * MIB
    assert {(r.start, r.stop) for r in regions} == {(begin, min(begin + MIB, 3000 * 512))}


def test_thresholds_within_a_tensor_make_it_whole(root: Path, tmp_path: Path) -> None:
    again(root, tmp_path / "one", PER_TENSOR, None)
    changed(root, 7)
    CREWS.clear()
    copied = again(root, tmp_path / "two", PER_TENSOR, tmp_path / "one")
    assert {region.tensor for region in CREWS[0].regions} == {"embed.weight"}
    made(root, PER_TENSOR).save(tmp_path / "full", run=RunOptions(catalogue=False))
    assert weights(tmp_path / "two") == weights(tmp_path / "full")
    assert copied == 12


def test_a_damaged_earlier_output_is_found_out(root: Path, tmp_path: Path) -> None:
    merge = "{method: task_arithmetic}"
    again(root, tmp_path / "one", merge, None)
    changed(root, 5)
    path = sorted((tmp_path / "one").glob("*.safetensors"))[0]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(RunError, match="not what its manifest says"):
        again(root, tmp_path / "two", merge, tmp_path / "one")
    assert not (tmp_path / "two").exists()


def test_sources_that_changed_since_they_were_catalogued_are_read_whole(root: Path, tmp_path: Path) -> None:
    tensors = {
        n: torch.randn(t.shape).bfloat16() for n, t in load_file(root / "two/model.safetensors").items()
    }
    save_file(tensors, root / "two/model.safetensors")
    merge = "{method: ties, density: 0.3}"
    made(root, merge).save(tmp_path / "out", run=OPTIONS, cluster=ClusterOptions())
    made(root, merge).save(tmp_path / "full", run=RunOptions(catalogue=False))
    assert weights(tmp_path / "out") == weights(tmp_path / "full")

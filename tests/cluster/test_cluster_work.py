"""Work on a cluster without a cluster: workers of this process, taken in turn, have the bytes of a local run."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cluster_models
import pytest
from cluster_models import RECIPES, recipe, uneven, weights, within
from safetensors.torch import load_file, save_file

import cuvee.engine.cluster.drive as driving
import cuvee.engine.cluster.likeness as likeness
import cuvee.engine.cluster.work as working
from cuvee.api.blend import Blend
from cuvee.api.pack import pack
from cuvee.core.digests import REGION, RegionHasher, joined_digest, tensor_digest
from cuvee.engine.cluster.job import ClusterOptions, Failed, Job, failed, origin_of
from cuvee.engine.cluster.likeness import differing, samples_of
from cuvee.engine.cluster.portable import portable, restored
from cuvee.engine.cluster.regions import batches, unit_of
from cuvee.engine.cluster.work import Workplace
from cuvee.engine.events import Finding, Started
from cuvee.engine.fused.fuse import Fused
from cuvee.engine.fused.selection import Window
from cuvee.engine.options import RunOptions
from cuvee.errors import Interrupted, MissingTensor, PlanError, RunError, UsageError
from cuvee.plan.build import PlanOptions
from cuvee.recipe.load import parse_recipe
from cuvee.recipe.model import InMemory
from cuvee.sinks.staging import StagedSession


class HereCrew:
    """A crew whose workers are two plans of this process; every piece of work is done twice, as after a loss."""

    def __init__(self, job: Job, options: ClusterOptions, stopped: Any) -> None:
        self.job, self.options, self.stopped = job, options, stopped
        self.size = 2
        self.learned: dict[Any, Any] = {}
        self.tasks: list[str] = []
        self.regions: list[Any] = []

    def __enter__(self) -> HereCrew:
        self.workers = [Workplace(self.job), Workplace(self.job)]
        CREWS.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        for worker in self.workers:
            worker.plan.close()

    def tell(self, key: Any, value: Any) -> None:
        self.learned.setdefault(key, value)

    def run(self, tasks: Sequence[Any], done: Any) -> None:
        for number, task in enumerate(reversed(tasks)):
            worker = self.workers[number % 2]
            getattr(worker, task.method)(*task.payload, dict(self.learned))
            self.tasks.append(task.method)
            self.regions += task.payload[0] if task.method == "make" else ()
            done(task, getattr(worker, task.method)(*task.payload, dict(self.learned)))


CREWS: list[HereCrew] = []


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    CREWS.clear()
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(driving, "Crew", HereCrew)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    cluster_models.models(root)
    return root


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("method", RECIPES)
def test_bytes_are_those_of_a_local_run(root: Path, tmp_path: Path, method: str, kernels: bool) -> None:
    blend, options = Blend(parse_recipe(recipe(root, method))), RunOptions(kernels=kernels)
    blend.save(tmp_path / "local", run=options)
    blend.save(tmp_path / "cluster", run=options, cluster=ClusterOptions())
    assert weights(tmp_path / "cluster") == weights(tmp_path / "local")
    assert CREWS[0].tasks.count("make") >= 2
    if method == "ties":  # thresholds over the model are found by one map step, or one worker for each expert
        assert ("sweep" in CREWS[0].tasks) == kernels
        assert CREWS[0].tasks.count("summary") == (0 if kernels else 2)


def test_what_is_found_in_a_tensor_is_told_once(tmp_path: Path) -> None:
    cluster_models.models(tmp_path)
    file = tmp_path / "one" / "model.safetensors"
    tensors = load_file(file)
    tensors["embed.weight"].view(-1)[[0, 5, -1]] = float("nan")
    save_file(tensors, file)
    told: list[Finding] = []
    Blend(parse_recipe(recipe(tmp_path, "linear"))).save(
        tmp_path / "cluster",
        run=RunOptions(non_finite="warn"),
        cluster=ClusterOptions(),
        listener=lambda event: told.append(event) if isinstance(event, Finding) else None,
    )
    assert len([r for r in CREWS[0].regions if r.tensor == "embed.weight"]) > 1
    inputs = [one.message for one in told if one.source is not None]
    assert len(told) == len({(one.tensor, one.source) for one in told})
    assert len(inputs) == 1
    assert "3 values" in inputs[0]


def test_the_driver_writes_where_workers_do_not_see_the_output(root: Path, tmp_path: Path) -> None:
    blend = Blend(parse_recipe(recipe(root, "ties")))
    blend.save(tmp_path / "local")
    blend.save(tmp_path / "cluster", cluster=ClusterOptions(storage="driver"))
    assert weights(tmp_path / "cluster") == weights(tmp_path / "local")
    assert all(not worker.sees for worker in CREWS[0].workers)


def test_a_worker_that_outlives_its_run_leaves_the_next_ones_files_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Orphaned(HereCrew):
        def __enter__(self) -> HereCrew:
            entered = super().__enter__()
            self.job.staged.proof.write_text("the word of another run")
            return entered

    monkeypatch.setattr(driving, "Crew", Orphaned)
    with pytest.raises(RunError, match="not staged for this run any more") as caught:
        Blend(parse_recipe(recipe(root, "linear"))).save(tmp_path / "out", cluster=ClusterOptions())
    assert caught.value.diagnostics[0].code == "CV-E214"


def test_what_is_done_is_not_done_again(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blend = Blend(parse_recipe(recipe(root, "ties")))
    blend.save(tmp_path / "local")
    taken, adopt = [], StagedSession.adopt

    def failing(session: Any, name: str, digest: str) -> None:
        if len(taken) == 4:
            raise KeyboardInterrupt
        taken.append(name)
        adopt(session, name, digest)

    monkeypatch.setattr(StagedSession, "adopt", failing)
    with pytest.raises(KeyboardInterrupt):
        blend.save(tmp_path / "out", cluster=ClusterOptions())
    monkeypatch.setattr(StagedSession, "adopt", adopt)
    assert not (tmp_path / "out").exists()
    events: list[Any] = []
    blend.save(tmp_path / "out", cluster=ClusterOptions(), listener=events.append)
    assert weights(tmp_path / "out") == weights(tmp_path / "local")
    started = next(event for event in events if isinstance(event, Started))
    assert started.resumed_bytes > 0


def test_batches_cover_every_element_once_and_cut_where_blocks_and_digests_can_be_cut(root: Path) -> None:
    plan = Blend(parse_recipe(recipe(root, "ties"))).build()
    made = batches(plan.tensors, 2)
    assert [b.cost for b in made] == sorted((b.cost for b in made), reverse=True)
    for tensor in plan.tensors:
        spans = sorted((r.start, r.stop) for b in made for r in b.regions if r.tensor == tensor.meta.name)
        assert spans[0][0] == 0 and spans[-1][1] == tensor.meta.numel
        assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
        unit = unit_of(tensor)
        if len(spans) > 1:
            assert unit is not None
            assert all(
                start % unit == 0 and start * tensor.meta.dtype.size % REGION == 0 for start, _ in spans
            )
    assert any(
        len({r.start for b in made for r in b.regions if r.tensor == t.meta.name}) > 1 for t in plan.tensors
    )
    plan.close()


def test_a_method_that_sees_tensors_whole_is_never_cut(root: Path) -> None:
    for method in ("slerp", "tsv_m"):
        plan = Blend(parse_recipe(recipe(root, method))).build()
        whole = next(t for t in plan.tensors if t.meta.name == "embed.weight")
        assert unit_of(whole) is None
        plan.close()


def test_a_worker_that_plans_something_else_says_so(root: Path, tmp_path: Path) -> None:
    blend = Blend(parse_recipe(recipe(root, "linear")))
    plan = blend.build()
    origin = origin_of(blend.recipe, blend.anchor, False, False, blend.options)
    job = Job(origin, plan.layout, "0" * 64, RunOptions(), None)
    with pytest.raises(PlanError, match="plans something else"):
        Workplace(job)
    plan.close()


def test_a_machine_with_other_weights_under_the_same_names_is_refused(root: Path, tmp_path: Path) -> None:
    """Fine-tunes of one model have equal headers: plans are the same."""
    shutil.copytree(root, tmp_path / "models")
    blend = Blend(parse_recipe(recipe(tmp_path / "models", "linear")))
    plan = blend.build()
    origin = origin_of(blend.recipe, tmp_path, False, False, PlanOptions())
    job = Job(origin, plan.layout, plan.digest, RunOptions(), None, samples=samples_of(plan))
    plan.close()
    Workplace(job).plan.close()
    weights_file = tmp_path / "models/one/model.safetensors"
    data = bytearray(weights_file.read_bytes())
    tensors = load_file(weights_file)
    save_file({name: -tensor for name, tensor in tensors.items()}, weights_file)
    assert len(weights_file.read_bytes()) == len(data)
    with pytest.raises(PlanError, match="holds other bytes there") as caught:
        Workplace(job)
    assert caught.value.diagnostics[0].code == "CV-E212"
    weights_file.write_bytes(data)
    Workplace(job).plan.close()
    with pytest.raises(PlanError, match=r"the driver 0\.0\.1"):
        Workplace(replace(job, version="0.0.1"))


def test_files_are_compared_whatever_their_folders_and_where_both_machines_have_them(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A packed expert lies in two folders, which sort otherwise elsewhere; what has to be fetched is not compared."""
    for name in ("models", "elsewhere"):
        shutil.copytree(root, tmp_path / name)
        packed = tmp_path / ("z" if name == "models" else "a")
        pack(str(tmp_path / name / "one"), str(tmp_path / name / "base"), packed)
    plans = [
        Blend(
            parse_recipe(
                f"version: 1\nexperts: {{a: {tmp_path}/{packed}, b: {tmp_path}/{name}/two}}\n"
                "merge: {method: linear}\n"
            )
        ).build()
        for packed, name in (("z", "models"), ("a", "elsewhere"))
    ]
    samples = dict(zip(plans[1].sources, samples_of(plans[0]).values(), strict=True))
    assert len(samples) == 2 and differing(samples, plans[1]) is None
    assert differing(dict.fromkeys(samples, ("other",)), plans[1]) is not None
    monkeypatch.setattr(likeness, "unfetched", lambda source: [source])
    assert differing(dict.fromkeys(samples, ("other",)), plans[1]) is None
    for plan in plans:
        plan.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_thresholds_are_gathered_ends_the_run(
    number: signal.Signals, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ending(HereCrew):
        def run(self, tasks: Sequence[Any], done: Any) -> None:
            os.kill(os.getpid(), number)
            while not self.stopped():
                pass

    monkeypatch.setattr(driving, "Crew", Ending)
    blend = Blend(parse_recipe(recipe(root, "ties_model")))
    with pytest.raises(Interrupted) as caught:
        blend.save(tmp_path / "out", run=RunOptions(), cluster=ClusterOptions())
    assert caught.value.exit_code == 128 + number
    assert not (tmp_path / "out").exists()


def test_models_in_memory_are_refused(root: Path) -> None:
    plain = parse_recipe(recipe(root, "linear"))
    held = replace(plain, sources={**plain.sources, "one": InMemory({})})
    with pytest.raises(UsageError, match="in memory"):
        origin_of(held, Path(), False, False, PlanOptions())


def test_region_digests_joined_are_the_digest_of_the_tensor() -> None:
    data = bytes(range(256)) * 9000
    for cut in (REGION, 2 * REGION, len(data)):
        parts = []
        for half in (data[:cut], data[cut:]):
            hasher = RegionHasher()
            for at in range(0, len(half), 70_001):
                hasher.update(half[at : at + 70_001])
            parts.append(hasher.digests())
        assert joined_digest(b"".join(parts)) == tensor_digest(data)
    assert joined_digest(b"") == tensor_digest(b"")


def test_counts_and_errors_survive_the_way() -> None:
    keys = (ctypes.c_uint32 * 3)(5, 6, 7)
    lines = (ctypes.c_double * 2)(0.1, 0.2)
    there = restored(portable({3: [Window((1, 9), 4, 5, 6, keys), lines, 8]}))[3]
    assert list(there[0].keys) == [5, 6, 7] and there[0].bounds == (1, 9)
    assert list(there[1]) == [0.1, 0.2] and there[2] == 8
    error = failed(MissingTensor("CV-S041", "gone", hint="look"))
    assert isinstance(error, Failed)
    again = error.error()
    assert type(again) is MissingTensor and again.diagnostics[0].hint == "look"


@pytest.mark.parametrize("method", ["ties_tensor", "ties_model", "task_arithmetic"])
@pytest.mark.parametrize("storage", ["shared", "driver"])
def test_a_budget_leaves_out_the_same_blocks_on_workers(tmp_path: Path, method: str, storage: Any) -> None:
    cluster_models.models(tmp_path / "models", wide=12_000)
    uneven(tmp_path / "models")
    text = recipe(tmp_path / "models", method)
    local = within(text, tmp_path / "local")
    assert within(text, tmp_path / "cluster", ClusterOptions(storage=storage)) == local
    Blend(parse_recipe(text)).save(tmp_path / "whole", run=RunOptions(catalogue=False))
    assert weights(tmp_path / "whole") != local[0]


def test_workers_ask_no_more_where_tensors_lie_than_what_is_known_takes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where figures of a group are known, nobody looks at its tensors; asking fetches those that are far away."""
    asked = {"now": 0, "least": 0}
    kind = "now"
    plain = Fused._possible

    def counting(self: Fused, members: Any) -> bool:
        asked[kind] += not self._complete(members)
        return plain(self, members)

    monkeypatch.setattr(Fused, "_possible", counting)
    for kind in asked:
        if kind == "least":
            monkeypatch.setattr(
                Workplace, "_memo", lambda self, learned: working.memo_of(self.groups, learned)
            )
        Blend(parse_recipe(recipe(root, "ties"))).save(tmp_path / kind, cluster=ClusterOptions())
    assert 0 < asked["now"] == asked["least"]


def test_outputs_that_no_cluster_makes_are_refused(root: Path, tmp_path: Path) -> None:
    text = recipe(root, "task_arithmetic").replace("{shard_size: 2MB}", "{kind: adapter, rank: 4}")
    with pytest.raises(UsageError) as caught:
        Blend(parse_recipe(text)).save(tmp_path / "out", cluster=ClusterOptions())
    assert caught.value.diagnostics[0].code == "CV-U214"


@pytest.mark.parametrize("output", ["{kind: adapter, rank: 4}", "{kind: package}"])
def test_outputs_made_from_a_model_take_no_budget(tmp_path: Path, output: str) -> None:
    """They are not made by what knows the thresholds of what is left out."""
    cluster_models.models(tmp_path / "models")
    uneven(tmp_path / "models")
    text = recipe(tmp_path / "models", "task_arithmetic").replace("{shard_size: 2MB}", output)
    text = text.replace("method: task_arithmetic", "method: emr" if "package" in output else "method: ties")
    with pytest.raises(PlanError) as caught:
        within(text, tmp_path / "out")
    assert caught.value.diagnostics[0].code == "CV-P200"
    assert "adapter or a package" in str(caught.value)


@pytest.mark.parametrize("method", ["ties_tensor", "ties_model"])
def test_a_worker_without_kernels_looks_for_no_threshold_in_what_a_budget_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """It would find another one there, and nothing would tell."""
    cluster_models.models(tmp_path / "models", wide=12_000)
    uneven(tmp_path / "models")
    monkeypatch.setattr("cuvee.engine.cluster.work.fuse", lambda *_: None)
    with pytest.raises(RunError) as caught:
        within(recipe(tmp_path / "models", method), tmp_path / "out", ClusterOptions())
    assert caught.value.diagnostics[0].code == "CV-E280"
    assert not (tmp_path / "out").exists()

"""A run's events, its errors, and how it ends early."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import cuvee
from cuvee.engine.events import Event, Finished, Progress, Started
from cuvee.engine.options import RunOptions
from cuvee.errors import Interrupted, NonFinite, RunError
from cuvee.sources.memory import MemorySource

SLOW = RunOptions(kernels=False, block=1024)
Hook = Callable[[str, int], None]


class Hooked(MemorySource):
    """A source that calls a function before every read."""

    def __init__(self, tensors: dict[str, Tensor], hook: Hook) -> None:
        super().__init__(tensors, "hooked")
        self.hook = hook

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        self.hook(name, start)
        return super().read(name, start, stop)


def model(count: int = 4, size: int = 5000) -> dict[str, Tensor]:
    return {f"layers.{i}.w": torch.full((size,), float(i)) for i in range(count)}


def test_events_tell_the_whole_story_once(tmp_path: Path) -> None:
    for options in (RunOptions(), SLOW, RunOptions(kernels=False, threads=2)):
        seen: list[Event] = []
        blend = cuvee.merge([model(), model()])
        blend.save(tmp_path / "out.safetensors", run=options, listener=seen.append, overwrite=True)
        assert seen[0] == Started(4, 80_000, 0)
        done = seen[-1]
        assert isinstance(done, Finished)
        assert (done.read_bytes, done.written_bytes) == (160_000, 80_000)
        progress = [e for e in seen if isinstance(e, Progress)]
        assert len(seen) == len(progress) + 2
        for name in model():
            assert sum(e.bytes for e in progress if e.tensor == name) == 20_000


def test_an_error_in_a_worker_names_tensor_stages_and_inputs() -> None:
    def broken(name: str, start: int) -> None:
        if name == "layers.2.w":
            raise ValueError("boom")

    with pytest.raises(RunError) as caught:
        cuvee.merge({"good": model(), "bad": Hooked(model(), broken)}).load(SLOW)
    (found,) = caught.value.diagnostics
    assert found.code == "CV-E022"
    for word in ("layers.2.w", "boom", "linear", "`good` float32 [5000]", "`bad`"):
        assert word in found.message, word
    assert found.where is not None
    assert found.where.tensor == "layers.2.w"


def test_of_several_failing_tensors_one_is_told_and_nothing_appears(tmp_path: Path) -> None:
    wrong = {name: value.clone() for name, value in model(40).items()}
    for name in list(wrong)[1::2]:
        wrong[name][7] = float("nan")
    for threads in (1, 2):
        out = tmp_path / f"{threads}.safetensors"
        options = RunOptions(kernels=False, threads=threads)
        with pytest.raises(NonFinite, match="index 7") as caught:
            cuvee.merge([model(40), wrong]).save(out, run=options)
        assert len(caught.value.diagnostics) == 1
        assert not out.exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_signal_stops_the_run_and_what_is_finished_is_resumed(
    number: int, threads: int, tmp_path: Path
) -> None:
    files = []
    for name in ("a", "b"):
        save_file(model(6, 50_000), tmp_path / f"{name}.safetensors")
        files.append(tmp_path / f"{name}.safetensors")
    told: list[Progress] = []
    before = signal.getsignal(number)

    def listener(event: Event) -> None:
        if isinstance(event, Progress):
            told.append(event)
            if event.tensor == "layers.3.w":
                os.kill(os.getpid(), number)

    options = RunOptions(kernels=False, block=1024, threads=threads)
    out = tmp_path / "out.safetensors"
    with pytest.raises(Interrupted) as caught:
        cuvee.merge(files).save(out, run=options, listener=listener)
    assert caught.value.exit_code == 128 + number
    assert not out.exists()
    seen: list[Event] = []
    cuvee.merge(files).save(out, run=options, listener=seen.append)
    started = seen[0]
    assert isinstance(started, Started)
    assert started.resumed_bytes >= 200_000
    assert started.resumed_bytes < started.total_bytes
    again = {e.tensor for e in seen if isinstance(e, Progress)}
    assert len(again) == (started.total_bytes - started.resumed_bytes) // 200_000
    assert torch.equal(cuvee.open(out).tensor("layers.5.w"), torch.full((50_000,), 5.0))
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("told", ["process", "worker"])
def test_a_pass_over_the_whole_model_is_stopped_too(told: str) -> None:
    """`ties` reads everything for its threshold before the first byte is written.

    Which thread the system tells of a signal is its own choice; the main one slept on where it was a worker.
    """
    reads: list[str] = []

    def interrupt(name: str, start: int) -> None:
        reads.append(name)
        if len(reads) == 10:
            if told == "worker":
                signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
            else:
                os.kill(os.getpid(), signal.SIGTERM)
        if len(reads) >= 10:
            time.sleep(0.005)  # a busy machine delivers a signal late

    expert = Hooked(model(200), interrupt)
    with pytest.raises(Interrupted):
        cuvee.merge([expert], base=model(200), method="ties").load(SLOW)
    assert len(reads) < 300  # of thousands


def test_a_run_outside_the_main_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    found: list[dict[str, Tensor]] = []
    thread = threading.Thread(target=lambda: found.append(cuvee.merge([model(), model()]).load(SLOW)))
    thread.start()
    thread.join()
    assert torch.equal(found[0]["layers.3.w"], torch.full((5000,), 3.0))
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("method", ["passthrough", "linear"])
def test_overflow_is_found_in_a_conversion_too(method: str, kernels: bool, tmp_path: Path) -> None:
    save_file({"w": torch.tensor([1.0, 70000.0])}, tmp_path / "a.safetensors")
    blend = cuvee.merge([tmp_path / "a.safetensors"], method=method, out_dtype="float16")
    with pytest.raises(NonFinite, match=r"1 value of the result .* overflows `float16`"):
        blend.load(RunOptions(kernels=kernels))


def test_finite_float64_beyond_float32_is_not_counted() -> None:
    values = torch.tensor([1e300, float("nan"), 1e300, float("inf")], dtype=torch.float64)
    with pytest.raises(NonFinite, match=r"holds 2 values .* index 1"):
        cuvee.merge([{"w": values}], method="passthrough").load()

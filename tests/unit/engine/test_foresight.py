"""What the engine says of a plan before it runs, with compiled kernels and without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.api.outlook import outlook
from cuvee.engine import foresight
from cuvee.engine.kernels import kernels
from cuvee.engine.options import RunOptions
from cuvee.plan.cost import PROGRAM

THREADS = 2
OPTIONS = RunOptions(threads=THREADS)
pytestmark = pytest.mark.skipif(kernels() is None, reason="no kernels")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    draw = torch.Generator().manual_seed(0)
    made = []
    for number in range(4):
        path = folder / f"{number}.safetensors"
        tensors = {name: torch.randn(512, 1024, generator=draw).bfloat16() for name in "abc"}
        save_file(tensors, path)
        made.append(path)
    return made


def foreseen(paths: list[Path], method: str, options: RunOptions = OPTIONS) -> foresight.Means:
    plan = cuvee.merge(paths[1:], base=paths[0], method=method).build()
    try:
        return foresight.foreseen(plan, options)
    finally:
        plan.close()


def test_compiled_tensors_hold_blocks_of_their_inputs(paths: list[Path]) -> None:
    found = foreseen(paths, "task_arithmetic")
    blocks = 4 * 128 * 1024 * 2  # of base and experts, in bfloat16
    out = 512 * 1024 * 2
    assert found.program == foresight.COMPILED
    assert dict(found.held) == dict.fromkeys("abc", blocks + out)


def test_thresholds_hold_the_inputs_and_cost_more(paths: list[Path]) -> None:
    plain, trimmed = (foreseen(paths, method) for method in ("task_arithmetic", "breadcrumbs"))
    assert dict(trimmed.held) == dict.fromkeys("abc", 5 * 512 * 1024 * 2)
    assert trimmed.seconds > plain.seconds > 0
    assert trimmed.program > plain.program


def test_drops_that_restore_a_norm_hold_a_bit_for_each_element(paths: list[Path]) -> None:
    plan = cuvee.merge(paths[1:], base=paths[0], method="dare_linear", rescale="l1").build()
    try:
        found = foresight.foreseen(plan, OPTIONS)
    finally:
        plan.close()
    assert dict(found.held) == dict.fromkeys("abc", 5 * 512 * 1024 * 2 + 3 * 512 * 1024 // 8)


def test_every_expert_gathers_magnitudes_in_every_worker(paths: list[Path]) -> None:
    gathered = 3 * int(0.08 * 512 * 1024) * 4  # of three experts' changes
    for threads in (1, 2):
        found = foreseen(paths, "breadcrumbs", RunOptions(threads=threads))
        assert found.program == foresight.COMPILED + threads * gathered


def test_products_of_all_pairs_are_summed_line_by_line(paths: list[Path]) -> None:
    few, many = (foreseen(paths[: n + 1], "multislerp", RunOptions(threads=1)).program for n in (2, 3))
    assert many - few == (6 - 3) * 8 * 512


def test_ranking_rows_holds_values_or_with_a_norm_a_bit_for_each_entry(paths: list[Path]) -> None:
    values = {"density": 0.3, "epsilon": 0.1}
    held = {}
    for rescale in ("inverse_q", "l1"):
        plan = cuvee.merge(paths[1:], base=paths[0], method="della", rescale=rescale, **values).build()
        held[rescale] = foresight.foreseen(plan, OPTIONS).held["a"]
        plan.close()
    step, count = 128 * 1024, 512 * 1024
    rows = 3 * 8 * (1024 + 2 * 1024) + 20 * 1024
    blocks = 2 * count + 4 * 2 * step
    assert held["inverse_q"] == blocks + rows + 3 * 4 * count
    assert held["l1"] == blocks + rows + 3 * (count // 8 + 16 * 512)


def test_passes_that_are_known_are_counted(paths: list[Path]) -> None:
    inputs = 4 * 512 * 1024 * 2
    pcb, ties, sum_of = (foreseen(paths, method) for method in ("pcb", "ties", "task_arithmetic"))
    assert {name: reads.least for name, reads in pcb.reads.items()} == dict.fromkeys("abc", inputs)
    # sizes, then scores, each in a sample and in all; where the sample misleads, digit by digit and ties
    assert 2 * 3 * inputs < pcb.before.least < 2 * 1.2 * 3 * inputs < pcb.before.most
    assert 3 * inputs < ties.before.least < 1.2 * 3 * inputs < ties.before.most
    assert (sum_of.before.least, sum_of.before.most) == (0, 0)


def test_torch_is_counted_where_it_is_needed(paths: list[Path]) -> None:
    needs_some = foreseen(paths, "model_stock")
    generic = foreseen(paths, "task_arithmetic", RunOptions(threads=THREADS, kernels=False))
    assert foresight.COMPILED < needs_some.program < PROGRAM
    nodes = (
        14  # four readings, each as float32, three changes, their sum, its scale, and the sum with the base
    )
    assert generic.program == PROGRAM
    assert dict(generic.held) == dict.fromkeys("abc", 4 * (nodes + 4) * 256 * 1024)
    assert generic.seconds > 2 * foreseen(paths, "task_arithmetic").seconds


def test_the_outlook_adds_arithmetic_and_memory(paths: list[Path]) -> None:
    plan = cuvee.merge(paths[1:], base=paths[0], method="task_arithmetic").build()
    found = outlook(plan, options=OPTIONS).prediction
    means = foresight.foreseen(plan, OPTIONS)
    plan.close()
    assert found.peak_memory == means.program + THREADS * means.held["a"]
    moving = means.moving.read * found.bytes_read + means.moving.written * found.bytes_written
    assert found.arithmetic == pytest.approx(means.seconds + moving / THREADS)
    assert means.seconds > 0 and found.copied == pytest.approx(moving / THREADS)  # each input is read once
    assert found.seconds > found.arithmetic


def test_a_row_that_is_too_long_for_the_kernels_is_held_whole_by_torch(tmp_path: Path) -> None:
    """A vector is one row: DELLA ranks five million entries at once, so every value of a node is in memory."""
    count = 5_000_000
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "one", "two")]
    for path in paths:
        save_file({"w": torch.zeros(count, dtype=torch.bfloat16)}, path)
    options = RunOptions(threads=1, memory=32 << 20)
    found = foreseen(paths, "della", options)
    assert found.program >= PROGRAM  # torch's
    assert found.held["w"] >= 4 * count * 3

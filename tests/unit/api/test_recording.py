"""Catalogues that merges make on the way: those of `cuvee catalog`, whole or not at all, and the same bytes out."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from cuvee.api import execute
from cuvee.api.blend import Blend
from cuvee.cli.app import app
from cuvee.engine.options import RunOptions
from cuvee.errors import UsageError
from cuvee.recipe.load import parse_recipe
from cuvee.sources import catalogue as catalogues
from cuvee.sources import catalogue_live, residency
from cuvee.sources.catalogue import catalogued, changes_of, digests_of
from cuvee.sources.catalogue_live import Recording
from cuvee.sources.open import open_source

SHAPES = {"a.weight": (160, 64), "b.weight": (300, 33), "c.bias": (77,), "n.bias": (0,), "s.step": ()}
EXPERTS = ("e0", "e1")
ON = RunOptions(threads=2, recording="on")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    monkeypatch.setattr(catalogues, "BLOCK", 4096)
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def models(dtype=torch.bfloat16):
    random = np.random.default_rng(3)
    draw = lambda s: torch.from_numpy(np.asarray(random.standard_normal(s), "f4")).to(dtype)  # noqa: E731
    base = {n: draw(s) for n, s in SHAPES.items()} | {"positions": torch.arange(9)}
    save("base", base)
    for k, name in enumerate(EXPERTS):
        expert = {n: t.clone() for n, t in base.items()}
        expert["a.weight"].reshape(-1)[2048 * k :: 5] += 0.25
        expert["b.weight"] = expert["b.weight"] + 0.01 * draw(SHAPES["b.weight"])
        save(name, expert)


def save(folder, tensors):
    Path(folder).mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, Path(folder, "model.safetensors"))


def blend(method="ties, density: 0.3", base="base: ./base\n"):
    experts = ", ".join(f"{e}: ./{e}" for e in EXPERTS)
    return Blend(
        parse_recipe(f"version: 1\n{base}experts: {{{experts}}}\nmerge: {{method: {method}}}\n"), Path()
    )


def sources(*names):
    return [open_source(f"./{name}", anchor=Path()) for name in names]


def weights(folder):
    return Path(folder, "model.safetensors").read_bytes()


def told(saved):
    return [note.code for note in saved.notes]


def of_a_catalogue():
    base, *experts = opened = sources("base", *EXPERTS)
    found = catalogued(base, experts)
    digests = [digests_of(source) for source in opened]
    for source in opened:
        source.close()
    return found, digests


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
def test_it_is_that_of_the_command(tmp_path, monkeypatch, dtype, kernels) -> None:
    models(dtype)
    plain = blend().save("plain", run=RunOptions(threads=2, kernels=kernels))
    made = blend().save("made", run=replace(ON, kernels=kernels, memory=1 << 16))
    assert (told(plain), told(made)) == ([], ["CV-P350"])
    assert weights("plain") == weights("made")
    live, digests = of_a_catalogue()
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "other"))
    opened = sources("base", *EXPERTS)
    catalogues.catalogue(opened[0], opened[1:])
    by_command, theirs = of_a_catalogue()
    assert live is not None and list(live.tensors) and set(live.tensors) == set(by_command.tensors)
    for ours, other in zip(digests, theirs, strict=True):
        assert set(ours) - {"positions"} == set(other) - {"positions"} == set(SHAPES)
        assert all(np.array_equal(ours[name], other[name]) for name in ours)
    for name, sketch in by_command.tensors.items():
        mine = live.tensors[name]
        for field in ("same", "ground", "peak", "gram"):
            assert np.array_equal(getattr(mine, field), getattr(sketch, field), equal_nan=True), field
        for own, other in zip(mine.changes, sketch.changes, strict=True):
            for field in ("energy", "largest", "moved", "keys", "counts"):
                assert np.array_equal(getattr(own, field), getattr(other, field), equal_nan=True), field


def test_the_next_merge_takes_its_thresholds_from_it() -> None:
    models()
    blend().save("first", run=ON)
    saved = blend("ties, density: 0.7").save("second", run=RunOptions(threads=2))
    assert saved.finished.read_bytes < 3 * len(weights("base"))
    blend("ties, density: 0.7").save("plain", run=RunOptions(threads=2, catalogue=False))
    assert weights("second") == weights("plain")
    assert told(blend().save("again", run=replace(ON))) == []  # all is known


def test_a_source_that_changes_while_it_is_merged_has_none(monkeypatch) -> None:
    models()
    run = execute.run

    def touched(plan, session, options, listener, *rest):
        done = run(plan, session, options, listener, *rest)
        os.utime("e1/model.safetensors", ns=(1, 1))
        return done

    monkeypatch.setattr(execute, "refuse_changed", lambda *_: None)
    monkeypatch.setattr("cuvee.engine.run.run", touched)
    assert told(blend().save("out", run=ON)) == ["CV-P351"]
    assert not list(Path("cache").glob("catalogue/*"))


def test_a_merge_that_fails_keeps_none() -> None:
    models()
    tensors = {n: torch.randn(s).bfloat16() for n, s in SHAPES.items()} | {"positions": torch.arange(9)}
    tensors["b.weight"][200, 3] = float("nan")
    save("e1", tensors)
    with pytest.raises(Exception, match="NaN"):
        blend().save("out", run=ON)
    assert not list(Path("cache").glob("catalogue/*"))
    allowed = blend().save("out", run=replace(ON, non_finite="allow"))
    assert told(allowed) == ["CV-P350"]
    again = blend().save("again", run=RunOptions(non_finite="allow"))
    blend().save("full", run=RunOptions(non_finite="allow", catalogue=False))
    assert weights("again") == weights("out") == weights("full")
    assert again.path.exists()


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch) -> None:
    models()
    Path("file").write_text("no folder")
    monkeypatch.setenv("CUVEE_CACHE", str(Path("file/cache").resolve()))
    assert told(blend("task_arithmetic").save("out", run=replace(ON, kernels=False))) == ["CV-P351"]


def test_without_a_base_blocks_are_hashed() -> None:
    models()
    blend("linear", base="").save("out", run=ON)
    one, two, base = sources(*EXPERTS, "base")
    assert set(digests_of(one)) - {"positions"} == set(digests_of(two)) == set(SHAPES)
    assert digests_of(base) is None
    assert changes_of(base, one) is None


def test_only_tensors_that_were_read_to_their_ends_are_catalogued() -> None:
    models()
    opened = base, one, two = sources("base", *EXPERTS)
    every = {name: frozenset(range(3)) for name in SHAPES}
    part = Recording(opened, every, True)
    part.end("a.weight")
    part.reach("b.weight", 9899)  # all but one element
    assert part.keep()
    assert set(digests_of(two)) == set(changes_of(base, one)) == {"a.weight"}
    assert catalogued(base, [one, two]) is None
    rest = Recording(opened, {"b.weight": frozenset({0, 2})}, True)
    rest.end("b.weight")
    assert rest.keep()
    assert set(digests_of(two)) == set(changes_of(base, two)) == {"a.weight", "b.weight"}
    assert set(digests_of(one)) == {"a.weight"}
    blend("ties, density: 0.4").save("out", run=RunOptions(threads=2))
    blend("ties, density: 0.4").save("plain", run=RunOptions(catalogue=False))
    assert weights("out") == weights("plain")
    whole = Recording(opened, every, True)
    for name in SHAPES:
        whole.end(name)
    assert whole.keep()
    assert catalogued(base, [one, two]) is not None


def test_magnitudes_take_no_more_room_than_there_is(monkeypatch) -> None:
    models()
    monkeypatch.setattr(catalogue_live, "MOST_TABLES", 400)
    blend("ties, density: 0.4").save("out", run=ON)
    base, one = sources("base", "e0")
    kept = [change.keys is not None for change in changes_of(base, one).values()]
    assert any(kept) and not all(kept)
    blend("ties, density: 0.4").save("again", run=RunOptions())
    assert weights("again") == weights("out")


def test_magnitudes_that_were_known_stay(monkeypatch) -> None:
    models()
    opened = sources("base", *EXPERTS)
    for expert in opened[1:]:
        catalogues.catalogue(opened[0], [expert])
    monkeypatch.setattr(catalogue_live, "MOST_TABLES", 0)
    assert told(blend("ties, density: 0.4").save("out", run=ON)) == ["CV-P350"]
    for expert in opened[1:]:
        assert all(change.keys is not None for change in changes_of(opened[0], expert).values())


def test_a_mistyped_setting_is_told(monkeypatch) -> None:
    monkeypatch.setenv("CUVEE_CATALOG", "clod")
    with pytest.raises(UsageError, match="CV-U350"):
        RunOptions.from_settings()


@pytest.mark.parametrize(
    ("words", "setting", "made"),
    [
        ((), "cold", False),
        ((), "on", True),
        (("--catalog",), "off", True),
        (("--no-catalog",), "on", False),
    ],
)
def test_the_command_and_the_setting(monkeypatch, words, setting, made) -> None:
    models()
    monkeypatch.setenv("CUVEE_CATALOG", setting)
    Path("r.yaml").write_text(
        "version: 1\nbase: ./base\nexperts: {e0: ./e0, e1: ./e1}\nmerge: {method: ties}\n"
    )
    result = CliRunner().invoke(app, ["merge", "r.yaml", "-o", "out", "--json", *words])
    assert result.exit_code == 0, result.output
    codes = [json.loads(line).get("code") for line in result.stdout.splitlines()]
    assert ("CV-P350" in codes) == made == bool(list(Path("cache").glob("catalogue/*")))


def test_catalogues_of_budgets_and_clusters_are_refused() -> None:
    models()
    Path("r.yaml").write_text(
        "version: 1\nbase: ./base\nexperts: {e0: ./e0, e1: ./e1}\nmerge: {method: ties}\n"
    )
    for words in (["--read-budget", "50%"], ["--engine", "ray"]):
        result = CliRunner().invoke(app, ["merge", "r.yaml", "-o", "out", "--catalog", *words])
        assert result.exception.diagnostics[0].code == "CV-U001"


def test_only_slow_reads_count_as_cold(monkeypatch) -> None:
    models()
    merge = lambda name: told(blend().save(name, run=replace(ON, recording="cold")))  # noqa: E731
    assert merge("warm") == []
    monkeypatch.setattr(residency, "resident", lambda number, offset: None)  # a system that does not tell
    assert merge("unknown") == []
    monkeypatch.setattr(residency, "resident", lambda number, offset: False)
    monkeypatch.setattr(residency, "SLOW", 1.0)
    assert merge("fast") == []
    monkeypatch.setattr(residency, "SLOW", 1e18)
    assert merge("slow") == ["CV-P350"]
    assert weights("slow") == weights("warm")


def test_files_just_written_are_in_the_page_cache_and_advice_drops_them(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 22))
    extents = [residency.Extent(path, 0, 1 << 21), residency.Extent(path, 1 << 21, 1 << 21)]
    found = residency.missing(extents)
    if found is None:
        pytest.skip("this file system does not tell")
    assert found == []
    assert not residency.cold(extents)
    number = os.open(path, os.O_RDONLY)
    os.fsync(number)
    os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
    dropped = residency.resident(number, 1 << 21) is False
    os.close(number)
    if dropped:
        assert len(residency.missing(extents)) > 32

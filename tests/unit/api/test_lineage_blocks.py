"""Merging again by blocks: only what changed is read, the same bytes come out, and nothing wrong is ever copied."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from cuvee.api.blend import Blend
from cuvee.api.execute import save as save_plan
from cuvee.api.lineage import Key, key_of, keys_of
from cuvee.api.remerge import closed, remerge
from cuvee.cli.app import app
from cuvee.core.digests import bytes_digest, canonical_json
from cuvee.engine.events import Progress
from cuvee.engine.fused import fuse
from cuvee.engine.options import RunOptions
from cuvee.errors import RunError
from cuvee.recipe.load import parse_recipe
from cuvee.sources import catalogue as catalogues
from cuvee.sources import catalogue_scan
from cuvee.sources import catalogue_store as store
from cuvee.sources.open import open_source

STEP = 2048  # elements of a block of bfloat16
NAMES = {"a.weight": (200, 64), "b.weight": (90, 33), "n.bias": (0,), "s.step": ()}
OPTIONS = RunOptions(threads=2)
RECIPE = (
    "version: 1\nbase: ./base\nexperts:\n  e0: {{source: ./e0{weight}}}\n  e1: ./e1\n"
    "merge: {{method: {method}}}\n"
)


@pytest.fixture(autouse=True)
def models(monkeypatch, tmp_path):
    monkeypatch.setattr(catalogues, "BLOCK", 2 * STEP)
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    made()
    catalog()


def made(dtype=torch.bfloat16):
    random = np.random.default_rng(8)
    draw = lambda s: torch.from_numpy(np.asarray(random.standard_normal(s), "f4"))  # noqa: E731
    base = {n: draw(s).to(dtype) for n, s in NAMES.items()}
    save("base", base)
    for name in ("e0", "e1"):
        save(name, {n: (t.float() + 0.05 * draw(NAMES[n])).to(dtype) for n, t in base.items()})


def save(folder, tensors):
    Path(folder).mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, Path(folder, "model.safetensors"))


def catalog():
    base, *experts = [open_source(f"./{n}", anchor=Path()) for n in ("base", "e0", "e1")]
    catalogues.catalogue(base, experts)


def changed(*blocks, name="a.weight", folder="e1", value=0.5, step=STEP):
    """Another expert: these blocks of a tensor have other values."""
    tensors = load_file(f"{folder}/model.safetensors")
    flat = tensors[name].reshape(-1)
    for block in blocks:
        flat[block * step : (block + 1) * step] *= value
    save(folder, tensors)
    catalog()


def blend(method="task_arithmetic", weight=0.5):
    return Blend(parse_recipe(text(method, weight)), Path())


def text(method="task_arithmetic", weight=0.5):
    own = "" if method.startswith(UNWEIGHTED) else f", weight: {weight}"
    return RECIPE.format(method=method, weight=own)


def merged(out, method="task_arithmetic", *, earlier=None, options=OPTIONS, weight=0.5):
    """Merge with lineage, from an earlier output where there is one; what was found of it, and what was read."""
    plan = blend(method, weight).build()
    found = remerge(plan, earlier if earlier is None else Path(earlier), options)
    saved = save_plan(
        found.plan, Path(out), options, runner=found.runner(found.less(options)), lineage=found.lineage
    )
    closed(found)
    plan.close()
    return found, saved.finished


def fresh(out, method="task_arithmetic", *, options=OPTIONS, weight=0.5):
    blend(method, weight).save(out, run=replace(options, catalogue=False))
    return weights(out)


def weights(folder):
    return Path(folder, "model.safetensors").read_bytes()


def parts(found):
    return {t.meta.name: t.parts for t in found.lighter.tensors if t.parts}


UNWEIGHTED = ("magmax", "sce", "model_stock")
ELEMENTS = [
    "task_arithmetic",
    "linear",
    "dare_linear, density: 0.5",
    "dare_ties, density: 0.5, rescale: inverse_p, scope: tensor",
    "magmax",
    "ties, density: 0.4, scope: tensor, count: official",
    "ties, density: 1.0",
]


@pytest.mark.parametrize("method", ELEMENTS)
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "torch"])
def test_after_some_blocks_changed_the_bytes_are_those_of_a_full_merge(method, kernels) -> None:
    options = replace(OPTIONS, kernels=kernels)
    merged("one", method, options=options)
    changed(0, 2, 3, 6)
    merged("two", method, earlier="one", options=options)
    assert weights("two") == fresh("full", method, options=options) != weights("one")


@pytest.mark.parametrize("method", ["task_arithmetic", "linear", "dare_linear, density: 0.5", "magmax"])
def test_only_changed_blocks_are_made_and_read(method) -> None:
    merged("one", method)
    changed(0, 2, 3, 6)
    found, done = merged("two", method, earlier="one")
    assert parts(found) == {"a.weight": ((0, STEP), (2 * STEP, 4 * STEP), (6 * STEP, 12800))}
    assert set(found.reused) == {"b.weight", "n.bias", "s.step"}
    inputs = 2 if method == "linear" else 3
    assert done.read_bytes == inputs * 2 * (3 * STEP + 512) + 2 * (90 * 33 + 1)
    assert weights("two") == fresh("full", method)


def test_a_block_that_is_changed_back_is_taken_again() -> None:
    merged("one")
    before = load_file("e1/model.safetensors")
    changed(3)
    merged("two", earlier="one")
    save("e1", before)
    catalog()
    found, _ = merged("three", earlier="two")
    assert parts(found) == {"a.weight": ((3 * STEP, 4 * STEP),)}
    found, _ = merged("four", earlier="one")
    assert len(found.reused) == 4
    assert weights("four") == weights("three") == weights("one") == fresh("full")


def test_blocks_that_change_places_are_made_anew() -> None:
    merged("one")
    tensors = load_file("e1/model.safetensors")
    flat = tensors["a.weight"].reshape(-1)
    flat[: 2 * STEP] = torch.cat([flat[STEP : 2 * STEP], flat[:STEP]])
    save("e1", tensors)
    catalog()
    found, _ = merged("two", earlier="one")
    assert parts(found) == {"a.weight": ((0, 2 * STEP),)}
    assert weights("two") == fresh("full")


def test_a_coefficient_makes_its_tensors_anew() -> None:
    merged("one")
    found, _ = merged("two", earlier="one", weight="{a.*: 0.25, default: 0.5}")
    assert parts(found) == {} and set(found.reused) == {"b.weight", "n.bias", "s.step"}
    assert weights("two") == fresh("full", weight="{a.*: 0.25, default: 0.5}")


def test_thresholds_that_move_make_the_tensor_anew() -> None:
    method = "ties, density: 0.4, scope: tensor, count: official"
    merged("one", method)
    changed(0, 1, 2, value=8.0)
    found, _ = merged("two", method, earlier="one")
    assert parts(found) == {}
    assert weights("two") == fresh("full", method)


def test_thresholds_that_stay_make_only_blocks_anew() -> None:
    """Signs change and no magnitude does, so that the threshold is what it was."""
    method = "ties, density: 0.4, scope: tensor, count: official"
    save("base", {n: torch.zeros(s).bfloat16() for n, s in NAMES.items()})
    catalog()
    merged("one", method)
    changed(4, value=-1.0)
    found, _ = merged("two", method, earlier="one")
    assert parts(found) == {"a.weight": ((4 * STEP, 5 * STEP),)}
    assert weights("two") == fresh("full", method) != weights("one")


def test_ties_that_are_kept_for_where_they_stand_make_the_tensor_anew() -> None:
    method = "ties, density: 0.4, scope: tensor"
    flat = {n: torch.ones(s).bfloat16() for n, s in NAMES.items()}
    save("base", {n: torch.zeros_like(t) for n, t in flat.items()})
    save("e0", flat)
    save("e1", flat)
    catalog()
    merged("one", method)
    tensors = load_file("e1/model.safetensors")
    tensors["a.weight"].reshape(-1)[5] = -1.0
    save("e1", tensors)
    catalog()
    found, _ = merged("two", method, earlier="one")
    assert parts(found) == {}
    assert weights("two") == fresh("full", method)


@pytest.mark.parametrize(
    "method", ["ties, density: 0.4", "sce, select_topk: 0.5", "model_stock", "della, density: 0.5"]
)
def test_what_needs_figures_is_made_whole(method) -> None:
    merged("one", method)
    changed(1)
    found, _ = merged("two", method, earlier="one")
    assert "a.weight" not in parts(found)
    assert weights("two") == fresh("full", method)


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32")], ids=str)
def test_types_of_inputs_and_output_may_differ(dtypes) -> None:
    made(getattr(torch, dtypes[0]))
    catalog()
    method = f"task_arithmetic}}\noutput: {{dtype: {dtypes[1]}"
    merged("one", method)
    changed(2, step=STEP // (2 if dtypes[0] == "float32" else 1))
    found, _ = merged("two", method, earlier="one")
    assert len(parts(found)["a.weight"]) == 1
    assert weights("two") == fresh("full", method)


def test_experts_of_another_type_than_the_base() -> None:
    save("e0", {n: t.float() for n, t in load_file("e0/model.safetensors").items()})
    catalog()
    merged("one")
    changed(5)
    found, done = merged("two", earlier="one")
    assert parts(found) == {"a.weight": ((5 * STEP, 6 * STEP),)}
    assert done.read_bytes == STEP * 8 + 4 * (90 * 33 + 1)  # the output is in float32
    changed(3, folder="e0", step=STEP // 2)
    found, _ = merged("three", earlier="two")
    assert parts(found) == {"a.weight": ((STEP, 2 * STEP),)}
    assert weights("three") == fresh("full")


def test_a_nan_in_a_changed_block_is_named_and_one_that_was_allowed_is_not_taken() -> None:
    merged("one")
    tensors = load_file("e1/model.safetensors")
    tensors["a.weight"].reshape(-1)[3 * STEP + 7] = float("nan")
    save("e1", tensors)
    catalog()
    with pytest.raises(RunError, match="NaN"):
        merged("two", earlier="one")
    allow = replace(OPTIONS, non_finite="allow")
    merged("lax", options=allow)
    with pytest.raises(RunError, match="NaN"):
        merged("strict", earlier="lax")
    changed(0)  # another block than that of the NaN
    with pytest.raises(RunError, match="NaN"):
        merged("stricter", earlier="lax")
    found, _ = merged("three", earlier="lax", options=allow)
    assert parts(found) == {"a.weight": ((0, STEP),)}
    assert weights("three") == fresh("full", options=allow)


def test_a_damaged_block_of_the_earlier_output_is_found_out() -> None:
    merged("one")
    changed(1)
    data = bytearray(weights("one"))
    place = json.loads(Path("one/cuvee-manifest.json").read_text())["tensors"]["a.weight"]["offset"]
    data[place + 2 * 4 * STEP] ^= 1
    Path("one/model.safetensors").write_bytes(bytes(data))
    with pytest.raises(RunError) as caught:
        merged("two", earlier="one")
    assert caught.value.diagnostics[0].code == "CV-E281"
    assert not Path("two").exists()


@pytest.mark.parametrize("earlier", [None, "one"])
def test_an_input_that_changes_before_the_run_is_told(earlier) -> None:
    merged("one")
    found = remerge(blend().build(), earlier and Path(earlier), OPTIONS)
    changed(0)
    with pytest.raises(RunError, match="CV-E072"):
        save_plan(
            found.plan, Path("two"), OPTIONS, runner=found.runner(found.less(OPTIONS)), lineage=found.lineage
        )
    assert not Path("two").exists()


def test_an_earlier_output_that_changes_while_it_is_copied_is_found_out(monkeypatch) -> None:
    merged("one")
    changed(0)
    plan = blend().build()
    found = remerge(plan, Path("one"), OPTIONS)
    checked = type(found).checked

    def touched(self, tell):
        mended = checked(self, tell)
        data = bytearray(weights("one"))
        place = json.loads(Path("one/cuvee-manifest.json").read_text())["tensors"]["a.weight"]["offset"]
        data[place + 2 * 4 * STEP] ^= 1
        with Path("one/model.safetensors").open("r+b") as file:
            file.write(data)
        return mended

    monkeypatch.setattr(type(found), "checked", touched)
    with pytest.raises(RunError) as caught:
        save_plan(found.plan, Path("two"), OPTIONS, runner=found.runner(found.less(OPTIONS)))
    assert caught.value.diagnostics[0].code == "CV-E281"
    assert not Path("two").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda key: {**key, "step": 1024},
        lambda key: {**key, "blocks": key["blocks"][:-32]},
        lambda key: {"whole": key["whole"]},
    ],
    ids=["step", "blocks", "fields"],
)
def test_a_lineage_that_is_not_one_gives_nothing(damage) -> None:
    merged("one")
    changed(1)
    manifest = Path("one/cuvee-manifest.json")
    content = json.loads(manifest.read_text())
    del content["digest"]
    content["lineage"]["a.weight"] = damage(content["lineage"]["a.weight"])
    manifest.write_bytes(canonical_json({**content, "digest": bytes_digest(canonical_json(content))}))
    found, _ = merged("two", earlier="one")
    assert parts(found) == {}
    assert weights("two") == fresh("full")


def test_keys_come_back_from_what_a_manifest_says() -> None:
    plan = blend().build()
    keys = keys_of(plan, OPTIONS)
    plan.close()
    assert {name: key_of(key.as_json()) for name, key in keys.items()} == dict(keys)
    assert len(keys["a.weight"].blocks) == 7 * 16 and keys["b.weight"].step == STEP
    assert keys["n.bias"].blocks == keys["s.step"].blocks == b""
    assert key_of("x") == Key("x")
    right = {"whole": "x", "step": 8, "blocks": "0" * 64}
    assert key_of(right) == Key("x", 8, bytes(32))
    wrong = [
        {"step": 0},
        {"step": True},
        {"step": "8"},
        {"blocks": "0" * 63},
        {"blocks": [1]},
        {"blocks": ""},
    ]
    wrong += [{"blocks": "g" * 32}, {"whole": 1}, {"more": 1}]
    for told in (None, 7, [], {}, *({**right, **one} for one in wrong)):
        assert key_of(told) is None, told


def test_what_kernels_give_up_is_told_once(monkeypatch) -> None:
    """Copied blocks lie before, between and behind those that are made; kernels give up at the second run of them."""
    merged("one")
    changed(1, 3)
    run, told = fuse.run, {}

    def giving_up(feed, worker, kernels, program, write, *rest, **more):
        runs = []

        def written(first, count, data, **made):
            runs.append(first)
            if first >= 3 * STEP:
                raise fuse.Unfusable("a test")
            write(first, count, data, **made)

        run(feed, worker, kernels, program, written, *rest, **more)

    def listener(event):
        if isinstance(event, Progress):
            told[event.tensor] = told.get(event.tensor, 0) + event.bytes

    plan = blend().build()
    found = remerge(plan, Path("one"), OPTIONS)
    assert parts(found) == {"a.weight": ((STEP, 2 * STEP), (3 * STEP, 4 * STEP))}
    monkeypatch.setattr(fuse, "run", giving_up)
    save_plan(found.plan, Path("two"), OPTIONS, runner=found.runner(found.less(OPTIONS)), listener=listener)
    monkeypatch.setattr(fuse, "run", run)
    closed(found)
    assert {name: told.get(name, 0) for name in NAMES} == {t.meta.name: t.meta.nbytes for t in plan.tensors}
    plan.close()
    assert weights("two") == fresh("full")


def test_an_interrupted_merge_goes_on() -> None:
    merged("one")
    changed(1)
    plan = blend().build()
    found = remerge(plan, Path("one"), OPTIONS)

    def broken(plan, session, options, listener):
        found.runner(found.less(options))(plan, session, options, listener)
        raise RunError("CV-E022", "over")

    with pytest.raises(RunError, match="over"):
        save_plan(found.plan, Path("two"), OPTIONS, runner=broken)
    done = save_plan(found.plan, Path("two"), OPTIONS, runner=found.runner(found.less(OPTIONS))).finished
    assert done.resumed_bytes > 0
    assert weights("two") == fresh("full")


def test_catalogue_and_lineage_in_one_merge() -> None:
    """`--catalog --lineage`: what the inputs hold is known when they were read."""
    for file in Path("cache/catalogue").glob("*"):
        file.unlink()
    Path("r.yaml").write_text(text())
    words = ["merge", "r.yaml", "-o", "one", "--lineage", "--catalog"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    changed(2)
    found, _ = merged("two", earlier="one")
    assert parts(found) == {"a.weight": ((2 * STEP, 3 * STEP),)}
    assert weights("two") == fresh("full")


def apart():
    """Each expert is catalogued with the base, and no two of them together."""
    for file in Path("cache/catalogue").glob("*"):
        file.unlink()
    base, *experts = [open_source(f"./{n}", anchor=Path()) for n in ("base", "e0", "e1")]
    for expert in experts:
        catalogues.catalogue(base, [expert])


def test_what_is_known_is_not_read_again_to_be_catalogued(monkeypatch) -> None:
    merged("one")
    changed(2)
    apart()
    Path("r.yaml").write_text(text())
    read: list[str] = []
    seen = catalogue_scan.reading_of
    monkeypatch.setattr(catalogue_scan, "reading_of", lambda *words: read.append(words[1]) or seen(*words))
    words = ["merge", "r.yaml", "-o", "two", "--from", "one", "--catalog"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert read == []
    assert weights("two") == fresh("full")
    base, expert = [open_source(f"./{n}", anchor=Path()) for n in ("base", "e1")]
    store.path_of("change", catalogues.fingerprints((base, expert))).unlink()
    result = CliRunner().invoke(app, [*words[:3], "three", *words[4:]], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert set(read) == {name for name in NAMES if name != "n.bias"}
    assert set(catalogues.changes_of(base, expert)) == set(NAMES) - {"n.bias"}


READ = """
import sys
from pathlib import Path
def counted():
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
from click.testing import CliRunner
from cuvee.cli.app import app
CliRunner().invoke(app, ["merge", "r.yaml", "-o", "warm", "--overwrite"], catch_exceptions=False)
before = counted()
result = CliRunner().invoke(app, sys.argv[1:], catch_exceptions=False)
assert result.exit_code == 0, result.output
print(counted() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count")
def test_the_process_reads_no_more_than_it_says(monkeypatch) -> None:
    """What the system counts: all of the inputs in a full merge, and one block of each in the other."""
    mib = 1 << 20
    monkeypatch.setattr(catalogues, "BLOCK", mib)
    base = {"w.weight": torch.randn(24 * mib // 2 // 64, 64).bfloat16()}
    save("base", base)
    for seed in (1, 2):
        torch.manual_seed(seed)
        save(f"e{seed - 1}", {n: t + 0.01 * torch.randn(t.shape).bfloat16() for n, t in base.items()})
    catalog()
    Path("r.yaml").write_text(text())

    def read(*words):
        done = subprocess.run(
            [sys.executable, "-c", READ, "merge", "r.yaml", *words],
            capture_output=True,
            text=True,
            env={**os.environ, "CUVEE_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    full = read("-o", "one", "--lineage")
    changed(0, 9, name="w.weight", step=mib // 2)
    again = read("-o", "two", "--from", "one")
    copied = 24 * mib + 22 * mib  # the earlier output: once to look at all of it, once to copy
    assert 3 * 24 * mib <= full < 3 * 24 * mib + 4 * mib
    assert copied + 6 * mib <= again < copied + 6 * mib + 4 * mib
    assert weights("two") == fresh("full")

"""What a catalogue proves needless is not read, for any method, and not one byte of the output is another."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from cuvee.api.blend import Blend
from cuvee.api.budget import budgeted, make_catalogue
from cuvee.api.execute import load
from cuvee.api.execute import save as save_plan
from cuvee.api.sparing import memo_of, spared
from cuvee.cli.app import app
from cuvee.engine.options import RunOptions
from cuvee.engine.run import run
from cuvee.errors import RunError
from cuvee.recipe.load import parse_recipe
from cuvee.sinks.memory import MemorySink
from cuvee.sources import catalogue as catalogues
from cuvee.sources.catalogue import digests_of, fingerprint
from cuvee.sources.open import open_source
from cuvee.sources.spared import SparedSource

SHAPES = {"a.weight": (160, 64), "b.weight": (300, 33), "c.bias": (77,), "d.weight": (128, 64)}
BLOCK = 4096  # bytes; whole tiles of every type
OPTIONS = RunOptions(threads=2)
METHODS = [
    "linear",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "breadcrumbs",
    "breadcrumbs_ties",
    "sce",
    "magmax",
    "model_stock",
    "karcher",
    "multislerp",
    "consensus",
    "ram",
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch, tmp_path):
    monkeypatch.setattr(catalogues, "BLOCK", BLOCK)
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))


def save(folder, tensors):
    folder.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")


def models(folder, dtype=torch.bfloat16):
    """A base and three experts: some blocks untouched, some that two of them share, one whole tensor untouched."""
    random = np.random.default_rng(5)
    base = {n: torch.from_numpy(random.standard_normal(s).astype("f4")).to(dtype) for n, s in SHAPES.items()}
    save(folder / "base", base)
    first = None
    for k in range(3):
        expert = {}
        for name, tensor in base.items():
            step = BLOCK // tensor.element_size()
            flat = tensor.reshape(-1).clone()
            for number, start in enumerate(range(0, len(flat), step)):
                part = flat[start : start + step]
                if name == "d.weight" or (number + k) % 3 == 0:
                    continue
                if k == 2 and number % 2:
                    part[:] = first[name].reshape(-1)[start : start + step]
                    continue
                noise = random.standard_normal(len(part)).astype("f4") * 10.0 ** -float(number % 3 + 1)
                part += torch.from_numpy(noise).to(dtype)
            expert[name] = flat.reshape(tensor.shape)
        first = first or expert
        save(folder / f"e{k}", expert)


def catalog(folder, names=("e0", "e1", "e2")):
    return make_catalogue(list(names), "base", anchor=folder, offline=True)


def recipe(method, extra="", density=None):
    rows = "".join(f"  e{k}: {{source: ./e{k}, weight: {w}}}\n" for k, w in enumerate((1.0, 0.5, -0.3)))
    if method in ("karcher", "multislerp", "model_stock", "sce", "magmax", "consensus", "ram"):
        rows = "".join(f"  e{k}: ./e{k}\n" for k in range(3))
    given = "" if density is None else f", density: {density}"
    return f"version: 1\nbase: ./base\nexperts:\n{rows}merge: {{method: {method}{given}{extra}}}\n"


def plan_of(folder, text):
    return Blend(parse_recipe(text), folder, True).build()


def bits(tensors):
    return {n: t.contiguous().view(torch.uint8).numpy().tobytes() for n, t in tensors.items()}


@pytest.mark.parametrize("kernels", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("method", METHODS)
def test_the_bytes_are_those_of_a_run_without_a_catalogue(method, kernels, tmp_path) -> None:
    models(tmp_path)
    catalog(tmp_path)
    options = replace(OPTIONS, kernels=kernels)
    plan = plan_of(tmp_path, recipe(method))
    whole = load(plan, replace(options, catalogue=False))
    less = spared(plan, options)
    assert less.nbytes > 0
    assert any(note.code == "CV-P280" for note in less.plan.notes)
    assert less.plan.digest == plan.digest
    assert bits(load(plan, options)) == bits(whole)
    plan.close()


class Counting:
    """A source that tells which elements were read of it."""

    def __init__(self, source):
        self.source, self.read_blocks = source, set()

    def __getattr__(self, name):
        return getattr(self.source, name)

    def extent(self, name):
        return None  # so that everything goes through `read`

    def read(self, name, start=0, stop=None):
        meta = self.source.tensors[name]
        stop = meta.numel if stop is None else stop
        step = BLOCK // meta.dtype.size
        self.read_blocks |= {(name, b) for b in range(start // step, -(-stop // step))}
        return self.source.read(name, start, stop)


def test_blocks_that_are_elsewhere_are_never_asked_for(tmp_path) -> None:
    models(tmp_path)
    catalog(tmp_path)
    plan = plan_of(tmp_path, recipe("ties", density=0.5))
    less = spared(plan, OPTIONS).plan
    counters = {}
    for key in ("e0", "e1", "e2"):
        wrapper = less.sources[key].source
        assert isinstance(wrapper, SparedSource)
        counters[key] = wrapper._expert = Counting(wrapper._expert)
    load(less, replace(OPTIONS, kernels=False))
    held = {k: digests_of(plan.sources[k].source) for k in plan.sources}
    order = list(plan.sources)
    for key, counter in counters.items():
        for name, block in counter.read_blocks:
            earlier = order[: order.index(key)]
            assert all((held[o][name][block] != held[key][name][block]).any() for o in earlier)
        assert not any(name == "d.weight" for name, _ in counter.read_blocks)
    plan.close()


@pytest.mark.parametrize("scope", ["model", "tensor"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("count", ["exact", "official"])
def test_thresholds_come_from_the_catalogue(scope, dtype, count, tmp_path) -> None:
    """No pass looks for them: the run is told all of them, at any density, and ties are cut where a pass cuts them."""
    models(tmp_path, dtype)
    catalog(tmp_path)
    for density in (0.001, 0.2, 0.37, 0.999):
        extra = f", scope: {scope}, count: {count}"
        plan = plan_of(tmp_path, recipe("ties", extra, density))
        whole = load(plan, replace(OPTIONS, catalogue=False))
        less = spared(plan, OPTIONS)
        assert less.tables is not None
        asked: list[str] = []
        memo = memo_of(less.tables)
        known = memo.known

        def told(what, nodes, known=known, asked=asked):
            found = known(what, nodes)
            asked.append(what if found is None else "")
            return found

        memo.known = told
        sink = MemorySink()
        with sink.begin(plan.layout, plan.digest, resume=False, overwrite=False) as session:
            run(less.plan, session, OPTIONS, memo=memo)
            session.commit({}, lambda records: b"{}")
        assert bits(sink.tensors) == bits(whole)
        assert asked
        assert not any(asked)
        plan.close()


def test_what_is_trimmed_whole_is_not_read(tmp_path) -> None:
    """Blocks in which nothing reaches the threshold; where the factor of `l1` needs them, they are read."""
    models(tmp_path)
    catalog(tmp_path)
    by = {}
    for extra in ("", ", rescale: l1"):
        plan = plan_of(tmp_path, recipe("ties", f", scope: tensor{extra}", 0.05))
        by[extra] = spared(plan, OPTIONS)
        whole = load(plan, replace(OPTIONS, catalogue=False))
        assert bits(load(plan, OPTIONS)) == bits(whole)
        assert bits(load(by[extra].plan, replace(OPTIONS, kernels=False))) == bits(whole)
        plan.close()
    assert by[""].nbytes > by[", rescale: l1"].nbytes
    assert "are trimmed whole" in by[""].plan.notes[-1].message
    assert "are trimmed whole" not in by[", rescale: l1"].plan.notes[-1].message


def test_bfloat16_differences_have_thresholds_of_their_own(tmp_path) -> None:
    """A recipe in bfloat16 rounds task vectors, and magnitudes that differ in float32 become equal."""
    models(tmp_path)
    catalog(tmp_path)
    text = "merge_method: ties\nbase_model: base\nmodels:\n" + "".join(
        f"  - {{model: e{k}, parameters: {{weight: 1, density: 0.{k + 3}}}}}\n" for k in range(3)
    )
    plan = plan_of(tmp_path, text + "dtype: bfloat16\n")
    less = spared(plan, OPTIONS)
    whole = load(plan, replace(OPTIONS, catalogue=False))
    assert bits(load(plan, OPTIONS)) == bits(whole)
    assert less.tables is not None
    assert less.tables.asked
    plan.close()


def test_too_many_magnitudes_are_left_to_a_pass(tmp_path, monkeypatch) -> None:
    from cuvee.sources import catalogue_look

    monkeypatch.setattr(catalogue_look, "MOST", 64)
    models(tmp_path, torch.float32)
    catalog(tmp_path)
    plan = plan_of(tmp_path, recipe("ties", ", scope: tensor", 0.3))
    whole = load(plan, replace(OPTIONS, catalogue=False))
    assert bits(load(plan, OPTIONS)) == bits(whole)
    plan.close()


def test_a_source_is_known_by_what_its_files_are_now(tmp_path) -> None:
    models(tmp_path)
    catalog(tmp_path)
    source = open_source("e0", anchor=tmp_path)
    before = fingerprint(source)
    path = tmp_path / "e0" / "model.safetensors"
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    import os

    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if nothing had happened
    assert fingerprint(source) != before
    assert digests_of(source) is None
    source.close()


def test_a_damaged_catalogue_is_none(tmp_path) -> None:
    models(tmp_path)
    catalog(tmp_path)
    base, *experts = sources = [open_source(name, anchor=tmp_path) for name in ("base", "e0", "e1", "e2")]
    files = sorted((tmp_path / "cache" / "catalogue").glob("*.npz"))
    random = np.random.default_rng(0)
    lost = 0
    for file in files:
        data = file.read_bytes()
        for _ in range(25):
            damaged = np.frombuffer(data, np.uint8).copy()
            damaged[random.integers(len(damaged), size=3)] ^= 1 << random.integers(8, dtype=np.uint8)
            file.write_bytes(damaged[: random.integers(len(data) // 2, 2 * len(data))].tobytes())
            digests_of(experts[0])
            lost += catalogues.catalogued(base, experts) is None
        file.write_bytes(data)
    assert lost > 10
    assert catalogues.catalogued(base, experts) is not None
    for source in sources:
        source.close()


def test_what_lies_in_no_file_has_no_catalogue(tmp_path) -> None:
    from cuvee.sources.memory import MemorySource

    one = MemorySource({"w": torch.zeros(4)}, label="one")
    two = MemorySource({"w": torch.ones(4)}, label="two")
    assert fingerprint(one) is fingerprint(two) is None
    catalogues.catalogue(one, [two])
    assert digests_of(one) is None


def test_the_command_can_be_told_to_read_everything(tmp_path, monkeypatch) -> None:
    models(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(recipe("ties", density=0.3))
    run_ = lambda *words: CliRunner().invoke(app, list(words), catch_exceptions=False)  # noqa: E731
    assert run_("catalog", "e0", "e1", "e2", "--base", "base").exit_code == 0
    less = run_("merge", "r.yaml", "-o", "less", "--json")
    more = run_("merge", "r.yaml", "-o", "more", "--json", "--no-catalog")
    read = [json.loads(r.stdout.splitlines()[-1])["read_bytes"] for r in (less, more)]
    assert read[0] < read[1]
    assert "CV-P280" in less.stdout
    assert "CV-P280" not in more.stdout
    manifests = [json.loads(Path(out, "cuvee-manifest.json").read_text()) for out in ("less", "more")]
    assert manifests[0] == manifests[1]


@pytest.mark.skipif(
    not Path("/proc/self/io").exists(), reason="the system does not count what a process reads"
)
@pytest.mark.parametrize("method", ["dare_linear", "ties", "linear"])
def test_the_device_is_not_asked_for_what_is_elsewhere(method, tmp_path, monkeypatch) -> None:
    """By the process's own counter: three blocks of 24 differ, and about three are read of each expert."""
    import os

    monkeypatch.setattr(catalogues, "BLOCK", 1 << 20)
    base = {"w": torch.randn(24, 1 << 18)}
    save(tmp_path / "base", base)
    for k in range(3):
        expert = {"w": base["w"].clone()}
        expert["w"][[k, k + 8, k + 16]] += 0.01 * torch.randn(3, 1 << 18)
        save(tmp_path / f"e{k}", expert)
    catalog(tmp_path)
    plan = plan_of(tmp_path, recipe(method))

    def from_device() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("read_bytes")))

    for k in range(3):
        number = os.open(tmp_path / f"e{k}" / "model.safetensors", os.O_RDONLY)
        os.fsync(number)
        os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(number)
    before = from_device()
    load(plan, OPTIONS)
    read = from_device() - before
    plan.close()
    blocks = (
        33 if method == "linear" else 9
    )  # without a base one expert is read whole, of the others what is nowhere else
    assert read <= (blocks + 6) << 20  # of 72; what the system reads ahead behind each run counts, too


def rounding_up(folder, dtype):
    """An expert whose second block changes by less than the first one, but by as much once that is rounded."""
    step, digit = BLOCK // 2, torch.finfo(dtype).eps
    base = torch.zeros(2 * step)
    base[step:] = -0.75 * digit
    save(folder / "base", {"w": base.to(dtype)})
    for k, size in enumerate((1.0, 3.0, 0.25)):
        expert = torch.full((2 * step,), size)
        expert[:step] += digit if k == 0 else 0
        save(folder / f"e{k}", {"w": expert.to(dtype)})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_reaches_the_threshold_once_it_is_rounded_is_read(dtype, tmp_path) -> None:
    """Arithmetic in 16 bits: the largest change of a block is below the threshold, and what it is rounded to is not."""
    rounding_up(tmp_path, getattr(torch, dtype))
    catalog(tmp_path)
    experts = "experts: {e0: ./e0, e1: ./e1, e2: ./e2}"
    merge = "merge: {method: ties, density: 0.75, scope: tensor}"
    plan = plan_of(tmp_path, f"version: 1\nbase: ./base\n{experts}\n{merge}\ndtype: {dtype}\n")
    whole = load(plan, replace(OPTIONS, catalogue=False))
    half = BLOCK // 4
    assert len(set(whole["w"][2 * half :].tolist())) > 1  # half of the second block is kept
    assert spared(plan, OPTIONS).tables is not None
    assert bits(load(plan, OPTIONS)) == bits(whole)
    asked = budgeted(plan, None, 0.0, OPTIONS)
    assert asked.choice.bound == 0
    assert bits(load(asked.plan, OPTIONS)) == bits(whole)
    plan.close()


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_a_model_replaced_after_its_catalogue_was_asked_is_an_error(method: str, tmp_path) -> None:
    """Blocks of the new file were never compared; whoever planned with the old one must not merge both."""
    models(tmp_path)
    catalog(tmp_path)
    plan = plan_of(tmp_path, recipe(method, density=0.3 if method == "ties" else None))
    lighter = spared(plan, OPTIONS)
    assert lighter.nbytes
    path = tmp_path / "e1" / "model.safetensors"
    fresh = path.with_suffix(".new")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    fresh.write_bytes(bytes(data))
    fresh.rename(path)
    with pytest.raises(RunError, match="changed while it was merged"):
        save_plan(lighter.plan, tmp_path / "out", OPTIONS, runner=lighter.runner)
    assert not (tmp_path / "out").exists()
    plan.close()

"""Packages end to end: what is written, what comes back, how large it is (P1, P2 and P4 of packages), and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cuvee
from cuvee.api.blend import Blend
from cuvee.api.package import save_as_package
from cuvee.engine.fused.fuse import Fused
from cuvee.engine.kernels import library as kernels
from cuvee.engine.options import RunOptions
from cuvee.errors import CuveeError, PlanError, RecipeError, SourceError
from cuvee.recipe.load import parse_recipe

METHODS = {
    "tall_masks": {"strength": 0.3},
    "emr": {},
    "tsv_c": {},
    "reversible_merging": {"basis": 2},
    "onebit": {},
}
SHAPES = {"a.weight": (40, 33), "b.weight": (24, 64), "n.weight": (17,), "s": (), "empty.weight": (0, 4)}
NAMES = ("math", "code", "chat")


def _write(folder: Path, tensors: dict[str, Any], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def _draw(seed: int, base: dict[str, Any] | None = None, dtype: Any = torch.float32) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    noise = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    values = noise if base is None else {n: base[n].float() + 0.1 * x for n, x in noise.items()}
    return {name: x.to(dtype) for name, x in values.items()}


def _models(folder: Path, dtype: Any = torch.float32, count: int = 3) -> dict[str, dict[str, Any]]:
    base = _draw(0, dtype=dtype)
    every = {"base": base, **{name: _draw(i, base, dtype) for i, name in enumerate(NAMES[:count], 1)}}
    for name, tensors in every.items():
        _write(folder / name, tensors)
    return every


def _save(folder: Path, method: str, out: str = "pack", count: int = 3, **more: Any) -> Any:
    models = {name: str(folder / name) for name in NAMES[:count]}
    given = {**METHODS.get(method, {}), **more}
    return save_as_package(models, folder / out, base=str(folder / "base"), method=method, **given)


def _task(folder: Path, task: str, out: str = "pack") -> dict[str, Any]:
    with cuvee.open(f"{folder / out}#{task}") as opened:
        return {name: opened.tensor(name) for name in opened.source.tensors}


def _stored(folder: Path) -> int:
    return sum(
        t.numel() * t.element_size() for f in folder.rglob("*.safetensors") for t in load_file(f).values()
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_task_is_what_the_method_restores(method: str, tmp_path: Path) -> None:
    """The package gives the same bits as a recipe that restores the one expert, and the bytes it says."""
    _models(tmp_path)
    saved = _save(tmp_path, method)
    assert saved.content["bytes"]["total"] == _stored(tmp_path / "pack")
    own = {"emr": "emr_expert"}.get(method, method)
    for number, task in enumerate(NAMES):
        flags = [i == number for i in range(3)]
        models = {name: str(tmp_path / name) for name in NAMES}
        merged = cuvee.merge(
            models, base=str(tmp_path / "base"), method=own, restore=flags, **METHODS[method]
        ).load()
        found = _task(tmp_path, task)
        assert found.keys() == merged.keys()
        for name, tensor in merged.items():
            assert torch.equal(found[name], tensor), name
    assert not cuvee.verify(tmp_path / "pack")


@pytest.mark.parametrize("method", ["tall_masks", "emr", "tsv_c", "reversible_merging"])
def test_one_expert_comes_back_bit_for_bit(method: str, tmp_path: Path) -> None:
    """P1: bfloat16 differences are exact in float32, so is their sum."""
    models = _models(tmp_path, torch.bfloat16, count=1)
    _save(tmp_path, method, count=1)
    for name, tensor in _task(tmp_path, "math").items():
        assert torch.equal(tensor.to(torch.bfloat16), models["math"][name]), name


def test_the_formula_of_bytes(tmp_path: Path) -> None:
    """P4: one vector, and for each task a bit for each weight (rounded up for each tensor) and, in EMR, one number."""
    _models(tmp_path)
    sizes = [torch.Size(shape).numel() for shape in SHAPES.values()]
    bits = sum((size + 7) // 8 for size in sizes)
    assert _save(tmp_path, "tall_masks").content["bytes"]["total"] == 4 * sum(sizes) + 3 * bits
    assert _save(tmp_path, "emr", "emr").content["bytes"]["total"] == 4 * sum(sizes) + 3 * (bits + 8)
    half = _save(tmp_path, "emr", "half", out_dtype="bfloat16").content["bytes"]
    assert half["shared"] == 2 * sum(sizes)
    assert half["separate_models"] == 3 * 4 * sum(sizes)
    rank_a, rank_b = 33 // 3, 24 // 3
    factors = 4 * (rank_a * 73 + rank_b * 88 + 17 + 1)
    assert _save(tmp_path, "tsv_c", "tsv").content["bytes"]["total"] == 3 * factors
    onebit = _save(tmp_path, "onebit", "onebit").content["bytes"]["total"]
    assert onebit == 3 * (bits + 8 * len(SHAPES))
    basis = _save(tmp_path, "reversible_merging", "rmm").content["bytes"]["total"]
    assert basis == 2 * 4 * sum(sizes) + 3 * 2 * 8 * len(SHAPES)


def test_written_again_it_is_the_same_bytes(tmp_path: Path) -> None:
    """P2, for every block size: files are equal, and what is materialised from them."""
    _models(tmp_path)
    for method in METHODS:
        first = _save(tmp_path, method, f"{method}-1", run=RunOptions(block=1024))
        second = _save(tmp_path, method, f"{method}-2", run=RunOptions(threads=3, memory=1 << 16))
        for path in sorted(first.path.rglob("*.safetensors")):
            twin = second.path / path.relative_to(first.path)
            assert path.read_bytes() == twin.read_bytes(), path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["tall_masks", "emr", "onebit", "trimmed"])
def test_kernels_and_threads_change_no_byte(method: str, dtype: Any, tmp_path: Path) -> None:
    models = _models(tmp_path, dtype)
    models["math"]["a.weight"][:9] = models["base"]["a.weight"][:9]  # changes of 0
    _write(tmp_path / "again", models["math"]).rename(tmp_path / "math2")
    chain: Any = {"trimmed": [("trim", {"density": 0.3}), "tall_masks"]}.get(method, method)
    found = []
    for on, threads, block in ((False, 1, None), (True, 1, 1024), (True, 2, None)):
        run = RunOptions(kernels=on, threads=threads, block=block)
        given = {"math": str(tmp_path / "math2"), "code": str(tmp_path / "code")}
        saved = save_as_package(
            given, tmp_path / "pack", base=str(tmp_path / "base"), method=chain, run=run, overwrite=True
        )
        found.append({p.relative_to(saved.path): p.read_bytes() for p in saved.path.rglob("*.safetensors")})
    assert found[0] == found[1] == found[2]


@pytest.mark.skipif(kernels.kernels() is None, reason="no kernels")
@pytest.mark.parametrize("method", ["tall_masks", "emr", "onebit"])
def test_kernels_make_what_has_elements(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    original = Fused.marks

    def counted(fused: Any, tensor: Any, *arguments: Any) -> Any:
        found = original(fused, tensor, *arguments)
        made.append(tensor.meta.name)
        return found

    monkeypatch.setattr(Fused, "marks", counted)
    _models(tmp_path, torch.bfloat16)
    _save(tmp_path, method)
    assert set(made) == {name for name in SHAPES if name != "empty.weight"}


def test_weights_over_tasks(tmp_path: Path) -> None:
    models = _models(tmp_path)
    _save(tmp_path, "emr")
    base = models["base"]
    found = _task(tmp_path, "math=0.25&code=-1.5")
    math, code = _task(tmp_path, "math"), _task(tmp_path, "code")
    for name in SHAPES:
        exact = (
            base[name].double()
            + 0.25 * (math[name].double() - base[name])
            - 1.5 * (code[name].double() - base[name])
        )
        assert torch.allclose(found[name].double(), exact, atol=1e-5)


def _write_whole(folder: Path) -> dict[str, dict[str, Any]]:
    """Models with a head of their own shape, whole numbers, and a tensor that only the base has."""
    base = {
        "model.x.weight": torch.randn(6, 5),
        "ids": torch.arange(4),
        "classifier.weight": torch.randn(3, 6),
    }
    one = {**base, "model.x.weight": base["model.x.weight"] + 1, "classifier.weight": torch.randn(7, 6)}
    two = {**one, "ids": torch.arange(4) * 2, "classifier.weight": torch.randn(2, 6)}
    for name, tensors, labels in (("base", base, 3), ("math", one, 7), ("code", two, 2)):
        config = {"model_type": "bert", "architectures": ["BertForSequenceClassification"], "labels": labels}
        _write(folder / name, tensors, config)
    return {"base": base, "math": one, "code": two}


def test_heads_and_whole_numbers_are_each_tasks_own(tmp_path: Path) -> None:
    models = _write_whole(tmp_path)
    saved = _save(tmp_path, "emr", count=2)
    assert saved.content["tasks"]["math"]["codecs"]["whole"] == ["classifier.weight"]
    for task in ("math", "code"):
        found = _task(tmp_path, task)
        assert torch.equal(found["ids"], models[task]["ids"])
        assert torch.equal(found["classifier.weight"], models[task]["classifier.weight"])
        with cuvee.open(f"{tmp_path / 'pack'}#{task}") as opened:
            assert opened.source.config["labels"] == len(models[task]["classifier.weight"])
    with pytest.raises(SourceError, match="cannot be weighed"):
        _task(tmp_path, "math=0.5&code=0.5")


def test_few_changed_entries_are_stored_by_position(tmp_path: Path) -> None:
    base = {"x": torch.randn(50, 40)}
    some = base["x"].clone()
    some.view(-1)[[3, 700, 1999]] += 1
    _write(tmp_path / "base", base)
    _write(tmp_path / "math", {"x": some})
    _write(tmp_path / "code", {"x": base["x"]})
    saved = save_as_package(
        {"math": str(tmp_path / "math"), "code": str(tmp_path / "code")},
        tmp_path / "pack",
        base=str(tmp_path / "base"),
        method=["restore_expert"],
    )
    assert saved.content["tasks"]["math"]["codecs"] == {"sparse": ["x"]}
    assert saved.content["bytes"]["total"] == 3 * 8
    assert torch.allclose(_task(tmp_path, "math")["x"], some, atol=1e-6)
    assert torch.equal(_task(tmp_path, "code")["x"], base["x"])


def test_conditions_before_a_code(tmp_path: Path) -> None:
    _models(tmp_path)
    models = {name: str(tmp_path / name) for name in NAMES}
    chain = [("trim", {"density": 0.1}), "restore_expert"]
    saved = save_as_package(models, tmp_path / "pack", base=str(tmp_path / "base"), method=chain)
    assert "a.weight" in saved.content["tasks"]["code"]["codecs"]["sparse"]
    flags = [False, True, False]
    whole = [("trim", {"density": 0.1}), ("restore_expert", {"restore": flags})]
    merged = cuvee.merge(models, base=str(tmp_path / "base"), method=whole).load()
    assert all(torch.equal(x, merged[name]) for name, x in _task(tmp_path, "code").items())


def test_modules_that_are_not_compressed_are_whole(tmp_path: Path) -> None:
    models = _models(tmp_path)
    rules = {"n.weight": False, "default": True}
    saved = _save(tmp_path, "onebit", compress=rules)
    codecs = saved.content["tasks"]["code"]["codecs"]
    assert codecs["dense"] == ["n.weight"]
    assert "a.weight" in codecs["sign"]
    found, base = _task(tmp_path, "code"), models["base"]
    assert torch.allclose(found["n.weight"], models["code"]["n.weight"], atol=1e-6)
    change = models["code"]["a.weight"].double() - base["a.weight"].double()
    signs = torch.where(change < 0, -1.0, 1.0).double() * change.abs().mean()
    assert torch.allclose(found["a.weight"].double(), base["a.weight"].double() + signs, atol=1e-6)


def test_an_adapter_on_a_task(tmp_path: Path) -> None:
    _models(tmp_path)
    _save(tmp_path, "emr")
    (tmp_path / "lora").mkdir()
    a, b = torch.randn(2, 33), torch.randn(40, 2)
    names = {f"base_model.model.a.lora_{x}.weight": t for x, t in (("A", a), ("B", b))}
    save_file(names, tmp_path / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["a"]}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    with cuvee.open(f"{tmp_path / 'pack'}#math + {tmp_path / 'lora'}") as opened:
        found = opened.tensor("a.weight")
    assert torch.allclose(found, _task(tmp_path, "math")["a.weight"] + b @ a, atol=1e-5)


def test_adapters_share_a_basis_of_their_factors(tmp_path: Path) -> None:
    base = {"layer.weight": torch.randn(30, 20)}
    _write(tmp_path / "base", base)
    products = []
    for name in NAMES:
        a, b = torch.randn(2, 20), torch.randn(30, 2)
        products.append(b @ a)
        (tmp_path / name).mkdir()
        save_file(
            {"base_model.model.layer.lora_A.weight": a, "base_model.model.layer.lora_B.weight": b},
            tmp_path / name / "adapter_model.safetensors",
        )
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["layer"]}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    models = {name: f"{tmp_path / 'base'} + {tmp_path / name}" for name in NAMES}
    saved = save_as_package(
        models, tmp_path / "pack", base=str(tmp_path / "base"), method="reversible_merging", basis=2
    )
    assert saved.content["tasks"]["math"]["codecs"] == {"basis_product": ["layer.weight"]}
    assert saved.content["bytes"]["total"] == 2 * 2 * 50 * 4 + 3 * 2 * 2 * 8
    flags = [False, False, True]
    merged = cuvee.merge(
        models, base=str(tmp_path / "base"), method="reversible_merging", restore=flags
    ).load()
    assert torch.allclose(_task(tmp_path, "chat")["layer.weight"], merged["layer.weight"], atol=1e-5)
    for method in ("reversible_merging", ["restore_expert"]):
        given = {"basis": 3} if isinstance(method, str) else {}
        out = tmp_path / f"whole-{len(given)}"
        whole = save_as_package(models, out, base=str(tmp_path / "base"), method=method, **given)
        assert whole.content["tasks"]["math"]["codecs"] == {"low_rank": ["layer.weight"]}
        assert whole.content["bytes"]["total"] == 3 * 2 * 50 * 4
        for name, product in zip(NAMES, products, strict=True):
            found = _task(tmp_path, name, out.name)["layer.weight"]
            assert torch.allclose(found, base["layer.weight"] + product, atol=1e-5)


def test_the_base_is_included_or_known_again(tmp_path: Path) -> None:
    models = _models(tmp_path)
    _save(tmp_path, "emr", "away")
    _save(tmp_path, "emr", "whole", include_base=True)
    before = _task(tmp_path, "math", "away")
    (tmp_path / "base").rename(tmp_path / "moved")
    assert all(torch.equal(x, before[n]) for n, x in _task(tmp_path, "math", "whole").items())
    with pytest.raises(SourceError, match="cannot be opened") as missing:
        _task(tmp_path, "math", "away")
    assert missing.value.diagnostics[0].code == "CV-S183"
    again = _task(tmp_path, f"math&base={tmp_path / 'moved'}", "away")
    assert all(torch.equal(x, before[n]) for n, x in again.items())
    save_file(
        {**models["base"], "n.weight": models["base"]["n.weight"] + 1},
        tmp_path / "moved" / "model.safetensors",
    )
    with pytest.raises(SourceError, match="hold other values") as other:
        _task(tmp_path, f"math&base={tmp_path / 'moved'}", "away")
    assert other.value.diagnostics[0].code == "CV-S184"


def test_models_in_memory_with_their_base(tmp_path: Path) -> None:
    base = _draw(0)
    models = {name: _draw(i, base) for i, name in enumerate(NAMES, 1)}
    with pytest.raises(PlanError, match="include_base") as error:
        save_as_package(models, tmp_path / "pack", base=base)
    assert error.value.diagnostics[0].code == "CV-P181"
    save_as_package(models, tmp_path / "pack", base=base, include_base=True)
    found = _task(tmp_path, "code")
    merged = cuvee.merge(models, base=base, method="emr_expert", restore=[False, True, False]).load()
    assert all(torch.equal(x, merged[n]) for n, x in found.items())


def test_names_of_tasks_that_are_no_names_of_folders(tmp_path: Path) -> None:
    base = _draw(0)
    models = {
        name: _draw(i, base) for i, name in enumerate(("../x", "shared", "a+b c", "A", "a", "ü=1&2"), 1)
    }
    saved = save_as_package(models, tmp_path / "pack", base=base, include_base=True)
    folders = [task["folder"] for task in saved.content["tasks"].values()]
    assert len({f.casefold() for f in folders}) == 6
    assert folders[0] == "task-1"
    from cuvee.sources.reference import fragment

    for name, tensors in models.items():
        found = _task(tmp_path, fragment([(name, 1.0)]))
        assert (found["n.weight"] - tensors["n.weight"]).abs().mean() < 0.2


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    _models(tmp_path)
    whole = _save(tmp_path, "tsv_c", "whole")
    seen: list[Any] = []

    def stop(event: Any) -> None:
        seen.append(event)
        if len(seen) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _save(tmp_path, "tsv_c", listener=stop)
    assert not (tmp_path / "pack").exists()
    resumed = _save(tmp_path, "tsv_c")
    assert resumed.finished.resumed_bytes > 0
    for path in whole.path.rglob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "pack" / path.relative_to(whole.path)).read_bytes()


RECIPE = """\
version: 1
base: {folder}/base
experts: {{math: {folder}/math, code: {folder}/code}}
merge: {{method: {method}}}
output: {{kind: package}}
"""


def test_recipes_of_and_with_packages(tmp_path: Path) -> None:
    _models(tmp_path)
    saved = Blend(parse_recipe(RECIPE.format(folder=tmp_path, method="tall_masks"))).save(tmp_path / "pack")
    assert saved.notes[0].code == "CV-P182"
    assert str(tmp_path) not in (tmp_path / "pack" / "package.json").read_text()
    text = (
        f"version: 1\nbase: {tmp_path}/base\n"
        f"experts:\n  a: {tmp_path}/pack#math\n  b: {{package: {tmp_path}/pack, task: code}}\n"
        f"  c: {{package: {tmp_path}/pack, tasks: {{math: 0.5, code: 0.25}}}}\n"
        "merge: {method: task_arithmetic}\n"
    )
    found = Blend(parse_recipe(text)).load()
    base = load_file(tmp_path / "base" / "model.safetensors")
    math, code = _task(tmp_path, "math"), _task(tmp_path, "code")
    for name, tensor in found.items():
        exact = base[name] + 1.5 * (math[name] - base[name]) + 1.25 * (code[name] - base[name])
        assert torch.allclose(tensor, exact, atol=1e-5), name


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"method": "ties"}, "CV-R180"),
        ({"method": "emr, restore: true"}, "CV-R180"),
        ({"method": "emr}\nlayers: [{from: [math, code], range: [0, 1]}]\nx: {"}, "CV-R"),
    ],
)
def test_what_no_package_is_made_of(change: dict[str, str], code: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe(RECIPE.format(folder=tmp_path, **change))
    assert error.value.diagnostics[0].code.startswith(code)


@pytest.mark.parametrize(
    "source",
    [
        "{package: ./p}",
        "{package: ./p, task: a, tasks: {b: 1}}",
        "{package: ./p, tasks: {a: x}}",
        "{package: ./p, tasks: []}",
    ],
)
def test_a_source_says_which_task(source: str) -> None:
    with pytest.raises(RecipeError, match="CV-R181"):
        parse_recipe(f"version: 1\nexperts: {{x: {source}}}\nmerge: {{method: passthrough}}\n")


def test_commands(tmp_path: Path, cli: Any) -> None:
    _models(tmp_path)
    models = [tmp_path / name for name in NAMES]
    shown = cli("package", "emr", *models, "--base", tmp_path / "base", "-o", tmp_path / "pack", "--dry-run")
    assert shown.code == 0
    assert "package  at most 12." in shown.out
    made = cli("package", "emr", *models, "--base", tmp_path / "base", "-o", tmp_path / "pack")
    assert made.code == 0, made.err
    assert "CV-P182" in made.err
    told = cli("inspect", tmp_path / "pack")
    assert "math" in told.out
    assert "5 mask" in told.out
    assert cli("inspect", tmp_path / "pack", "--json").json["schema"] == "cuvee.package/1"
    out = tmp_path / "again"
    assert cli("materialise", tmp_path / "pack", "--task", "code", "-o", out).code == 0
    again = load_file(out / "model.safetensors")
    assert all(torch.equal(x, again[n]) for n, x in _task(tmp_path, "code").items())
    both = cli(
        "materialise", tmp_path / "pack", "--task", "code=0.5", "--task", "math=.5", "-o", tmp_path / "both"
    )
    assert both.code == 0, both.err
    twice = cli("materialise", tmp_path / "pack", "--task", "code", "--task", "code", "-o", tmp_path / "x")
    assert (twice.code, "CV-U180" in twice.err) == (2, True)
    bare = cli("inspect", f"{tmp_path / 'pack'}#nobody")
    assert "CV-S180" in bare.err
    assert "its tasks are `math`, `code`" in bare.err
    folder = cli("merge", tmp_path / "pack", "-o", tmp_path / "z")
    assert "CV-R003" in folder.err
    assert "a recipe is a YAML file" in folder.err
    plain = cli("quick", "linear", tmp_path / "pack", tmp_path / "math", "-o", tmp_path / "y")
    assert "CV-S180" in plain.err
    assert "pack#math" in plain.err


def test_a_package_is_a_folder(tmp_path: Path) -> None:
    _models(tmp_path)
    recipe = parse_recipe(RECIPE.format(folder=tmp_path, method="emr"))
    with pytest.raises(CuveeError) as error:
        Blend(recipe).save(tmp_path / "one.safetensors")
    assert error.value.diagnostics[0].code == "CV-P180"
    with pytest.raises(PlanError, match="is one model"):
        Blend(recipe).load()

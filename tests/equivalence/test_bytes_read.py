"""The bytes that a plan says will be read of weight files, against those that are: every method, byte for byte."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.api.adapter_out import save_adapter
from cuvee.api.execute import save
from cuvee.api.outlook import outlook
from cuvee.api.package_out import save_package
from cuvee.api.python_recipe import recipe_from
from cuvee.core.disk import RealDisk
from cuvee.engine.foresight import foreseen
from cuvee.engine.kernels.library import Kernels
from cuvee.engine.options import RunOptions
from cuvee.methods.privacy.secret import fingerprint
from cuvee.methods.registry import get, names
from cuvee.recipe.model import AdapterOutput, PackageOutput
from cuvee.recipe.packaging import packaged, packaged_method
from cuvee.testing.sample_values import sample_values

HIDDEN, INNER, VOCABULARY, RANK, SHARD = 96, 160, 1400, 4, 150_000
TILE = 1024  # elements of a sample of the kernels
SECRET = "0" * 64
TIGHT = RunOptions(memory=1 << 18, block=8192, threads=2)  # nothing of the embeddings fits
SETTINGS = {
    "tight": TIGHT,
    "tight, without kernels": replace(TIGHT, kernels=False),
    "roomy": RunOptions(threads=2),
}
# One method for each kind of stage: where all fits, methods of a kind are read alike.
ROOMY = {
    *(
        "arcee_fusion",
        "average",
        "breadcrumbs",
        "cabs",
        "core_space",
        "della",
        "do_merging",
        "emr",
        "karcher",
    ),
    *("knots_ties", "lora_ties_svd", "lore", "mergelock", "model_stock", "module_donor", "opcm", "pcb"),
    *("reversible_merging", "sce", "tall_masks", "ties", "tsv_c", "tsv_m"),
}
ADAPTERS = ("core_space", "do_merging", "knots", "lora_", "robustmerge")  # first parts of names
# Figures of thresholds take more where magnitudes tie, coordinates of spaces where they do not fit: at most is said.
BOUNDED = {
    "breadcrumbs",
    "breadcrumbs_ties",
    "core_space_ties",
    "knots",
    "knots_ties",
    "localize_stitch_datafree",
    "pcb",
    "sce",
    "ties",
}


class WeightReads:
    """Bytes read of the data of safetensors files below a folder, by positional reads here or in compiled code."""

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._guard = threading.Lock()
        self._starts = {}
        for path in folder.rglob("*.safetensors"):
            with path.open("rb") as file:
                self._starts[_identity(path.stat())] = 8 + int.from_bytes(file.read(8), "little")

    def note(self, descriptor: int, offset: int, nbytes: int) -> None:
        start = self._starts.get(_identity(os.fstat(descriptor)))
        if start is not None and offset >= start:
            with self._guard:
                self.count += nbytes


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


@contextmanager
def counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightReads]:
    """Count what is read of the files of a folder within the block."""
    reads, preadv, stream = WeightReads(folder), os.preadv, Kernels.stream

    def noting(descriptor: int, buffers: Any, offset: int, *flags: int) -> int:
        got = preadv(descriptor, buffers, offset, *flags)
        if not flags:  # with flags it only asks what the page cache holds
            reads.note(descriptor, offset, got)
        return got

    def streaming(
        self: Kernels, ops: Any, inputs: Any, out: Any, size: int, span: Any, step: int, every: int, area: Any
    ) -> Any:
        first, many = span
        runs = [(0, many)] if every == 1 else [(s, min(TILE, many - s)) for s in range(0, many, TILE * every)]
        for one in inputs:
            for start, length in runs if one.file >= 0 else ():
                for place, count in lacking(one, first + start, length):
                    reads.note(one.file, one.offset + place * one.size, count * one.size)
        return stream(self, ops, inputs, out, size, span, step, every, area)

    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", noting)
        patched.setattr(Kernels, "stream", streaming)
        yield reads


def lacking(one: Any, first: int, count: int) -> list[tuple[int, int]]:
    """What the kernels read of elements of an input: tiles of a sample that stayed in memory are there."""
    if not one.seen:
        return [(first, count)]
    tiles = range(first, first + count, TILE)
    return [(place, min(TILE, first + count - place)) for place in tiles if place // TILE % one.seen]


def shapes() -> dict[str, tuple[int, ...]]:
    at = "model.layers.0."
    return {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        f"{at}self_attn.o_proj.weight": (HIDDEN, HIDDEN),
        f"{at}mlp.up_proj.weight": (INNER, HIDDEN),
        f"{at}mlp.down_proj.weight": (HIDDEN, INNER),
        "model.norm.weight": (HIDDEN,),
    }


def write_model(folder: Path, expert: int) -> None:
    """Some tensors of a Llama in several shards: the base (expert 0), or the base with heavy-tailed changes."""
    folder.mkdir()
    draw, change = torch.Generator().manual_seed(0), torch.Generator().manual_seed(expert)
    shards: list[dict[str, torch.Tensor]] = [{}]
    for name, shape in shapes().items():
        tensor = torch.randn(shape, generator=draw).mul_(0.02)
        if expert:
            tensor += torch.randn(shape, generator=change).pow(3).mul_(3e-4)
        if sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes // 2 > SHARD and shards[-1]:
            shards.append({})
        shards[-1][name] = tensor.bfloat16()
    where: dict[str, str] = {}
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    told = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1}
    told |= {"hidden_size": HIDDEN, "intermediate_size": INNER, "vocab_size": VOCABULARY}
    told |= {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
    (folder / "config.json").write_text(json.dumps(told))


def write_adapter(folder: Path, seed: int) -> None:
    folder.mkdir()
    draw = torch.Generator().manual_seed(seed)
    factors = {}
    for name, shape in shapes().items():
        if "_proj" in name:
            at = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{at}.lora_A.weight"] = torch.randn(RANK, shape[1], generator=draw)
            factors[f"{at}.lora_B.weight"] = torch.randn(shape[0], RANK, generator=draw)
    save_file(factors, folder / "adapter_model.safetensors")
    targets = sorted({name.split(".")[-2] for name in shapes() if "_proj" in name})
    told = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(told))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("checkpoints")
    for number in range(4):
        write_model(made / str(number), number)
        write_adapter(made / f"adapter{number}", number)
    return made


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is synced, nothing kept from run to run; locked merges have their secret."""
    monkeypatch.setattr(RealDisk, "sync", lambda self, handle: None)
    monkeypatch.setattr(RealDisk, "sync_folder", lambda self, folder: None)
    monkeypatch.setenv("CUVEE_DECOMPOSITIONS", "off")
    monkeypatch.setenv("CUVEE_LOCK_KEY", SECRET)


def blend(method: str, folder: Path, adapters: bool) -> cuvee.Blend:
    found = get(method)
    count = found.inputs[1] or 3
    experts = [str(folder / str(i)) for i in range(1, count + 1)]
    if adapters:
        experts = [f"{folder / '0'} + {folder / f'adapter{i}'}" for i in range(1, count + 1)]
    values = {**sample_values(found, count)}
    if "key" in values:
        values["key"] = fingerprint(SECRET)
    if method in ("lore", "doge_ta", "wudi", "optmerge"):
        values["steps"] = 2
    base = str(folder / "0") if found.base != "ordinary" else None
    return cuvee.merge(experts, base=base, method=method, **values)


def said_and_read(
    made: cuvee.Blend, options: RunOptions, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Any, int]:
    plan = made.build()
    try:
        if not options.kernels and not foreseen(plan, TIGHT).reads:
            pytest.skip("it goes the same way with kernels")
        said = outlook(plan, options=options).prediction
        with counted(folder, monkeypatch) as reads:
            save(plan, out, options, overwrite=True, resume=False)
    finally:
        plan.close()
    return said, reads.count


@pytest.mark.parametrize(
    ("setting", "method"), [(s, m) for s in SETTINGS for m in names() if s != "roomy" or m in ROOMY]
)
def test_every_method_reads_as_many_bytes_as_its_plan_says(
    method: str, setting: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = blend(method, folder, adapters=method.startswith(ADAPTERS))
    said, read = said_and_read(made, SETTINGS[setting], folder, tmp_path / "out", monkeypatch)
    if said.bytes_read_at_most is None:
        assert read == said.bytes_read
    else:
        assert method in BOUNDED
        assert said.bytes_read <= read <= said.bytes_read_at_most


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties", "tsv_m", "slerp"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_adapters_over_one_base_read_it_once(
    method: str, setting: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = blend(method, folder, adapters=True)
    said, read = said_and_read(made, SETTINGS[setting], folder, tmp_path / "out", monkeypatch)
    assert said.bytes_read <= read <= (said.bytes_read_at_most or said.bytes_read)
    if method in ("linear", "task_arithmetic"):
        base = sum(2 * torch.Size(shape).numel() for shape in shapes().values())
        factors = sum(4 * RANK * sum(shape) for name, shape in shapes().items() if "_proj" in name)
        assert read == base + 3 * factors


PACKAGES = ("emr", "tall_masks", "tsv_c", "reversible_merging", "onebit")
CHAINS: dict[str, Any] = {
    "sparse": [("trim", {"density": 0.1, "scope": "tensor"}), "restore_expert"],
    "sparse over the model": [("trim", {"density": 0.1, "scope": "model"}), "restore_expert"],
    "signs of few": [("trim", {"density": 0.1, "scope": "tensor"}), "one_bit", "restore_expert"],
}


MARKED = ("emr", "tall_masks", "onebit", "signs of few")  # by kernels; the others go the same way without


@pytest.mark.parametrize(
    ("setting", "method"),
    [
        *(("tight", method) for method in (*PACKAGES, *CHAINS)),
        *(("tight, without kernels", method) for method in MARKED),
        *(("roomy", method) for method in PACKAGES),
    ],
)
@pytest.mark.parametrize("adapters", [False, True], ids=["models", "adapters"])
def test_packages_read_as_many_bytes_as_their_plan_says(
    method: str, setting: str, adapters: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = [str(folder / str(i)) for i in (1, 2, 3)]
    if adapters:
        experts = [f"{folder / '0'} + {folder / f'adapter{i}'}" for i in (1, 2, 3)]
    named = CHAINS.get(method) or packaged_method(method)
    form = PackageOutput(include_base=True)
    recipe = recipe_from(experts, str(folder / "0"), named, {}, {"out_dtype": None})
    recipe = packaged(replace(recipe, output=replace(recipe.output, package=form)))
    plan = cuvee.Blend(recipe).build()
    try:
        said = outlook(plan, options=SETTINGS[setting]).prediction
        with counted(folder, monkeypatch) as reads:
            save_package(plan, tmp_path / "pack", form, SETTINGS[setting])
    finally:
        plan.close()
    assert said.bytes_read <= reads.count <= (said.bytes_read_at_most or said.bytes_read)


@pytest.mark.parametrize("kernels", [True, False])
def test_what_two_links_lead_to_is_counted_as_it_is_read(
    kernels: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = [tmp_path / name for name in ("here", "there")]
    for link in links:
        link.symlink_to(folder / "1", target_is_directory=True)
    made = cuvee.merge([str(link) for link in links], base=str(folder / "0"), method="task_arithmetic")
    plan, options = made.build(), RunOptions(kernels=kernels)
    try:
        said = outlook(plan, options=options).prediction
        with counted(folder, monkeypatch) as reads:
            save(plan, tmp_path / "out", options)
    finally:
        plan.close()
    assert reads.count == said.bytes_read


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "tsv_m", "lora_cat"])
@pytest.mark.parametrize("setting", ["tight", "roomy"])
@pytest.mark.parametrize("adapters", [False, True], ids=["models", "adapters"])
def test_adapters_read_as_many_bytes_as_their_plan_says(
    method: str, setting: str, adapters: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, form = blend(method, folder, adapters), AdapterOutput(rank=2)
    plan = cuvee.Blend(replace(made.recipe, output=replace(made.recipe.output, adapter=form))).build()
    try:
        said = outlook(plan, options=SETTINGS[setting]).prediction
        with counted(folder, monkeypatch) as reads:
            save_adapter(plan, tmp_path / "out", form, SETTINGS[setting])
    finally:
        plan.close()
    assert said.bytes_read <= reads.count <= (said.bytes_read_at_most or said.bytes_read)

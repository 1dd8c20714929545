"""Tasks of packages as sources: the contract of sources, and packages that are damaged or hostile."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cuvee
from cuvee.api.package import save_as_package
from cuvee.errors import CuveeError, SourceError
from cuvee.sources.open import open_source
from cuvee.sources.package_deltas import Masked, Signed, Sparse
from cuvee.testing.source_contract import SOURCE_CHECKS

METHODS: dict[str, Any] = {
    "tall_masks": "tall_masks",
    "emr": "emr",
    "tsv_c": "tsv_c",
    "reversible_merging": "reversible_merging",
    "onebit": "onebit",
    "sparse": [("trim", {"density": 0.2}), "restore_expert"],
}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of each kind, made of three experts with whole numbers and heads of their own."""
    folder = tmp_path_factory.mktemp("packages")
    generator = torch.Generator().manual_seed(5)
    shapes = {"w.weight": (37, 29), "v.weight": (11,)}
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    every = {"base": {**base, "ids": torch.arange(3)}}
    for number, name in enumerate("abc"):
        noise = {n: base[n] + 0.1 * torch.randn(s, generator=generator) for n, s in shapes.items()}
        every[name] = {**noise, "ids": torch.arange(3) + number}
    for name, tensors in every.items():
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
    models = {name: str(folder / name) for name in "abc"}
    for kind, method in METHODS.items():
        save_as_package(models, folder / kind, base=str(folder / "base"), method=method)
    return folder


@pytest.mark.parametrize("kind", METHODS)
def test_a_task_is_a_source(kind: str, packages: Path) -> None:
    for check in SOURCE_CHECKS:
        check(lambda: open_source(f"{packages / kind}#b", anchor=Path()))


@pytest.fixture
def pack(packages: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a package that may be damaged, beside its base."""

    def copied(kind: str) -> Path:
        shutil.copytree(packages / "base", tmp_path / "base")
        shutil.copytree(packages / kind, tmp_path / "pack")
        return tmp_path / "pack"

    return copied


def _edit(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def _refused(pack: Path, task: str = "b", *, read: bool = False) -> Any:
    with pytest.raises(CuveeError) as error, cuvee.open(f"{pack}#{task}") as opened:
        if read:
            for name in opened.source.tensors:
                opened.tensor(name)
    return error.value.diagnostics[0]


BITS, CUT = "w.weight::mask", "w.weight::left"
DAMAGE: dict[str, tuple[str, str, Callable[[dict[str, Any]], Any], str]] = {
    "missing": ("emr", "b", lambda t: t.pop(BITS), "is missing"),
    "short": ("emr", "b", lambda t: t.update({BITS: t[BITS][:-1].clone()}), "expected uint8 [135]"),
    "type": ("emr", "b", lambda t: t.update({BITS: t[BITS].float()}), "is float32 [135], expected uint8"),
    "unlisted": ("emr", "b", lambda t: t.update({"x::mask": t[BITS].clone()}), "is not listed"),
    "rescaler": ("emr", "b", lambda t: t.update({"::rescaler": torch.zeros(2)}), "expected one float"),
    "vector": (
        "emr",
        "shared",
        lambda t: t.update({"w.weight::vector": torch.zeros(29, 37)}),
        "shape [37, 29]",
    ),
    "vector type": (
        "emr",
        "shared",
        lambda t: t.update({"w.weight::vector": torch.zeros(37, 29).int()}),
        "floats",
    ),
    "no vector": ("emr", "shared", lambda t: t.pop("w.weight::vector"), "is missing"),
    "rank": ("tsv_c", "b", lambda t: t.update({CUT: t[CUT][:, :-1].clone()}), "`w.weight::right`"),
    "flat": ("tsv_c", "b", lambda t: t.update({CUT: t[CUT].reshape(-1).clone()}), "`w.weight::left`"),
    "scalar": ("tsv_c", "b", lambda t: t.update({CUT: torch.tensor(1.0)}), "`w.weight::left`"),
    "sign": ("onebit", "b", lambda t: t.update({"v.weight::scale": torch.zeros(2)}), "expected float64 [1]"),
    "basis": (
        "reversible_merging",
        "b",
        lambda t: t.update({"w.weight::coefficients": torch.zeros(9).double()}),
        "[9, 37",
    ),
    "counts": ("sparse", "b", lambda t: t.update({"w.weight::values": torch.zeros(3)}), "`w.weight::values`"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_part_that_does_not_fit(name: str, pack: Callable[[str], Path]) -> None:
    kind, part, change, said = DAMAGE[name]
    folder = pack(kind)
    _edit(folder / part / "model.safetensors", change)
    found = _refused(folder)
    assert found.code == "CV-S182"
    assert said in found.message, found.message
    assert found.where.tensor
    assert found.where.file.startswith(str(folder))


@pytest.mark.parametrize(
    ("kind", "tensor", "value", "said"),
    [
        ("emr", "::rescaler", torch.tensor([float("nan")]).double(), "nan"),
        ("onebit", "w.weight::scale", torch.tensor([float("inf")]).double(), "inf"),
        (
            "reversible_merging",
            "w.weight::coefficients",
            torch.tensor([1.0, float("nan")]).double(),
            "not finite",
        ),
        ("sparse", "w.weight::indices", "negative", "do not ascend within 0 … 1072"),
        ("sparse", "w.weight::indices", "beyond", "do not ascend"),
        ("sparse", "w.weight::indices", "twice", "do not ascend"),
    ],
)
def test_values_that_no_code_has(
    kind: str, tensor: str, value: Any, said: str, pack: Callable[[str], Path]
) -> None:
    folder = pack(kind)

    def change(tensors: dict[str, Any]) -> None:
        if isinstance(value, str):
            places = tensors[tensor]
            where = {"negative": (0, -1), "beyond": (-1, 37 * 29), "twice": (1, int(places[0]))}[value]
            places[where[0]] = where[1]
        else:
            tensors[tensor] = value

    _edit(folder / "b" / "model.safetensors", change)
    found = _refused(folder, read=True)
    assert (found.code, said in found.message) == ("CV-S182", True), found.message


def _json(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / "package.json").read_text())
    change(content)
    (folder / "package.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda c: c.update(cuvee_package=9), "CV-S181"),
        (lambda c: c["tasks"]["b"].update(folder="../a"), "CV-S181"),
        (lambda c: c["tasks"]["b"].update(folder="/etc"), "CV-S181"),
        (lambda c: c["tasks"]["b"].update(folder=".."), "CV-S071"),
        (lambda c: c["tasks"]["b"].update(folder="con"), "CV-S071"),
        (lambda c: c["tasks"]["b"]["codecs"].update(mask=["w.weight", "v.weight", "nowhere"]), "CV-S182"),
        (
            lambda c: c["tasks"]["b"]["codecs"].update(whole=[], mask=["w.weight", "v.weight", "ids"]),
            "CV-S182",
        ),
        (lambda c: c["base"].update(path="../nowhere"), "CV-S183"),
        (lambda c: c["base"].update(path="../a\0b"), "CV-S183"),
        (lambda c: c["base"].update(samples=[]), "CV-S184"),
    ],
)
def test_package_json_that_lies(change: Any, code: str, pack: Callable[[str], Path]) -> None:
    folder = pack("emr")
    _json(folder, change)
    assert _refused(folder).code == code


def test_json_that_is_none(pack: Callable[[str], Path]) -> None:
    folder = pack("emr")
    (folder / "package.json").write_text("{")
    assert _refused(folder).code == "CV-S069"
    (folder / "package.json").unlink()
    assert _refused(folder).code == "CV-S180"


def test_a_cut_file_is_named(pack: Callable[[str], Path]) -> None:
    folder = pack("emr")
    file = folder / "b" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    assert str(file) in str(_refused(folder).where.file)


@pytest.mark.parametrize(
    "text", ["#b", "pack#", "pack#b=x", "pack#b&b", "pack#base=x", "pack#b&base=", "hf://o/n#b"]
)
def test_references_that_name_no_task(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as error:
        open_source(text, anchor=tmp_path)
    assert error.value.diagnostics[0].code == "CV-S044"


def test_a_folder_with_a_hash_in_its_name_wins(packages: Path, tmp_path: Path) -> None:
    shutil.copytree(packages / "base", tmp_path / "emr#b")
    source = open_source("emr#b", anchor=tmp_path)
    assert source.identity()["kind"] == "folder"
    source.close()


def test_decoding_worked_by_hand() -> None:
    bits = torch.tensor([0b00000101, 0b00000010], dtype=torch.uint8)
    vector = torch.arange(1.0, 11.0)
    masked = Masked(lambda a, b: bits[a:b], lambda a, b: vector[a:b], lambda: 2.0)
    assert masked.slice(1, 10, torch.float32).tolist() == [0, 6, 0, 0, 0, 0, 0, 0, 20]
    signed = Signed(lambda a, b: bits[a:b], lambda: 0.5)
    assert signed.slice(0, 4, torch.float32).tolist() == [-0.5, 0.5, -0.5, 0.5]
    from cuvee.sources.low_rank import FactorCache

    sparse = Sparse(lambda: (torch.tensor([1, 4, 9]), torch.tensor([1.0, 2.0, 3.0])), FactorCache())
    assert sparse.slice(2, 10, torch.float64).tolist() == [0, 0, 2, 0, 0, 0, 0, 3]

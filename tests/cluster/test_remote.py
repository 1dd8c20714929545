"""Models read at an address: equal to the same model on disk, whatever the server does on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cuvee
from cuvee.api.blend import Blend
from cuvee.api.budget import make_catalogue
from cuvee.core.limits import DEFAULT, MIB
from cuvee.errors import CorruptFile, CuveeError, SourceError, UsageError
from cuvee.formats.packed import TABLE
from cuvee.recipe.load import parse_recipe
from cuvee.sources.open import open_source
from cuvee.sources.reference import Reference, parse_reference
from cuvee.sources.remote import open_remote
from cuvee.sources.remote_pace import Pace
from cuvee.sources.remote_stores import Patience
from cuvee.testing.ranged_server import RangedServer

pytest.importorskip("requests")
QUICK = Patience(attempts=4, first=0.001, most=0.01)


def checkpoint(folder: Path, seed: int, *, shards: int = 1, rows: int = 700) -> dict[str, torch.Tensor]:
    """A model of a large tensor, many small ones and one without elements; `shards` files."""
    made = torch.Generator().manual_seed(seed)
    tensors = {"big.weight": torch.randn(rows, 1024, generator=made).bfloat16()}
    tensors |= {f"norm.{i}": torch.randn(37, generator=made) for i in range(40)}
    tensors["tail.weight"] = torch.randn(rows // 2, 1024, generator=made)
    tensors["none"] = torch.empty(0)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "thing"}))
    names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    parts = [{n: t for j, (n, t) in enumerate(tensors.items()) if j % shards == i} for i in range(shards)]
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return tensors
    for name, part in zip(names, parts, strict=True):
        save_file(part, folder / name)
    index = {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part}
    total = sum(t.nbytes for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    return tensors


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangedServer]:
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "served").mkdir()
    with RangedServer(tmp_path / "served") as running:
        yield running


@pytest.fixture
def opened(server: RangedServer) -> Iterator[Callable]:
    made = []

    def make(name: str):
        source = open_remote(
            Reference("url", f"{server.url}/{name}"), name, DEFAULT, offline=False, patience=QUICK
        )
        made.append(source)
        return source

    yield make
    for source in made:
        source.close()


@pytest.mark.parametrize("shards", [1, 3])
def test_every_element_is_that_of_the_file(server: RangedServer, opened: Callable, shards: int) -> None:
    tensors = checkpoint(server.folder / "m", 0, shards=shards)
    source = opened("m")
    assert set(source.tensors) == set(tensors)
    assert source.config == {"model_type": "thing"}
    for name, tensor in tensors.items():
        assert torch.equal(source.read(name), tensor.reshape(-1)), name
        for start, stop in ((0, 1), (5, 17), (tensor.numel() - 3, tensor.numel())):
            if 0 <= start < stop <= tensor.numel():
                assert torch.equal(source.read(name, start, stop), tensor.reshape(-1)[start:stop])
    local = open_source(str(server.folder / "m"), anchor=Path())
    weights = {e["name"]: e for e in local.identity()["files"]}
    assert {e["name"]: e for e in source.identity()["files"]} == weights  # the same headers, wherever
    local.close()


def test_a_header_costs_one_request_and_tensors_come_in_few(server: RangedServer, opened: Callable) -> None:
    tensors = checkpoint(server.folder / "m", 0, rows=9000)  # 18 MB and 18 MB
    source = opened("m")
    assert [a.count for a in server.asked if a.name == "m/model.safetensors"] == [MIB]
    server.asked.clear()
    for i in range(40):
        source.read(f"norm.{i}")
    assert len(server.asked) <= 2  # neighbours share a page
    for start in range(0, tensors["big.weight"].numel(), 1 << 18):
        source.read("big.weight", start, min(start + (1 << 18), tensors["big.weight"].numel()))
    spent = sum(min(a.last, 40_000_000) + 1 - a.first for a in server.asked)
    assert len(server.asked) <= 12
    assert spent <= tensors["big.weight"].nbytes + 4 * MIB  # little is read twice or in vain
    assert max(a.count for a in server.asked) <= 8 * MIB


def test_requests_are_pinned_to_the_version_that_was_seen(server: RangedServer, opened: Callable) -> None:
    checkpoint(server.folder / "m", 0, rows=2000)
    source = opened("m")
    server.asked.clear()
    source.read("tail.weight")
    assert server.asked and all(asked.if_match for asked in server.asked)


@pytest.mark.parametrize("etags, dates", [(True, False), (False, False)])
def test_a_file_replaced_in_mid_run_is_an_error(
    server: RangedServer, opened: Callable, etags: bool, dates: bool
) -> None:
    server.manners.etags, server.manners.dates = etags, dates
    checkpoint(server.folder / "m", 0, rows=2000)
    source = opened("m")
    (server.folder / "m" / "model.safetensors").unlink()
    save_file({"big.weight": torch.zeros(4000, 1024)}, server.folder / "m" / "model.safetensors")
    with pytest.raises(CorruptFile, match="was replaced while it was read"):
        source.read("tail.weight")


def test_without_versions_it_says_so(server: RangedServer, opened: Callable) -> None:
    server.manners.etags = False
    checkpoint(server.folder / "m", 0)
    assert [note.code for note in opened("m").notes] == ["CV-S218"]


@pytest.mark.parametrize("fault", ["503", "429", "cut", "reset", "shifted", "garbled"])
def test_faults_are_survived(server: RangedServer, opened: Callable, fault: str) -> None:
    tensors = checkpoint(server.folder / "m", 0, rows=2000)
    server.manners.digests = True
    server.manners.at = "model.safetensors"
    server.manners.faults = [fault, fault]
    source = opened("m")
    server.manners.faults = [fault, fault, fault]
    assert torch.equal(source.read("tail.weight"), tensors["tail.weight"].reshape(-1))
    assert not server.manners.faults


def test_faults_without_end_are_an_error_and_the_next_read_tries_again(
    server: RangedServer, opened: Callable
) -> None:
    tensors = checkpoint(server.folder / "m", 0, rows=2000)
    source = opened("m")
    server.manners.faults = ["503"] * 1000
    with pytest.raises(SourceError, match="the server answers 503, 4 times"):
        source.read("tail.weight")
    server.manners.faults = []
    assert torch.equal(source.read("tail.weight"), tensors["tail.weight"].reshape(-1))


@pytest.mark.parametrize("fault", ["trickled", "slow head"])
def test_an_answer_that_trickles_is_given_up_and_asked_for_again(server: RangedServer, fault: str) -> None:
    """A byte comes twenty times a second, so no pause is ever long; ten thousand are asked for."""
    tensors = checkpoint(server.folder / "m", 0, rows=2000)
    patience = Patience(attempts=3, first=0.001, most=0.01, pace=Pace(10_000, 0.4))
    source = open_remote(Reference("url", f"{server.url}/m"), "m", DEFAULT, offline=False, patience=patience)
    server.manners.at, server.manners.faults = "model.safetensors", [fault, fault]
    began = time.monotonic()
    assert torch.equal(source.read("tail.weight"), tensors["tail.weight"].reshape(-1))
    assert time.monotonic() - began > 0.4
    server.manners.faults = [fault] * 1000
    with pytest.raises(SourceError, match=r"seconds, 3 times") as caught:
        source.read("big.weight")
    assert caught.value.diagnostics[0].code == "CV-S390"
    assert "what is finished is kept" in str(caught.value.diagnostics[0].hint)
    source.close()


def test_slow_is_not_too_slow(server: RangedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the rate, or with no rate set, an answer is waited for, however many windows it takes."""
    (server.folder / "m").mkdir()
    save_file({"w": torch.arange(4)}, server.folder / "m" / "model.safetensors")
    for pace in (Pace(5, 0.2), Pace(0, 0.2)):
        server.manners.at, server.manners.faults = "model.safetensors", ["trickled"]
        patience = Patience(attempts=1, pace=pace)
        source = open_remote(
            Reference("url", f"{server.url}/m"), "m", DEFAULT, offline=False, patience=patience
        )
        assert source.read("w").tolist() == [0, 1, 2, 3]
        assert not server.manners.faults
        source.close()


@pytest.mark.parametrize("text", ["fast", "-1", "8KB", "1.5", "8²"])
def test_a_rate_that_is_no_number_is_refused(
    server: RangedServer, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("CUVEE_SLOWEST", text)
    with pytest.raises(UsageError) as caught:
        open_source(f"{server.url}/m", anchor=Path())
    assert caught.value.diagnostics[0].code == "CV-S391"


def test_a_server_without_ranges_is_refused(server: RangedServer, opened: Callable) -> None:
    checkpoint(server.folder / "m", 0, rows=2000)
    server.manners.ranges = False
    with pytest.raises(SourceError, match="does not serve parts of files") as caught:
        opened("m")
    assert caught.value.diagnostics[0].code == "CV-S214"


def test_what_is_not_there_is_named(server: RangedServer, opened: Callable) -> None:
    with pytest.raises(SourceError, match="holds no model that can be read"):
        opened("absent")
    with pytest.raises(SourceError, match="is not there"):
        opened("absent/model.safetensors")


def test_packed_experts_are_refused(server: RangedServer, opened: Callable) -> None:
    checkpoint(server.folder / "m", 0)
    (server.folder / "m" / TABLE).write_text("{}")
    with pytest.raises(SourceError, match="packed experts are read from folders"):
        opened("m")


def test_a_catalogue_of_an_address_is_refused_for_it_could_not_be_kept(
    server: RangedServer, tmp_path: Path
) -> None:
    checkpoint(server.folder / "m", 0)
    checkpoint(server.folder / "n", 1)
    for base, expert in (
        (f"{server.url}/m", str(server.folder / "n")),
        (str(server.folder / "m"), f"{server.url}/n"),
    ):
        with pytest.raises(SourceError, match="no catalogue of it can be kept") as caught:
            make_catalogue([expert], base, anchor=tmp_path, offline=False)
        assert caught.value.diagnostics[0].code == "CV-S392"
    assert not (tmp_path / "cache" / "catalogue").exists()


def test_one_file_alone(server: RangedServer, opened: Callable) -> None:
    tensors = checkpoint(server.folder / "m", 0)
    source = opened("m/model.safetensors")
    assert source.config is None and set(source.tensors) == set(tensors)


def test_offline_forbids_addresses(server: RangedServer) -> None:
    with pytest.raises(SourceError, match="connections are forbidden"):
        open_source(f"{server.url}/m", anchor=Path(), offline=True)
    assert not server.asked


@pytest.mark.parametrize("text", ["https://me:word@host/m", "https://host/m?key=word", "s3://b/m#word"])
def test_secrets_in_addresses_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_reference(text, Path())
    assert "word" not in str(caught.value)


def test_references(tmp_path: Path) -> None:
    assert parse_reference("file:///a%20b/c", tmp_path) == Reference("path", "/a b/c")
    assert parse_reference("s3://bucket/m/", tmp_path) == Reference("url", "s3://bucket/m")
    for wrong in ("ftp://host/m", "https:///m", "https://host/../m"):
        with pytest.raises(SourceError):
            parse_reference(wrong, tmp_path)


def test_an_object_store_lists_reads_and_notices_a_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("CUVEE_CACHE", str(tmp_path / "cache"))
    tensors = checkpoint(tmp_path / "m", 0, shards=2, rows=3000)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "m") + "/", "/bucket/m/", recursive=True)
    source = open_remote(Reference("url", "memory://bucket/m"), "m", DEFAULT, offline=False, patience=QUICK)
    try:
        for name, tensor in tensors.items():
            assert torch.equal(source.read(name), tensor.reshape(-1)), name
        again = open_remote(Reference("url", "memory://bucket/m"), "m", DEFAULT, offline=False)
        path = "/bucket/m/model-00001-of-00002.safetensors"
        memory.pipe(path, memory.cat(path))
        with pytest.raises(CorruptFile, match="was replaced"):
            again.read("big.weight")
        again.close()
        source.close()
    finally:
        memory.rm("/bucket", recursive=True)


def test_a_merge_over_http_has_the_bytes_of_the_local_one(server: RangedServer, tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "one", "two")):
        checkpoint(server.folder / name, seed, rows=1200)

    def merged(root: str, out: Path) -> bytes:
        text = (
            f"version: 1\nbase: {root}/base\nexperts: {{one: {root}/one, two: {root}/two}}\n"
            "merge: {method: ties, density: 0.4}\n"
        )
        Blend(parse_recipe(text)).save(out)
        return (out / "model.safetensors").read_bytes()

    over = merged(server.url, tmp_path / "over")
    assert over == merged(str(server.folder), tmp_path / "here")
    server.manners.at, server.manners.faults = "model", ["503", None, "cut", "reset", None] * 4
    assert over == merged(server.url, tmp_path / "faulty")
    assert not any(path.name.endswith(".safetensors") for path in (tmp_path / "cache").rglob("*"))


def test_a_merge_stops_when_an_input_is_replaced(server: RangedServer, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        checkpoint(server.folder / name, seed, rows=3000)
    root = server.url
    text = f"version: 1\nexperts: {{one: {root}/one, two: {root}/two}}\nmerge: {{method: linear}}\n"
    blend = Blend(parse_recipe(text))
    plan = blend.build()
    (server.folder / "two" / "model.safetensors").unlink()
    checkpoint(server.folder / "other", 9, rows=3000)
    (server.folder / "other" / "model.safetensors").rename(server.folder / "two" / "model.safetensors")
    from cuvee.api.execute import save

    with pytest.raises(CuveeError, match="was replaced"):
        save(plan, tmp_path / "out")
    plan.close()
    assert not (tmp_path / "out").exists()


def test_who_waits_for_a_server_can_be_interrupted(server: RangedServer, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "two")):
        checkpoint(server.folder / name, seed, rows=4000)
    config = json.dumps({"version": 1, "experts": {n: f"{server.url}/{n}" for n in ("one", "two")}})
    (tmp_path / "recipe.yaml").write_text(config[:-1] + ', "merge": {"method": "linear"}}')
    server.manners.at, server.manners.faults = "model.safetensors", [None] * 2 + ["stalled"] * 1000
    command = [sys.executable, "-m", "cuvee", "merge", "recipe.yaml", "-o", "out", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(Path(cuvee.__file__).parents[1])}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as merging:
        while merging.poll() is None and len(server.manners.faults) > 995:
            time.sleep(0.05)
        merging.send_signal(signal.SIGINT)
        try:
            merging.wait(10)
        finally:
            merging.kill()
    assert merging.returncode == 130
    assert not (tmp_path / "out").exists()

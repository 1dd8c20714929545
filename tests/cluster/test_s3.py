"""Models in an object store: a real S3 server, asked through s3fs, and what it has to do with the local files."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_remote import checkpoint

from cuvee.api.blend import Blend
from cuvee.core.limits import DEFAULT
from cuvee.errors import CorruptFile, SourceError
from cuvee.recipe.load import parse_recipe
from cuvee.sources.reference import Reference
from cuvee.sources.remote import open_remote
from cuvee.sources.remote_pace import Pace
from cuvee.sources.remote_stores import Patience

server = pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")
pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = Patience(attempts=3, first=0.001, most=0.01)
RECIPE = """
version: 1
base: {root}/base
experts: {{one: {root}/one, two: {root}/two}}
merge: {{method: ties, density: 0.4}}
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """An S3 server with the models `base`, `one` and `two` in a bucket, and the same models on disk."""
    patch = pytest.MonkeyPatch()
    running = server.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    patch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    patch.setenv("AWS_SECRET_ACCESS_KEY", "word-of-somebody")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    patch.setenv("CUVEE_CACHE", str(tmp_path_factory.mktemp("cache")))
    system = s3fs.S3FileSystem(skip_instance_cache=True)
    system.mkdir("models")
    folder = tmp_path_factory.mktemp("local")
    tensors = {
        n: checkpoint(folder / n, i, shards=2, rows=1200) for i, n in enumerate(("base", "one", "two"))
    }
    for name in tensors:
        for file in (folder / name).iterdir():
            system.put_file(str(file), f"models/{name}/{file.name}")
    yield SimpleNamespace(system=system, folder=folder, tensors=tensors)
    running.stop()
    patch.undo()


def test_every_element_is_that_of_the_file(store: SimpleNamespace) -> None:
    source = open_remote(Reference("url", "s3://models/one"), "one", DEFAULT, offline=False, patience=QUICK)
    for name, tensor in store.tensors["one"].items():
        assert torch.equal(source.read(name), tensor.reshape(-1)), name
        middle = tensor.numel() // 2
        assert torch.equal(source.read(name, middle, tensor.numel()), tensor.reshape(-1)[middle:]), name
    source.close()


def test_a_merge_has_the_bytes_of_the_local_one(store: SimpleNamespace, tmp_path: Path) -> None:
    for out, root in (("here", str(store.folder)), ("there", "s3://models")):
        Blend(parse_recipe(RECIPE.format(root=root))).save(tmp_path / out)
    weights = sorted(path.name for path in (tmp_path / "here").glob("*.safetensors"))
    assert weights
    for name in weights:
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_an_object_replaced_in_mid_run_is_an_error(store: SimpleNamespace) -> None:
    for name in ("config.json", *(p.name for p in (store.folder / "two").glob("model*"))):
        store.system.copy(f"models/two/{name}", f"models/late/{name}")
    source = open_remote(Reference("url", "s3://models/late"), "late", DEFAULT, offline=False, patience=QUICK)
    for shard in (p.name for p in (store.folder / "one").glob("*.safetensors")):
        store.system.put_file(str(store.folder / "one" / shard), f"models/late/{shard}")
    with pytest.raises(CorruptFile, match="was replaced while it was read"):
        source.read("tail.weight")
    source.close()


def test_what_is_not_there_is_named_without_the_key(store: SimpleNamespace) -> None:
    for url in ("s3://models/absent", "s3://no-such-bucket/model"):
        with pytest.raises(SourceError, match="holds no model that can be read") as caught:
            open_remote(Reference("url", url), url, DEFAULT, offline=False, patience=QUICK)
        assert "word-of-somebody" not in str(caught.value)


def test_a_side_file_without_bytes_is_one(store: SimpleNamespace) -> None:
    store.system.copy("models/one", "models/empty", recursive=True)
    store.system.pipe_file("models/empty/merges.txt", b"")
    url = "s3://models/empty"
    source = open_remote(Reference("url", url), url, DEFAULT, offline=False, patience=QUICK)
    assert source.file("merges.txt") == b""
    source.close()


def test_a_store_that_fails_on_the_way_is_asked_again(
    store: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import EndpointConnectionError

    real, failed = s3fs.S3FileSystem._ls, []

    async def listed(self: Any, *arguments: Any, **options: Any) -> Any:
        if not failed:
            failed.append(1)
            raise EndpointConnectionError(endpoint_url="http://store")
        return await real(self, *arguments, **options)

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "_ls", listed)
    url = "s3://models/one"
    open_remote(Reference("url", url), url, DEFAULT, offline=False, patience=QUICK).close()
    assert failed


@pytest.mark.parametrize("kind", ["NoCredentialsError", "EndpointConnectionError"])
def test_what_a_library_raises_is_told_like_any_fault(
    store: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async def failing(*_: Any, **__: Any) -> Any:
        raise type(kind, (Exception,), {})("of the library's own kind")

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "_ls", failing)
    with pytest.raises(SourceError, match=kind) as caught:
        open_remote(Reference("url", "s3://models/one"), "m", DEFAULT, offline=False, patience=QUICK)
    assert caught.value.diagnostics[0].code == ("CV-S211" if kind.startswith("No") else "CV-S213")


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(
    store: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that trickles, seen from here: the library waits and does not say for what."""
    real, slow = s3fs.S3FileSystem._cat_file, [True, True]

    async def trickled(self: Any, *arguments: Any, **options: Any) -> Any:
        if slow:
            slow.pop()
            await asyncio.sleep(60)
        return await real(self, *arguments, **options)

    s3fs.S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(s3fs.S3FileSystem, "_cat_file", trickled)
    patience = Patience(attempts=3, first=0.001, most=0.01, pace=Pace(2 << 20, 0.5))
    url = "s3://models/one/model-00001-of-00002.safetensors"
    open_remote(Reference("url", url), url, DEFAULT, offline=False, patience=patience).close()
    assert slow == []
    slow += [True] * 3
    with pytest.raises(SourceError, match="no whole answer came in time, 3 times") as caught:
        open_remote(Reference("url", url), url, DEFAULT, offline=False, patience=patience)
    assert caught.value.diagnostics[0].code == "CV-S390"

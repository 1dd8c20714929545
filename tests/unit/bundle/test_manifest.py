"""Promise 23: a manifest is byte-stable, and verification names whatever is not as it was written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuvee.bundle.manifest import Origin, build, parse, verify_file, verify_folder
from cuvee.bundle.portable import portable_text
from cuvee.core.digests import canonical_json
from cuvee.core.dtypes import BY_NAME
from cuvee.core.tensors import TensorMeta
from cuvee.errors import VerifyError
from cuvee.sinks.folder import FolderSink
from cuvee.sinks.layout import plan_layout
from cuvee.sinks.single import SingleFileSink

METAS = [
    TensorMeta("model.embed", BY_NAME["bfloat16"], (16, 8)),
    TensorMeta("model.norm", BY_NAME["float32"], (8,)),
    TensorMeta("model.nothing", BY_NAME["float32"], (0,)),
    TensorMeta("lm_head", BY_NAME["float32"], (5, 7)),
]
ORIGIN = Origin(
    recipe="# für uns\nbase: /home/ann/models/llama-7b\nexperts: {math: hf://org/math@main}\n",
    plan_digest="ab" * 32,
    lock={"llama-7b": {"path": "/home/ann/models/llama-7b", "digest": "00" * 32}},
    methods={"ties": 1},
    numerics={"dtype": "float32", "torch": "2.13.0"},
    version="0.1.0",
)
SIDE_FILES = {"config.json": b'{"a": 1}', "sub/chat.jinja": b"{{ messages }}"}
MANIFEST = "cuvee-manifest.json"


def write(sink, layout, side_files) -> None:
    with sink.begin(layout, "plan", resume=True, overwrite=False) as session:
        for meta in layout.tensors.values():
            session.write(meta.name, 0, blake3(meta.name.encode()).digest(meta.nbytes))
            session.finish(meta.name)
        session.commit(side_files, lambda files: build(ORIGIN, layout, session.digests, files))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("manifest") / "model"
    write(FolderSink(out), plan_layout(METAS, max_shard_bytes=300), SIDE_FILES)
    return out


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def found(folder: Path, **how) -> list[tuple[str, str | None, str | None]]:
    return [(d.code, d.where.file, d.where.tensor) for d in verify_folder(folder, **how)]


def at_rest(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_untouched_output_has_no_finding(model: Path) -> None:
    assert found(model) == []
    assert found(model, sample=0.3, seed=5) == []


def test_digests_are_what_the_definition_says(model: Path) -> None:
    manifest = json.loads((model / MANIFEST).read_bytes())
    for name, record in manifest["files"].items():
        data = (model / name).read_bytes()
        assert len(data) == record["size"]
        if record["kind"] == "plain":
            assert record["digest"] == blake3(data).hexdigest()
            continue
        joined = blake3(data[: record["header"]]).digest()
        inside = sorted(
            (t["offset"], t["nbytes"], t["blake3"]) for t in manifest["tensors"].values() if t["file"] == name
        )
        for offset, nbytes, digest in inside:
            regions = [blake3(data[offset : offset + nbytes]).digest()] if nbytes else []
            assert digest == blake3(b"".join(regions)).hexdigest()
            joined += bytes.fromhex(digest)
        assert record["digest"] == blake3(joined).hexdigest()
    assert manifest["complete"] == {
        "files": len(at_rest(model)) - 1,
        "tensors": len(METAS),
        "bytes": sum(len(data) for name, data in at_rest(model).items() if name != MANIFEST),
    }


def test_the_manifest_is_canonical_and_says_nothing_of_the_machine(model: Path) -> None:
    data = (model / MANIFEST).read_bytes()
    assert data == canonical_json(json.loads(data))
    assert b"/home" not in data
    assert b"ann" not in data
    assert json.loads(data)["recipe"]["text"].startswith(
        "# für uns\nbase: llama-7b\nexperts: {math: hf://org/math@main}"
    )
    assert json.loads(data)["recipe"]["digest"] == blake3(ORIGIN.recipe.encode()).hexdigest()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_flipped_bit_anywhere_is_named(pristine: Path, data: st.DataObject) -> None:
    contents = at_rest(pristine)
    name = data.draw(st.sampled_from(sorted(contents)))
    position = data.draw(st.integers(0, len(contents[name]) * 8 - 1))
    manifest = parse(contents[MANIFEST])
    flipped = bytearray(contents[name])
    flipped[position // 8] ^= 1 << position % 8
    path = pristine / name
    path.write_bytes(flipped)
    try:
        findings = found(pristine)
    finally:
        path.write_bytes(contents[name])
    hit = [
        t
        for t, r in manifest.tensors.items()
        if r.file == name and r.offset <= position // 8 < r.offset + r.nbytes
    ]
    if name == MANIFEST:
        assert [(file, tensor) for _, file, tensor in findings] == [(MANIFEST, None)]
        assert findings[0][0] in ("CV-V002", "CV-V008")
    else:
        assert findings == [("CV-V006", name, hit[0]) if hit else ("CV-V007", name, None)]


def test_every_bit_of_the_manifest_counts(pristine: Path) -> None:
    data = (pristine / MANIFEST).read_bytes()
    for position in range(len(data) * 2):
        flipped = bytearray(data)
        flipped[position // 2] ^= 1 << (5 if position % 2 else position // 2 % 8)  # 5: the case of a letter
        with pytest.raises(VerifyError):
            parse(bytes(flipped))


def test_each_kind_of_damage_is_named(model: Path) -> None:
    shards = sorted(p.name for p in model.glob("*.safetensors"))
    (model / shards[0]).rename(model / "renamed.safetensors")
    os.truncate(model / shards[1], 100)
    (model / "config.json").write_bytes(b'{"a": 1} ')
    (model / "sub/chat.jinja").unlink()
    (model / "model.safetensors").write_bytes(b"an older model")
    assert sorted(found(model)) == [
        ("CV-V003", "sub/chat.jinja", None),
        ("CV-V004", "model.safetensors", None),
        ("CV-V005", "config.json", None),
        ("CV-V005", shards[1], None),
        ("CV-V010", shards[0], None),
    ]


def test_the_five_damages_that_loaders_accept(pristine: Path, tmp_path: Path) -> None:
    def damaged(damage) -> list[tuple[str, str | None, str | None]]:
        folder = Path(shutil.copytree(pristine, tmp_path / damage.__name__))
        damage(folder)
        return found(folder)

    index = "model.safetensors.index.json"
    shards = sorted(p.name for p in pristine.glob("*.safetensors"))

    def index_omits_a_shard(folder: Path) -> None:
        content = json.loads((folder / index).read_bytes())
        content["weight_map"] = {k: v for k, v in content["weight_map"].items() if v != shards[1]}
        (folder / index).write_text(json.dumps(content))

    def old_model_beside(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"old")

    def zeros(folder: Path) -> None:
        header = parse((folder / MANIFEST).read_bytes()).files[shards[1]].header
        data = (folder / shards[1]).read_bytes()
        (folder / shards[1]).write_bytes(data[:header] + bytes(len(data) - header))

    def index_leads_outside(folder: Path) -> None:
        data = (folder / index).read_bytes().replace(shards[1].encode(), b"../outside.safetensors")
        (folder / index).write_bytes(data)

    def shard_absent(folder: Path) -> None:
        (folder / shards[1]).unlink()

    assert [file for _, file, _ in damaged(index_omits_a_shard)] == [index]
    assert damaged(old_model_beside) == [("CV-V004", "model.safetensors", None)]
    assert damaged(zeros) == [("CV-V006", shards[1], "lm_head")]
    assert [file for _, file, _ in damaged(index_leads_outside)] == [index]
    assert damaged(shard_absent) == [("CV-V003", shards[1], None)]


def test_a_sample_checks_the_part_it_was_asked_for(model: Path) -> None:
    for shard in model.glob("*.safetensors"):
        header = parse((model / MANIFEST).read_bytes()).files[shard.name].header
        data = shard.read_bytes()
        shard.write_bytes(data[:header] + bytes(len(data) - header))
    assert len(found(model)) == 3  # all but the empty one
    assert max(len(found(model, sample=0.25, seed=seed)) for seed in range(8)) == 1
    seen = {tensor for seed in range(40) for _, _, tensor in found(model, sample=0.25, seed=seed)}
    assert seen == {"model.embed", "model.norm", "lm_head"}
    assert found(model, sample=0.5, seed=3) == found(model, sample=0.5, seed=3)
    with pytest.raises(ValueError, match="at most 1"):
        verify_folder(model, sample=1.5)


def test_no_manifest_and_foreign_files(model: Path) -> None:
    (model / ".git").mkdir()
    (model / ".git/config").write_bytes(b"")
    (model / ".gitattributes").write_bytes(b"")
    assert found(model) == []
    (model / MANIFEST).unlink()
    assert found(model) == [("CV-V001", MANIFEST, None)]


def test_links_and_pipes_do_not_pass_for_files(model: Path) -> None:
    (model / "elsewhere").symlink_to("/")
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    assert found(model) == [("CV-V004", "elsewhere", None), ("CV-V009", "config.json", None)]


def test_an_output_of_one_file_has_its_manifest_beside_it(tmp_path: Path) -> None:
    out = tmp_path / "merged.safetensors"
    write(SingleFileSink(out), plan_layout(METAS, max_shard_bytes=None, stem="merged"), {})
    assert verify_file(out) == []
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    assert [(d.code, d.where.tensor) for d in verify_file(out)] == [("CV-V006", "lm_head")]
    out.unlink()
    assert [d.code for d in verify_file(out)] == ["CV-V003"]


def forged(pristine: Path, change) -> bytes:
    content = json.loads((pristine / MANIFEST).read_bytes())
    del content["digest"]
    change(content)
    return canonical_json({**content, "digest": blake3(canonical_json(content)).hexdigest()})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.update(cuvee_manifest=2), "format version 2"),
        (lambda c: c.update(extra=1), "fields of a manifest"),
        (lambda c: c.update(lock=[]), "another type"),
        (lambda c: c["files"].update({"../x": c["files"]["config.json"]}), "leaves its folder"),
        (lambda c: c["files"].update({"x": {"kind": "plain"}}), "wrong fields"),
        (lambda c: c["files"]["config.json"].update(size=-1), "impossible values"),
        (lambda c: c["tensors"]["lm_head"].update(blake3="x"), "impossible values"),
        (lambda c: c["tensors"]["lm_head"].update(file="nowhere"), "does not list"),
        (lambda c: c["tensors"].pop("lm_head"), "does not account"),
        (lambda c: c["tensors"]["lm_head"].update(offset=0), "a gap or an overlap"),
        (lambda c: c["complete"].update(tensors=3), "as many"),
    ],
)
def test_a_forged_manifest_that_contradicts_itself_is_refused(pristine: Path, change, words: str) -> None:
    with pytest.raises(VerifyError, match=words):
        parse(forged(pristine, change))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("base: /data/models/llama-7b", "base: llama-7b"),
        ("/a/b+/c/d", "b+d"),
        ("['/a/b c', \"/x/y/\"]", "['b c', \"y\"]"),
        ("~/models/x ~ann/y", "x y"),
        ("file:///srv/m", "m"),
        ("C:\\models\\x and \\\\host\\share\\x", "x and x"),
        ("hf://org/name@main https://a.b/c/d", "hf://org/name@main https://a.b/c/d"),
        ("./here/x ../there/y org/name a / b", "./here/x ../there/y org/name a / b"),
    ],
)
def test_absolute_paths_are_cut_to_their_last_part(text: str, expected: str) -> None:
    assert portable_text(text) == expected

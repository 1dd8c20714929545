"""The guides that tell how to add something: what they show is written to a folder of its own and tried."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from doc_snippets import ROOT, blocks

from cuvee.families import Family, identify, read

TREE = """
version: 1
experts:
  soup: {{{soup}, weight: 0.7}}
  math: {{source: ./math, weight: 0.3}}
merge: {{method: linear}}
"""
STEP = "experts: {math: ./math, code: ./code}, merge: {method: ties, density: 0.3}, output: {dtype: bfloat16}"


def shown(guide: str, file: str) -> str:
    """The text of a file in a guide."""
    found = [b.code for b in blocks(ROOT / "docs" / "guides" / guide) if b.file == file]
    assert len(found) == 1, f"{guide} shows {file} {len(found)} times"
    return found[0]


def test_the_guides_method_keeps_the_contract_in_a_package_of_its_own(tmp_path: Path) -> None:
    for file in ("trimmed_mean.py", "preset.py", "test_trimmed_mean.py"):
        (tmp_path / file).write_text(shown("add-a-method.md", file), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def test_the_guides_method_is_found_as_an_installed_plug_in(tmp_path: Path) -> None:
    package, info = tmp_path / "my_package", tmp_path / "my_package-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    for file in ("trimmed_mean.py", "preset.py"):
        (package / file).write_text(shown("add-a-method.md", file), encoding="utf-8")
    listed = next(b.code for b in blocks(ROOT / "docs/guides/add-a-method.md") if b.language == "toml")
    points = "\n".join(["[cuvee.methods]", *(line.replace('"', "") for line in listed.splitlines()[1:])])
    (info / "entry_points.txt").write_text(points)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    code = "import sys; from cuvee.cli import main; sys.argv = ['cuvee', 'methods', 'trimmed_mean']; main()"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "discard" in done.stdout, done.stdout + done.stderr
    assert "trimmed_mean → scale" in done.stdout


def test_the_guides_track_joins_the_benchmark_as_an_installed_plug_in(tmp_path: Path) -> None:
    package, info = tmp_path / "my_bench", tmp_path / "my_bench-1.0.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text("")
    for file in ("my_bench/track.py", "my_bench/merging.py"):
        (tmp_path / file).write_text(shown("add-a-track.md", file), encoding="utf-8")
    points = shown("add-a-track.md", "pyproject.toml").split('cuvee.tracks"]\n')[1].split("\n")[0]
    (info / "entry_points.txt").write_text("[cuvee.tracks]\n" + points.replace('"', ""))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-bench\nVersion: 1.0\n")
    page = (ROOT / "docs/guides/add-a-track.md").read_text(encoding="utf-8")
    asked = [line.split()[1:] for line in page.splitlines() if line.startswith("cuvee bench ")]
    code = f"""
import json, sys
sys.path.insert(0, {str(tmp_path)!r})
from cuvee.cli import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["cuvee", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked[:3])],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    rows = {line.split("|")[2].strip(): line for line in said.splitlines() if line.startswith("| ")}
    assert {"experts", "ties (budget 4)", "half_way (untuned)"} <= set(rows)
    experts, base = (float(rows[name].split("|")[3].split()[0]) for name in ("experts", "base"))
    assert f"{experts} to {base}" in page


def test_a_tree_gives_the_bytes_of_its_steps(tmp_path: Path) -> None:
    import cuvee

    runpy.run_path(str(ROOT / "examples" / "tiny_models.py"))["main"](tmp_path / "models")
    folder = tmp_path / "models"
    (folder / "step.yaml").write_text(f"{{version: 1, base: ./base, {STEP}}}")
    (folder / "after.yaml").write_text(TREE.format(soup="source: ./step"))
    (folder / "tree.yaml").write_text(TREE.format(soup="recipe: step.yaml"))
    cuvee.load(folder / "step.yaml").save(folder / "step")
    for name in ("after", "tree"):
        cuvee.load(folder / f"{name}.yaml").save(folder / name)
    weights = [(folder / name / "model.safetensors").read_bytes() for name in ("after", "tree")]
    assert weights[0] == weights[1]


@pytest.fixture
def with_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The families of the package and those of the guide."""
    from cuvee.families import match

    data = tmp_path / "data"
    shutil.copytree(read.DATA, data)
    for file in ("nectar.toml", "ambrosia.toml"):
        (data / file).write_text(shown("add-a-family.md", file), encoding="utf-8")
    monkeypatch.setattr(read, "DATA", data)
    caches = [f for m in (read, match) for f in vars(m).values() if hasattr(f, "cache_clear")]
    for cache in caches:
        cache.cache_clear()
    yield
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()


def test_the_guides_families_are_recognised_and_give_roles(with_families: None) -> None:
    names = {f"net.blocks.{i}.{n}.weight": (4, 4) for i in range(3) for n in _AMBROSIA}
    names |= {"net.tok.weight": (9, 4), "net.norm_f.weight": (4,), "head.weight": (9, 4)}
    for config in ({"architectures": ["AmbrosiaForCausalLM"], "depth": 3}, None):
        family: Family = identify(config, names)
        assert (family.name, family.layer_count(names, "default")) == ("ambrosia", 3)
        assert [family.place(f"net.blocks.1.{n}.weight").role for n in _AMBROSIA] == [*_AMBROSIA.values()]
        assert family.place("head.weight").vocabulary_axis == 0
    llama = {f"model.layers.0.self_attn.{n}_proj.weight": (4, 4) for n in "qkvo"}
    assert identify({"model_type": "nectar"}, llama).name == "nectar"


_AMBROSIA = {"attn.qkv": "qkv", "attn.out": "o", "ffn.w_in": "up", "ffn.w_out": "down", "norm1": "norm"}

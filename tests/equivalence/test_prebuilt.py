"""Libraries of a wheel: the best one for the processor is taken, and none that computes otherwise."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuvee.engine.kernels import build, library

SCRIPT = Path(__file__).parents[2] / "scripts" / "build_kernels.py"

pytestmark = pytest.mark.skipif(library.kernels() is None, reason=f"no kernels: {library.state().reason}")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, str(SCRIPT), "--out", str(folder)], check=True, capture_output=True)
    return folder


@pytest.fixture
def package(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package that came with libraries; what was loaded before is forgotten, then and afterwards."""
    monkeypatch.setattr(build, "HERE", made)
    library._load.cache_clear()
    yield made
    monkeypatch.undo()
    library._load.cache_clear()


def test_a_library_of_the_package_is_used_before_one_is_built(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "built", lambda: pytest.fail("built, although there is one"))
    assert library.kernels() is not None
    assert library.state().path == build.prebuilt()
    assert library.state().path in set(package.iterdir())


def test_the_best_library_that_the_processor_can_run_is_taken(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = frozenset().union(*build.LEVELS.values())
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(build.platform, "system", lambda: "Linux")
    for name in (*build.LEVELS, "x86_64-linux"):
        (package / f"cuvee_kernels-{name}.so").touch()
    for features, name in (
        (everything, "x86-64-v4"),
        (everything - {"avx512vl"}, "x86-64-v3"),
        (everything - {"f16c", "avx512f"}, "x86_64-linux"),
        (frozenset(), "x86_64-linux"),
    ):
        monkeypatch.setattr(build, "processor", lambda features=features: features)
        found = build.prebuilt()
        assert found is not None
        assert found.name == f"cuvee_kernels-{name}.so"


@pytest.mark.parametrize("damage", ["wrong arithmetic", "not a library", "an older library"])
def test_a_library_that_fails_its_test_is_refused_and_one_is_built(
    damage: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = build.SOURCE.read_text()
    if damage == "wrong arithmetic":
        text = text.replace("a[i] - b[i]; break;", "b[i] - a[i]; break;")
    if damage == "an older library":
        text = text.replace("cuvee_equal", "cuvee_equal_of_old")
    assert damage == "not a library" or text != build.SOURCE.read_text()
    source = tmp_path / "kernels.c"
    source.write_text(text)
    for name in build.HEADERS:
        shutil.copy(build.SOURCE.with_name(name), tmp_path)
    found = build.prebuilt()
    assert found is not None
    broken = tmp_path / found.name
    if damage == "not a library":
        broken.write_bytes(b"text")
    else:
        subprocess.run(["cc", *build.FLAGS, str(source), "-o", str(broken)], check=True)
    monkeypatch.setattr(build, "HERE", tmp_path)
    if damage == "wrong arithmetic":
        with pytest.warns(RuntimeWarning, match="differ from the reference"):
            assert library.kernels() is not None
    else:
        assert library.kernels() is not None
    assert library.state().path == build.built()

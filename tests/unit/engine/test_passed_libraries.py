"""A library that passed its test is not tested again; whatever is not the very same is."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cuvee.engine.kernels import build, library, passed, selftest

pytestmark = pytest.mark.skipif(library.kernels() is None, reason=f"no kernels: {library.state().reason}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that holds the library that is in use, and no record of it."""
    found = library.state().path
    assert found is not None
    folder = tmp_path / "cache" / "kernels"
    folder.mkdir(parents=True)
    shutil.copy(found, folder)
    monkeypatch.setenv("CUVEE_CACHE", str(folder.parent))
    library._load.cache_clear()
    yield folder
    library._load.cache_clear()


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by the library of each test that is made."""
    made: list[object] = []
    failures = selftest.failures

    def counted(tested: library.Kernels) -> list[str]:
        made.append(tested)
        return failures(tested)

    monkeypatch.setattr(selftest, "failures", counted)
    return made


def loaded_again() -> bool:
    library._load.cache_clear()
    return library.kernels() is not None


def test_the_same_library_is_tested_once(cache: Path, trials: list[object]) -> None:
    assert loaded_again()
    assert len(trials) == 1
    assert len(list(cache.glob("*.passed"))) == 1
    assert loaded_again()
    assert len(trials) == 1


def test_another_library_of_the_same_name_is_tested_and_refused(
    cache: Path, trials: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert loaded_again()
    (path,) = cache.glob("*.so")
    text = build.SOURCE.read_text()
    wrong = text.replace("a[i] - b[i]; break;", "b[i] - a[i]; break;")
    assert wrong != text
    source = tmp_path / "kernels.c"
    source.write_text(wrong)
    for name in build.HEADERS:
        shutil.copy(build.SOURCE.with_name(name), tmp_path)
    other = tmp_path / "other" / "kernels"  # a process keeps what it has loaded from a path
    shutil.copytree(cache, other)
    subprocess.run(["cc", *build.FLAGS, str(source), "-o", str(other / path.name)], check=True)
    monkeypatch.setenv("CUVEE_CACHE", str(other.parent))
    with pytest.warns(RuntimeWarning, match="differ from the reference"):
        assert not loaded_again()
    assert len(trials) == 2
    assert len(list(other.glob("*.passed"))) == 1  # of the right one


@pytest.mark.parametrize("changed", ["vectors.json", "selftest.py", "operations.py", "library.py"])
def test_what_the_test_consists_of_is_part_of_the_record(
    changed: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = cache.glob("*.so")
    before = passed.record_of(path)
    assert before is not None
    for name in passed._TESTS:
        shutil.copy(passed.HERE / name, tmp_path)
    monkeypatch.setattr(passed, "HERE", tmp_path)
    assert passed.record_of(path) == before
    with (tmp_path / changed).open("ab") as file:
        file.write(b" ")
    assert passed.record_of(path) != before


def test_another_processor_or_python_tests_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = cache.glob("*.so")
    before = passed.record_of(path)
    with monkeypatch.context() as here:
        here.setattr(passed, "processor", lambda: frozenset({"sse2"}))
        assert passed.record_of(path) != before
    with monkeypatch.context() as here:
        here.setattr(passed.sys, "version", "4.0")
        assert passed.record_of(path) != before
    assert passed.record_of(path) == before


def test_a_record_that_others_may_write_to_counts_for_nothing(cache: Path, trials: list[object]) -> None:
    assert loaded_again()
    (record,) = cache.glob("*.passed")
    record.chmod(0o666)
    assert loaded_again()
    assert len(trials) == 2


def test_a_cache_that_cannot_be_written_is_no_error(
    cache: Path, trials: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(passed.disk, "write_file", refuse)
    assert loaded_again()
    assert loaded_again()
    assert len(trials) == 2


def test_a_library_is_tested_where_denormals_are_switched_off(cache: Path, trials: list[object]) -> None:
    import torch

    assert loaded_again()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    try:
        with pytest.warns(RuntimeWarning, match="differ from the reference"):
            assert not loaded_again()
    finally:
        torch.set_flush_denormal(False)
    assert len(trials) == 2
    assert len(list(cache.glob("*.passed"))) == 1
    assert loaded_again()
    assert len(trials) == 2

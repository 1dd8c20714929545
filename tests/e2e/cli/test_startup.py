"""Commands that need no arithmetic never import torch, and answer at once."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import cuvee

SOURCE = str(Path(cuvee.__file__).parent.parent)
REPORT = (
    "import sys\nfrom cuvee.cli import main\ntry:\n    main()\nfinally:\n"
    "    print('MODULES', *sorted(m for m in sys.modules if '.' not in m), file=sys.stderr)\n"
)
TIES = (
    "merge_method: ties\nbase_model: ./base\nmodels:\n  - {model: ./math, parameters: {weight: 0.5, density: 0.5}}\n"
    "  - {model: ./code, parameters: {weight: 0.5, density: [0.3, 0.6]}}\nout_dtype: bfloat16\n"
)
LIGHT = [
    "--help",
    "--version",
    "merge --help",
    "check r.yaml",
    "check own.cuvee.yaml",
    "plan r.yaml",
    "plan own.cuvee.yaml --tensor *",
    "plan r.yaml -o p.json",
    "merge r.yaml -o out --dry-run",
    "quick linear ./math ./code -o out --dry-run",
    "inspect ./base",
    "diff ./base ./math --structure",
    "methods",
    "methods ties",
    "methods --stages",
    "explain CV-R004",
    "explain ties",
    "schema",
    "schema mergekit",
    "import mergekit r.yaml",
    "config",
    "init new.yaml",
    "doctor",
    "lock r.yaml",
    "card r.yaml",
    "completions bash",
    "cache",
    "verify ./base",
]
HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "peft",
    "tokenizers",
    "huggingface_hub",
    "rich",
    "safetensors",
    "pydantic",
}
MODULES = 360  # of all kinds that `check` may import: what it costs grows with them
MERGING = 460  # the same of a streaming merge
UNNEEDED = {  # by a merge that streams from folder to folder, with catalogues or without
    "asyncio",
    "email",
    "html",
    "http",
    "importlib.metadata",
    "importlib.resources",
    "jinja2",
    "multiprocessing",
    "random",
    "socket",
    "ssl",
    "subprocess",
    "tempfile",
    "urllib.request",
    "zipfile",
    "cuvee.analyze",
    "cuvee.api.adapter_out",
    "cuvee.api.compare",
    "cuvee.api.package_out",
    "cuvee.api.python_recipe",
    "cuvee.api.sparing",
    "cuvee.charts",
    "cuvee.cli.codes",
    "cuvee.engine.adapter_reads",
    "cuvee.engine.cluster",
    "cuvee.engine.foresight",
    "cuvee.engine.packing",
    "cuvee.evaluate",
    "cuvee.formats.gguf",
    "cuvee.formats.pickle_machine",
    "cuvee.plan.budget",
    "cuvee.plan.packages",
    "cuvee.sources.catalogue_live",
    "cuvee.sources.catalogue_look",
    "cuvee.sources.catalogue_scan",
    "cuvee.sources.hub",
    "cuvee.sources.key_map",
    "cuvee.sources.package",
    "cuvee.sources.remote",
    *HEAVY,
}
BUDGET = 0.3  # seconds of processor beyond the bare interpreter, on a quiet machine with byte code at hand
SLACK = 2.0  # machines of tests are neither


@pytest.fixture
def folder(here: Path) -> Path:
    (here / "r.yaml").write_text(TIES)
    (here / "own.cuvee.yaml").write_text(
        "version: 1\nbase: ./base\nexperts: {math: ./math}\nmerge: [trim: {density: 0.5}, elect]\n"
    )
    return here


def _environment(folder: Path) -> dict[str, str]:
    plain = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    byte_code = {"PYTHONPYCACHEPREFIX": str(folder.parent / "byte-code")}
    return (
        plain
        | byte_code
        | {"PYTHONPATH": SOURCE, "HF_HUB_OFFLINE": "1", "CUVEE_CACHE": str(folder / "cache")}
    )


def test_light_commands_import_nothing_heavy(folder: Path) -> None:
    found = {}
    for line in LIGHT:
        result = subprocess.run(
            [sys.executable, "-c", REPORT, *line.split()],
            env=_environment(folder),
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode in (0, 3), f"{line}: {result.stderr[-600:]}"
        modules = result.stderr.rpartition("MODULES ")[2].split()
        assert "cuvee" in modules
        if HEAVY & set(modules):
            found[line] = sorted(HEAVY & set(modules))
    assert found == {}


def test_a_check_imports_few_modules_and_no_method_but_its_own(folder: Path) -> None:
    program = (
        "import sys\nfrom cuvee.cli import main\ntry:\n    main()\nfinally:\n"
        "    print('MODULES', *sys.modules, file=sys.stderr)\n"
    )
    arguments = [sys.executable, "-c", program, "check", "r.yaml"]
    result = subprocess.run(
        arguments, env=_environment(folder), capture_output=True, text=True, check=False, cwd=folder
    )
    modules = result.stderr.rpartition("MODULES ")[2].split()
    assert len(modules) < MODULES
    presets = {m.rpartition(".")[2] for m in modules if m.startswith("cuvee.methods.presets.")}
    assert presets == {"ties"}
    assert "importlib.metadata" not in modules  # only where a package declares methods


def test_a_streaming_merge_imports_nothing_that_it_does_not_need(folder: Path) -> None:
    program = (
        "import sys\nfrom cuvee.cli import main\ntry:\n    main()\nfinally:\n"
        "    print('MODULES', *sys.modules, file=sys.stderr)\n"
    )
    for out in ("first", "second"):  # the first may have to build kernels
        arguments = [sys.executable, "-c", program, "merge", "r.yaml", "-o", out, "--quiet", "--offline"]
        result = subprocess.run(
            arguments, env=_environment(folder), capture_output=True, text=True, check=False, cwd=folder
        )
        assert result.returncode == 0, result.stderr[-600:]
    modules = result.stderr.rpartition("MODULES ")[2].split()
    assert "cuvee.engine.run" in modules
    assert UNNEEDED & set(modules) == set()
    assert len(modules) < MERGING
    presets = {m.rpartition(".")[2] for m in modules if m.startswith("cuvee.methods.presets.")}
    assert presets == {"ties"}


def test_the_collector_of_cycles_sleeps_through_the_start_and_wakes_where_much_is_made() -> None:
    program = (
        "import gc\nfrom cuvee.cli import main\nusual = gc.get_threshold()\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "asleep = gc.get_threshold() != usual\n"
        "kept = [[] for _ in range(200_000)]\n"
        "print(asleep, gc.get_threshold() == usual, not gc.callbacks)"
    )
    arguments = [sys.executable, "-c", program, "--version"]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[1:] == ["True True True"]


def _processor_time(arguments: list[str], folder: Path) -> float:
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(arguments, env=_environment(folder), capture_output=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    once()  # byte code is written
    return statistics.median(once() for _ in range(3))


@pytest.mark.parametrize(
    "line", ["--help", "check r.yaml", "plan r.yaml", "inspect ./base", "methods", "config"]
)
def test_processor_time(line: str, folder: Path) -> None:
    bare = _processor_time([sys.executable, "-c", "pass"], folder)
    program = "from cuvee.cli import main; main()"
    spent = _processor_time([sys.executable, "-c", program, *line.split()], folder) - bare
    assert spent < BUDGET * SLACK, f"{line}: {spent:.3f} s"

"""How long do commands that need no arithmetic take beyond starting Python? `python benchmarks/startup.py [--cold]`

Prints seconds of processor (user and system, the median of nine runs) beyond `python -c pass`, and how many times a
bare start that is, in the same run; `--cold` without byte code of cuvee's own. The promise is 0.3 s.
"""

from __future__ import annotations

import compileall
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = 9
ROOT = Path(__file__).parent.parent
RECIPE = (
    "version: 1\nbase: ./base\nexperts: {math: ./math, code: ./code}\nmerge: {method: ties, density: 0.3}\n"
)
THEIRS = (
    "merge_method: ties\nbase_model: ./base\nmodels:\n  - {model: ./math, parameters: {weight: 1, density: 0.5}}\n"
    "  - {model: ./code, parameters: {weight: 1, density: 0.5}}\n"
)
COMMANDS = (
    "check own.yaml",
    "check theirs.yaml",
    "plan own.yaml",
    "inspect ./base",
    "methods",
    "methods ties",
    "--help",
    "merge --help",
)


def processor_time(arguments: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Median over the runs, after one that is not counted."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    once()
    return statistics.median(once() for _ in range(RUNS))


def main() -> None:
    cold = "--cold" in sys.argv
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = Path(
            shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
        )
        if not cold:
            compileall.compile_dir(source, quiet=1)
        environment = {
            **os.environ,
            "PYTHONPATH": str(source),
            "PYTHONDONTWRITEBYTECODE": "1",
            "CUVEE_CACHE": str(folder / "cache"),
        }
        subprocess.run(
            [sys.executable, ROOT / "examples" / "tiny_models.py", folder], check=True, capture_output=True
        )
        (folder / "own.yaml").write_text(RECIPE)
        (folder / "theirs.yaml").write_text(THEIRS)
        bare = processor_time([sys.executable, "-c", "pass"], folder, environment)
        print(f"{'python -c pass':20} {bare:6.3f} s")
        for line in COMMANDS:
            program = [sys.executable, "-c", "from cuvee.cli import main; main()", *line.split()]
            spent = processor_time(program, folder, environment)
            print(f"{line:20} {spent - bare:6.3f} s beyond it, {spent / bare:5.1f} times a bare start")


if __name__ == "__main__":
    main()

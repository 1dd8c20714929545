"""Promise 7 against the clock: a signal at any time ends the command soon, with its exit code and the way to resume."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import cuvee

SOURCE = str(Path(cuvee.__file__).parent.parent)
PROMISED = 2.0  # seconds, and one tensor
SLACK = 2.0  # for a machine that others use too
TIES = """\
version: 1
base: ./base
experts: {math: ./math, code: ./code}
merge: {method: ties, density: 0.3, scope: model}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, make_llama: Any) -> Path:
    """Three models whose merge takes some seconds, with two passes over everything; and its output."""
    root = tmp_path_factory.mktemp("interrupts")
    base = make_llama(root / "base", 0, layers=6, width=256)
    make_llama(root / "math", 1, base, layers=6, width=256)
    make_llama(root / "code", 2, base, layers=6, width=256)
    (root / "r.yaml").write_text(TIES)
    return root


def start(work: Path, out: str) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", "from cuvee.cli import main; main()", "merge", "r.yaml", "-o", out]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("CUVEE_")}
    plain |= {
        "PYTHONPATH": SOURCE,
        "HF_HUB_OFFLINE": "1",
        "CUVEE_KERNELS": "off",
        "CUVEE_CACHE": str(work / "c"),
    }
    return subprocess.Popen(
        [*line, "-j", "2"], cwd=work, env=plain, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_signal_at_any_time_ends_the_command_within_the_promised_time(work: Path) -> None:
    began = time.monotonic()
    whole = start(work, "whole")
    assert whole.wait(timeout=120) == 0, whole.communicate()
    length = time.monotonic() - began
    whole.communicate()
    expected = load_file(work / "whole" / "model.safetensors")
    interrupted = 0
    for number, share in enumerate((0.4, 0.65, 0.85)):
        sent = signal.SIGINT if number % 2 else signal.SIGTERM
        running = start(work, "out")
        time.sleep(share * length)
        asked = time.monotonic()
        running.send_signal(sent)
        _, err = running.communicate(timeout=60)
        took = time.monotonic() - asked
        if (work / "out").exists():  # it was faster than the signal
            break
        assert running.returncode == 128 + sent, err
        assert took < PROMISED + length / len(expected) + SLACK, f"{took:.1f} s after {share:.0%}"
        assert "CV-E030" in err
        assert not (work / "out").exists()
        if "resume with: " in err:
            interrupted += 1
            assert "resume with: cuvee merge r.yaml -o out -j 2" in err
    assert interrupted >= 1
    if not (work / "out").exists():
        last = start(work, "out")
        _, err = last.communicate(timeout=120)
        assert last.returncode == 0, err
    made = load_file(work / "out" / "model.safetensors")
    assert all(made[name].equal(expected[name]) for name in expected)


def test_an_interrupt_within_executed_text_ends_in_the_exit_code_too() -> None:
    program = (
        "import click, cuvee.cli.app\nfrom cuvee.cli import main\n"
        "cuvee.cli.app.app = click.Command('c', callback=lambda: exec('raise KeyboardInterrupt'))\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 130
    assert "CV-E030" in result.stderr and "Traceback" not in result.stderr


def test_an_interrupt_before_the_program_is_there_ends_quietly() -> None:
    program = (
        "import sys\nfrom cuvee.cli import main\n"
        "class Stopped:\n    def find_spec(self, name, *_):\n        if name == 'cuvee.cli.app':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Stopped())\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "")

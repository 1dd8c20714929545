"""Promise 21: no command that names no hub repository connects to anything, and tokens are in no output."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_streams_and_exits import JSON, MORE, TIES

from cuvee.testing.hub import LocalHub

TOKEN = "hf_canary9876543210"


@pytest.fixture
def work(here: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models, recipes and an output, with the network allowed and a token set."""
    monkeypatch.setenv("CUVEE_CACHE", str(here / "cache"))
    monkeypatch.setenv("HF_HOME", str(here / "home"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("CUVEE_LOCK_KEY", TOKEN)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (here / "r.yaml").write_text(TIES)
    (here / "bad.yaml").write_text(TIES.replace("ties", "tise"))
    assert cli("merge", "r.yaml", "-o", "out", "-q").code == 0
    return here


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Every address that anything tries to connect to, also on this machine."""
    found: list[Any] = []

    def refuse(self: socket.socket, address: Any) -> None:
        found.append(address)
        raise OSError("no connection in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield found


def test_no_command_connects(work: Path, cli: Any, asked: list[Any]) -> None:
    for arguments, _, code in {**JSON, **MORE}.values():
        assert cli(*arguments).code == code, arguments
    assert asked == []


def test_a_hub_name_does_connect_unless_offline(
    work: Path, cli: Any, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watch above sees what it should."""
    assert cli("inspect", "hf://owner/name", "--offline").code == 1
    assert asked == []
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert cli("inspect", "hf://owner/name").code == 1
    assert asked


def test_the_hub_is_told_nothing_about_this_machine(
    work: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    with LocalHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert cli("push", "out", "me/out").code == 0
        assert cli("inspect", "hf://me/out").code == 0
        assert cli("diff", "out", "hf://me/out").code == 0
    assert len(hub.requests) > 5
    assert not [request for request in hub.requests if "torch" in (request.agent or "")]
    assert not [request for request in hub.requests if "agent" in (request.agent or "") + request.path]


def test_tokens_are_in_no_output(work: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    streams = []
    with LocalHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        commands = [arguments for arguments, _, _ in {**JSON, **MORE}.values()]
        commands += [["push", "out", "me/out"], ["inspect", "hf://me/none"], ["inspect", "hf://me/out"]]
        commands += [["merge", "r.yaml", "-o", "debug", "--debug"], ["inspect", "hf://me/none", "--debug"]]
        for arguments in commands:
            for more in ([], ["--json"]):
                outcome = cli(*arguments, *more)
                streams += [outcome.out, outcome.err]
        sent = [c for r in hub.repositories.values() for files in r.commits.values() for c in files.values()]
        assert any(request.authorization == f"Bearer {TOKEN}" for request in hub.requests)  # it was in use
    assert not [text for text in streams if TOKEN in text]
    assert not [content for content in sent if TOKEN.encode() in content]
    written = [p for p in work.rglob("*") if p.is_file() and "home" not in p.relative_to(work).parts]
    assert len(written) > 20
    assert not [p for p in written if TOKEN.encode() in p.read_bytes()]


def test_nothing_is_sent_home_at_import_or_exit(tmp_path: Path) -> None:
    """A whole process, from import to exit, under an audit hook."""
    program = (
        "import sys\n"
        "seen = []\n"
        "sys.addaudithook(lambda e, a: seen.append(e) if e.startswith('socket.') and e != 'socket.__new__' else None)\n"
        "import atexit\n"
        "atexit.register(lambda: print('events', sorted(set(seen))))\n"
        "sys.argv = ['cuvee', 'doctor', '-q']\n"
        "from cuvee.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert set(ast.literal_eval(done.stdout.rsplit("events ", 1)[1])) <= {"socket.gethostname"}

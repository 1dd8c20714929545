"""Every recipe, Python block and console session in the documentation does what the page says."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import click
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import bare_pipelines
from doc_snippets import ROOT, Block, blocks, pages, run_block, same

PAGES = [page for page in pages() if any(b.runs for b in blocks(page))]
SHOWN = ("sh", "text", "json", "toml", "bibtex", "diff")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny models of the guides."""
    folder = tmp_path_factory.mktemp("docs") / "models"
    runpy.run_path(str(ROOT / "examples" / "tiny_models.py"))["main"](folder)
    bare_pipelines.main(folder)
    return folder


@pytest.fixture
def desk(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the models in it, no network, plain output."""
    for model in models.iterdir():
        (tmp_path / model.name).symlink_to(model, target_is_directory=True)
    for name in ("FORCE_COLOR", "CUVEE_DEBUG", "CUVEE_MEMORY", "CUVEE_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # files of a page may import each other
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_shows_is_what_happens(page: Path, desk: Path, request: pytest.FixtureRequest) -> None:
    space: dict[str, Any] = {"__name__": "docs"}
    before = set(sys.modules)
    wrong: list[str] = []
    text = page.read_text(encoding="utf-8")
    for block in blocks(page):
        real, problems = run_block(block, desk, space)
        wrong += problems
        text = text.replace(f"```{block.language}\n{block.code}```", f"```{block.language}\n{real}```")
    for name in {b.file.removesuffix(".py") for b in blocks(page) if b.file} - before:
        sys.modules.pop(name, None)
    assert "Traceback" not in "".join(wrong) and "CV-X001" not in "".join(wrong), "\n\n".join(wrong)
    if wrong and request.config.getoption("--update-golden"):
        page.write_text(text, encoding="utf-8")
        return
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_fences_are_known_and_shown_commands_exist(page: Path) -> None:
    for block in blocks(page):
        known = (*SHOWN, "yaml", "python", "console")
        assert block.language in known, f"{block.page}:{block.line}: language `{block.language}`"
        if block.language in ("sh", "console"):
            _commands_exist(block)
    assert page.read_text(encoding="utf-8").count("\n```") == 2 * len(blocks(page)), "a fence is not closed"


def _commands_exist(block: Block) -> None:
    from cuvee.cli.app import COMMANDS, app

    root = click.Context(app, info_name="cuvee", **app.context_settings)
    for line in block.code.splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True) if _is_command(line, block) else []
        if len(words) < 2 or words[0] != "cuvee" or words[1].startswith("-"):
            continue
        place = f"{block.page}:{block.line}: {line}"
        assert words[1] in COMMANDS, place
        command = app.get_command(root, words[1])
        if isinstance(command, click.Group):
            command = command.commands[words[2]]
        assert command is not None
        flags = {f for p in command.params for f in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
        given = {w.split("=")[0] for w in words[2:] if re.match(r"--?[a-zA-Z]", w)}
        assert given <= flags, f"{place}: {given - flags}"


def _is_command(line: str, block: Block) -> bool:
    return line.startswith("$ cuvee ") if block.language == "console" else line.startswith("cuvee ")


def test_an_ellipsis_stands_for_lines_and_nothing_else() -> None:
    assert same("a\n…\nd\n", "a\nb [1] *\nd\n")
    assert same("wrote in 0.1 s\n", "wrote in 7.3 s")
    assert not same("a\n…\nd\n", "a\nb\nc\n")
    assert not same("a [x]\n…\n", "a x\nb\n")
    assert not same("a\n", "a\nb\n")

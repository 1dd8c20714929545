"""Finds and runs the code in the documentation: recipes, Python and console sessions.

In a page, a fence of language

- `yaml` is a recipe: `cuvee check` must find no mistake in it, with the tiny models of `examples/tiny_models.py` as
  its sources;
- `python` is run, all blocks of a page in one namespace;
- `console` is run: lines that start with `$ ` are commands, what follows is what they print, compared word by word;
  a line `…` stands for any lines.

A comment before a fence changes that: `<!-- file: NAME -->` also saves the block under that name for later blocks of
the page, `<!-- wrong, file: NAME -->` saves a recipe in which `cuvee check` must find mistakes, `<!-- not run: REASON
-->` skips the block. Other languages (`sh`, `text`, `json`, `toml`) are shown only; every `cuvee` command in them must
exist with the options it is given.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(
    r"(?:<!-- (?P<word>file|wrong, file|not run): (?P<what>[^\n]+?) -->\n+)?"
    r"^```(?P<language>[\w-]*)\n(?P<code>.*?)^```$",
    re.S | re.M,
)
_VOLATILE = (
    (re.compile(r"\b\d+\.\d s\b"), "N.N s"),
    (re.compile(r"peak memory (up to )?[\d.]+ [kMG]?B"), r"peak memory \1N MB"),
    (re.compile(r"at (an assumed|the) [\d.]+ [kMG]?B/s( of earlier runs)?"), "at an assumed N MB/s"),
    (re.compile(r"free disk [\d.]+ [kMGT]?B"), "free disk N GB"),
)


@dataclass(frozen=True)
class Block:
    """One fence of a page: its language, text, line, and what the comment before it says."""

    page: str
    line: int
    language: str
    code: str
    file: str | None
    reason: str | None  # why it is not run
    wrong: bool = False  # a recipe in which mistakes must be found

    @property
    def runs(self) -> bool:
        return self.reason is None and self.language in ("yaml", "python", "console")


def pages() -> list[Path]:
    """README, changelog and every page of the documentation."""
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fences of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        word, what = match["word"], match["what"]
        line = text.count("\n", 0, match.start("language")) + 1
        found.append(
            Block(
                page=page.relative_to(ROOT).as_posix(),
                line=line,
                language=match["language"],
                code=match["code"],
                file=what if word in ("file", "wrong, file") else None,
                wrong=word == "wrong, file",
                reason=what if word == "not run" else None,
            )
        )
    return found


def cuvee(arguments: list[str]) -> tuple[str, int]:
    """What `cuvee ARGUMENTS` prints on both streams, in order, and its exit code; run in this process."""
    from cuvee.cli.app import app
    from cuvee.cli.failure import run_guarded

    stream, before = io.StringIO(), sys.argv
    sys.argv = ["cuvee", *arguments]
    try:
        with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
            code = run_guarded(app)
    finally:
        sys.argv = before
    return stream.getvalue(), code


def run_command(line: str, folder: Path) -> str:
    """What one console line prints; an exit code other than 0 is shown by a following `echo $?` only."""
    name, *arguments = shlex.split(line, comments=True)
    if name == "cuvee":
        return cuvee(arguments)[0]
    if name in ("ls", "cat"):
        done = subprocess.run([name, *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout
    raise ValueError(f"a console block may run cuvee, ls and cat, not `{name}`")


def session(code: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output it shows."""
    for part in re.split(r"^\$ ", code, flags=re.M)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


def same(shown: str, real: str) -> bool:
    """Whether a shown output is the real one, but for times, memory and what `…` stands for."""
    shown, real = plain(shown), plain(real)
    if "\n…\n" not in f"\n{shown}\n":
        return shown == real
    pattern = "*".join(re.sub(r"([\[*?])", r"[\1]", piece) for piece in f"\n{shown}\n".split("…"))
    return fnmatch.fnmatchcase(f"\n{real}\n", pattern)


def plain(text: str) -> str:
    """The text without what differs from run to run, without blank ends."""
    for pattern, constant in _VOLATILE:
        text = pattern.sub(constant, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def run_block(block: Block, folder: Path, space: dict[str, Any]) -> tuple[str, list[str]]:
    """Run one block in `folder`, the working folder; its code as it should read, and what is wrong."""
    if block.file is not None:
        target = folder / block.file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(block.code, encoding="utf-8")
    if not block.runs:
        return block.code, []
    place = f"{block.page}:{block.line}"
    if block.language == "python":
        exec(compile(block.code, place, "exec"), space)  # noqa: S102 (the pages are ours)
        return block.code, []
    if block.language == "yaml":
        recipe = folder / (block.file or "snippet.yaml")
        recipe.write_text(block.code, encoding="utf-8")
        said, code = cuvee(["check", str(recipe)])
        return block.code, [f"{place}: {said}"] if (code != 0) != block.wrong else []
    wrong, text = [], ""
    for command, shown in session(block.code):
        real = run_command(command, folder)
        good = same(shown, real)
        if not good:
            wrong.append(f"{place}: `{command}` prints\n{real}")
        text += f"$ {command}\n" + (shown if good else plain(real) + "\n")
    return text, wrong

"""Small pieces of Markdown for the reference: pages, tables, fences, escaping. Knows nothing of Cuvée."""

from __future__ import annotations

from typing import Any

NOTICE = "<!-- written by scripts/make_reference.py; do not edit -->\n"


def page(title: str, *parts: str) -> str:
    """A page of parts with blank lines between them."""
    return NOTICE + "\n".join([f"# {title}", *(f"\n{part}" for part in parts)]) + "\n"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *([_cell(c) for c in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def fenced(kind: str, text: str) -> str:
    return f"```{kind}\n{text}\n```"


def paragraphs(text: str) -> str:
    """A docstring's paragraphs, one line each, safe as Markdown."""
    return "\n\n".join(escaped(" ".join(block.split())) for block in text.strip().split("\n\n"))


def escaped(text: str) -> str:
    """The text with what Markdown would read as markup made plain; code in backticks is left alone."""
    pieces = text.split("`")
    for i in range(0, len(pieces), 2):
        pieces[i] = pieces[i].replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    return "`".join(pieces)


def plain(content: Any) -> str:
    """A value as recipes write it."""
    return str(content).lower() if isinstance(content, bool) else str(content)


def value(content: Any) -> str:
    return "none" if content is None else f"`{plain(content)}`"


def link(paper: str) -> str:
    if paper.startswith("arXiv:"):
        return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})"
    return f"<{paper}>" if paper.startswith("http") else paper

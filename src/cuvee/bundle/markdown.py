"""Text of strangers inside Markdown and YAML: each function makes one place of a page safe.

Knows nothing of what a page says.
"""

from __future__ import annotations

import json
import re
from typing import Any

from cuvee.core.names import printable

_MARKDOWN = re.compile(r"([\\`*_{}\[\]()#+!|~$:@-])")
_LIMIT = 100_000  # characters of a block that a page shows


def plain(text: Any) -> str:
    """Untrusted text as one line of Markdown prose or a table's cell: no markup, no HTML, none invisible."""
    shown = printable(" ".join(str(text).split()), 300)
    shown = _MARKDOWN.sub(r"\\\1", shown)
    return shown.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def code(text: Any) -> str:
    """Untrusted text as inline code: one line, backticks fenced by longer ones, bars kept out of tables."""
    shown = printable(" ".join(str(text).split()), 300).replace("|", "\\|")
    ticks = "`" * (_longest_run(shown) + 1)
    space = " " if shown[:1] in ("", "`") or shown[-1:] == "`" else ""
    return f"{ticks}{space}{shown}{space}{ticks}"


def block(text: Any, language: str = "") -> str:
    """Untrusted text of several lines as a fenced block that nothing inside it can close."""
    lines = str(text)[:_LIMIT].replace("\r\n", "\n").rstrip("\n").split("\n")
    shown = "\n".join(printable(line.replace("\t", "    "), _LIMIT) for line in lines)
    fence = "`" * max(3, _longest_run(shown) + 1)
    return f"{fence}{language}\n{shown}\n{fence}"


def paper_link(paper: str) -> str:
    """A link to an arXiv number or an http(s) address; anything else as plain text."""
    number = re.fullmatch(r"arXiv:(\d{4}\.\d{4,5})(?:v\d+)?", paper)
    if number:
        return f"[arXiv:{number[1]}](https://arxiv.org/abs/{number[1]})"
    if re.fullmatch(r"https?://[\w./~%#?=&+-]+", paper, re.ASCII):
        return f"<{paper}>"
    return plain(paper)


def scalar(text: Any) -> str:
    """A YAML scalar: as it is when nothing in it could mean anything, else double-quoted."""
    shown = str(text)
    if re.fullmatch(r"[A-Za-z][\w./-]*", shown, re.ASCII) and shown.lower() not in _WORDS:
        return shown
    return json.dumps(printable(shown, 300))


_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall(r"`+", text)), default=0)

"""BibTeX entries of the papers that presets cite, for model cards and the documentation."""

from __future__ import annotations


def arxiv(key: str, *, title: str, authors: str, year: int, number: str) -> str:
    """The entry of a preprint; `authors` is written as BibTeX wants it, names joined by `and`."""
    fields = {
        "title": f"{{{{{title}}}}}",
        "author": f"{{{authors}}}",
        "year": f"{{{year}}}",
        "eprint": f"{{{number}}}",
        "archivePrefix": "{arXiv}",
    }
    lines = ",\n".join(f"  {name} = {value}" for name, value in fields.items())
    return f"@misc{{{key},\n{lines}\n}}"

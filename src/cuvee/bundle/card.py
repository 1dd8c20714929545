"""The output's model card: YAML front matter for the hub, and a page that says how the model was made.

Owns the page; `markdown.py` makes safe what strangers named. Knows neither the network nor the clock: the same facts
give the same bytes. Written without a template engine, which takes longer to import than a small merge to run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cuvee.bundle.licence import Licence
from cuvee.bundle.markdown import block, code, paper_link, plain, scalar

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class CardSource:
    """One model that went in: its name in the recipe, where it came from, and its part."""

    alias: str
    location: str  # as written in the recipe; local paths only by their last part
    hub_id: str | None = None
    revision: str | None = None
    part: str = "expert"  # base, expert, adapter
    detail: str = ""  # `llama, 16.1 GB bfloat16`
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class CardMethod:
    """How the model was merged, for readers: name, one-line formula, paper, BibTeX."""

    name: str
    summary: str
    formula: str | None = None
    paper: str | None = None  # arXiv:2306.01708, or an address
    bibtex: str | None = None
    status: str = "exact"


@dataclass(frozen=True, slots=True)
class CardFacts:
    """Everything a card says; all of it given by the caller."""

    name: str
    methods: Sequence[CardMethod]
    sources: Sequence[CardSource]
    recipe: str
    recipe_name: str | None = "cuvee.yaml"  # None: no file of it
    recipe_digest: str | None = None
    changes: Sequence[
        str
    ] = ()  # options of the command line that changed the recipe, as they are written there
    is_local: bool = False  # the recipe names folders, whose paths are relative to one
    is_exact: bool = True  # all was read: the recipe makes the same bytes again
    version: str = ""
    library: str | None = "transformers"
    tags: Sequence[str] = ("merge", "cuvee")
    licence: Licence | None = None
    pipeline: str | None = None  # pipeline_tag
    results: Sequence[tuple[str, str, str]] = field(default_factory=tuple)  # task, metric, value
    notes: Sequence[str] = field(default_factory=tuple)


def model_card(facts: CardFacts) -> str:
    """The card's text: front matter and page, ending in a newline."""
    parts = (
        _front(facts),
        _opening(facts),
        _methods(facts.methods),
        _sources(facts.sources),
        _results(facts.results),
        _recipe(facts),
        _citations(facts.methods),
    )
    return "".join(f"{line}\n" for part in parts for line in part)


def _front(facts: CardFacts) -> Iterator[str]:
    """YAML for the hub, between its two bars."""
    yield "---"
    hub_ids = (source.hub_id for source in facts.sources)
    bases = dict.fromkeys(name for name in hub_ids if name is not None and _HUB_ID.fullmatch(name))
    if bases:
        yield "base_model:"
        yield from (f"- {scalar(base)}" for base in bases)
        yield "base_model_relation: merge"
    licence = facts.licence
    entries = {
        "library_name": facts.library,
        "pipeline_tag": facts.pipeline,
        "license": licence and licence.id,
        "license_name": licence and licence.name,
        "license_link": licence and licence.link,
    }
    yield from (f"{key}: {scalar(value)}" for key, value in entries.items() if value)
    yield "tags:"
    yield from (f"- {scalar(tag)}" for tag in facts.tags)
    yield "---"
    yield ""


def _opening(facts: CardFacts) -> Iterator[str]:
    count = len(facts.sources)
    version = f" {plain(facts.version)}" if facts.version else ""
    yield f"# {plain(facts.name)}"
    yield ""
    yield f"A merge of {count} checkpoint{'' if count == 1 else 's'}, made with Cuvée{version}."
    yield from (plain(note) for note in facts.notes)
    yield ""


def _methods(methods: Sequence[CardMethod]) -> Iterator[str]:
    yield "## Method"
    yield ""
    for method in methods:
        paper = f" ({paper_link(method.paper)})" if method.paper else ""
        status = " (definition reconstructed)" if method.status == "reconstructed" else ""
        yield f"**{plain(method.name)}**: {plain(method.summary)}{paper}{status}"
        yield ""
        if method.formula:
            yield block(method.formula)
            yield ""


def _sources(sources: Sequence[CardSource]) -> Iterator[str]:
    """The table; with a column of revisions where one is known."""
    pinned = any(source.revision or source.digest for source in sources)
    yield "## Sources"
    yield ""
    yield f"| name | part | checkpoint |{' revision |' if pinned else ''} detail |"
    yield f"|---|---|---|{'---|' if pinned else ''}---|"
    for source in sources:
        known = source.revision or source.digest
        revision = f" {code(known) if known else ''} |" if pinned else ""
        cells = f"{plain(source.alias)} | {plain(source.part)} | {code(source.location)} |{revision}"
        yield f"| {cells} {plain(source.detail)} |"
    yield ""


def _results(results: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    if not results:
        return
    yield "## Results"
    yield ""
    yield "| task | metric | value |"
    yield "|---|---|---|"
    yield from (f"| {plain(task)} | {plain(metric)} | {plain(value)} |" for task, metric, value in results)
    yield ""


def _recipe(facts: CardFacts) -> Iterator[str]:
    yield "## Recipe"
    yield ""
    yield block(facts.recipe, "yaml")
    yield ""
    if facts.changes:
        yield f"Changed on the command line: {code(' '.join(facts.changes))}"
        yield ""
    yield f"## {'Reproduce and verify' if facts.recipe_name else 'Verify'}"
    yield ""
    yield (
        "`cuvee.lock` names every source by revision and digest, "
        "`cuvee-manifest.json` every file and tensor by digest."
    )
    yield ""
    if facts.recipe_name and not facts.is_exact:
        yield f"To make it again, merge {code(facts.recipe_name)} with the same `--read-budget` or `--max-deviation`."
        yield ""
    elif facts.recipe_name and facts.is_local:
        yield "`FOLDER` is the one that the recipe's paths are relative to."
        yield ""
    yield "```sh"
    if facts.recipe_name and facts.is_exact:
        yield f"cuvee reproduce .{' --from FOLDER' if facts.is_local else ''}"
    yield "cuvee verify ."
    yield "```"
    if facts.recipe_digest:
        yield ""
        yield f"Recipe digest: {code(facts.recipe_digest)}"


def _citations(methods: Sequence[CardMethod]) -> Iterator[str]:
    """Each entry once, in the order of the methods."""
    entries = dict.fromkeys(method.bibtex for method in methods if method.bibtex)
    if entries:
        yield ""
        yield "## Citation"
    for entry in entries:
        yield ""
        yield block(entry, "bibtex")

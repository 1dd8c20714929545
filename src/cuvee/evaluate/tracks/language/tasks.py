"""From texts and problems to tasks: token ids, three disjoint parts, the same for every seed of training.

An item's input is (ids before, ids to be predicted). Texts are scored by compression, problems by exact match. The test
and selection parts of texts take as few windows of one document as they can: windows of a document are much alike.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from cuvee.evaluate.task import EXACT_MATCH, Item, Metric, Provenance, Task
from cuvee.evaluate.tracks.language.skills import Problem, arithmetic, instructions, records
from cuvee.evaluate.tracks.language.texts import DOCUMENTS, Document
from cuvee.evaluate.tracks.packages import provenance
from cuvee.evaluate.tracks.parts import in_test, leading, unique
from cuvee.evaluate.tracks.prepared import Parts, kept_parts

COMPRESSION = Metric("compression", unit="%")
FOLLOWED = Metric("instructions", unit="%")
SEEN = ("german", "russian", "spanish", "python", "arithmetic", "records")
SHIFTS = {
    "german_quotations": "german",
    "russian_quotations": "russian",
    "spanish_quotations": "spanish",
    "other_python": "python",
    "three_digits": "arithmetic",
    "other_sentences": "records",
}
UNSEEN = ("english", "instructions")
_MADE = Provenance("made by the track", licence="Apache-2.0", split="by problem")
_PER_DOCUMENT = 8  # windows of one document at most


@dataclass(frozen=True, slots=True)
class Tokens:
    """A tokenizer: text to ids and back, and the id that begins a text."""

    encode: Callable[[str], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    begin: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many windows of text, and how many problems, each part has; tokens of a window."""

    window: int = 128
    train: int = 2000
    selection: int = 24
    test: int = 40
    problems: int = 4000
    selection_problems: int = 120
    test_problems: int = 300


def make(name: str, tokens: Tokens, sizes: Sizes, ground: str = "") -> Task:
    """One task: with an expert, unseen, or a shift of another.

    `ground`: the content address of the tokenizer; with one the token ids are kept in the cache.
    """
    made = partial(_parts, name, tokens, sizes)
    modules = (f"{__package__}.texts", f"{__package__}.skills", __name__)
    address = (name, repr(sizes), ground, str(tokens.begin))
    found = kept_parts(f"language-{name}", address, modules, made) if ground else made()
    return Task.of(
        name,
        train=found.train,
        selection=found.selection,
        test=found.test,
        metric=_metric(name),
        head="none",
        provenance=found.provenance,
        unseen=name in UNSEEN,
        shift_of=SHIFTS.get(name, ""),
    )


def _metric(name: str) -> Metric:
    return FOLLOWED if name == "instructions" else COMPRESSION if name in DOCUMENTS else EXACT_MATCH


def _parts(name: str, tokens: Tokens, sizes: Sizes) -> Parts:
    if name == "instructions":
        return _followed(tokens)
    if name in DOCUMENTS:
        return _text(name, tokens, sizes)
    made: dict[str, Callable[[], Iterator[Problem]]] = {
        "arithmetic": lambda: arithmetic(sizes.problems),
        "records": lambda: records(sizes.problems),
        "three_digits": lambda: arithmetic(4 * sizes.test_problems, digits=3, seed=1),
        "other_sentences": lambda: records(4 * sizes.test_problems, seed=1, other=True),
    }
    return _problems(name, list(made[name]()), tokens, sizes)


def _text(name: str, tokens: Tokens, sizes: Sizes) -> Parts:
    documents, packages = DOCUMENTS[name]
    found = list(documents())
    random.Random(0).shuffle(found)
    asked = [d for d in found if name not in SEEN or in_test(d.group)]
    test = in_turn(windows(asked, tokens, sizes.window))[: sizes.test]
    train: list[Item] = []
    selection: list[Item] = []
    if name in SEEN:
        taken = {item.digest for item in test}
        outside = windows([d for d in found if not in_test(d.group)], tokens, sizes.window)
        outside = [i for i in outside if i.digest not in taken]
        selection = in_turn(outside)[: sizes.selection]
        kept_back = {item.group for item in selection}
        train = [i for i in outside if i.group not in kept_back][: sizes.train]
    return Parts(train, selection, test, provenance(packages, "by document"))


def windows(documents: Sequence[Document], tokens: Tokens, window: int) -> list[Item]:
    """Windows of whole tokens, each text once; weight is the bytes that are predicted."""
    items = []
    for document in documents:
        ids = list(tokens.encode(document.text))
        for first in range(0, min(len(ids) - window + 1, window * _PER_DOCUMENT), window):
            part = tuple(ids[first : first + window])
            size = len(tokens.decode(part).encode())
            items.append(Item(((tokens.begin,), part), None, document.group, float(size)))
    return unique(items, lambda item: item.digest)


def in_turn(items: Sequence[Item]) -> list[Item]:
    """The first item of every group, then the second of every group, and so on; groups in the order they come."""
    seen: Counter[str | None] = Counter()
    places = []
    for item in items:
        places.append(seen[item.group])
        seen[item.group] += 1
    return [items[i] for i in sorted(range(len(items)), key=places.__getitem__)]


def _problems(name: str, problems: Sequence[Problem], tokens: Tokens, sizes: Sizes) -> Parts:
    test = _asked([p for p in problems if in_test(p.group)], tokens)[: sizes.test_problems]
    train: list[Item] = []
    selection: list[Item] = []
    if name in SEEN:
        outside = _asked([p for p in problems if not in_test(p.group)], tokens)
        selection, train = leading(outside, sizes.selection_problems)
    return Parts(train, selection, test, _MADE)


def _asked(problems: Sequence[Problem], tokens: Tokens) -> list[Item]:
    items = [
        Item(((tokens.begin, *tokens.encode(p.prompt)), tuple(tokens.encode(p.answer))), p.answer, p.group)
        for p in problems
    ]
    return unique(items, lambda item: item.digest)


def _followed(tokens: Tokens) -> Parts:
    items = [Item((tuple(tokens.encode(request)), ()), check) for request, check in instructions()]
    return Parts([], [], items, _MADE)

"""Skills that are marked exactly: arithmetic, records as JSON, and instructions whose keeping a program can check.

Everything is made here, split by problem or by person. Knows no tokens and no models.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_FIRST = _words(
    "Anna Boris Carla David Elena Felix Greta Hugo Irene Jonas Karin Leon Maria Nadia Oscar Paula Rosa"
)
_LAST = _words(
    "Berger Costa Dubois Eriksen Fischer Garcia Horvat Ivanov Jansen Keller Lopez Moreau Novak Olsen"
)
_CITY = _words(
    "Lisbon Vienna Oslo Prague Madrid Turin Geneva Dublin Krakow Athens Bergen Porto Zagreb Malmo Ghent"
)
_JOB = _words(
    "baker teacher nurse pilot carpenter lawyer painter chemist farmer librarian plumber translator"
)
_SENTENCES = (
    "{name} is {age} years old, lives in {city} and works as a {job}.",
    "In {city} there is a {job} called {name}, who is {age}.",
    "{name}, {age}, a {job} by trade, has a flat in {city}.",
    "At the age of {age}, {name} moved to {city} and became a {job}.",
)
_OTHER_SENTENCES = (
    "Everyone in {city} knows the {job} {name}, now {age} years of age.",
    "Meet {name}: {job}, {age}, at home in {city}.",
)
_TOPICS = ("the sea", "a bicycle", "winter", "bread", "a library", "the moon")


@dataclass(frozen=True, slots=True)
class Problem:
    """What stands before, the one right answer, and the group that must not be split."""

    prompt: str
    answer: str
    group: str


def arithmetic(count: int, digits: int = 2, seed: int = 0) -> Iterator[Problem]:
    """Sums, differences and products of whole numbers, with three worked examples before each."""
    chance = random.Random(seed)
    low, high = 10 ** (digits - 1), 10**digits - 1
    shots = "".join(f"{q}{a}" for q, a, _ in (_problem(chance, low, high) for _ in range(3)))
    for _ in range(count):
        question, answer, key = _problem(chance, low, high)
        yield Problem(shots + question, answer, key)


def records(count: int, seed: int = 0, other: bool = False) -> Iterator[Problem]:
    """A person in a sentence, asked for as JSON; `other`: sentences of forms that are never trained on."""
    chance = random.Random(seed)
    for _ in range(count):
        name = f"{chance.choice(_FIRST)} {chance.choice(_LAST)}"
        facts = {
            "name": name,
            "age": chance.randint(18, 79),
            "city": chance.choice(_CITY),
            "job": chance.choice(_JOB),
        }
        sentence = chance.choice(_OTHER_SENTENCES if other else _SENTENCES).format(**facts)
        yield Problem(f"Sentence: {sentence}\nJSON:", f" {json.dumps(facts)}\n", name)


def instructions() -> Iterator[tuple[str, str]]:
    """Requests in a chat, and the name of the check that the reply must pass."""
    asked = {
        "capitals": "Write one sentence about {} in capital letters only.",
        "no_comma": "Write one sentence about {} without using any commas.",
        "begins": "Write one sentence about {} that begins with the word Today.",
        "one_word": "Name one thing that has to do with {}. Answer with a single word.",
        "exclaims": "Write one short sentence about {} that ends with an exclamation mark.",
        "mentions": "Write one sentence about {} that contains the word green.",
    }
    for check, request in asked.items():
        for topic in _TOPICS:
            text = request.format(topic)
            yield f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n", check


CHECKS: dict[str, Callable[[str], bool]] = {
    "capitals": lambda reply: reply.isupper(),
    "no_comma": lambda reply: bool(reply) and "," not in reply,
    "begins": lambda reply: reply.lstrip('"').startswith("Today"),
    "one_word": lambda reply: len(reply.split()) == 1,
    "exclaims": lambda reply: reply.rstrip('"').endswith("!"),
    "mentions": lambda reply: "green" in reply.lower(),
}


def _problem(chance: random.Random, low: int, high: int) -> tuple[str, str, str]:
    first, second, sign = chance.randint(low, high), chance.randint(low, high), chance.choice("+-*")
    value = {"+": first + second, "-": first - second, "*": first * second}[sign]
    # who knows 12 + 34 knows 34 + 12: both are one group
    ordered = (first, second) if sign == "-" else sorted((first, second))
    return f"{first} {sign} {second} =", f" {value}\n", f"{ordered[0]}{sign}{ordered[1]}"

"""Names: distances against a textbook recursion, patterns, natural order, and hostile text made harmless."""

from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.core.names import did_you_mean, edits, matches, natural, nearest, printable

WORDS = st.text(alphabet="abc", max_size=6)
KEYS = ["weight", "density", "lambda", "normalize", "epsilon", "gamma", "rescale", "select_topk", "t"]


def textbook_distance(a: str, b: str) -> int:
    """Optimal string alignment distance, straight from its recursive definition."""

    @cache
    def d(i: int, j: int) -> int:
        if min(i, j) == 0:
            return max(i, j)
        options = [d(i - 1, j) + 1, d(i, j - 1) + 1, d(i - 1, j - 1) + (a[i - 1] != b[j - 1])]
        if i > 1 and j > 1 and a[i - 1] == b[j - 2] and a[i - 2] == b[j - 1]:
            options.append(d(i - 2, j - 2) + 1)
        return min(options)

    return d(len(a), len(b))


@given(WORDS, WORDS)
def test_edit_distance_is_the_textbook_one(a, b):
    assert edits(a, b) == textbook_distance(a, b)


@given(WORDS, WORDS)
def test_edit_distance_is_symmetric_and_zero_only_for_equals(a, b):
    assert edits(a, b) == edits(b, a)
    assert (edits(a, b) == 0) == (a == b)


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("densty", "density", 1), ("wieght", "weight", 1), ("tise", "ties", 1), ("", "abc", 3)],
)
def test_edit_distance_examples(a, b, distance):
    assert edits(a, b) == distance


def typos(word: str) -> set[str]:
    """Every word at distance one made of a few letters."""
    letters = "aetz_"
    out = {word[:i] + word[i + 1 :] for i in range(len(word))}
    out |= {word[:i] + c + word[i:] for i in range(len(word) + 1) for c in letters}
    out |= {word[:i] + c + word[i + 1 :] for i in range(len(word)) for c in letters}
    out |= {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1)}
    return out - {word, ""}


@pytest.mark.parametrize("word", [k for k in KEYS if len(k) > 2])
def test_every_typo_at_distance_one_is_suggested(word):
    assert {nearest(t, KEYS) for t in typos(word)} == {word}


def test_nothing_alike_gives_no_suggestion():
    assert nearest("xylophone", KEYS) is None
    assert did_you_mean("xylophone", KEYS) is None
    assert nearest("anything", []) is None


def test_hint_wording():
    assert did_you_mean("densty", KEYS) == "did you mean `density`?"


def test_farther_words_are_still_found():
    assert nearest("normalise_it", KEYS) == "normalize"


def test_natural_order_counts():
    names = ["layers.10.w", "layers.2.w", "layers.1.w", "embed", "layers.2.b"]
    assert sorted(names, key=natural) == ["embed", "layers.1.w", "layers.2.b", "layers.2.w", "layers.10.w"]


@given(st.lists(st.text(alphabet="a.10", max_size=8)))
def test_natural_order_never_fails_to_compare(names):
    once = sorted(names, key=natural)
    assert all(natural(a) <= natural(b) for a, b in pairwise(once))


@given(st.integers(0, 10**12), st.integers(0, 10**12))
def test_natural_order_is_that_of_the_numbers(a, b):
    assert (natural(f"layer{a}.w") < natural(f"layer{b}.w")) == (a < b)


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("mlp", "model.layers.0.mlp.up_proj.weight", True),
        ("mlp", "model.layers.0.mlpx.up_proj.weight", False),
        ("mlp.up_proj", "model.layers.0.mlp.up_proj.weight", True),
        ("lm_head.weight", "lm_head.weight", True),
        ("layers.1", "model.layers.10.mlp", False),
        ("layers.1", "model.layers.1.mlp", True),
        ("*.mlp.*", "model.layers.0.mlp.up_proj.weight", True),
        ("model.layers.?.*", "model.layers.7.w", True),
        ("model.layers.?.*", "model.layers.17.w", False),
        ("model.layers.[01].w", "model.layers.1.w", True),
        ("*.MLP.*", "model.mlp.w", False),
        ("mlp*", "model.mlp.w", False),  # a glob covers the whole name
    ],
)
def test_patterns(pattern, name, expected):
    assert matches(pattern, name) is expected


@given(st.text(max_size=300))
def test_printable_has_no_control_or_invisible_character_and_is_short(text):
    import unicodedata

    shown = printable(text, limit=50)
    assert len(shown) <= 50
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def test_printable_examples():
    assert printable("model.layers.0") == "model.layers.0"
    assert printable("a\x1b[31mb") == "a\\x1b[31mb"
    assert printable("a\u202eb\nc") == "a\\u202eb\\nc"
    assert printable("größe 重み") == "größe 重み"
    assert printable("x" * 10, limit=10) == "x" * 10
    assert printable("x" * 11, limit=10) == "x" * 9 + "…"

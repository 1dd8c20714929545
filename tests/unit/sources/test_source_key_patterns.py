"""The linear matcher against Python's own engine, and against keys made to stall it."""

import contextlib
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.sources.key_patterns import BadPatternError, first_match, matcher

PIECES = [
    "q_proj",
    "layers",
    r"\.",
    ".",
    ".*",
    "[0-9]+",
    "(a|b)",
    "(0|1[0-5])",
    "a?",
    "^",
    "$",
    r"\d{1,2}",
    r"\w*?",
]
PIECES += ["[^x]", "v", "(?:k|v)_proj", "x{2}", "1", "_"]
NAMES = st.text("abkqvx01_.rojplyes", max_size=24)
REAL = [
    "model.layers.11.self_attn.q_proj",
    "layers.1.v",
    "q_proj",
    "a.b.layers.0.x",
    "encoder.k_proj",
    "",
    "xx",
]


@given(st.lists(st.sampled_from(PIECES), max_size=6).map("".join), st.one_of(NAMES, st.sampled_from(REAL)))
def test_agrees_with_the_standard_engine(key, name):
    try:
        wanted = re.match(rf"(.*\.)?({key})$", name) is not None
    except re.error:
        with pytest.raises(BadPatternError):
            matcher(key)
        return
    assert matcher(key)(name) == wanted


def test_first_key_wins_and_no_key_is_none():
    keys = {"q_proj": 1, r".*\.(q|k)_proj": 2}
    assert first_match(keys, "model.layers.0.q_proj") == "q_proj"
    assert first_match(keys, "model.layers.0.k_proj") == r".*\.(q|k)_proj"
    assert first_match(keys, "v_proj") is None


@pytest.mark.parametrize("key", ["(a+)+", "(a|a)*", "(.*.*.*.*.*)*x", "(a{0,50}){0,50}b"])
def test_hostile_keys_take_no_time(key):
    start = time.perf_counter()
    with contextlib.suppress(BadPatternError):
        matcher(key)("a" * 400)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    "key", ["(", r"(a)\1", "(?=a)", "((a{1000}){1000}){1000}", "(" * 900 + ")" * 900, "a" * 3000]
)
def test_what_cannot_be_matched_is_refused(key):
    with pytest.raises(BadPatternError):
        matcher(key)

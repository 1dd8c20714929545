"""JSON read strictly: as the standard parser on sound text; ambiguous or endless text is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuvee.core.limits import DEFAULT
from cuvee.errors import SourceError
from cuvee.formats.json_file import parse_json, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(VALUES, st.booleans())
def test_sound_text_means_what_the_standard_parser_says(value: object, escaped: bool) -> None:
    text = json.dumps(value, ensure_ascii=escaped)
    try:
        data = text.encode()
    except UnicodeEncodeError:
        return
    if "\\ud" not in text:  # lone surrogates are refused
        assert parse_json(data, Path("x.json")) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"a":1,"a":1}', "the key `a` is there twice"),
        ('{"x":{"a":1,"\\u0061":2}}', "the key `a` is there twice"),
        ('{"a":NaN}', "`NaN`"),
        ("[Infinity]", "`Infinity`"),
        ("[-Infinity]", "`-Infinity`"),
        ("[1e999]", "`1e999` does not fit"),
        ("[-1e999]", "does not fit"),
        ('{"a":1}x', "extra data at line 1, column 8"),
        ("{'a':1}", "line 1, column 2"),
        ("[1,]", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" + "1" * 5000 + "]", "too many digits"),
        ('["\\ud800"]', "surrogate"),
        ('{"\\udfff":1}', "surrogate"),
        ("[" * 100_000, "depth of nesting"),
        ("[" * 80 + "]" * 80, "depth of nesting is 65"),
        ('{"a":' * 70 + "1" + "}" * 70, "depth of nesting"),
        (b"\xff", "not valid UTF-8 at byte 0"),
        (b"\xef\xbb\xbf{}", "not valid JSON"),
        ('["a\x01"]', "not valid JSON"),
    ],
)
def test_ambiguous_or_endless_text_is_refused(text: str | bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(SourceError) as caught:
        read_json(path)
    found = caught.value.diagnostics[0]
    assert part in found.message
    assert found.where is not None
    assert found.where.file == str(path)


def test_nesting_up_to_the_limit_is_read_and_size_is_capped(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("[" * 64 + "]" * 64)
    read_json(path)
    with pytest.raises(SourceError, match="size in bytes is 128, the limit is 100"):
        read_json(path, replace(DEFAULT, json_bytes=100))
    with pytest.raises(SourceError, match="CV-S050"):
        read_json(tmp_path / "absent.json")

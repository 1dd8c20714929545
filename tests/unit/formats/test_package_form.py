"""The form of packages: bits, and `package.json` there and back."""

from __future__ import annotations

import json
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cuvee.formats.package_form import (
    BaseModel,
    Malformed,
    Package,
    Task,
    from_json,
    packed,
    to_json,
    unpacked,
)


@given(st.lists(st.booleans(), max_size=70), st.data())
@settings(max_examples=60, deadline=None)
def test_bits_come_back_from_any_part(flags: list[bool], data: Any) -> None:
    stored = packed(torch.tensor(flags, dtype=torch.bool))
    assert stored.numpy().tolist() == numpy.packbits(numpy.array(flags, bool), bitorder="little").tolist()
    start = data.draw(st.integers(0, len(flags)))
    stop = data.draw(st.integers(start, len(flags)))
    first = start // 8
    part = stored[first : (stop + 7) // 8]
    assert unpacked(part, start - 8 * first, stop - 8 * first).tolist() == flags[start:stop]


def _package() -> Package:
    base = BaseModel(included=False, path="../base", samples=({"name": "m", "blake3": "00"},), nbytes=80)
    tasks = {
        "a/b": Task("task-1", {"x": "mask", "y": "whole"}, ("z",), rescaled=True, nbytes=12),
        "c": Task("c", {}, nbytes=0),
    }
    return Package("emr_expert", base, tasks, 40, {"sums": "sum"})


def test_package_json_there_and_back() -> None:
    content = to_json(_package())
    assert content["bytes"] == {"base": 0, "shared": 40, "tasks": 12, "total": 52, "separate_models": 160}
    assert from_json(json.loads(json.dumps(content))) == _package()


def _changed(path: tuple[str, ...], value: Any) -> Any:
    content = to_json(_package())
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("cuvee_package",), 2, "version 2"),
        (("method",), None, "method"),
        (("bytes", "shared"), -1, "bytes"),
        (("tasks",), [], "tasks"),
        (("tasks", "c", "folder"), "TASK-1", "two parts in the folder"),
        (("tasks", "c", "folder"), "base", "two parts in the folder"),
        (("tasks", "c", "folder"), "", "wrong type"),
        (("tasks", "c", "codecs"), {"zip": ["x"]}, "unknown codec 'zip'"),
        (("tasks", "c", "codecs"), {"mask": ["x"], "dense": ["x"]}, "two codecs"),
        (("tasks", "c", "codecs"), {"mask": [1]}, "unknown codec"),
        (("base", "included"), "no", "`base`"),
        (("base", "samples"), [1], "`base`"),
    ],
)
def test_what_package_json_is_refused_for(path: tuple[str, ...], value: Any, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        from_json(_changed(path, value))


@pytest.mark.parametrize("content", [None, [], "x", {}])
def test_other_json_is_no_package(content: Any) -> None:
    with pytest.raises(Malformed, match="version None"):
        from_json(content)

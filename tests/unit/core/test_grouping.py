"""One cause, one finding: what is grouped, what is not, and what is shown of a group."""

from __future__ import annotations

from cuvee.core.grouping import grouped
from cuvee.errors import Diagnostic, Where

AT = Where("r.yml", 3, 1)


def missing(name: str, models: str = "`a`", place: Where | None = AT, code: str = "CV-P036") -> Diagnostic:
    where = Where(place.file, place.line, place.column, tensor=name) if place else None
    return Diagnostic(code, f"`{name}` is missing from {models}", where, "a hint")


def test_findings_that_differ_in_their_tensor_alone_are_one() -> None:
    (group,) = grouped([missing(f"w{i}") for i in range(21)])
    assert group.first == missing("w0")
    assert group.others == "21 tensors: `w0`, `w1`, `w2` and 18 more"
    (pair,) = grouped([missing("w0"), missing("w1")])
    assert pair.others == "2 tensors: `w0`, `w1`"
    (single,) = grouped([missing("w0")])
    assert single.others is None


def test_shapes_are_no_difference() -> None:
    def shapes(name: str, size: int) -> Diagnostic:
        message = f"`{name}` has different shapes: `a` [{size}, 8], `b` [{size}, 16]"
        return Diagnostic("CV-P038", message, Where(tensor=name))

    (group,) = grouped([shapes("x", 3), shapes("y", 4)])
    assert group.tensors == ("x", "y")


def test_everything_else_is_a_difference() -> None:
    apart = [
        missing("a"),
        missing("b", "`a`, `b`"),
        missing("c", place=Where("r.yml", 4, 1)),
        missing("d", code="CV-P037"),
        missing("e", place=None),
        missing("e", place=None),
    ]
    assert [group.first for group in grouped(apart)] == apart


def test_the_order_is_that_of_the_first_of_each_group() -> None:
    found = [missing("x"), missing("y", "`b`"), missing("z")]
    assert [(g.first.message[1], len(g.tensors)) for g in grouped(found)] == [("x", 2), ("y", 1)]

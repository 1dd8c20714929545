"""Merged tensors in a live module: what would lose a value, or has no place for one, is refused untouched."""

from __future__ import annotations

import pytest
import torch

import cuvee
from cuvee.api.modules import _lost
from cuvee.engine.options import RunOptions
from cuvee.errors import UsageError


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(6, 4), torch.nn.Linear(4, 6, bias=False)
        self.head.weight = self.embed.weight


def merged(head: float | None) -> cuvee.Blend:
    one = {"embed.weight": torch.ones(6, 4)}
    if head is not None:
        one["head.weight"] = torch.full((6, 4), head)
    return cuvee.merge([one, one], method="linear")


def refused(blend: cuvee.Blend, module: object) -> str:
    with pytest.raises(UsageError) as caught:
        blend.into(module)  # type: ignore[arg-type]
    assert caught.value.diagnostics[0].code == "CV-U012"
    return str(caught.value)


def test_tied_parameters_take_one_value_and_no_two() -> None:
    module = Tied()
    before = module.embed.weight.detach().clone()
    said = refused(merged(2.0), module)
    assert "`head.weight`" in said and "`embed.weight`" in said
    assert torch.equal(module.embed.weight, before)
    for head in (None, 1.0):
        assert torch.equal(merged(head).into(Tied()).head.weight, torch.ones(6, 4))


def test_a_module_without_memory_and_what_is_no_module() -> None:
    with torch.device("meta"):
        empty = torch.nn.Embedding(6, 4)
    blend = cuvee.merge([{"weight": torch.ones(6, 4)}] * 2, method="linear")
    assert "meta" in refused(blend, empty)
    assert torch.equal(blend.into(empty.to_empty(device="cpu")).weight, torch.ones(6, 4))
    assert "str" in refused(blend, "model")


class Pair(torch.nn.Module):
    """Two parameters of their own whose memory is given, and a buffer."""

    def __init__(self, one: torch.Tensor, two: torch.Tensor) -> None:
        super().__init__()
        self.one, self.two = torch.nn.Parameter(one), torch.nn.Parameter(two)
        self.register_buffer("mean", torch.zeros(2))


def pair(one: float, two: float, mean: float = 0.0, count: int = 4) -> cuvee.Blend:
    model = {
        "one": torch.full((count,), one),
        "two": torch.full((count,), two),
        "mean": torch.full((2,), mean),
    }
    return cuvee.merge([model, model], method="linear")


def test_one_memory_under_two_parameters_takes_no_two_values() -> None:
    """`b.weight.data = a.weight.data` ties as well as one parameter under two names does."""
    room = torch.zeros(4)
    said = refused(pair(1.0, 2.0), Pair(room, room))
    assert "`two`" in said and "`one`" in said
    assert torch.equal(room, torch.zeros(4))
    assert torch.equal(pair(3.0, 3.0).into(Pair(room, room)).two, torch.full((4,), 3.0))


def test_memory_shared_in_part_and_expanded_entries_are_refused() -> None:
    room = torch.zeros(6)
    assert "share a part" in refused(pair(1.0, 2.0), Pair(room[:4], room[2:]))
    assert "expanded" in refused(pair(1.0, 2.0), Pair(torch.zeros(1).expand(4), torch.zeros(4)))
    assert torch.equal(room, torch.zeros(6))


def test_a_buffer_under_two_names_takes_no_two_values() -> None:
    module = Pair(torch.zeros(2), torch.zeros(2))
    module.two.data = module.mean
    assert "two values" in refused(pair(1.0, 2.0, 3.0, count=2), module)


def test_values_that_the_modules_type_cannot_hold_are_refused() -> None:
    module = Pair(torch.zeros(4), torch.zeros(4)).half()
    said = refused(pair(1.0, 70000.0), module)
    assert "4 values of `two`" in said and "float16" in said
    assert torch.equal(module.one, torch.zeros(4).half())
    assert torch.equal(pair(1.0, 65504.0).into(module).two, torch.full((4,), 65504.0).half())


def test_tied_entries_of_equal_not_a_numbers_are_one_value() -> None:
    room = torch.zeros(4)
    options = RunOptions(non_finite="allow")
    model = {"one": torch.tensor([1.0, torch.nan, 2.0, 3.0]), "mean": torch.zeros(2)}
    model["two"] = model["one"].clone()
    made = cuvee.merge([model, model], method="linear").into(Pair(room, room), options)
    assert made.one.isnan().tolist() == [False, True, False, False]


def test_columns_of_one_matrix_share_nothing() -> None:
    room = torch.zeros(4, 6)
    model = {"one": torch.ones(4, 3), "two": torch.full((4, 3), 2.0), "mean": torch.zeros(2)}
    made = cuvee.merge([model, model], method="linear").into(Pair(room[:, :3], room[:, 3:]))
    assert room[0].tolist() == [1, 1, 1, 2, 2, 2] and made.two.sum() == 24
    with cuvee.hold([model, model], method="linear", weight=1.0) as held:
        assert torch.equal(held.into(Pair(room[:, :3], room[:, 3:])).two, made.two)
    overlapping = Pair(room[:, :3], room[:, 2:5])
    assert "share a part" in refused(cuvee.merge([model, model], method="linear"), overlapping)


@pytest.mark.parametrize(
    ("value", "dtype", "lost"),
    [
        (1.5, torch.int64, True),
        (300.0, torch.uint8, True),
        (-1.0, torch.uint8, True),
        (3.0, torch.int64, False),
        (1e30, torch.int64, True),
        (600.0, torch.float8_e4m3fn, True),
        (2.0, torch.float8_e4m3fn, False),
        (1e39, torch.float32, True),
        (1.1, torch.bfloat16, False),
        (3.4e38, torch.bfloat16, True),
        (1.5, torch.complex64, False),
    ],
)
def test_what_a_buffers_type_does_not_hold_is_refused(value: float, dtype: torch.dtype, lost: bool) -> None:
    module = Pair(torch.zeros(2), torch.zeros(2))
    module.mean = torch.zeros(2, dtype=dtype)
    kind = torch.float64 if value == 1e39 else torch.float32
    model = {"one": torch.zeros(2), "two": torch.zeros(2), "mean": torch.full((2,), value, dtype=kind)}
    made = cuvee.merge([model, model], method="linear", dtype="float64" if value == 1e39 else None)
    if lost:
        assert "2 values of `mean`" in refused(made, module)
    else:
        assert made.into(module).mean.to(torch.complex64)[0].real == pytest.approx(value, rel=0.01)


@pytest.mark.parametrize(
    ("given", "dtype", "lost"),
    [
        (torch.tensor([70000, 1]), torch.float16, 1),
        (torch.tensor([2**40, 1]), torch.float32, 0),
        (torch.tensor([True, False]), torch.float16, 0),
        (torch.tensor([1 + 2j, 3 + 0j]), torch.float32, 1),
        (torch.tensor([1 + 0j, 3 + 0j]), torch.float32, 0),
        (torch.tensor([0.1 + 0.2j], dtype=torch.complex128), torch.complex64, 0),
        (torch.tensor([1e300 + 0.2j], dtype=torch.complex128), torch.complex64, 1),
        (torch.tensor([torch.nan, torch.inf, 7e4]), torch.float16, 1),
        (torch.tensor([65519.0, 65520.0]), torch.float16, 1),
        (torch.tensor([torch.nan]), torch.int64, 1),
    ],
)
def test_values_that_change_for_more_than_a_rounding_are_counted(
    given: torch.Tensor, dtype: torch.dtype, lost: int
) -> None:
    """Beside the conversion itself: what was finite and is no longer, or comes back as another number."""
    assert _lost(given, dtype) == lost
    if dtype.is_floating_point and given.is_floating_point():
        assert int((given.isfinite() & ~given.to(dtype).isfinite()).sum()) == lost


def test_entries_that_are_no_plain_tensors_are_named() -> None:
    blend = cuvee.merge([{"weight": torch.ones(6, 4)}] * 2, method="linear")

    class Extra(torch.nn.Embedding):
        def get_extra_state(self) -> str:
            return "state"

    assert "`_extra_state` is the module's alone" in refused(blend, Extra(6, 4))
    assert "`weight` of the module is no plain tensor" in refused(blend, torch.nn.LazyLinear(4, bias=False))

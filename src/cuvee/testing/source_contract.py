"""What every source promises, as checks that outside packages may run against their own.

    @pytest.mark.parametrize("check", SOURCE_CHECKS, ids=lambda check: check.__name__)
    def test_my_source(check):
        check(lambda: open_my_source())

Each check opens the source itself (twice where that matters) and raises AssertionError with what it found.
Must not know any kind of source.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from cuvee.core.tensors import TensorMeta
from cuvee.errors import CuveeError
from cuvee.sources.source import Source

Opener = Callable[[], Source]
_HOSTILE = (
    "../config.json",
    "/etc/passwd",
    "a/../../b",
    "..",
    "",
    "con",
    "a\0b",
    "\\\\host\\x",
    "C:\\x",
    ".",
    "a//b",
)


def names_and_metas_agree(opened: Opener) -> None:
    """A tensor is listed under its own name; dtypes and shapes are whole."""
    with _open(opened) as source:
        for name, meta in source.tensors.items():
            assert name == meta.name, f"{name} is listed as {meta.name}"
            assert all(isinstance(length, int) and length >= 0 for length in meta.shape), meta


def read_gives_what_is_promised(opened: Opener) -> None:
    """Whole tensors come flat, in the promised dtype and number of elements, on the CPU."""
    with _open(opened) as source:
        for name, meta in source.tensors.items():
            values = source.read(name)
            assert values.shape == (meta.numel,), f"{name}: {tuple(values.shape)} for {meta.shape}"
            assert values.dtype == meta.dtype.torch, f"{name}: {values.dtype}, promised {meta.dtype}"
            assert values.stride() == (1,), f"{name} has gaps: {values.stride()}"
            assert values.device.type == "cpu", f"{name} is on {values.device}"


def any_range_equals_the_same_part_of_the_whole(opened: Opener) -> None:
    """Bit for bit, wherever the range is cut."""
    with _open(opened) as source:
        for name, meta in source.tensors.items():
            whole = _bits(source.read(name))
            for start, stop in _ranges(meta):
                part = _bits(source.read(name, start, stop))
                assert torch.equal(part, whole[start * meta.dtype.size : stop * meta.dtype.size]), (
                    name,
                    start,
                    stop,
                )
            assert torch.equal(
                _bits(source.read(name, meta.numel // 2)), _bits(source.read(name, meta.numel // 2, None))
            )


def ranges_outside_are_refused(opened: Opener) -> None:
    """A range that is not within the tensor is an error, not a shorter answer."""
    with _open(opened) as source:
        for name, meta in list(source.tensors.items())[:3]:
            for start, stop in ((0, meta.numel + 1), (-1, meta.numel), (1, 0)):
                _expect_error(lambda n=name, a=start, b=stop: source.read(n, a, b), f"{name}[{start}:{stop}]")  # type: ignore[misc]


def unknown_names_are_errors(opened: Opener) -> None:
    """Reading or locating a tensor that is not there names the tensor."""
    with _open(opened) as source:
        for ask in (source.read, source.extent):
            message = _expect_error(lambda ask=ask: ask("no.such.tensor"), "no.such.tensor")  # type: ignore[misc]
            assert "no.such.tensor" in message, message


def extents_hold_the_bytes(opened: Opener) -> None:
    """An extent, read as raw bytes, is the tensor."""
    with _open(opened) as source:
        for name, meta in source.tensors.items():
            extent = source.extent(name)
            if extent is None:
                continue
            assert extent.nbytes == meta.nbytes, f"{name}: {extent.nbytes} bytes, expected {meta.nbytes}"
            with extent.path.open("rb") as file:
                file.seek(extent.offset)
                raw = file.read(extent.nbytes)
            assert raw == bytes(_bits(source.read(name)).tolist()), f"{name}: the extent holds other bytes"


def threads_read_the_same(opened: Opener) -> None:
    """Many threads on many tensors and ranges get what one thread gets."""
    with _open(opened) as source:
        jobs = [(name, *cut) for name, meta in list(source.tensors.items())[:12] for cut in _ranges(meta)] * 3
        alone = [_bits(source.read(*job)) for job in jobs]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda job: _bits(source.read(*job)), jobs))
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def identity_is_stable_json(opened: Opener) -> None:
    """Two openings have one identity; it is JSON, has the agreed keys, and no absolute path."""
    with _open(opened) as first, _open(opened) as second:
        one, two = first.identity(), second.identity()
    assert one == two, "the identity changes from one opening to the next"
    text = json.dumps(one, allow_nan=False)
    assert json.loads(text) == one, "the identity is not plain JSON"
    assert {"kind", "name", "revision", "files"} <= one.keys(), sorted(one)
    assert '"/' not in text and ":\\\\" not in text, f"the identity holds an absolute path: {text}"


def side_files_are_safe(opened: Opener) -> None:
    """Listed files can be read; names that would leave the folder give nothing or an error."""
    with _open(opened) as source:
        listed = source.files()
        assert listed == sorted(set(listed)), "files() is not sorted"
        for name in listed:
            assert isinstance(source.file(name), bytes), name
        for name in (*_HOSTILE, "no-such-file.json"):
            try:
                found = source.file(name)
            except CuveeError:
                continue
            assert found is None, f"{name!r} was read"


def notes_are_not_errors(opened: Opener) -> None:
    """Notes are notes or warnings, with a code."""
    with _open(opened) as source:
        for found in source.notes:
            assert found.severity in ("note", "warning"), found
            assert found.code.startswith("CV-"), found


def reading_leaves_the_source_unchanged(opened: Opener) -> None:
    """Two readings agree; the label is text."""
    with _open(opened) as source:
        assert isinstance(source.label, str) and source.label
        for name in list(source.tensors)[:5]:
            assert torch.equal(_bits(source.read(name)), _bits(source.read(name))), name


def closing_twice_is_fine(opened: Opener) -> None:
    """close() may be called again."""
    source = opened()
    source.close()
    source.close()


SOURCE_CHECKS: tuple[Callable[[Opener], None], ...] = (
    names_and_metas_agree,
    read_gives_what_is_promised,
    any_range_equals_the_same_part_of_the_whole,
    ranges_outside_are_refused,
    unknown_names_are_errors,
    extents_hold_the_bytes,
    threads_read_the_same,
    identity_is_stable_json,
    side_files_are_safe,
    notes_are_not_errors,
    reading_leaves_the_source_unchanged,
    closing_twice_is_fine,
)


@contextmanager
def _open(opened: Opener) -> Iterator[Source]:
    source = opened()
    try:
        yield source
    finally:
        source.close()


def _bits(values: torch.Tensor) -> torch.Tensor:
    return values.contiguous().view(torch.uint8) if values.numel() else torch.empty(0, dtype=torch.uint8)


def _ranges(meta: TensorMeta) -> list[tuple[int, int]]:
    """The ends, the middle, and some cuts that depend only on the tensor's name."""
    count = meta.numel
    dice = random.Random(meta.name)  # not for secrets
    cuts = [sorted((dice.randint(0, count), dice.randint(0, count))) for _ in range(5)]
    fixed = [(0, 0), (0, min(1, count)), (count, count), (count // 3, count // 2), (max(0, count - 1), count)]
    return [*fixed, *((start, stop) for start, stop in cuts)]


def _expect_error(act: Callable[[], object], what: str) -> str:
    try:
        act()
    except CuveeError as error:
        return str(error)
    except (IndexError, KeyError, ValueError) as error:
        raise AssertionError(f"{what}: {type(error).__name__} instead of a CuveeError") from error
    raise AssertionError(f"{what}: accepted")

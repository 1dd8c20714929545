"""The analysis against position-by-position float64 figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import task_vectors as oracle
import torch
from safetensors.torch import save_file

from cuvee import analyze
from cuvee.analyze import reading
from cuvee.analyze.sums import SHARES
from cuvee.errors import EvaluationError, UsageError

NAMES = ["red", "green", "blue"]


def tensors(found: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {n: torch.from_numpy(t.copy()) for n, t in found.items()}


@pytest.fixture(scope="module")
def raw() -> dict[str, dict[str, np.ndarray]]:
    base = oracle.model(0)
    return {
        "base": base,
        **{
            n: oracle.model(i, base, kept)
            for i, (n, kept) in enumerate(zip(NAMES, (0.3, 0.6, 0.9), strict=True), 1)
        },
    }


def analysed(raw: dict[str, dict[str, np.ndarray]], **options: Any) -> analyze.Analysis:
    return analyze.models(tensors(raw["base"]), {n: tensors(raw[n]) for n in NAMES}, **options)


@pytest.fixture(scope="module")
def found(raw: dict[str, dict[str, np.ndarray]]) -> analyze.Analysis:
    return analysed(raw, spectra=True)


def groups(found: analyze.Analysis) -> dict[str, tuple[Any, list[str]]]:
    """Figures of the model, of each layer and role, and the tensors they are over."""
    out = {"model": (found.figures, [t.spot.name for t in found.tensors])}
    for field, joined in (("layer", found.layers), ("role", found.roles)):
        for key, sums in joined.items():
            out[f"{field} {key}"] = (
                sums,
                [t.spot.name for t in found.tensors if getattr(t.spot, field) == key],
            )
    return out


def test_layers_and_roles_are_those_of_the_names(found: analyze.Analysis) -> None:
    assert list(found.layers) == ["0", "1", "after"]
    assert {"q", "norm"} <= found.roles.keys()


def test_norms_cosines_and_conflicts(raw: Any, found: analyze.Analysis) -> None:
    changed = oracle.deltas(raw["base"], [raw[n] for n in NAMES])
    for place, (sums, names) in groups(found).items():
        base = oracle.flat(raw["base"], names)
        rows = np.stack([oracle.flat(d, names) for d in changed])
        norms = np.linalg.norm(rows, axis=1)
        close = {"rtol": 1e-6, "err_msg": place}
        np.testing.assert_allclose(sums.norms, norms, **close)
        np.testing.assert_allclose(sums.relative, norms / np.linalg.norm(base), **close)
        np.testing.assert_allclose(sums.cosines, rows @ rows.T / np.outer(norms, norms), atol=1e-9, **close)
        strangers = [(base + r) @ base / np.linalg.norm(base + r) / np.linalg.norm(base) for r in rows]
        np.testing.assert_allclose(sums.base_cosines, strangers, **close)
        several = (rows != 0).sum(0) >= 2
        mixed = (rows > 0).any(0) & (rows < 0).any(0)
        assert sums.conflict == pytest.approx(mixed.sum() / several.sum())
        for i in range(3):
            for j in range(3):
                both = (rows[i] != 0) & (rows[j] != 0)
                share = (rows[i] * rows[j] < 0).sum() / both.sum() if both.any() else np.nan
                assert sums.conflicts[i, j] == pytest.approx(share, nan_ok=True)
                assert sums.opposition[i, j] == pytest.approx(oracle.opposition(rows[i], rows[j]), abs=1e-9)


def test_overlap_of_the_largest_changes(raw: Any, found: analyze.Analysis) -> None:
    changed = oracle.deltas(raw["base"], [raw[n] for n in NAMES])
    for sums, names in groups(found).values():
        for s, share in enumerate(SHARES):
            expected = [[oracle.jaccard(a, b, names, share) for b in changed] for a in changed]
            np.testing.assert_allclose(sums.jaccard[s], expected, rtol=1e-12)


def test_spectra_and_subspaces(raw: Any, found: analyze.Analysis) -> None:
    changed = oracle.deltas(raw["base"], [raw[n] for n in NAMES])
    assert found.spectra is not None and len(found.spectra) == 3
    for one in found.spectra:
        shape = raw["base"][one.spot.name].shape
        parts = [np.linalg.svd(d[one.spot.name].reshape(shape), full_matrices=False) for d in changed]
        np.testing.assert_allclose(one.values, [s for _, s, _ in parts], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            one.stable_ranks, [(s**2).sum() / s[0] ** 2 for _, s, _ in parts], rtol=1e-4
        )
        needed = [int((np.cumsum(s**2) / (s**2).sum() < 0.9).sum()) + 1 for _, s, _ in parts]
        assert one.directions == tuple(needed)
        spans = [u[:, :8] for u, _, _ in parts]
        overlap = [[np.linalg.norm(a.T @ b) ** 2 / 8 for b in spans] for a in spans]
        np.testing.assert_allclose(one.left, overlap, atol=1e-3)


def test_what_a_merge_leaves(raw: Any) -> None:
    merged = {
        n: (raw["base"][n] + 0.4 * sum(raw[e][n] - raw["base"][n] for e in NAMES[:2])) for n in raw["base"]
    }
    left = analysed(raw, merge=tensors(merged)).remains
    assert left is not None
    names = list(raw["base"])
    rows = [oracle.flat(d, names) for d in oracle.deltas(raw["base"], [raw[n] for n in NAMES])]
    (m,) = [oracle.flat(d, names) for d in oracle.deltas(raw["base"], [merged])]
    for i, r in enumerate(rows):
        energy = r @ r
        assert left.opposed_before[i] == pytest.approx((r**2)[sum(rows) * r < 0].sum() / energy, rel=1e-6)
        assert left.opposed[i] == pytest.approx((r**2)[m * r < 0].sum() / energy, rel=1e-6)
        assert left.kept[i] == pytest.approx(m @ r / energy, rel=1e-6)
        assert left.distance[i] == pytest.approx(np.linalg.norm(m - r) / np.sqrt(energy), rel=1e-6)


def test_small_blocks_give_the_same_figures(
    raw: Any, found: analyze.Analysis, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    # whole numbers, so that many magnitudes are equal and their order decides which are the largest
    big = {n: {"w": rng.integers(-9, 9, size=(60, 50)).astype(np.float32)} for n in ("base", *NAMES)}
    whole = analysed(big)
    monkeypatch.setattr(reading, "BUDGET", 4 * 4 * 1024)  # 1024 elements of four models
    reads: list[int] = []
    original = reading.Deltas._read
    monkeypatch.setattr(
        reading.Deltas, "_read", lambda s, a, b: reads.append((b - a) * (s.inputs + 1)) or original(s, a, b)
    )
    cut = analysed(big)
    assert max(reads) == 4096
    for name in ("gram", "magnitudes", "both", "opposed", "several", "mixed", "tops"):
        np.testing.assert_allclose(
            getattr(cut.figures, name), getattr(whole.figures, name), rtol=1e-12, atol=1e-9
        )


def test_the_json_is_strict_and_complete(found: analyze.Analysis) -> None:
    data = json.loads(json.dumps(found.as_json(), allow_nan=False))
    assert data["schema"] == "cuvee.analysis/1"
    assert data["experts"] == NAMES and len(data["tensors"]) == 5 and len(data["spectra"]) == 3
    assert data["forecast"]["experimental"] is True


def test_the_report_is_one_well_formed_page_with_a_table_for_each_chart(raw: Any, tmp_path: Path) -> None:
    full = analysed(raw, spectra=True, merge=tensors(raw["red"]))
    text = full.save(tmp_path / "report.html").read_text()
    document = ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))
    figures = list(document.iter("figure"))
    assert len(figures) == 10
    assert all(f.find("svg/title") is not None and f.find("details/table") is not None for f in figures)
    assert not re.search(r"https?:|<script|url\(", text)
    assert "prefers-color-scheme:dark" in text
    ElementTree.fromstring(full._repr_html_())
    with pytest.raises(UsageError, match="CV-B237"):
        full.save(tmp_path / "model.safetensors")


def test_what_differs_is_left_out_and_said(raw: Any) -> None:
    base, red, blue = (tensors(raw[n]) for n in ("base", "red", "blue"))
    red["head.weight"] = torch.zeros(31, 10)
    del blue["layers.1.norm.weight"]
    blue["layers.0.norm.weight"][3] = float("nan")
    found = analyze.models(base, {"red": red, "blue": blue})
    reasons = {s.name: s.reason for s in found.skipped}
    assert reasons == {
        "head.weight": "red has shape 31×10",
        "layers.1.norm.weight": "blue lacks it",
        "layers.0.norm.weight": "has NaN or infinity",
    }
    assert found.figures.numel == 240
    assert found.coverage == (pytest.approx(260 / 560), pytest.approx(550 / 560))


def test_errors_have_their_codes(raw: Any) -> None:
    base = tensors(raw["base"])
    broken = {n: torch.full_like(t, float("inf")) for n, t in base.items()}
    for wrong, code in (
        (lambda: analyze.models(base, {"a": {"other": torch.ones(3)}}), "CV-B230"),
        (lambda: analyze.models(base, {"a": base}, merge={"other": torch.ones(3)}), "CV-B235"),
        (lambda: analyze.models(base, {"a": broken}), "CV-B236"),
    ):
        with pytest.raises(EvaluationError, match=code):
            wrong()
    with pytest.raises(UsageError, match="CV-B234"):
        analyze.models(base, [])
    with pytest.raises(UsageError, match="at least one expert"):
        analyze.models(base, {})


def test_the_command(raw: Any, tmp_path: Path, cli: Any) -> None:
    for name, found in raw.items():
        save_file(tensors(found), tmp_path / f"{name}.safetensors")
    recipe = {"version": 1, "base": "base.safetensors", "merge": {"method": "task_arithmetic"}}
    recipe["experts"] = {n: f"{n}.safetensors" for n in NAMES}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    paths = [str(tmp_path / f"{n}.safetensors") for n in raw]
    outcome = cli("analyze", *paths, "--merge", str(tmp_path / "r.yaml"), "-o", str(tmp_path / "r.html"))
    assert outcome.code == 0 and "kept by the merge" in outcome.out
    assert (tmp_path / "r.html").read_text().startswith("<!DOCTYPE html>")
    data = cli("analyze", *paths, "--json").json
    assert data["model"]["parameters"] == 560


def test_the_command_names_what_it_left_out(tmp_path: Path, cli: Any) -> None:
    torch.manual_seed(0)
    base = {f"{i}.w": torch.randn(8, 8) for i in range(14)}
    broken = {name: tensor + 0.1 * torch.randn(8, 8) for name, tensor in base.items()}
    broken["3.w"][0, 0] = torch.nan
    for place, model in (("base", base), ("one", {n: t * 1.1 for n, t in base.items()}), ("two", broken)):
        save_file(model, tmp_path / f"{place}.safetensors")
    places = [str(tmp_path / f"{name}.safetensors") for name in ("base", "one", "two")]
    done = cli("analyze", *places)
    assert done.code == 0
    assert [line for line in done.err.splitlines() if line.startswith("left out: `3.w`")]
    assert "NaN or infinity" in done.err
    few = {name: tensor for name, tensor in base.items() if name == "0.w"}
    save_file(few, tmp_path / "two.safetensors")
    assert "left out: 3 more (all of them: `--json`)" in cli("analyze", *places).err

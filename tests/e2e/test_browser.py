"""Reports in a real browser: something is drawn, in light and in dark, nothing is complained of, charts have tables."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cuvee import analyze
from cuvee.charts import page
from cuvee.evaluate.cells import Cell
from cuvee.evaluate.pages import html
from cuvee.evaluate.report import sections
from cuvee.evaluate.scorecard import Scorecard, TaskScore
from cuvee.evaluate.task import ACCURACY

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here: reports are not looked at"),
]
SIZE = (1100, 2400)


def models() -> dict[str, dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    names = [
        f"model.layers.{i}.{part}.weight" for i in range(3) for part in ("self_attn.q_proj", "mlp.up_proj")
    ]
    base = {n: torch.randn(32, 24, generator=draw) for n in names}
    tuned = {
        m: {n: w + 0.05 * torch.randn(w.shape, generator=draw) for n, w in base.items()}
        for m in ("one", "two")
    }
    return {"base": base, **tuned}


def analysis() -> str:
    given = models()
    merged = {n: (given["one"][n] + given["two"][n]) / 2 for n in given["base"]}
    tuned = {name: given[name] for name in ("one", "two")}
    return analyze.models(given["base"], tuned, spectra=True, merge=merged).html()


def leaderboard() -> str:
    random = np.random.default_rng(0)
    results = []
    for track, count in (("track", 2), ("track", 3), ("track+junk", 3)):
        for label, share in (
            ("base", 0.3),
            ("experts", 0.95),
            ("average", 0.6),
            ("ties", 0.7),
            ("tsv_m", 0.8),
        ):
            for budget in (0, 3) if label in ("average", "ties", "tsv_m") else (0,):
                tasks = {
                    f"task {i}": TaskScore(
                        ACCURACY,
                        1.0 * (random.random(50) < share),
                        np.ones(50),
                        confidence=random.random(50),
                    )
                    for i in range(count)
                }
                log = [({"lambda": v}, share - abs(v - 1) / 9) for v in (0.3, 1.0, 2.0)] if budget else []
                cell = Cell(track, "d", 0, tuple(tasks), label, label, budget=budget)
                results.append((cell, Scorecard(label, tasks, log=log)))
    return html("Leaderboard", sections(results))


def landscape() -> str:
    given = [{"w": torch.tensor(values)} for values in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])]

    def loss(weights: Any) -> float:
        return float((weights["w"] - 0.5).square().sum())

    plane = analyze.plane(*given, loss, better="lower")
    return page("Landscape", [plane.chart(), analyze.path(given[1], given[2], loss, better="lower").chart()])


def notebook() -> str:
    found = analyze.models(models()["base"], {n: models()[n] for n in ("one", "two")})
    return f"<!DOCTYPE html><html><body>{found._repr_html_()}</body></html>"


def opened(path: Path, folder: Path, *options: str) -> tuple[str, str]:
    """What the browser prints of a page, and what it complains of."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
            f"--user-data-dir={folder / 'profile'}",
            "--enable-logging=stderr",
            f"--window-size={SIZE[0]},{SIZE[1]}",
            *options,
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.slow
@pytest.mark.parametrize("make", [analysis, leaderboard, landscape, notebook])
def test_reports_are_drawn_in_light_and_dark(make: Callable[[], str], tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    place = tmp_path / "report.html"
    place.write_text(make())
    for scheme, number in (("light", 1), ("dark", 0)):
        picture = tmp_path / f"{scheme}.png"
        _, complaints = opened(
            place, tmp_path, f"--screenshot={picture}", f"--blink-settings=preferredColorScheme={number}"
        )
        assert complaints == ""
        with image.open(picture) as found:
            pixels = np.asarray(found.convert("RGB"))
        assert pixels.shape == (SIZE[1], SIZE[0], 3)
        colours = {tuple(c) for c in pixels[::3, ::3].reshape(-1, 3)}
        assert len(colours) > 20, "text, rules and series have colours of their own"
        vivid = [c for c in colours if int(max(c)) - int(min(c)) > 60]
        assert vivid, "charts are in colour"
        paper = np.median(pixels[60:400, 40:1000].reshape(-1, 3), axis=0).mean()  # a notebook goes on below
        assert paper > 240 if scheme == "light" else paper < 30
        inked = (np.abs(pixels[:1200].astype(int) - int(paper)).max(2) > 60).mean()
        assert inked > 0.01, "something is on the page"


@pytest.mark.slow
@pytest.mark.parametrize("make", [analysis, leaderboard, landscape, notebook])
def test_every_chart_has_its_table_once_the_browser_has_read_it(
    make: Callable[[], str], tmp_path: Path
) -> None:
    place = tmp_path / "report.html"
    place.write_text(make())
    document, complaints = opened(place, tmp_path, "--dump-dom")
    figures = re.findall(r"<figure.*?</figure>", document, re.S)
    assert complaints == "" and len(figures) >= 2
    for figure in figures:
        assert re.search(r"<svg.*</svg>.*<details>.*<table>.*<td", figure, re.S)
    assert "<script" not in document

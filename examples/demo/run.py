"""The demo: merge five trained experts by three recipes, verify what was written, score everything.

`make demo` runs it. It uses the installed `cuvee` command for every step of merging and transformers for scoring;
results land in `demo-out/` as `results.json` and `accuracy.svg`. `--part validation` scores the images on which the
recipes' lambdas were chosen instead of the test images.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from score import TASKS, accuracies

HERE = Path(__file__).resolve().parent
OUT = Path("demo-out")
CUVEE = Path(sys.executable).with_name("cuvee")
EXPERTS = ("digits", "scans", "fashion", "letters", "kana")
RECIPES = {"average": "average", "task arithmetic": "task_arithmetic", "TIES": "ties"}
Scores = dict[str, dict[str, float]]  # model -> task -> per cent


def cuvee(console: Console, *arguments: str | Path) -> None:
    """Show the command and run it; a failure ends the demo with the command's own exit code."""
    words = [str(argument) for argument in arguments]
    console.print(f"\n[bold]$ cuvee {' '.join(words)}[/bold]", highlight=False, soft_wrap=True)
    code = subprocess.run([str(CUVEE), *words], check=False).returncode
    if code:
        raise SystemExit(code)


def merge_all(console: Console) -> None:
    for name in RECIPES.values():
        recipe = os.path.relpath(HERE / "recipes" / f"{name}.cuvee.yaml")
        cuvee(console, "plan", recipe)
        cuvee(console, "merge", recipe, "-o", OUT / name, "--overwrite", "--quiet")
        cuvee(console, "verify", OUT / name)


def score_all(part: str) -> Scores:
    folders = {"base": HERE / "checkpoints" / "base"}
    folders |= {f"expert: {name}": HERE / "checkpoints" / name for name in EXPERTS}
    folders |= {f"merge: {title}": OUT / name for title, name in RECIPES.items()}
    return {title: accuracies(folder, part) for title, folder in folders.items()}


def mean(row: dict[str, float]) -> float:
    return sum(row.values()) / len(row)


def own(scores: Scores) -> dict[str, float]:
    """Each task scored by its own expert: what five separate models reach."""
    return {name: scores[f"expert: {name}"][name] for name in EXPERTS}


def table(scores: Scores, part: str) -> Table:
    drawn = Table(title=f"Accuracy on the {part} images, per cent")
    drawn.add_column("model")
    for column in (*EXPERTS, "mean"):
        drawn.add_column(column, justify="right")
    best = max(
        (title for title in scores if title.startswith("merge")), key=lambda title: mean(scores[title])
    )
    for title, row in scores.items():
        cells = [f"{row[name]:.1f}" for name in EXPERTS]
        style = "bold" if title == best else None
        ends = title in {"base", f"expert: {EXPERTS[-1]}"}
        drawn.add_row(title, *cells, f"{mean(row):.1f}", style=style, end_section=ends)
    ceiling = own(scores)
    drawn.add_section()
    drawn.add_row(
        "five models: own experts", *(f"{ceiling[name]:.1f}" for name in EXPERTS), f"{mean(ceiling):.1f}"
    )
    return drawn


def chart(scores: Scores) -> str:
    """The mean of each model as a bar, as SVG text."""
    bars = {title: mean(row) for title, row in scores.items()} | {
        "five models: own experts": mean(own(scores))
    }
    colours = {"base": "#8a8f98", "expert": "#c9b8a8", "merge": "#7b2d43", "five models": "#d8d5cf"}
    lines = []
    for place, (title, value) in enumerate(bars.items()):
        y, colour = 34 + 24 * place, colours[title.partition(":")[0]]
        lines.append(f'<text x="190" y="{y + 13}" text-anchor="end">{title}</text>')
        lines.append(f'<rect x="200" y="{y}" width="{4 * value:.0f}" height="17" fill="{colour}"/>')
        lines.append(f'<text x="{206 + 4 * value:.0f}" y="{y + 13}">{value:.1f}</text>')
    height = 44 + 24 * len(bars)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="660" height="{height}" viewBox="0 0 660 {height}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="#ffffff"/>'
        '<text x="12" y="20" font-weight="bold">Mean accuracy over five tasks, per cent</text>'
        + "".join(lines)
        + "</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Merge the demo's experts by three recipes and score them.")
    parser.add_argument("--part", choices=("test", "validation"), default="test", help="images to score")
    part = parser.parse_args().part
    torch.set_num_threads(1)  # networks this small only lose by sharing a batch among threads
    console, began = Console(), time.monotonic()
    merge_all(console)
    scores = score_all(part)
    record = {
        "part": part,
        "tasks": sorted(path.stem for path in TASKS.glob("*.safetensors")),
        "accuracy": scores,
    }
    record["mean"] = {title: mean(row) for title, row in scores.items()}
    (OUT / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    (OUT / "accuracy.svg").write_text(chart(scores), encoding="utf-8")
    console.print()
    console.print(table(scores, part))
    console.print(
        f"{time.monotonic() - began:.0f} s; merged models, results.json and accuracy.svg are in {OUT}/"
    )


if __name__ == "__main__":
    main()

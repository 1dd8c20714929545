"""How time and memory grow with parameters, experts and threads, with the floor beside: JSON and SVG.

    python benchmarks/growth.py --work DIR --out benchmarks/results/growth

Needs some 8 GB in DIR and twenty minutes. Each round is floor, merge, floor, merge, of which the faster count; reported
are medians over the rounds: wall and CPU seconds without those of the same command on a checkpoint of 1 MB, peak
resident memory of the process, and the floor of `engine.py` on the same files with as many threads; warm cache. Experts
beyond the third are links to the first three, which are read for each link. A line through the points of parameters and
of experts is told with how far the furthest point lies from it, and what the second thread brings, to the floor too.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import engine
from checkpoints import SIZES
from engine import EXPERTS, chill, command, commit, recipe, settle, waited, write_model

METHODS = ("linear", "ties")
SIZES |= {"0.25b": (1024, 2816, 16, 64000)}
TIMES = ("wall", "floor")
WIDTH, HEIGHT, EDGE = 420, 260, 46
COLOURS = ("#1b6ca8", "#c4542b", "#8ab8d8", "#e3a893")


def models(work: Path, size: str, experts: int) -> Path:
    """A folder with a base and this many experts; those beyond the third are links."""
    folder = work / size
    for number, name in enumerate(("base", *EXPERTS)):
        if not (folder / name / "config.json").exists():
            write_model(folder / name, size, number)
    for number in range(3, experts):
        link = folder / f"more{number}"
        if not link.exists():
            link.symlink_to(EXPERTS[number % 3], target_is_directory=True)
    return folder


def many(folder: Path, method: str, experts: int) -> None:
    """The recipe with this many experts."""
    names = [*EXPERTS, *(f"more{number}" for number in range(3, experts))][:experts]
    path, _ = recipe(folder, method)
    data: dict[str, Any] = json.loads(path.read_text())
    own = data["models"][0]["parameters"]
    data["models"] = [{"model": f"./{name}", "parameters": own} for name in names]
    path.write_text(json.dumps(data))


def point(
    folder: Path, tiny: Path, method: str, experts: int, rounds: int, threads: int = 0
) -> dict[str, Any]:
    """Medians of a merge with this many experts and of its floor, which take turns."""
    _, base = recipe(folder, method)
    names = [*EXPERTS, *(f"more{number}" for number in range(3, experts))][:experts]
    own = [folder / name / "model.safetensors" for name in names]
    files = own if base[0].parent.name != "base" else [base[0], *own]
    nbytes = files[0].stat().st_size
    threads = threads or os.cpu_count() or 1
    os.environ["CUVEE_THREADS"] = str(threads)

    def run() -> engine.Measured:
        chill(files, False)
        return with_experts(folder, method, experts)

    runs, floors, starts = [], [], []
    command(tiny, method, folder / "out")  # compiles what is not yet, and brings it into the page cache
    for _ in range(rounds):
        settle(files)
        starts.append(command(tiny, method, folder / "out"))
        (first, one), (second, other) = ((waited(files, folder, threads).wall, run()) for _ in range(2))
        runs.append(min(one, other, key=lambda found: found.wall))
        floors.append((first, second))
    walls = [max(r.wall - s.wall, 0.0) for r, s in zip(runs, starts, strict=True)]
    return {
        "parameters": nbytes // 2,
        "experts": experts,
        "threads": threads,
        "wall": median(walls),
        "walls": walls,
        "cpu": median(r.cpu - s.cpu for r, s in zip(runs, starts, strict=True)),
        "start": median(s.wall for s in starts),
        "floor": median(map(min, floors)),
        "floors": floors,
        "rss_mb": median(r.rss for r in runs),
    }


def with_experts(folder: Path, method: str, experts: int) -> engine.Measured:
    """One command on a recipe with this many experts."""
    genuine = engine.recipe

    def changed(where: Path, name: str) -> tuple[Path, list[Path]]:
        found = genuine(where, name)
        many(where, name, experts)
        return found

    engine.recipe = changed
    try:
        return command(folder, method, folder / "out")
    finally:
        engine.recipe = genuine


def svg(title: str, across: str, lines: dict[str, list[tuple[float, float]]], unit: str) -> str:
    """A plain line chart."""
    most_x = max(x for line in lines.values() for x, _ in line)
    most_y = max(y for line in lines.values() for _, y in line) * 1.1

    def at(x: float, y: float) -> tuple[float, float]:
        return EDGE + x / most_x * (WIDTH - 2 * EDGE), HEIGHT - EDGE - y / most_y * (HEIGHT - 2 * EDGE)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="11">',
        f'<title>{title}</title><rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{EDGE}" y="20" font-size="13">{title} ({unit})</text>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">{across}</text>',
        f'<path d="M{EDGE},{EDGE / 2 + 6} V{HEIGHT - EDGE} H{WIDTH - EDGE}" fill="none" stroke="#444"/>',
    ]
    for part in range(1, 5):
        (_, high), (wide, low) = at(0, most_y * part / 4), at(most_x * part / 4, 0)
        parts.append(f'<text x="{EDGE - 4}" y="{high + 4}" text-anchor="end">{most_y * part / 4:.3g}</text>')
        parts.append(f'<text x="{wide}" y="{low + 14}" text-anchor="middle">{most_x * part / 4:.3g}</text>')
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*xy) for xy in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in (at(*xy) for xy in line)
        ]
        parts.append(
            f'<text x="{WIDTH - EDGE + 4 - 90}" y="{34 + 14 * number}" fill="{colour}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def draw(out: Path, results: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """A chart of time, the floor beside, and one of memory for each series."""
    across = {"parameters": "billion parameters", "experts": "experts", "threads": "threads"}
    for series, found in results.items():
        scale = 1e-9 if series == "parameters" else 1
        for name, values, unit in (("time", TIMES, "seconds"), ("memory", ("rss_mb",), "peak MB")):
            lines = {
                f"floor of {method}" if value == "floor" else method: [
                    (p[series] * scale, p[value]) for p in points
                ]
                for value in values
                for method, points in found.items()
            }
            target = out.with_name(f"{out.name}-{series}-{name}.svg")
            target.write_text(svg(f"{name} against {series}", across[series], lines, unit))


def straight(points: list[tuple[float, float]]) -> tuple[float, float, float]:
    """The line (at 0, slope) of least squares, and how far the furthest point lies from it, relative to the point."""
    count = len(points)
    across, up = (sum(values) / count for values in zip(*points, strict=True))
    slope = sum((x - across) * (y - up) for x, y in points) / sum((x - across) ** 2 for x, _ in points)
    bottom = up - slope * across
    return bottom, slope, max(abs(bottom + slope * x - y) / max(y, 1e-9) for x, y in points)


def told(series: str, found: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """What growth amounts to, for each method: a line, or what the last thread brings."""
    said: dict[str, dict[str, Any]] = {}
    for method, points in found.items():
        for value in TIMES:
            if series == "threads":
                first, last = points[0], points[-1]
                said.setdefault(method, {})[value] = {"times faster": first[value] / last[value]}
                continue
            bottom, slope, off = straight([(point[series], point[value]) for point in points])
            said.setdefault(method, {})[value] = {"at 0": bottom, "slope": slope, "furthest": off}
        flat = [point["rss_mb"] for point in points]
        said[method]["rss_mb"] = {"least": min(flat), "most": max(flat)}
    return said


def measured(given: argparse.Namespace, note: Callable[[str, str, dict[str, Any]], None]) -> None:
    """Every point, noted as it is known."""
    tiny = models(given.work, "1mb", 3)
    for method in given.methods:
        for size in given.sizes:
            note("parameters", method, point(models(given.work, size, 3), tiny, method, 3, given.rounds))
        for experts in given.experts:
            folder = models(given.work, given.sizes[0], experts)
            note("experts", method, point(folder, tiny, method, experts, given.rounds))
        for threads in given.threads:
            folder = models(given.work, given.sizes[-1], 3)
            note("threads", method, point(folder, tiny, method, 3, given.rounds, threads))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--sizes", nargs="+", default=["0.1b", "0.25b", "0.5b"])
    parser.add_argument("--experts", nargs="+", type=int, default=[2, 4, 8, 16])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--out", type=Path, required=True, help="stem of the files of results")
    given = parser.parse_args()
    os.environ.setdefault("CUVEE_CATALOG", "off")
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}

    def note(series: str, method: str, found: dict[str, Any]) -> None:
        results.setdefault(series, {}).setdefault(method, []).append(found)
        shown = {k: round(v, 3) for k, v in found.items() if not isinstance(v, list)}
        print(series, method, shown, flush=True)
        growth = {name: told(name, own) for name, own in results.items() if min(map(len, own.values())) > 1}
        machine = {"cpus": os.cpu_count(), "load": os.getloadavg()}
        data = {"commit": commit(), "machine": machine, "growth": growth, **results}
        given.out.with_suffix(".json").write_text(json.dumps(data, indent=1) + "\n")
        draw(given.out, results)

    measured(given, note)
    for name, own in results.items():
        print(name, json.dumps(told(name, own)) if min(map(len, own.values())) > 1 else "one point")


if __name__ == "__main__":
    main()

"""`cuvee bench score`: scores of one model by other programs, kept beside a benchmark's results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cuvee.cli.options import output_options

if TYPE_CHECKING:
    from cuvee.evaluate.adapters.outcome import Outcome

FOLDER = click.Path(path_type=Path, file_okay=False)
TASKS = click.Path(path_type=Path, file_okay=False, exists=True)


@click.command("score")
@click.argument("model")
@click.option(
    "--command", "program", metavar="LINE", help="A program that prints JSON; `{model}` is the model."
)
@click.option("--lm-eval", "harness", multiple=True, metavar="TASK", help="A task of lm-eval; once for each.")
@click.option("--include", type=TASKS, default=None, help="Folder of task files for lm-eval, used alone.")
@click.option("--inspect", "inspected", multiple=True, metavar="FILE", help="A task file of inspect-ai.")
@click.option("--limit", type=click.IntRange(1), default=None, help="Items of each task.")
@click.option("--shots", type=click.IntRange(0), default=None, help="Examples in the prompt (lm-eval).")
@click.option("--chat", is_flag=True, help="Use the chat template (lm-eval).")
@click.option("--timeout", type=float, default=3600.0, show_default=True, help="Seconds for `--command`.")
@click.option(
    "-o", "--out", type=FOLDER, default=None, help="Folder of a benchmark: its report shows the scores."
)
@output_options
def command(model: str, out: Path | None, as_json: bool, quiet: bool, **given: Any) -> int:
    """Score a model, or what a recipe would give, by other programs.

    MODEL is a folder, or a recipe (`.yaml`), which is merged into a temporary folder first.

    \b
    Examples:
      cuvee bench score ./blend --command "python my_eval.py {model}"
      cuvee bench score recipe.yaml --lm-eval my_task --include ./tasks -o ./bench
    """
    from cuvee.cli.render import print_json, stdout, table
    from cuvee.core.names import printable

    with _folder(model) as place:
        found = []
        for one in _outcomes(place, **given):
            found.append(one)
            if out is not None:
                one.keep(out)  # at once: a later program may fail after hours of an earlier one
    if as_json:
        print_json({"schema": "cuvee.bench.score/1", "outcomes": [one.as_json() for one in found]})
    elif not quiet:
        rows = [
            [
                one.program,
                printable(task),
                printable(metric),
                f"{value:.4g}",
                str(len(one.items.get(task, ())) or "–"),
            ]
            for one in found
            for task, values in one.scores.items()
            for metric, value in values.items()
        ]
        stdout(table(["program", "task", "metric", "score", "items"], rows))
    return 0


@contextmanager
def _folder(model: str) -> Iterator[str]:
    """The folder of a model; of a recipe a temporary one, removed afterwards."""
    from cuvee.cli.options import existing_output

    if existing_output(Path(model)).suffix not in (".yaml", ".yml"):
        yield model
        return
    from cuvee.api import load
    from cuvee.core.disk import scratch

    with scratch() as place:
        merged = place / "model"
        load(model).save(merged)
        yield str(merged)


def _outcomes(place: str, **given: Any) -> Iterator[Outcome]:
    """An outcome for each program that was asked for; UsageError where there is none."""
    from cuvee.errors import UsageError
    from cuvee.evaluate.adapters import command as any_program
    from cuvee.evaluate.adapters import harness, inspection

    if not (given["program"] or given["harness"] or given["inspected"]):
        raise UsageError(
            "CV-U312",
            "no program was named to score the model",
            hint="give `--command`, `--lm-eval` or `--inspect`",
        )
    if given["program"]:
        yield any_program.run(given["program"], place, timeout=given["timeout"])
    if given["harness"]:
        yield harness.evaluate(
            place,
            given["harness"],
            include=given["include"],
            limit=given["limit"],
            shots=given["shots"],
            chat=given["chat"],
        )
    if given["inspected"]:
        yield inspection.evaluate(place, list(given["inspected"]), limit=given["limit"])

"""`cuvee extract lora`: adapters out of fine-tuned models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cuvee.cli.options import is_offline, output_options, paranoid_option, run_choices, run_options

if TYPE_CHECKING:
    from cuvee.api.adapter_out import AdapterSaved


@click.group("extract", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Take smaller things out of models.

    \b
    Examples:
      cuvee extract lora ./base ./math -o ./math-lora --rank 16
      cuvee extract lora ./base ./math ./code -o ./adapters --error 0.01
    """


@command.command("lora")
@click.argument("base")
@click.argument("tuned", nargs=-1, required=True)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the adapter; with several models, the folder that holds theirs.",
)
@click.option("--rank", type=click.IntRange(1), default=None, help="Largest rank of each matrix.")
@click.option("--energy", type=float, default=None, help="Share of Σσ² that each matrix keeps, such as 0.99.")
@click.option(
    "--error", type=float, default=None, help="Largest relative error of each matrix, such as 1e-3."
)
@click.option(
    "--rest",
    type=click.Choice(["save", "drop"]),
    default="save",
    help="Norms and biases: save them whole, or drop them.",
)
@click.option("--dtype", default=None, metavar="DTYPE", help="Type of the factors (default float32).")
@click.option("--unsafe-truncate-embeddings", is_flag=True, help="Cut vocabularies to their common rows.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, atomically.")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@run_options
@paranoid_option
@output_options
def lora(base: str, tuned: tuple[str, ...], out: Path, **given: Any) -> int:
    """Write what each TUNED model adds to BASE as a LoRA adapter that PEFT loads.

    One of --rank, --energy and --error says how large it may be; the error that remains is told for each.

    \b
    Examples:
      cuvee extract lora ./base ./math -o ./math-lora --rank 16
      cuvee extract lora ./base ./math ./code -o ./adapters --error 0.01 --rest drop
    """
    from cuvee.api.extract import extract_lora

    saved = extract_lora(
        base,
        list(tuned),
        out,
        rank=given["rank"],
        energy=given["energy"],
        error=given["error"],
        rest=given["rest"],
        dtype=given["dtype"],
        truncate_vocabulary=given["unsafe_truncate_embeddings"],
        overwrite=given["overwrite"],
        offline=is_offline(given["offline"]),
        run=run_choices(given),
    )
    _report(saved, as_json=given["as_json"], quiet=given["quiet"])
    return 0


def _report(saved: list[AdapterSaved], *, as_json: bool, quiet: bool) -> None:
    from cuvee.cli.render import notes, print_json, stderr, stdout
    from cuvee.plan.explain import size

    if as_json:
        adapters = [{"output": str(one.path), "bytes": one.nbytes, **one.report.as_dict()} for one in saved]
        print_json({"schema": "cuvee.extract/1", "adapters": adapters})
        return
    for one in saved:
        notes(one.notes, quiet)
        stdout(str(one.path))
        if not quiet:
            stderr(f"wrote {size(one.nbytes)} in {one.finished.seconds:.1f} s")

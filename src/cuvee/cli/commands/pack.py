"""`cuvee pack`: a fine-tuned model as what leads from its base to it, bit for bit."""

from __future__ import annotations

from pathlib import Path

import click

from cuvee.cli.options import is_offline, output_options


@click.command("pack")
@click.argument("expert")
@click.option("--base", required=True, metavar="BASE", help="The model it was trained from.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Output folder.")
@click.option("--overwrite", is_flag=True, help="Replace an existing output, atomically.")
@click.option("--no-resume", is_flag=True, help="Discard what an interrupted run left.")
@click.option("--offline", is_flag=True, help="Never touch the network.")
@output_options
def command(
    expert: str,
    base: str,
    out: Path,
    *,
    overwrite: bool,
    no_resume: bool,
    offline: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Repack a fine-tuned model against its BASE: lossless, and a fraction of its bytes to read.

    The folder is a source like any other, as long as BASE stays where it is.

    \b
    Examples:
      cuvee pack ./math --base ./base -o ./packed/math
      cuvee pack ./math --base ./base -o ./packed/math --json
    """
    from cuvee.api.pack import pack
    from cuvee.cli.render import print_json, stderr, stdout
    from cuvee.plan.explain import size

    report = pack(expert, base, out, overwrite=overwrite, offline=is_offline(offline), resume=not no_resume)
    if as_json:
        print_json({"schema": "cuvee.pack/1", **report.as_dict()})
        return 0
    stdout(str(out))
    if not quiet:
        ratio = report.stored / max(1, report.nbytes)
        stderr(
            f"packed {size(report.stored)} into {size(report.nbytes)}: {ratio:.1f} times fewer bytes, "
            f"{report.bits:.2f} bits an element"
        )
    if verbose:
        for tensor in report.tensors:
            stderr(f"{tensor.name}  {tensor.form}  {size(tensor.packed)} of {size(tensor.stored)}")
    return 0

"""`cuvee init`: a commented recipe to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cuvee.cli.options import output_options

TEMPLATES = ("ties", "linear", "slerp", "dare", "lora", "layers", "stages", "mergekit")


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path), default=Path("recipe.cuvee.yaml"))
@click.option(
    "--from", "template", type=click.Choice(TEMPLATES), default="ties", help="Template to start from."
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@output_options
def command(file: Path, template: str, force: bool, as_json: bool, **given: Any) -> int:
    """Write a commented recipe; asks nothing.

    \b
    Examples:
      cuvee init
      cuvee init blend.cuvee.yaml --from slerp
    """
    from importlib import resources

    from cuvee.cli.render import print_json, stdout
    from cuvee.core.disk import write_file
    from cuvee.errors import UsageError

    if file.exists() and not force:
        raise UsageError("CV-U020", f"`{file}` exists already", hint="`--force` replaces it")
    text = (resources.files("cuvee.cli") / "templates" / f"{template}.yaml").read_text(encoding="utf-8")
    write_file(file, text.encode())
    print_json({"schema": "cuvee.init/1", "file": str(file), "template": template}) if as_json else stdout(
        f"{file}\nnext: cuvee check {file} · cuvee plan {file} · cuvee merge {file} -o ./blend"
    )
    return 0

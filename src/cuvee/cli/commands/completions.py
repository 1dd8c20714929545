"""`cuvee completions`: a script that teaches a shell to complete cuvee's commands and options."""

from __future__ import annotations

from typing import Any

import click

from cuvee.cli.options import output_options


@click.command("completions")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@output_options
def command(shell: str, as_json: bool, **given: Any) -> int:
    """Print a shell completion script.

    \b
    Examples:
      eval "$(cuvee completions bash)"
      cuvee completions fish > ~/.config/fish/completions/cuvee.fish
    """
    from click.shell_completion import get_completion_class

    from cuvee.cli.app import app
    from cuvee.cli.render import print_json, stdout

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(app, {}, "cuvee", "_CUVEE_COMPLETE").source()
    print_json({"schema": "cuvee.completions/1", "shell": shell, "script": script}) if as_json else stdout(
        script
    )
    return 0

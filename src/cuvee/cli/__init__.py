"""The command line: thin, every command one file in `commands/`, imported only when it is called."""

from __future__ import annotations

import sys

from cuvee.cli.app import app
from cuvee.cli.failure import run_guarded


def main() -> None:
    """Entry point of the `cuvee` command."""
    sys.exit(run_guarded(app))

"""`cuvee doctor`: what this environment has, and what is missing for what."""

from __future__ import annotations

from typing import Any

import click

from cuvee.cli.options import output_options

_OPTIONAL = {
    "gguf": ("reading and writing GGUF", "pip install 'cuvee[gguf]'"),
    "transformers": ("live models and their tokenizers", "pip install 'cuvee[hf]'"),
    "peft": ("live PEFT models", "pip install 'cuvee[hf]'"),
    "sentencepiece": ("tokenizers that are a tokenizer.model only", "pip install sentencepiece"),
}
_NEEDED = (
    "torch",
    "numpy",
    "ruamel.yaml",
    "click",
    "rich",
    "jinja2",
    "huggingface-hub",
    "blake3",
    "tokenizers",
)


@click.command("doctor")
@output_options
def command(as_json: bool, **given: Any) -> int:
    """Report on this environment: versions, extras, disk, memory. Exit code 1 when something needed is missing.

    \b
    Examples:
      cuvee doctor
      cuvee doctor --json
    """
    from cuvee.cli.environment import report
    from cuvee.cli.render import print_json, stdout, table

    facts = report(_NEEDED, tuple(_OPTIONAL))
    missing = [name for name, version in facts["needed"].items() if version is None]
    if as_json:
        print_json({"schema": "cuvee.doctor/1", "ok": not missing, **facts})
        return 1 if missing else 0
    rows = [[name, version or "MISSING", ""] for name, version in facts["needed"].items()]
    for name, version in facts["optional"].items():
        purpose, remedy = _OPTIONAL[name]
        rows.append([name, version or "not installed", f"{purpose}{'' if version else ': ' + remedy}"])
    stdout(table(["package", "version", "for"], rows) + "\n")
    stdout(table(["fact", "value"], [[k, str(v)] for k, v in facts["machine"].items()]))
    return 1 if missing else 0

"""`cuvee explain`: what an error code means and what to do, or what a method does. Works offline."""

from __future__ import annotations

from typing import Any

import click

from cuvee.cli.options import output_options


@click.command("explain")
@click.argument("subject", required=False)
@output_options
def command(subject: str | None, as_json: bool, **given: Any) -> int:
    """Explain an error code or a method; without SUBJECT, list the codes.

    \b
    Examples:
      cuvee explain CV-R004
      cuvee explain ties
    """
    from cuvee.cli.catalogue import layout_data, layout_text, method_data, method_text
    from cuvee.cli.codes import codes
    from cuvee.cli.render import print_json, stdout, table
    from cuvee.core.names import did_you_mean
    from cuvee.errors import UsageError
    from cuvee.methods import registry
    from cuvee.recipe.layouts import LAYOUTS

    known = codes()
    if subject is None:
        listed = [{"code": c, "title": e["title"]} for c, e in known.items()]
        text = table(["code", "title"], [[c, e["title"]] for c, e in known.items()])
        print_json({"schema": "cuvee.codes/1", "codes": listed}) if as_json else stdout(text)
        return 0
    entry = known.get(subject.upper())
    if entry is not None:
        content = {"schema": "cuvee.code/1", "code": subject.upper(), **entry}
        print_json(content) if as_json else stdout(
            f"{subject.upper()}: {entry['title']}\n\n{entry['text'].strip()}"
        )
        return 0
    if subject in registry.names():
        method = registry.get(subject)
        print_json(method_data(method)) if as_json else stdout(method_text(method))
        return 0
    if subject in LAYOUTS:
        layout = LAYOUTS[subject]
        print_json(layout_data(layout)) if as_json else stdout(layout_text(layout))
        return 0
    hint = did_you_mean(subject, [*known, *registry.names(), *LAYOUTS])
    raise UsageError("CV-U008", f"`{subject}` is neither a code nor a method", hint=hint)

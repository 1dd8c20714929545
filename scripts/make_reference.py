"""Writes `docs/reference/` from the code: methods, stages, commands, codes, families, settings and schemas.

    python scripts/make_reference.py            write the pages
    python scripts/make_reference.py --check    exit with 1 when a page is not what the code says

Owns the pages' wording and nothing else: every fact comes from a signature, a declaration or a data file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import click
from reference_markdown import escaped, fenced, page, table
from reference_methods import evidence_page, layout_page, method_page, methods_index, stages_page

from cuvee.cli.app import COMMANDS, app
from cuvee.cli.codes import codes
from cuvee.core import settings
from cuvee.core.limits import DEFAULT
from cuvee.families import ROLES, family_names
from cuvee.families.read import facts
from cuvee.methods import registry
from cuvee.recipe.json_schema import mergekit_schema, native_schema
from cuvee.recipe.layouts import LAYOUTS

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
PREFIXES = {
    "CV-B": "Evaluation",
    "CV-E": "Runs and disks",
    "CV-P": "Plans",
    "CV-R": "Recipes",
    "CV-S": "Sources and files",
    "CV-T": "Tokenizers and side files",
    "CV-U": "Command line and Python calls",
    "CV-V": "Verification",
    "CV-X": "Bugs",
}
EXITS = (
    ("0", "done"),
    ("1", "failed; you can fix it"),
    ("2", "the command line or the recipe is wrong"),
    ("3", "the answer is no: `verify`, `diff`, `lock --check` or `reproduce` found a difference"),
    ("4", "finished, but there were warnings and `--strict` was given"),
    ("70", "a bug in cuvee"),
    ("130, 143", "interrupted; the same command resumes"),
)


def pages() -> dict[str, str]:
    """Every file of the reference by its name below `docs/reference/`."""
    found = {
        "methods/index.md": methods_index(),
        "methods/evidence.md": evidence_page(),
        "stages.md": stages_page(),
        "commands.md": commands_page(),
        "codes.md": codes_page(),
        "families.md": families_page(),
        "settings.md": settings_page(),
        "recipe.schema.json": json.dumps(native_schema(), ensure_ascii=False) + "\n",
        "mergekit.schema.json": json.dumps(mergekit_schema(), ensure_ascii=False) + "\n",
    }
    for name in registry.names():
        found[f"methods/{name}.md"] = method_page(registry.get(name))
    for name, layout in LAYOUTS.items():
        found[f"methods/{name}.md"] = layout_page(layout)
    return found


# -- commands, codes, families, settings ----------------------------------------------------------------------


def commands_page() -> str:
    """Every command with its arguments and options."""
    shared = (
        "Every command takes `--json`, `-q`, `-v`, `--debug` and `--help`. Data goes to stdout; progress, warnings "
        "and hints go to stderr. Nothing asks questions."
    )
    codes_text = "A code that is not in this table must be treated as failure."
    parts = [shared, "## Exit codes", table(["code", "meaning"], [list(e) for e in EXITS]), codes_text]
    root = click.Context(app, info_name="cuvee", **app.context_settings)
    for name in COMMANDS:
        command = app.get_command(root, name)
        assert command is not None
        parts += _command(command, f"cuvee {name}", root)
    return page("Commands", *parts)


def _command(command: click.Command, path: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=path.split(" ", 1)[1], parent=parent)
    yield f"## {path}"
    text, _, rest = (command.help or "").partition("\b\n")
    yield text.strip()
    shown, _, after = rest.partition("Examples:\n")[2].partition("\n\n")
    if shown and not isinstance(command, click.Group):
        yield fenced("sh", "\n".join(line.strip() for line in shown.splitlines()))
    if after.strip():
        yield after.strip()
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _command(inner, f"{path} {name}", parent)
        return
    yield f"Usage: `{path} {' '.join(command.collect_usage_pieces(context)[1:])}`"
    rows = [_option(p) for p in command.params if isinstance(p, click.Option) and not p.hidden]
    own = [
        row for row in rows if row[0] not in ("`--json`", "`-q`, `--quiet`", "`-v`, `--verbose`", "`--debug`")
    ]
    if own:
        yield table(["option", "value", "meaning"], own)


def _option(option: click.Option) -> list[str]:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    kind = option.metavar or ("" if option.is_flag else _kind(option.type))
    default = option.default
    shown = (
        ""
        if not isinstance(default, (str, int, float)) or isinstance(default, bool)
        else f" (default {default})"
    )
    return [flags, kind, (option.help or "") + (shown if "default" not in (option.help or "") else "")]


def _kind(kind: click.ParamType) -> str:
    if isinstance(kind, click.Choice):
        return " or ".join(f"`{c}`" for c in kind.choices)
    return kind.name


def codes_page() -> str:
    """Every error code with its remedy."""
    parts = ["`cuvee explain CODE` prints the same text offline."]
    known = codes()
    for prefix, title in PREFIXES.items():
        found = {code: entry for code, entry in known.items() if code.startswith(prefix)}
        if found:
            parts.append(f"## {title}")
        for code, entry in found.items():
            parts += [f"### {code}: {escaped(entry['title'])}", escaped(entry["text"].strip())]
    return page("Error codes", *parts)


def families_page() -> str:
    """Every family, and the vocabulary of roles."""
    text = (
        "What tensor names mean, one TOML file for each family in `src/cuvee/families/data/`. A checkpoint of any "
        "other architecture is still merged, by tensor names; its layers are found from numbers in the names."
    )
    rows = []
    for name in family_names():
        data = facts(name)
        modules = data["modules"]
        shown = ", ".join(f"`{m}`" for m in modules) if list(modules) != ["default"] else ""
        keys = ", ".join(
            dict.fromkeys(f"`{m['layers_key']}`" for m in modules.values() if m.get("layers_key"))
        )
        classes = ", ".join(f"`{a}`" for a in data.get("architectures", ())[:3])
        rows.append([f"`{name}`", classes, shown, keys])
    roles = [[f"`{role}`", meaning] for role, meaning in ROLES.items()]
    head = ["family", "classes (the first three)", "modules", "number of layers in the config"]
    return page("Families", text, table(head, rows), "## Roles", table(["role", "meaning"], roles))


def settings_page() -> str:
    """Environment variables and limits."""
    rows = [[f"`{v.name}`", f"`{v.default}`" if v.default else "", v.effect] for v in settings.VARIABLES]
    caps = [[f"`{name}`", f"{getattr(DEFAULT, name):,}"] for name in DEFAULT.__slots__]
    return page(
        "Settings",
        "Flags win over environment variables, which win over defaults. `cuvee config` shows what is in force.",
        table(["variable", "default", "effect"], rows),
        "## Limits on untrusted input",
        "What a file may ask of a parser (`src/cuvee/core/limits.py`).",
        table(["limit", "value"], caps),
    )


# -- writing and checking -------------------------------------------------------------------------------------


def stale(folder: Path, wanted: Mapping[str, str]) -> list[str]:
    """Names that are missing, different, or there without being wanted."""
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    differing = [n for n, text in wanted.items() if n not in there or (folder / n).read_text("utf-8") != text]
    return sorted({*differing, *(there - wanted.keys())})


def main(arguments: Sequence[str]) -> int:
    """Write or check the reference; the exit code."""
    wanted = pages()
    found = stale(REFERENCE, wanted)
    if "--check" in arguments:
        for name in found:
            print(f"stale: docs/reference/{name}")
        if found:
            print("run: python scripts/make_reference.py")
        return 1 if found else 0
    for name in found:
        target = REFERENCE / name
        if name not in wanted:
            target.unlink()
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(wanted[name], encoding="utf-8")
    print(f"{len(wanted)} pages, {len(found)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

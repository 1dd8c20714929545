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
from typing import Any

import click
from reference_markdown import escaped, fenced, link, page, paragraphs, plain, table, value

from cuvee.cli.app import COMMANDS, app
from cuvee.cli.catalogue import example
from cuvee.cli.codes import codes
from cuvee.core import settings
from cuvee.core.limits import DEFAULT
from cuvee.families import ROLES, family_names
from cuvee.families.read import facts
from cuvee.methods import registry
from cuvee.methods.contract import Method, Stage
from cuvee.methods.parameters import Parameter
from cuvee.recipe.json_schema import mergekit_schema, native_schema
from cuvee.recipe.layouts import LAYOUTS, Arrangement

REFERENCE = Path(__file__).resolve().parent.parent / "docs" / "reference"
PREFIXES = {
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


# -- methods and stages ---------------------------------------------------------------------------------------


def methods_index() -> str:
    """The table of all methods."""
    every = [registry.get(name) for name in registry.names()]
    rows = [[f"[`{m.name}`]({m.name}.md)", m.base, _count(m), m.summary, m.status] for m in every]
    rows += [[f"[`{a.name}`]({a.name}.md)", "none", "layers", a.summary, "exact"] for a in LAYOUTS.values()]
    text = (
        "How a method is defined: `exact` follows the paper or its official code, `exact-math` is plain arithmetic, "
        "`reconstructed` could not be checked against its source. See [choosing a method]"
        "(../../guides/choosing-a-method.md) and [stages](../stages.md)."
    )
    head = ["method", "base", "models", "what it does", "status"]
    return page("Methods", text, table(head, sorted(rows)))


def method_page(method: Method) -> str:
    """One method: formula, parameters, variants, cost, paper, example."""
    parts = [method.summary[:1].upper() + method.summary[1:] + ".", paragraphs(method.doc)]
    parts += ["## Recipe", fenced("yaml", example(method))]
    parts += ["## Parameters", _parameters(tuple(registry.parameters_for(method).values()))]
    parts += ["## Facts", table(["", ""], list(_facts(method)))]
    dialect = method.dialects.get("mergekit")
    if dialect is not None:
        rows = [
            [f"`{s.name}`", s.scope, "required" if s.required else value(s.default), _ours(s.ours)]
            for s in dialect.parameters
        ]
        head = ["name there", "given for", "default there", "sets here"]
        parts += ["## Through MergeKit's door", table(head, rows) if rows else "It has no parameters there."]
        if dialect.fixed:
            fixed = ", ".join(f"`{k}: {plain(v)}`" for k, v in dialect.fixed.items())
            parts.append(f"Fixed there: {fixed}.")
    if method.bibtex:
        parts += ["## Citation", fenced("bibtex", method.bibtex)]
    return page(method.name, *parts)


def _facts(method: Method) -> Iterator[list[str]]:
    yield ["base", _base(method)]
    yield ["models", _count(method)]
    links = " → ".join(f"[`{s.stage}`](../stages.md#{s.stage})" for s in method.steps)
    yield ["stages", links]
    yield ["cost", _cost(method)]
    absent = {
        "error": "an error",
        "skip": "it is merged from those that have it",
        "base": "the base's is used",
    }
    yield ["a tensor that some models lack", absent[method.missing]]
    yield ["status", method.status]
    if method.paper:
        yield ["paper", link(method.paper)]


def _cost(method: Method) -> str:
    """Passes over the inputs with default values, from the stages' traits."""
    scopes, access = set(), set()
    arguments = _defaults(method)
    for step, values in zip(method.steps, arguments, strict=True):
        stage = registry.stage(step.stage)
        access.add(stage.access_for(values))
        scopes.add(stage.scope_for(values))
    whole = " One whole tensor of every model is held in memory at a time." if "tensor" in access else ""
    if "model" in scopes:
        return f"All models are read in full for figures over the whole model, then again to merge.{whole}"
    if "tensor" in scopes:
        return f"Each tensor is read for figures over the whole of it, then again to merge.{whole}"
    return f"One pass over every model.{whole}"


def _defaults(method: Method) -> list[dict[str, Any]]:
    known = registry.parameters_for(method)
    stand_ins = {"float": 0.5, "int": 1, "bool": True, "str": ""}
    values = {
        name: (p.choices[0] if p.choices else stand_ins[p.type]) if p.required else p.default
        for name, p in known.items()
    }
    return registry.arguments_for(method, values)


def layout_page(layout: Arrangement) -> str:
    """A method that arranges layers."""
    rows = [
        [f"`{name}`", "required" if default is None else value(default or None), meaning]
        for name, (default, meaning) in layout.parameters.items()
    ]
    lines = ["version: 1", "experts:"]
    lines += [f"  {name}: ./{name}" for name in (("math",) if layout.name == "dus" else layout.models)]
    lines += ["merge:", f"  method: {layout.name}"]
    values: dict[str, object] = {"layers": 2, "drop": 1, "bottom": 1, "top": 0}
    values |= {"alpha": "{curve: linear, points: [1, 0, 1]}", "base_alpha": 0.5}
    lines += [f"  {name}: {values[name]}" for name in layout.parameters if name in values]
    return page(
        layout.name,
        layout.doc,
        "## Recipe",
        fenced("yaml", "\n".join(lines)),
        "## Parameters",
        table(["parameter", "default", "meaning"], rows),
        (f"Paper: {link(layout.paper)}. " if layout.paper else "")
        + "It is rewritten before planning, so `cuvee plan` shows `passthrough` or `linear`.",
    )


def stages_page() -> str:
    """Every stage by role."""
    text = (
        "A chain under `merge:` is any number of condition stages, exactly one combine stage, and any number of "
        "rescale stages. `takes` says what a stage works on: weights, or task vectors (`delta`), for which the "
        "recipe needs a base. `access` says how much of a tensor it must see at once: `element` any run of "
        "values, `row` whole rows, `tensor` all of it."
    )
    every = [registry.stage(name) for name in registry.stages()]
    parts: list[str] = [text]
    for role in ("condition", "space", "combine", "rescale", "leave"):
        parts.append(f"## {role.capitalize()} stages")
        for stage in every:
            if stage.role == role:
                parts += _stage_parts(stage)
    return page("Stages", *parts)


def _stage_parts(stage: Stage) -> list[str]:
    doc = stage.doc.strip().split("Args:")[0].rstrip()
    access = "depends on its parameters" if callable(stage.access) else stage.access
    facts = f"Takes: {stage.takes}. Access: {access}. Random: {'yes' if stage.random else 'no'}."
    summary = " It needs figures that are gathered before it runs." if stage.summarise else ""
    return [f"### {stage.name}", paragraphs(doc), facts + summary, _parameters(stage.parameters)]


def _parameters(parameters: Sequence[Parameter]) -> str:
    if not parameters:
        return "None."
    rows = [
        [
            f"`{p.name}`" + ("\\*" if p.per_expert else ""),
            "required" if p.required else value(p.default),
            p.expected(),
            p.help,
        ]
        for p in parameters
    ]
    note = "\n\n\\* may differ for each expert." if any(p.per_expert for p in parameters) else ""
    return table(["parameter", "default", "values", "meaning"], rows) + note


def _base(method: Method) -> str:
    return {
        "required": "required; task vectors are taken from it",
        "optional": "optional; with one, task vectors are merged instead of weights",
        "ordinary": "none; a model given as `base` only lends its config and tokenizer",
    }[method.base]


def _count(method: Method) -> str:
    least, most = method.inputs
    return f"{least}" if least == most else f"{least} or more" if most is None else f"{least} to {most}"


def _ours(name: str | None) -> str:
    return f"`{name}`" if name else "nothing; accepted without effect"


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

"""The output's chat template: a built-in one, Jinja text or the inputs'; chosen, checked, put in files.

Owns the choice and where transformers looks for a template. Never renders or compiles one: templates are a
stranger's code, and Jinja works out constants (`10 ** 10 ** 10`) when it compiles.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from cuvee.bundle.json_files import dump_json, load_object
from cuvee.bundle.vocabulary.tokens import FileReader
from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic, RecipeError, Where

BUILT_IN = ("alpaca", "chatml", "llama3", "mistral", "exaone")
FILE = "chat_template.jinja"
_LIMIT = 1 << 20  # characters of a template


def choose(
    spec: str, templates: Mapping[str, str | None], *, where: Where | None = None
) -> tuple[str | None, list[Diagnostic]]:
    """The template's text for `auto`, a built-in name or Jinja text, and notes about the choice.

    `auto` takes the text most inputs have (blanks around it do not count), of several equally common ones the
    first in the order of `templates`: base, then the recipe's order. None when no input has one.

    Raises:
        RecipeError: CV-T020 an unknown name, CV-T021 text that is not a Jinja template.
    """
    if spec == "auto":
        return _most_common(templates)
    if spec in BUILT_IN:
        return built_in(spec), []
    if "{" not in spec:
        raise RecipeError(
            "CV-T020",
            f"there is no chat template `{printable(spec, 40)}`, expected `auto`, {_listed()} or Jinja text",
            where=where,
            hint=did_you_mean(spec, ("auto", *BUILT_IN)),
        )
    check_syntax(spec, where)
    return spec, []


def built_in(name: str) -> str:
    """The text of one of the built-in templates."""
    return (Path(__file__).parent / "templates" / f"{name}.j2").read_text(encoding="utf-8")


def check_syntax(text: str, where: Where | None = None) -> None:
    """Parse a template without running it; RecipeError CV-T021 with the line when it is not Jinja."""
    from jinja2 import TemplateError, TemplateSyntaxError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The `{% generation %}` block of transformers, which marks what the assistant says."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration is an instance of set

        def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    if len(text) > _LIMIT:
        raise _bad(f"is {len(text)} characters long, and at most {_LIMIT} are read", 1, text, where)
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    try:
        environment.parse(text)
    except TemplateSyntaxError as problem:
        raise _bad(f"is not a Jinja template: {problem.message}", problem.lineno, text, where) from None
    except (TemplateError, RecursionError) as problem:
        raise _bad(f"is not a Jinja template: {problem}", 1, text, where) from None


def template_of(files: FileReader) -> str | None:
    """A model's template, looked for as transformers does: its own file, then the tokenizer's settings."""
    data = files.read(FILE)
    if data is not None:
        return data.decode("utf-8", errors="replace")
    for name in ("tokenizer_config.json", "chat_template.json"):
        data = files.read(name)
        found = None if data is None else _default(load_object(data, name).get("chat_template"))
        if found is not None:
            return found
    return None


def placed(text: str, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files with the template in them: as chat_template.jinja, and wherever a file holds one already.

    Named variants of another template (for tools, say) are dropped, as readers would prefer them.
    """
    out = {name: data for name, data in files.items() if not name.startswith("additional_chat_templates/")}
    out[FILE] = text.encode("utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        if name in out:
            content = load_object(out[name], name)
            if "chat_template" in content:
                out[name] = dump_json({**content, "chat_template": text})
    return out


def _most_common(templates: Mapping[str, str | None]) -> tuple[str | None, list[Diagnostic]]:
    present = {model: text for model, text in templates.items() if text and text.strip()}
    if not present:
        return None, [_note("none of the models has a chat template, so the output has none")]
    counts = Counter(text.strip() for text in present.values())
    most = max(counts.values())
    model, text = next((m, t) for m, t in present.items() if counts[t.strip()] == most)
    if len(counts) == 1:
        return text, []
    share = f"{most} of {len(present)} models" if most > 1 else "each differs, and it comes first"
    return text, [_note(f"the chat template is the one of `{printable(model)}` ({share})")]


def _default(value: object) -> str | None:
    """The default among the templates of a configuration: a text, or a list or mapping of named ones."""
    if isinstance(value, list):
        named = [v for v in value if isinstance(v, dict)]
        value = {v.get("name"): v.get("template") for v in named if isinstance(v.get("name"), str)}
    if isinstance(value, dict):
        value = value.get("default")
    return value if isinstance(value, str) else None


def _note(message: str) -> Diagnostic:
    return Diagnostic("CV-T022", message, severity="note")


def _listed() -> str:
    return ", ".join(f"`{name}`" for name in BUILT_IN)


def _bad(problem: str, line: int, text: str, where: Where | None) -> RecipeError:
    lines = text.splitlines() or [""]
    shown = printable(lines[min(line, len(lines)) - 1].strip(), 60)
    message = f"`chat_template` {printable(problem, 160)} (line {line}: `{shown}`)"
    return RecipeError("CV-T021", message, where=where or Where(path="chat_template"))

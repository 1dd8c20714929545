"""Pages of the reference on methods and stages: one for each method, the two tables of all, the stages.

Owns their wording. Facts come from declarations (`cuvee.methods`), costs from `costs.py`, tests from `evidence.py`,
measurements from `measured.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import measured
from costs import arithmetic, cost_of, sentences, short
from evidence import MERGEKIT, MODEL, OFFICIAL, ORACLE, PEER, PROPERTY, Found, evidence
from operations import operations_of
from reference_markdown import fenced, link, page, paragraphs, plain, table, value

from cuvee.cli.catalogue import example
from cuvee.methods import registry
from cuvee.methods.contract import Method, Stage
from cuvee.methods.parameters import Parameter
from cuvee.recipe.layouts import LAYOUTS, Arrangement

TESTS = Path(__file__).resolve().parent.parent / "tests"


def methods_index() -> str:
    """The table of all methods."""
    every = [registry.get(name) for name in registry.names()]
    rows = [[f"[`{m.name}`]({m.name}.md)", m.base, _count(m), m.summary, m.status] for m in every]
    rows += [[f"[`{a.name}`]({a.name}.md)", "none", "layers", a.summary, "exact"] for a in LAYOUTS.values()]
    text = (
        "How a method is defined: `exact` follows the paper or its official code, `exact-math` is plain arithmetic, "
        "`reconstructed` could not be checked against its source. See [choosing a method]"
        "(../../guides/choosing-a-method.md), [what each is tested by](evidence.md) and [stages](../stages.md)."
    )
    head = ["method", "base", "models", "what it does", "status"]
    return page("Methods", text, table(head, sorted(rows)))


def method_page(method: Method) -> str:
    """One method: formula, parameters, variants, cost, paper, example."""
    parts = [method.summary[:1].upper() + method.summary[1:] + ".", paragraphs(method.doc)]
    parts += ["## Recipe", fenced("yaml", example(method))]
    parts += ["## Parameters", _parameters(tuple(registry.parameters_for(method).values()))]
    parts += ["## Facts", table(["", ""], list(_facts(method)))]
    cost = cost_of(method)
    counts = operations_of(method.name, whole=cost.access == "tensor")
    parts += ["## Cost", table(["", "with the defaults"], sentences(cost, counts)), _COUNTED]
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


_COUNTED = (
    "Operations are counted by running the method on small full models (`scripts/operations.py`): additions, products, "
    "comparisons, textbook counts of decompositions."
)


def _facts(method: Method) -> Iterator[list[str]]:
    yield ["base", _base(method)]
    yield ["models", _count(method)]
    links = " → ".join(f"[`{s.stage}`](../stages.md#{s.stage})" for s in method.steps)
    yield ["stages", links]
    absent = {
        "error": "an error",
        "skip": "it is merged from those that have it",
        "base": "the base's is used",
    }
    yield ["a tensor that some models lack", absent[method.missing]]
    yield ["status", method.status]
    if method.paper:
        yield ["paper", link(method.paper)]


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
    values |= {
        "alpha": "{curve: linear, points: [1, 0, 1]}",
        "base_alpha": 0.5,
        "probabilities": "[0.9, 0.1]",
    }
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


def evidence_page() -> str:
    """The table of all methods with what speaks for each, and what each costs."""
    known = {*registry.names(), *registry.stages(), *LAYOUTS}
    tests = evidence(TESTS, known)
    rows, costs = [], []
    for name in (*registry.names(), *LAYOUTS):
        method = None if name in LAYOUTS else registry.get(name)
        steps = [] if method is None else [step.stage for step in method.steps]
        cells = [
            _speaking(tests, name, steps, kind)
            for kind in (ORACLE, PROPERTY, OFFICIAL, PEER, MERGEKIT, MODEL)
        ]
        shown = f"[`{name}`]({name}.md)"
        paper = LAYOUTS[name].paper if method is None else method.paper
        status = "exact" if method is None else method.status
        rows.append([shown, status, link(paper) if paper else "", *cells])
        if method is not None:
            cost = cost_of(method)
            counted = arithmetic(operations_of(name, whole=cost.access == "tensor"))
            costs.append([_marked(name), " → ".join(f"`{s}`" for s in steps), *short(cost), counted])
    head = ["method", "status", "paper", "calculation", "properties", "official code", "PEFT", "MergeKit"]
    head.append("whole models")
    return page(
        "Evidence for each method",
        _EVIDENCE,
        table(head, sorted(rows)),
        "## Cost",
        "With the defaults: how often every model is read, what is held in memory, and how much is computed.",
        table(["method", "stages", "reads", "memory", "arithmetic"], sorted(costs)),
        "## Measured",
        _MEASURED.format(base=measured.scores()["base"][""]),
        table(list(measured.HEAD), _measured()),
    )


_MEASURED = """\
Taken from `benchmarks/results`. An empty cell means that there is no such measurement.

- *memory*: the most that the process held while it merged a sharded Llama in bfloat16 (with up to three experts of that
  size, or adapters where the method wants them), beyond what it holds for one of 1 MB. *Allowed* are the default budget
  and 64 MiB, and for methods that see tensors whole eight float32 copies of the largest.
  *Steps*: iterations, where they were made fewer than the method's own, which take long on such matrices; memory does
  not depend on their number. `python benchmarks/catalogue.py`.
- *read ÷ predicted*: bytes that the process read, by those that `cuvee plan` names.
- *untuned*, *tuned*: mean over five image tasks of the merged model's score, in per cent of each task's own expert
  (the base has {base}); with default values, and with the best of five candidates on selection images. Small models
  and few images: the figures tell whether a method does what it should, not which is best. Methods that restore one
  expert, take two models at most, or need a value that the demo lacks (a key, a metric, a radius) have none.
  `python benchmarks/every_method.py`."""


def _measured() -> list[list[str]]:
    held, rows = measured.memory(), measured.scores()
    return [measured.cells(name, _marked(name), held, rows) for name in registry.names()]


def _marked(name: str) -> str:
    """A link, and that the method is reconstructed where it is."""
    return f"[`{name}`]({name}.md)" + (
        ", reconstructed" if registry.get(name).status == "reconstructed" else ""
    )


_EVIDENCE = """\
This table is read from the tests' source (`scripts/evidence.py`): it names the file (without `test_`) with most
of the tests that name the method; dots stand for further files. Brackets mean that tests name the method's stages only.
An empty cell means that there is no such test.

- *calculation*: compared with a calculation written for the test, in float64, from the formula and not from the code.
- *properties*: worked examples and laws that hold whatever the numbers (one expert, equal experts, strength 0, …).
- *official code*: compared with stored answers of the authors' own code; the cell names its repository, the answers'
  headers its commit and function.
- *PEFT*: compared with `add_weighted_adapter` of PEFT, run beside ours.
- *MergeKit*: the same recipe, compared with the tensors that MergeKit 0.1.5 wrote for it.
- *whole models*: merged through the API or the command line, from files.

Beyond the table, every stage of every method passes the contract suite (`cuvee.testing.stage_contract`): any cut into
blocks gives the same bits, arguments stay as they are, dtypes are kept, gradients are those of the function."""


def _speaking(tests: dict[str, dict[str, list[Found]]], name: str, steps: Sequence[str], kind: str) -> str:
    """The files with tests of this kind: by the method's name, else by the names of all its stages but `scale`."""
    own = _files(tests[name].get(kind, []))
    if own:
        return own
    needed = [step for step in steps if step != "scale"]
    each = [_files(tests[step].get(kind, [])) for step in needed]
    return f"({', '.join(dict.fromkeys(each))})" if each and all(each) and kind in (ORACLE, PROPERTY) else ""


def _files(found: Sequence[Found]) -> str:
    """The file with most of the tests, and dots where there are others."""
    counts = Counter(one.file for one in found)
    if not counts:
        return ""
    first = min(counts, key=lambda file: (-counts[file], file))
    return f"`{first.removeprefix('test_')}`" + (" …" if len(counts) > 1 else "")


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
    ours = stage.name in registry.reconstructed_stages()
    facts = f"Takes: {stage.takes}. Access: {access}. Random: {'yes' if stage.random else 'no'}."
    summary = " It needs figures that are gathered before it runs." if stage.summarise else ""
    summary += " Reconstructed: see the page of its method." if ours else ""
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

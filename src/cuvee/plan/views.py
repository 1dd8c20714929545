"""Sources as a plan sees them: names, shapes and config, and the expression that gives each tensor.

A view is a checkpoint on disk, a live object, a nested recipe (whose tensors are expressions, not files) or a sum of
other views. Physical sources are opened once, however often they are named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.dtypes import BY_NAME, FLOAT32, FLOAT64, DType
from cuvee.core.limits import DEFAULT, Limits
from cuvee.core.names import did_you_mean, printable
from cuvee.core.tensors import TensorMeta
from cuvee.errors import CuveeError, Diagnostic, PlanError, Where
from cuvee.families import Family, identify
from cuvee.plan.nodes import Convert, Node, Read, Sum
from cuvee.recipe.model import Arithmetic, InMemory, Recipe, Reference, SourceSpec
from cuvee.sources.open import open_source
from cuvee.sources.reference import exists, parse_reference
from cuvee.sources.source import Source, kept_dtype

if TYPE_CHECKING:
    from cuvee.plan.plan import Plan


@dataclass(frozen=True, slots=True)
class View:
    """One checkpoint of a recipe, under its alias."""

    alias: str
    label: str
    tensors: Mapping[str, TensorMeta]
    family: Family
    config: Mapping[str, Any] | None
    node: Callable[[str], Node]
    kept: Callable[[str], DType]  # the type a tensor is written in when nothing else is asked for
    files: Callable[[], list[str]]
    file: Callable[[str], bytes | None]
    key: str | None  # of the physical source, if it is one
    notes: tuple[Diagnostic, ...] = ()
    plan: Plan | None = None  # of a nested recipe

    def read(self, name: str) -> bytes | None:
        """A side file, or None (the reader's half of `bundle.vocabulary.FileReader`)."""
        return self.file(name)

    def names(self) -> list[str]:
        """Names of the side files."""
        return self.files()

    def tied(self, name: str) -> str | None:
        """The tensor that stands for `name` when the config ties them and `name` is not stored.

        Old files hold the derived one alone, such as an encoder's embedding instead of the shared one.
        """
        for derived, owner in self.family.tied(self.config or {}):
            if derived == name and owner in self.tensors:
                return owner
            if owner == name and derived in self.tensors:
                return derived
        return None

    def always_tied(self, name: str) -> bool:
        """Whether this name is tied whatever a config says, so that writing it unties nothing."""
        return any(name in pair for pair in self.family.always_tied)


@dataclass(slots=True)
class Opener:
    """Opens sources for one plan; `anchor` is the folder that relative paths are relative to."""

    anchor: Path
    offline: bool = False
    limits: Limits = DEFAULT
    elsewhere: bool = False  # paths are relative to `anchor`, wherever the recipe's file is
    build: Callable[[Recipe, Opener, str], Plan] | None = None  # of a nested recipe, at its place in the tree
    opened: dict[str, Source] = field(default_factory=dict)
    paths: dict[str, tuple[Path, ...]] = field(default_factory=dict)  # where each opened source lies
    _by_text: dict[tuple[str, str], str] = field(default_factory=dict)

    def views(self, recipe: Recipe, found: list[Diagnostic], place: str = "") -> dict[str, View]:
        """A view for each source of the recipe, arithmetic ones last; problems are collected.

        `place` is where the recipe stands in the tree of recipes: the aliases on the way to it.
        """
        from cuvee.plan.forms import one_form

        out: dict[str, View] = {}
        late = {}
        for alias, spec in recipe.sources.items():
            if isinstance(spec, Arithmetic):
                late[alias] = spec
                continue
            try:
                anchor = self._anchor(recipe, spec)
                found += [] if self.elsewhere else _from_elsewhere(recipe, spec, anchor)
                out[alias] = self._view(alias, _without_revision(recipe, spec, anchor, found), anchor, place)
            except CuveeError as error:
                where = getattr(spec, "where", None)
                found.extend(_placed(error, where))
        out = one_form(recipe, out, self, found)
        for alias in late:
            _add_sum(alias, late, out, found, ())
        return {alias: out[alias] for alias in recipe.sources if alias in out}

    def source(self, alias: str, spec: Reference, recipe: Recipe) -> Source:
        """A further source that the recipe names outside its models, opened once like these."""
        return self._open(alias, spec, self._anchor(recipe, spec))[1]

    def _anchor(self, recipe: Recipe, spec: SourceSpec) -> Path:
        """The folder a source's path is relative to.

        Paths are relative to the recipe; where nothing of that name lies beside it, to the working folder.
        """
        if recipe.file is None or self.elsewhere:
            return self.anchor
        beside, here = Path(recipe.file).parent, Path()
        if not isinstance(spec, Reference) or _is_at(beside, spec.text):
            return beside
        return here if _is_at(here, spec.text) else beside

    def _view(self, alias: str, spec: SourceSpec, anchor: Path, place: str) -> View:
        if isinstance(spec, Recipe):
            assert self.build is not None
            return _recipe_view(alias, self.build(spec, self, f"{place}{alias.replace('/', '//')}/"))
        key, source = self._open(alias, spec, anchor)
        return source_view(alias, key, source, getattr(spec, "architecture", None))

    def _open(self, alias: str, spec: SourceSpec, anchor: Path) -> tuple[str, Source]:
        written: Any = spec.value if isinstance(spec, InMemory) else _written(spec)
        same = (repr(written), str(anchor)) if isinstance(spec, Reference) else (f"memory {id(written)}", "")
        if same in self._by_text:
            key = self._by_text[same]
            return key, self.opened[key]
        label = f"{alias} (in memory)" if isinstance(spec, InMemory) else None
        source = open_source(written, anchor=anchor, limits=self.limits, offline=self.offline, label=label)
        key = alias if alias not in self.opened else f"{alias} ({len(self.opened)})"
        self.opened[key] = source
        self.paths[key] = _paths(written, anchor) if isinstance(spec, Reference) else ()
        self._by_text[same] = key
        return key, source


def _paths(written: Any, anchor: Path) -> tuple[Path, ...]:
    """The local folders and files that a reference names: the checkpoint's own, and its adapters'."""
    reference = parse_reference(written, anchor)
    every = (reference, *reference.adapters)
    return tuple(anchor / one.name for one in every if one.kind == "path")


def _without_revision(recipe: Recipe, spec: SourceSpec, anchor: Path, found: list[Diagnostic]) -> SourceSpec:
    """A folder named with a revision, as MergeKit's recipes may: it has none, which is said."""
    if recipe.dialect != "mergekit" or not isinstance(spec, Reference) or "+" in spec.text:
        return spec
    text, revision = spec.text, spec.revision
    if revision is None and not exists(anchor, text):
        text, _, revision = text.partition("@")
    if not revision or not exists(anchor, text):
        return spec
    message = f"`{printable(text)}` is a folder here, so the revision `{printable(revision)}` has no effect"
    found.append(Diagnostic("CV-P112", message, spec.where, severity="warning"))
    return replace(spec, text=text, revision=None)


def _from_elsewhere(recipe: Recipe, spec: SourceSpec, anchor: Path) -> list[Diagnostic]:
    """A warning where a model is taken from the working folder, since none of that name lies beside the recipe.

    MergeKit's recipes are written for the working folder, so that nothing is said of theirs.
    """
    if recipe.file is None or recipe.dialect != "cuvee" or not isinstance(spec, Reference):
        return []
    if anchor.resolve() == Path(recipe.file).parent.resolve():
        return []
    message = (
        f"`{printable(spec.text)}` does not lie beside the recipe; the one of the working folder is taken"
    )
    hint = "paths are relative to the recipe's folder: write the path from there"
    return [Diagnostic("CV-P113", message, spec.where, hint, severity="warning")]


def _is_at(anchor: Path, text: str) -> bool:
    """Whether the base of `base + adapter` lies there, also where a revision is named with it."""
    first = text.split("+")[0].strip()
    if "#" in first and not exists(anchor, first):
        first = first.partition("#")[0]  # a task of a package
    return exists(anchor, first) or ("@" in first and exists(anchor, first.partition("@")[0]))


def _placed(error: CuveeError, where: Any) -> list[Diagnostic]:
    """The findings at the recipe's line that names the source; the file they are about is in their message."""
    if where is None or where.line is None:
        return list(error.diagnostics)
    fields = {k: getattr(where, k) for k in ("file", "line", "column", "width", "path", "text")}
    return [replace(d, where=replace(d.where or Where(), **fields)) for d in error.diagnostics]


def _written(spec: SourceSpec) -> str | dict[str, Any]:
    """What `open_source` takes: the text itself, or the long form where it says more."""
    assert isinstance(spec, Reference)
    if spec.revision is None and not spec.adapters:
        return spec.text
    long: dict[str, Any] = {"path": spec.text}
    if spec.revision is not None:
        long["revision"] = spec.revision
    if spec.adapters:
        long["adapters"] = [_written(a) for a in spec.adapters]
    return long


def source_view(alias: str, key: str, source: Source, architecture: str | None = None) -> View:
    """The view of a physical source, opened under `key`; as of another architecture where one is given."""
    shapes = {name: meta.shape for name, meta in source.tensors.items()}
    config = source.config
    if architecture is not None:
        config = {**(config or {}), "architectures": [architecture]}
    return View(
        alias=alias,
        label=source.label,
        tensors=source.tensors,
        family=identify(config, shapes),
        config=config,
        node=lambda name: Read(key, source.tensors[name]),
        kept=lambda name: kept_dtype(source, name),
        files=source.files,
        file=source.file,
        key=key,
        notes=source.notes,
    )


def _recipe_view(alias: str, plan: Plan) -> View:
    """A nested recipe: its tensors as they would be read back from disk, so that steps and trees give equal bytes."""
    outputs = {t.meta.name: t for t in plan.tensors}

    def node(name: str) -> Node:
        output = outputs[name]
        stored = output.node
        if isinstance(stored, Read) and stored.meta.dtype == output.meta.dtype:
            return stored
        return Convert(stored, output.meta.dtype)

    return View(
        alias=alias,
        label=alias,
        tensors={name: t.meta for name, t in outputs.items()},
        family=plan.family,
        config=plan.config,
        node=node,
        kept=lambda name: outputs[name].meta.dtype,
        files=lambda: sorted(plan.side_files),
        file=plan.side_files.get,
        key=None,
        notes=plan.notes,
        plan=plan,
    )


def _add_sum(
    alias: str,
    late: Mapping[str, Arithmetic],
    out: dict[str, View],
    found: list[Diagnostic],
    through: tuple[str, ...],
) -> None:
    """Put the view of a sum into `out`, and those of the sums it is made of before it, in whatever order they stand."""
    spec = late[alias]
    if alias in through:
        circle = " → ".join(f"`{printable(name)}`" for name in (*through[through.index(alias) :], alias))
        found.append(Diagnostic("CV-P111", f"arithmetic goes in a circle: {circle}", spec.where))
        return
    before = len(found)
    for _, name in spec.terms:
        if name in late and name not in out:
            _add_sum(name, late, out, found, (*through, alias))
    view = None if alias in out or len(found) > before else _sum_view(alias, spec, out, found)
    if view is not None:
        out[alias] = view


def _terms(
    spec: Arithmetic, views: Mapping[str, View], found: list[Diagnostic]
) -> list[tuple[float, View]] | None:
    """The views of a sum with their coefficients, or nothing where one is missing or does not fit the first."""
    for _, name in spec.terms:
        if name not in views:
            hint = did_you_mean(name, views)
            text = f"`{printable(name)}` is not a source of this recipe"
            found.append(Diagnostic("CV-P003", text, spec.where, hint))
            return None
    parts = [(coefficient, views[name]) for coefficient, name in spec.terms]
    first = parts[0][1]
    for _, view in parts[1:]:
        if differing := _difference(first.tensors, view.tensors):
            text = f"`{printable(first.alias)}` and `{printable(view.alias)}` cannot be added: {differing}"
            found.append(Diagnostic("CV-P004", text, spec.where))
            return None
    return parts


def _difference(one: Mapping[str, TensorMeta], other: Mapping[str, TensorMeta]) -> str | None:
    """What keeps two models from being added, by the first tensor concerned."""
    if alone := one.keys() ^ other.keys():
        return f"`{printable(min(alone))}` is not in both"
    shapes = [name for name, meta in one.items() if other[name].shape != meta.shape]
    return f"`{printable(min(shapes))}` has two shapes" if shapes else None


def _sum_view(
    alias: str, spec: Arithmetic, views: Mapping[str, View], found: list[Diagnostic]
) -> View | None:
    parts = _terms(spec, views, found)
    if parts is None:
        return None
    first = parts[0][1]

    def summed(name: str, meta: TensorMeta) -> TensorMeta:
        if not meta.dtype.is_float:
            return meta
        wide = any(view.tensors[name].dtype == FLOAT64 for _, view in parts)
        return replace(meta, dtype=FLOAT64 if wide else FLOAT32)

    tensors = {name: summed(name, meta) for name, meta in first.tensors.items()}

    def node(name: str) -> Node:
        compute = tensors[name].dtype
        if not compute.is_float:
            return first.node(name)
        return Sum(tuple((c, as_dtype(v.node(name), v.tensors[name].dtype, compute)) for c, v in parts))

    return View(
        alias=alias,
        label=" ".join(f"{c:+g} {v.label}" for c, v in parts),
        tensors=tensors,
        family=first.family,
        config=first.config,
        node=node,
        kept=lambda name: promoted([view.kept(name) for _, view in parts]),
        files=first.files,
        file=first.file,
        key=None,
    )


def as_dtype(node: Node, now: DType, wanted: DType) -> Node:
    """The node converted to `wanted`, unless it is of that type already."""
    return node if now == wanted else Convert(node, wanted)


def promoted(dtypes: list[DType]) -> DType:
    """The smallest float type of the table that holds all of these; as torch promotes them."""
    order = ("float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "float64")
    names = {d.name for d in dtypes}
    if len(names) == 1:
        return dtypes[0]
    if "float64" in names:
        return FLOAT64
    if names <= {"float8_e4m3fn", "float8_e5m2"}:
        return BY_NAME["bfloat16"]
    wide = [n for n in order[2:] if n in names]
    return BY_NAME[wide[0]] if len(wide) == 1 else FLOAT32


def same_family(
    recipe: Recipe, views: Mapping[str, View], allow_mixed: bool, found: list[Diagnostic]
) -> None:
    """Refuse to mix architectures unless that was asked for."""
    known = {v.family.name: v for v in views.values() if v.family.known}
    if len(known) > 1 and not allow_mixed:
        shown = ", ".join(f"`{printable(v.alias)}` is {name}" for name, v in known.items())
        second = list(known.values())[1].alias  # the first that differs from what stands before it
        found.append(
            Diagnostic(
                "CV-P005",
                f"the models are of different architectures: {shown}",
                getattr(recipe.sources.get(second), "where", None),
                hint="`--allow-crimes` merges them by tensor name all the same",
            )
        )


def raise_if(found: list[Diagnostic]) -> None:
    """Raise every error collected so far as one."""
    errors = [d for d in found if d.severity == "error"]
    if errors:
        raise PlanError.collected(errors)

"""Recipe files → recipes: tells the two front doors apart, joins documents of one file, refuses circles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cuvee.core.limits import DEFAULT, Limits
from cuvee.core.names import did_you_mean, edits, printable
from cuvee.core.near import nearest
from cuvee.errors import Diagnostic, RecipeError, Where
from cuvee.recipe.document import Document, parse_documents
from cuvee.recipe.model import Recipe

_MERGEKIT_KEYS = ("merge_method", "models", "slices", "modules", "base_model")
_NATIVE_KEYS = ("version", "merge", "experts", "base")


_FOLDER = "a recipe is a YAML file; `cuvee inspect` shows what a folder holds"


def load_recipe(path: Path, limits: Limits = DEFAULT, _open: tuple[Path, ...] = ()) -> Recipe:
    """The recipe in a file, nested recipe files included; RecipeError with every mistake, UsageError if unreadable."""
    try:
        real = path.resolve()
        with path.open("rb") as file:
            data = file.read(limits.yaml_bytes + 1)
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise RecipeError("CV-R001", "the file is not UTF-8 text", where=Where(file=str(path))) from None
    except OSError as error:
        raise RecipeError(
            "CV-R003",
            f"cannot read the recipe `{printable(str(path))}`: {(error.strerror or str(error)).lower()}",
            where=Where(file=str(path)),
            hint=_FOLDER if path.is_dir() else nearest(path),
        ) from None
    if real in _open:
        raise RecipeError(
            "CV-R015",
            f"recipes refer to each other in a circle: `{printable(str(path))}` is open already",
            where=Where(file=str(path)),
        )
    return parse_recipe(text, str(path), limits, (*_open, real))


def parse_recipe(
    text: str, file: str | None = None, limits: Limits = DEFAULT, _open: tuple[Path, ...] = ()
) -> Recipe:
    """The recipe in a text; relative paths in it are relative to the folder of `file`."""
    documents = parse_documents(text, file, limits)
    if not documents:
        raise RecipeError("CV-R003", "the recipe is empty", where=Where(file=file))
    if len(documents) > 1:
        return _joined(documents)
    (document,) = documents
    if is_mergekit(document):
        return _translate(document)
    from cuvee.recipe.native import read_native  # each front door builds its schema when it is used

    return read_native(document, lambda path: load_recipe(path, limits, _open))


def is_mergekit(document: Document) -> bool:
    """Whether a document is written in MergeKit's language."""
    data = document.data
    if not isinstance(data, dict):
        raise RecipeError("CV-R003", "a recipe must be a mapping of keys to values", where=document.where(()))
    if "merge_method" in data:
        return True
    if "version" in data or "merge" in data:
        return False
    return sum(k in data for k in _MERGEKIT_KEYS) > sum(k in data for k in _NATIVE_KEYS)


def _translate(document: Document, named: Mapping[str, Recipe] | None = None) -> Recipe:
    from cuvee.recipe.mergekit import translate

    return translate(document, named)


def _joined(documents: list[Document]) -> Recipe:
    """Documents of one file that name each other (mergekit-multi): the last one built contains the others."""
    named: dict[str, Document] = {}
    final: list[Document] = []
    found: list[Diagnostic] = []
    for document in documents:
        is_mergekit(document)
        name = document.data.get("name")
        where = document.where(("name",))
        if name is None:
            final.append(document)
        elif not isinstance(name, str):
            found.append(Diagnostic("CV-R010", "`name` must be a text", where))
        elif name in named:
            found.append(Diagnostic("CV-R016", f"two documents are named `{printable(name)}`", where))
        else:
            named[name] = document
    if len(final) > 1:
        found.append(_unnamed(final))
    if found:
        raise RecipeError.collected(found)
    joiner = _Joiner(named)
    if final:
        return joiner.translated(final[0])
    roots = [n for n, d in named.items() if not any(n in _mentions(o) for o in named.values() if o is not d)]
    if len(roots) != 1:
        shown = ", ".join(f"`{printable(r)}`" for r in roots) or "none"
        raise RecipeError(
            "CV-R016",
            f"one document must be the result (unnamed, or named by no other); found {shown}",
            where=documents[0].where(()),
        )
    return joiner.recipe(roots[0])


def _unnamed(documents: list[Document]) -> Diagnostic:
    """What is wrong with several documents without a name: perhaps one of them misspells the key."""
    message = "only one document may be without a `name`"
    for document in documents:
        for key in document.data:
            if edits(key, "name") == 1:
                where = document.where((key,), key=True)
                return Diagnostic("CV-R016", message, where, did_you_mean(key, ("name",)))
    return Diagnostic("CV-R016", message, documents[1].where(()))


class _Joiner:
    """Translates named documents once each, in the order they need each other."""

    def __init__(self, named: Mapping[str, Document]) -> None:
        self.named = named
        self.done: dict[str, Recipe] = {}
        self.open: list[str] = []

    def recipe(self, name: str) -> Recipe:
        if name in self.done:
            return self.done[name]
        if name in self.open:
            circle = " → ".join(printable(n) for n in [*self.open, name])
            where = self.named[name].where(("name",))
            raise RecipeError("CV-R015", f"documents refer to each other in a circle: {circle}", where=where)
        self.open.append(name)
        self.done[name] = self.translated(self.named[name])
        self.open.pop()
        return self.done[name]

    def translated(self, document: Document) -> Recipe:
        inner = {name: self.recipe(name) for name in self.named if name in _mentions(document)}
        return _translate(document, inner)


def _mentions(document: Document) -> set[str]:
    """Every text in a document that may name a model, less its own name."""
    out: set[str] = set()

    def walk(value: object, key: str | None) -> None:
        if isinstance(value, dict):
            for k, v in value.items():
                walk(v, str(k))
        elif isinstance(value, list):
            for v in value:
                walk(v, key)
        elif isinstance(value, str) and key in ("model", "base_model", "path", "source", "tokenizer_source"):
            out.add(value.split("+")[0])

    walk(document.data, None)
    return out

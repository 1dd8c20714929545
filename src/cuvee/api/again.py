"""Run the recipe of an output again and compare tensor digests with its manifest.

A model is made again in memory; an adapter or a package by its own writer, in a folder beside the output that is
removed at the end, since what it holds is decided only while it is written.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cuvee.api.execute import RECIPE_NAMES, save
from cuvee.bundle.json_files import load_object
from cuvee.bundle.manifest_form import parse
from cuvee.core.digests import TensorHasher
from cuvee.core.disk import make_folders, remove_tree
from cuvee.core.names import printable
from cuvee.engine.events import Listener, ignore
from cuvee.engine.options import RunOptions
from cuvee.engine.run import run
from cuvee.errors import Diagnostic, UsageError, Where
from cuvee.plan.build import PlanOptions, build
from cuvee.plan.plan import Plan
from cuvee.plan.views import Opener
from cuvee.recipe.load import load_recipe
from cuvee.recipe.override import adjusted
from cuvee.sinks.sink import MakeManifest, Session
from cuvee.sinks.target import MANIFEST

if TYPE_CHECKING:
    from typing_extensions import Buffer


def again(
    output: Path, anchor: Path, options: RunOptions, *, offline: bool = False, listener: Listener = ignore
) -> list[Diagnostic]:
    """What comes out differently when the recipe in `output` is run again; nothing is left behind."""
    found = [output / name for name in RECIPE_NAMES.values() if (output / name).exists()]
    if not found:
        raise UsageError("CV-U009", f"`{output}` holds no recipe", hint="outputs of `cuvee merge` do")
    manifest = parse((output / MANIFEST).read_bytes(), str(output / MANIFEST))
    if manifest.left_out:
        raise UsageError(
            "CV-U016",
            f"`{output}` was made within a budget: {manifest.left_out}",
            hint="merge its recipe again with the same `--read-budget` or `--max-deviation`, and use `cuvee diff`",
        )
    recipe = adjusted(load_recipe(found[0]), _changes(output))
    plan = build(recipe, Opener(anchor, offline, elsewhere=True), PlanOptions(allow_mixed=True))
    try:
        form = plan.recipe.output
        a_model = form.adapter is None and form.package is None
        made = (_in_memory if a_model else partial(_beside, output))(plan, options, listener)
    finally:
        plan.close()
    names = [*manifest.tensors, *(name for name in made if name not in manifest.tensors)]
    return [
        _difference(name, name in manifest.tensors, name in made)
        for name in names
        if name not in manifest.tensors or manifest.tensors[name].blake3 != made.get(name)
    ]


def _in_memory(plan: Plan, options: RunOptions, listener: Listener) -> Mapping[str, str]:
    session = Digests()
    run(plan, session, options, listener)
    return session.digests


def _beside(output: Path, plan: Plan, options: RunOptions, listener: Listener) -> Mapping[str, str]:
    """Digests of what is written anew beside `output`, whose disk is likely to have the room."""
    place = output.resolve()
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(4)}.cuvee-tmp")
    try:
        make_folders(temporary)
        made = save(plan, temporary / place.name, options, resume=False, listener=listener).path / MANIFEST
        return {name: one.blake3 for name, one in parse(made.read_bytes(), str(made)).tensors.items()}
    finally:
        remove_tree(temporary)


def _changes(output: Path) -> Mapping[str, Any]:
    """What the command line changed of the recipe when the output was made."""
    lock = output / "cuvee.lock"
    content = load_object(lock.read_bytes(), str(lock)) if lock.exists() else {}
    changes = content.get("changes", {})
    return changes if isinstance(changes, Mapping) else {}


def _difference(name: str, recorded: bool, made: bool) -> Diagnostic:
    what = "comes out with other values" if recorded and made else "is new" if made else "is no longer made"
    return Diagnostic("CV-V030", f"`{printable(name)}` {what}", Where(tensor=name))


@dataclass(slots=True)
class Digests:
    """A session that keeps nothing but digests."""

    digests: dict[str, str] = field(default_factory=dict)
    hashers: dict[str, TensorHasher] = field(default_factory=dict)

    @property
    def done(self) -> set[str]:
        return set()

    def write(self, name: str, offset: int, data: Buffer) -> None:
        self.hashers.setdefault(name, TensorHasher()).update(data)

    def finish(self, name: str) -> None:
        self.digests[name] = self.hashers.pop(name, TensorHasher()).hexdigest()

    def commit(self, side_files: Mapping[str, bytes], manifest: MakeManifest) -> None:
        """Nothing to make visible."""

    def abort(self) -> None:
        """Nothing to keep."""

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

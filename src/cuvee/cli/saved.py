"""Saved plans and locks: a plan file holds the recipe and the digest of what it planned, and `merge` holds to it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from cuvee.api.blend import Blend
from cuvee.api.lock import differences, lock_of
from cuvee.bundle.json_files import dump_json, load_object
from cuvee.core.disk import write_file
from cuvee.core.limits import DEFAULT
from cuvee.core.near import nearest
from cuvee.errors import PlanError, UsageError, VerifyError, Where
from cuvee.plan.build import PlanOptions
from cuvee.plan.plan import Plan
from cuvee.recipe.load import load_recipe, parse_recipe
from cuvee.recipe.override import adjusted

SCHEMA = "cuvee.plan/1"
_BEGINNING = re.compile(rb'\s*\{\s*"schema"\s*:\s*"cuvee\.plan/')


def blend_of(path: Path, offline: bool, options: PlanOptions) -> Blend:
    """The merge in a recipe file or saved plan; a saved plan is planned again and must come out the same."""
    if path.suffix == ".json" or _begins_as_plan(path):
        return _from_plan(path, offline)
    return Blend(load_recipe(path), path.parent, offline, options)


def _begins_as_plan(path: Path) -> bool:
    """Whether a file of any name begins as saved plans of any version do; what cannot be read does not."""
    try:
        if not path.is_file():  # a pipe can be read only once
            return False
        with path.open("rb") as file:
            return _BEGINNING.match(file.read(256)) is not None
    except OSError:
        return False


def save_plan(plan: Plan, blend: Blend, path: Path, changes: dict[str, Any]) -> None:
    """Write a plan that `merge` can execute."""
    if not plan.recipe.text:
        raise UsageError("CV-U013", "a plan built in Python cannot be saved; save its recipe")
    content = {
        "schema": SCHEMA,
        "digest": plan.digest,
        "recipe": {"file": plan.recipe.file, "text": plan.recipe.text},
        "changes": {k: v for k, v in changes.items() if v},
        "rules_off": list(blend.options.rules_off),
        "allow_mixed": blend.options.allow_mixed,
        "lock": lock_of(plan),
        "plan": plan.as_json(),
    }
    write_file(path, dump_json(content))


def _from_plan(path: Path, offline: bool) -> Blend:
    try:
        content = load_object(path.read_bytes(), str(path), replace(DEFAULT, json_bytes=1 << 30))
    except OSError as error:
        raise UsageError("CV-U002", f"cannot read `{path}`: {error.strerror}") from None
    if content.get("schema") != SCHEMA or not _whole(content):
        raise UsageError(
            "CV-U006", f"`{path}` is not a saved plan of this version", hint="make it with `cuvee plan -o`"
        )
    written = content["recipe"]
    recipe = adjusted(parse_recipe(written["text"], written["file"]), content["changes"])
    anchor = Path(written["file"]).parent if written["file"] else path.parent
    options = PlanOptions(tuple(content["rules_off"]), bool(content.get("allow_mixed")))
    blend = Blend(recipe, anchor, offline, options)
    plan = blend.build()
    plan.close()
    changed = differences(plan, content["lock"]) if plan.digest == content["digest"] else []
    if plan.digest != content["digest"] or changed:
        said = changed[0].message if changed else None
        raise PlanError(
            "CV-P050",
            said or "the sources or this version of cuvee changed since the plan was saved",
            where=Where(file=str(path)),
            hint="make the plan again with `cuvee plan -o`",
        )
    return blend


def _whole(content: dict[str, Any]) -> bool:
    """Whether a saved plan has what is needed of it, in the right types."""
    kinds = {"recipe": dict, "changes": dict, "rules_off": list, "digest": str, "lock": dict}
    written = content.get("recipe")
    return all(isinstance(content.get(key), kind) for key, kind in kinds.items()) and (
        isinstance(written, dict)
        and isinstance(written.get("text"), str)
        and isinstance(written.get("file"), (str, type(None)))
        and all(isinstance(name, str) for name in content["rules_off"])
    )


def check_lock(blend: Blend, path: Path) -> None:
    """VerifyError when a source is not as the lock says; UsageError CV-U100 where there is no lock."""
    if not path.exists():
        raise UsageError("CV-U100", f"there is no lock at `{path}`", hint=nearest(path))
    plan = blend.build()
    plan.close()
    found = differences(plan, load_object(path.read_bytes(), str(path)))
    if found:
        raise VerifyError.collected(found)

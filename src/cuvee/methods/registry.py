"""Finds methods and stages by name: those of this package, those of plug-ins, those a test registers.

The folder listing is the registry: every module below `presets/` holds methods, every module below `conditions/`,
`combine/`, `rescale/` and `spaces/` holds stages, and adding a file adds what is in it. Looking one up imports its
module alone, listing them imports all. Nothing here imports torch.
Plug-ins use the entry-point group `cuvee.methods`: an entry named like its method points at a `Method`, one
named `stage.NAME` at a `Stage`; their modules are imported when the name is first asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from cuvee.core import names as naming
from cuvee.errors import RecipeError
from cuvee.methods import plugins
from cuvee.methods.contract import Method, Stage, Step
from cuvee.methods.definitions import likely, modules
from cuvee.methods.parameters import Parameter

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "cuvee.methods"
_STAGE_PREFIX = "stage."
_PRESETS = ("presets",)
_STAGES = ("conditions", "combine", "rescale", "spaces")

T = TypeVar("T", Method, Stage)
_registered: dict[str, Method | Stage] = {}  # keyed like entry points


def names() -> tuple[str, ...]:
    """Names of all methods, sorted."""
    plugged = [key for key in (*_plugins(), *_registered) if not key.startswith(_STAGE_PREFIX)]
    return tuple(sorted({*_built_in(Method, _PRESETS), *plugged}))


def stages() -> tuple[str, ...]:
    """Names of all stages, sorted."""
    keys = [key for key in (*_plugins(), *_registered) if key.startswith(_STAGE_PREFIX)]
    return tuple(sorted({*_built_in(Stage, _STAGES), *(key.removeprefix(_STAGE_PREFIX) for key in keys)}))


def get(name: str) -> Method:
    """The method of this name, or a RecipeError that names the nearest one."""
    return _find(Method, name, _PRESETS, name, names)


def stage(name: str) -> Stage:
    """The stage of this name, or a RecipeError that names the nearest one."""
    return _find(Stage, name, _STAGES, _STAGE_PREFIX + name, stages)


def register(item: Method | Stage) -> Callable[[], None]:
    """Add a method or stage for this process; call what is returned to take it out again."""
    key = item.name if isinstance(item, Method) else _STAGE_PREFIX + item.name
    taken = names() if isinstance(item, Method) else stages()
    if item.name in taken:
        raise _collision(item.name, "is registered already")
    _registered[key] = item

    def remove() -> None:
        _registered.pop(key, None)

    return remove


def parameters_for(method: Method) -> Mapping[str, Parameter]:
    """The parameters users may give a method, by name: the union over its steps, less the fixed ones.

    Stages that share a name share its value; the first stage says what it is, and the defaults are the
    method's.
    """
    found: dict[str, Parameter] = {}
    for step in method.steps:
        for parameter in stage(step.stage).parameters:
            name = step.names.get(parameter.name, parameter.name)
            if parameter.name not in step.fixed and name not in found:
                found[name] = _with_default(parameter, name, step)
    return found


def arguments_for(method: Method, values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each step the Python arguments of its stage, from a method's values by parameter name.

    What the step fixes wins, then what is given, then the step's defaults, then the stage's; a required
    parameter without a value is left out. Values are handed through as they are, scalar or one for each
    expert.
    """
    return [_step_arguments(step, values) for step in method.steps]


def _step_arguments(step: Step, values: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for parameter in stage(step.stage).parameters:
        name = step.names.get(parameter.name, parameter.name)
        if parameter.name in step.fixed:
            out[parameter.argument] = step.fixed[parameter.name]
        elif name in values:
            out[parameter.argument] = values[name]
        elif parameter.name in step.defaults:
            out[parameter.argument] = step.defaults[parameter.name]
        elif not parameter.required:
            out[parameter.argument] = parameter.default
    return out


def _with_default(parameter: Parameter, name: str, step: Step) -> Parameter:
    if parameter.name not in step.defaults:
        return replace(parameter, name=name)
    return replace(parameter, name=name, required=False, default=step.defaults[parameter.name])


@functools.cache
def _built_in(kind: type[Method] | type[Stage], folders: tuple[str, ...]) -> Mapping[str, Any]:
    """All objects of a kind in the modules of these folders."""
    found: dict[str, Any] = {}
    for module in modules(folders):
        for item in vars(module).values():
            if isinstance(item, kind) and found.setdefault(item.name, item) is not item:
                raise _collision(item.name, f"is defined twice, the second time in `{module.__name__}`")
    return found


@functools.cache
def reconstructed_stages() -> frozenset[str]:
    """The stages with a paper of their own that reconstructed methods alone are made of."""
    used: dict[str, set[bool]] = {}
    for method in map(get, names()):
        for step in method.steps:
            used.setdefault(step.stage, set()).add(method.status == "reconstructed")
    return frozenset(name for name, known in used.items() if known == {True} and stage(name).paper)


@functools.cache
def _own(kind: Any, folders: tuple[str, ...], name: str) -> Any:
    """The built-in object of this name, from its module alone where that can be told."""
    for module in likely(folders, name):
        for item in vars(module).values():
            if isinstance(item, kind) and item.name == name:
                return item
    return _built_in(kind, folders).get(name)


@functools.cache
def _plugins() -> Mapping[str, EntryPoint]:
    """Entry points by name, none imported; two of one name, or one named like our own, are an error."""
    if not plugins.may_declare(GROUP):
        return {}
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=GROUP):
        ours: Mapping[str, Any] = (
            _built_in(Stage, _STAGES) if entry.name.startswith(_STAGE_PREFIX) else _built_in(Method, _PRESETS)
        )
        if entry.name in found or entry.name.removeprefix(_STAGE_PREFIX) in ours:
            raise _collision(entry.name, f"is defined twice, the second time by `{entry.value}`")
        found[entry.name] = entry
    return found


def _find(
    kind: type[T], name: str, folders: tuple[str, ...], key: str, known: Callable[[], tuple[str, ...]]
) -> T:
    wanted: Any = kind
    item: Any = _registered.get(key) or _own(wanted, folders, name)
    if item is None and key in _plugins():
        item = _load(key)
    if isinstance(item, kind) and item.name == name:
        return item
    word, code = ("method", "CV-R060") if kind is Method else ("stage", "CV-R061")
    if item is not None:
        raise RecipeError("CV-R063", f"plug-in `{naming.printable(key)}` is not a {word} of that name")
    spelt = any(other.replace("_", "") == name.replace("_", "") for other in known())
    hint = (None if spelt else _other_kind(kind, name)) or naming.did_you_mean(name, known())
    raise RecipeError(code, f"there is no {word} `{naming.printable(name)}`", hint=hint)


def _other_kind(kind: type, name: str) -> str | None:
    """What to write where a method (or the first part of its name) stands for a stage, or a stage for a method."""
    if kind is Method:
        return f"`{name}` is a stage; stages are given as a list, `[{name}, …]`" if name in stages() else None
    meant = [m for m in names() if m == name or m.startswith(f"{name}_")] if name else []
    if not meant:
        return None
    chain = " → ".join(f"`{step.stage}`" for step in get(meant[0]).steps)
    return f"the method `{meant[0]}` is the chain {chain}; put stages into the list"


@functools.cache
def _load(key: str) -> Any:
    entry = _plugins()[key]
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            "CV-R063",
            f"plug-in `{naming.printable(key)}` cannot be loaded from `{naming.printable(entry.value)}`: "
            f"{naming.printable(str(error))}",
        ) from error


def _collision(name: str, what: str) -> RecipeError:
    return RecipeError("CV-R062", f"`{naming.printable(name)}` {what}")

"""`layers` and `modules` of Cuvée's own recipes → modules, slices and inputs.

A recipe without them has one slice over all layers of every module. `modules` names the modules of an architecture
(text and vision, encoder and decoder); one that is left out is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic
from cuvee.methods.contract import Method
from cuvee.methods.parameters import Parameter
from cuvee.methods.registry import parameters_for
from cuvee.recipe.document import Document, Path, problem
from cuvee.recipe.model import Input, ModuleRecipe, Settings, Slice
from cuvee.recipe.native_settings import ValueReader
from cuvee.recipe.schema import Layers, Module, NativeRecipe

BASE = "base"
LAYERS = "layers"


@dataclass(slots=True)
class LayoutReader:
    """Reads the layout of one document; mistakes are collected.

    `per_expert` are the values that experts have for the whole recipe, `known` the parameters an expert may have.
    """

    document: Document
    schema: NativeRecipe
    found: list[Diagnostic]
    method: Method | None
    known: Mapping[str, Parameter]
    per_expert: Mapping[str, Settings]

    def modules(self) -> dict[str, ModuleRecipe]:
        """The modules of the recipe; `*` stands for all of the architecture."""
        schema = self.schema
        if schema.modules is None:
            parts = None if schema.layers is None else self._layers(schema.layers, (LAYERS,))
            return {"*": ModuleRecipe(tuple(parts or [self._whole(None, None, ("experts",))]))}
        if schema.layers is not None:
            message = "`layers` and `modules` exclude each other; give each module its own `layers`"
            self._say("CV-R110", (LAYERS,), message, key=True)
        return {name: self._module(module, ("modules", name)) for name, module in schema.modules.items()}

    def _module(self, module: Module, path: Path) -> ModuleRecipe:
        settings = self._settings(module.parameters, (*path, "parameters"))
        if module.layers is None:
            return ModuleRecipe((self._whole(module.from_, module.base, path),), settings)
        if module.from_ is not None:
            message = "`from` and `layers` exclude each other; each run of layers says its own `from`"
            self._say("CV-R110", (*path, "from"), message, key=True)
        return ModuleRecipe(tuple(self._layers(module.layers, (*path, LAYERS))), settings)

    def _whole(self, donors: Any, base: str | None, path: Path) -> Slice:
        """One slice over all layers, of some experts or of every one."""
        if donors is None:
            inputs = [self._input(n, None, {}, ("experts", n)) for n in self.schema.experts]
        else:
            inputs = self._donors(donors, None, (*path, "from"))
        return self._sliced(inputs, base, {}, ("merge",) if path == ("experts",) else path)

    def _layers(self, runs: list[Layers], path: Path) -> list[Slice]:
        out = []
        for i, run in enumerate(runs):
            here = (*path, i)
            span = (run.range[0], run.range[1]) if run.range else None
            inputs = self._donors(run.from_, span, (*here, "from"))
            settings = self._settings(run.parameters, (*here, "parameters"))
            out.append(self._sliced(inputs, run.base, settings, here))
        return out

    def _sliced(self, inputs: list[Input], base: str | None, settings: Settings, path: Path) -> Slice:
        """A slice; the base takes part where the method has a place for it, with the layers of the first input."""
        own = base or (BASE if self.schema.base is not None else None)
        ordinary = self.method is not None and self.method.base == "ordinary"
        where = self.document.where(path)
        if own is not None and not ordinary and all(i.source != own for i in inputs) and inputs:
            inputs.append(Input(own, inputs[0].layers, where=where))
        return Slice(tuple(inputs), base, settings, where)

    def _donors(self, written: Any, span: tuple[int, int] | None, path: Path) -> list[Input]:
        """Inputs of `from`: a name, names, or names with their layers and values."""
        if isinstance(written, dict):
            return [self._donor(name, entry, span, (*path, name)) for name, entry in written.items()]
        names = written if isinstance(written, list) else [written]
        return [self._input(name, span, {}, path) for name in names]

    def _donor(self, name: str, entry: Any, span: tuple[int, int] | None, path: Path) -> Input:
        if not isinstance(entry, dict):
            return self._input(name, self._range(entry, path), {}, path)
        layers = self._range(entry[LAYERS], (*path, LAYERS)) if LAYERS in entry else span
        values = {key: value for key, value in entry.items() if key != LAYERS}
        for key in values.keys() - self.known.keys():
            hint = did_you_mean(key, (LAYERS, *self.known))
            message = f"unknown key `{printable(key)}`"
            self._say("CV-R004", (*path, key), message, key=True, hint=hint)
        own = {key: value for key, value in values.items() if key in self.known}
        settings = ValueReader(self.document, self.found).settings(own, self.known, name, path)
        return self._input(name, layers, settings, path)

    def _range(self, value: Any, path: Path) -> tuple[int, int] | None:
        if isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value):
            return value[0], value[1]
        message = "layers must be two whole numbers `[first, end]`, the end not included"
        self._say("CV-R010", path, message)
        return None

    def _input(self, name: str, layers: tuple[int, int] | None, own: Settings, path: Path) -> Input:
        if name not in self.schema.experts and not (name == BASE and self.schema.base is not None):
            hint = did_you_mean(name, self.schema.experts)
            message = f"`{printable(str(name))}` is not an expert of this recipe"
            self._say("CV-R014", path, message, hint=hint)
        return Input(name, layers, {**self.per_expert.get(name, {}), **own}, self.document.where(path))

    def _settings(self, raw: Mapping[str, Any], path: Path) -> dict[str, Any]:
        known = parameters_for(self.method) if self.method else self.known
        return ValueReader(self.document, self.found).settings(raw, known, "merge", path)

    def _say(self, code: str, path: Path, message: str, **more: Any) -> None:
        self.found.append(problem(self.document, code, path, message, **more))

"""Which tensors the output has, and from where each takes its inputs: modules → slices → layers → tensors.

Knows names and layers, not methods and not values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cuvee.core.names import did_you_mean, printable
from cuvee.errors import Diagnostic
from cuvee.families import Place
from cuvee.plan.views import View
from cuvee.recipe.model import Input, ModuleRecipe, Recipe, Slice


@dataclass(frozen=True, slots=True)
class Feed:
    """One model's part in an output tensor: the name it has there."""

    input: Input
    view: View
    name: str


@dataclass(frozen=True, slots=True)
class Target:
    """One output tensor to be: its place in the output, its depth for curves (0…1), and what may feed it."""

    name: str
    place: Place
    depth: float
    feeds: tuple[Feed, ...]
    slice: Slice
    module: ModuleRecipe
    copied: bool = False  # of a module the recipe leaves out: taken as it is from the first feed


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The output's tensors in order, and for each module the source layer of each output layer (of its first input)."""

    targets: tuple[Target, ...]
    layers: Mapping[str, tuple[int, ...]]


class _Index:
    """The tensors of one view by module and layer, under the names that the donor of the output gives them."""

    def __init__(self, view: View, donor: View) -> None:
        self.outside: dict[tuple[str, str], dict[str, str]] = {}  # name → as stored in the view
        self.inside: dict[tuple[str, int], dict[str, str]] = {}  # template → as stored
        self.count: dict[str, int] = {}
        for name in view.tensors:
            place = donor.family.place(_respelled(name, view, donor))
            if place.layer is None:
                self.outside.setdefault((place.module, place.position), {})[place.name] = name
                continue
            self.inside.setdefault((place.module, place.layer), {})[place.template] = name
            self.count[place.module] = max(self.count.get(place.module, 0), place.layer + 1)


def arrange(recipe: Recipe, views: Mapping[str, View], donor: View, found: list[Diagnostic]) -> Arrangement:
    """The arrangement of a recipe; problems are collected. The output's tensors are named as the donor's."""
    return _Arranger(recipe, views, donor, found).run()


def _respelled(name: str, view: View, donor: View) -> str:
    """What the donor calls a tensor of the view: the same, but for a prefix (`transformer.h.0` for `h.0`)."""
    family = view.family
    if name in donor.tensors or family.name != donor.family.name:
        return name
    place = family.place(name)
    own, other = family.modules.get(place.module), donor.family.modules.get(place.module)
    if own is None or other is None:
        return name
    span = own.split(name)
    if span is not None:  # the donor may have no layers at all, where names of bare files alone tell them
        return next((head + name[span[0] :] for head in other.heads()), name)
    spellings = (prefix + short for short in own.stripped(name) for prefix in other.prefixes)
    return next((s for s in spellings if s in donor.tensors), name)


class _Arranger:
    def __init__(
        self, recipe: Recipe, views: Mapping[str, View], donor: View, found: list[Diagnostic]
    ) -> None:
        self.recipe, self.views, self.family, self.found = recipe, views, donor.family, found
        # MergeKit knows no layers in bare weight files: a curve over them is its first value, whatever the names.
        self.flat = recipe.dialect == "mergekit" and all(view.config is None for view in views.values())
        self.index = {alias: _Index(view, donor) for alias, view in views.items()}

    def run(self) -> Arrangement:
        targets: list[Target] = []
        layers: dict[str, tuple[int, ...]] = {}
        for name, module in self.modules().items():
            slices = [s for s in (self.ranged(name, part) for part in module.slices) if s is not None]
            if len(slices) == len(module.slices) and slices:
                layers[name] = tuple(_source_layers(slices))
                targets.extend(self.targets(name, module, slices))
        targets.extend(self.left_out())
        return Arrangement(tuple(targets), layers)

    def left_out(self) -> Iterator[Target]:
        """Tensors of modules that the recipe does not name: copied from the base, else from the first model."""
        if "*" in self.recipe.modules or not self.views:
            return
        donor = next((b for b in (self.recipe.base,) if b in self.views and b), next(iter(self.views)))
        view = self.views[donor]
        part = Slice((Input(donor),))
        left: set[str] = set()
        for name in view.tensors:
            place = self.family.place(name)
            if any(_of(place.module, written) for written in self.recipe.modules):
                continue
            left.add(place.module)
            feeds = (Feed(part.inputs[0], view, name),)
            yield Target(name, place, 0.0, feeds, part, ModuleRecipe((part,)), copied=True)
        if left:
            names = ", ".join(f"`{m}`" for m in sorted(left))
            message = f"the recipe leaves out {names}; their tensors are copied from `{printable(donor)}`"
            self.found.append(Diagnostic("CV-P025", message, severity="warning"))

    def modules(self) -> dict[str, ModuleRecipe]:
        """The recipe's modules by the family's names; `*` stands for all, in the family's order."""
        written = self.recipe.modules
        if "*" in written:
            module = written["*"]
            present = [m for m in self.family.modules if any(self._has(i, m) for i in self.index.values())]
            stacked = [m for m in present if any(m in i.count for i in self.index.values())]
            sliced = len(module.slices) > 1 or any(
                i.layers is not None for s in module.slices for i in s.inputs
            )
            if sliced and len(stacked) > 1:
                names = ", ".join(f"`{m}`" for m in stacked)
                where = module.slices[0].where
                message = f"this architecture has several layer stacks ({names}); say which one is sliced"
                hint = "write the slices under `modules: {name: {slices: [...]}}`"
                self.found.append(Diagnostic("CV-P020", message, where, hint))
                return {}
            if sliced:
                whole = _unsliced(module)
                return {m: module if m in stacked or len(present) == 1 else whole for m in present}
            return dict.fromkeys(present, module)
        for name in written:
            if name not in self.family.modules:
                meant = did_you_mean(name, self.family.modules)
                shown = ", ".join(f"`{m}`" for m in self.family.modules)
                message = (
                    f"the architecture `{self.family.name}` has no module `{printable(name)}`; it has {shown}"
                )
                place = next((s.where for s in written[name].slices), None)
                self.found.append(Diagnostic("CV-P022", message, place, meant))
        return {m: written[name] for name in written for m in self.family.modules if _of(m, name)}

    @staticmethod
    def _has(index: _Index, module: str) -> bool:
        return any(m == module for m, _ in (*index.outside, *index.inside))

    def ranged(self, module: str, part: Slice) -> Slice | None:
        """The slice with every layer range filled in and checked; None when it cannot be."""
        inputs, counts = [], self.counts(module, part)
        for one in part.inputs:
            if one.source not in self.views:
                return None  # could not be opened; said already
            count = counts[one.source]
            stated = self.recipe.layer_count
            if stated is not None and count not in (0, stated):
                message = f"`layers` says {stated}, but `{printable(one.source)}` has {count} layers"
                wrong = Diagnostic("CV-P110", message, one.where, f"write `layers: {count}`")
                self.found += [] if wrong in self.found else [wrong]  # every slice would say it
                return None
            layers = one.layers or (0, count)
            if one.layers and not 0 <= layers[0] <= layers[1]:
                message = (
                    f"`layer_range` [{layers[0]}, {layers[1]}] must be two layers, the first before the end"
                )
                self.found.append(Diagnostic("CV-P023", message, one.where))
                return None
            if layers[1] > count:
                message = (
                    f"`layer_range` [{layers[0]}, {layers[1]}] reaches beyond the {count} layers of "
                    f"`{printable(one.source)}`"
                )
                self.found.append(Diagnostic("CV-P023", message, one.where))
                return None
            inputs.append(Input(one.source, layers, one.settings, one.where))
        lengths = {i.layers[1] - i.layers[0] for i in inputs if i.layers}
        if len(lengths) > 1:
            shown = ", ".join(
                f"`{printable(i.source)}` {i.layers[1] - i.layers[0]}" for i in inputs if i.layers
            )
            message = f"the inputs of a slice must have the same number of layers, got {shown}"
            self.found.append(Diagnostic("CV-P024", message, part.where))
            return None
        return Slice(tuple(inputs), part.base, part.settings, part.where)

    def counts(self, module: str, part: Slice) -> Mapping[str, int]:
        """How many layers each model of a slice has. Bare weights say it by their names alone, so where all are bare
        and none is cut, one without the last layers lacks tensors rather than depth.
        """
        sources = [one.source for one in part.inputs if one.source in self.views]
        counts = {alias: self.index[alias].count.get(module, 0) for alias in sources}
        cut = self.recipe.layer_count is not None or any(one.layers for one in part.inputs)
        if cut or any(self.views[alias].config is not None for alias in sources):
            return counts
        return dict.fromkeys(counts, max(counts.values(), default=0))

    def targets(self, module: str, recipe: ModuleRecipe, slices: list[Slice]) -> Iterator[Target]:
        after = 0.0 if self.recipe.edges == "first" else 1.0
        yield from self.outside(module, recipe, slices[0], "before", 0.0)
        number, total = 0, sum(1 for _ in _source_layers(slices))
        for part in slices:
            first, end = part.inputs[0].layers or (0, 0)
            for offset in range(end - first):
                place = (number, total) if self.recipe.curves == "output" else (offset, end - first)
                depth = 0.0 if self.flat else self._depth(*place)
                yield from self.layer(module, recipe, part, offset, number, depth)
                number += 1
        yield from self.outside(module, recipe, slices[-1], "after", after)

    @staticmethod
    def _depth(layer: int, count: int) -> float:
        """How deep a layer lies among so many: 0 the first, 1 the last, and 1 where there is one alone."""
        return layer / (count - 1) if count > 1 else 1.0

    def outside(
        self, module: str, recipe: ModuleRecipe, part: Slice, position: str, depth: float
    ) -> Iterator[Target]:
        names: dict[str, None] = {}
        here = {i.source: self.index[i.source].outside.get((module, position), {}) for i in part.inputs}
        for one in self.ordered(part):
            names.update(dict.fromkeys(here[one.source]))
        for name in names:
            feeds = tuple(Feed(i, self.views[i.source], here[i.source].get(name, name)) for i in part.inputs)
            yield Target(name, self.family.place(name), depth, feeds, part, recipe)

    def layer(
        self, module: str, recipe: ModuleRecipe, part: Slice, offset: int, number: int, depth: float
    ) -> Iterator[Target]:
        here = {
            i.source: self.index[i.source].inside.get((module, (i.layers or (0, 0))[0] + offset), {})
            for i in part.inputs
        }
        templates: dict[str, None] = {}
        for one in self.ordered(part):
            templates.update(dict.fromkeys(here[one.source]))
        for template in templates:
            feeds = tuple(
                Feed(
                    i,
                    self.views[i.source],
                    here[i.source].get(template)
                    or template.replace("{layer}", str((i.layers or (0, 0))[0] + offset)),
                )
                for i in part.inputs
            )
            name = template.replace("{layer}", str(number))
            yield Target(name, self.family.place(name), depth, feeds, part, recipe)

    def ordered(self, part: Slice) -> list[Input]:
        """The slice's inputs, base first: its files decide the order of the output."""
        base = part.base or self.recipe.base
        return sorted(part.inputs, key=lambda i: i.source != base)


def _of(module: str, name: str) -> bool:
    """Whether a module is the one named, or a part of that component of a pipeline."""
    return module == name or module.startswith(f"{name}.")


def _unsliced(module: ModuleRecipe) -> ModuleRecipe:
    """The module's first slice without ranges: for parts of a model that have no layers to slice."""
    first = module.slices[0]
    inputs = tuple(Input(i.source, None, i.settings, i.where) for i in first.inputs)
    return ModuleRecipe((Slice(inputs, first.base, first.settings, first.where),), module.settings)


def _source_layers(slices: list[Slice]) -> Iterator[int]:
    for part in slices:
        yield from range(*(part.inputs[0].layers or (0, 0)))

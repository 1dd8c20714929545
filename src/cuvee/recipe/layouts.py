"""Methods that arrange models or their layers instead of computing: written in terms of slices of plain methods.

Each is translated into a plain recipe (`passthrough` or `linear` with slices), so nothing downstream knows of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cuvee.errors import Diagnostic, Where
from cuvee.recipe.block_weighted import block_weighted
from cuvee.recipe.document import Document
from cuvee.recipe.model import Input, ModuleRecipe, Recipe, Rule, Slice
from cuvee.recipe.random_selection import random_selection

Layout = Callable[[Recipe, list[Diagnostic]], Recipe]


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A named arrangement: its parameters with defaults (None: required) and help, and how it rewrites a recipe."""

    name: str
    summary: str
    doc: str
    paper: str
    parameters: Mapping[str, tuple[int | str | None, str]]
    rewrite: Callable[[Recipe, dict[str, Any], list[Diagnostic]], Recipe]
    free: tuple[str, ...] = ()  # parameters whose values the rewrite checks itself
    models: tuple[str, ...] = ("math", "code")  # of the example in the reference

    def bound(self, given: Mapping[str, Any], document: Document) -> Layout:
        """The rewrite with its parameters, or one that reports what is wrong with them."""
        values = {n: given.get(n, default) for n, (default, _) in self.parameters.items()}

        def apply(recipe: Recipe, found: list[Diagnostic]) -> Recipe:
            bad = False
            for name, value in values.items():
                where = document.where(("merge", name))
                words = isinstance(self.parameters[name][0], str) or name in self.free
                if value is None:
                    found.append(Diagnostic("CV-P030", f"`{self.name}` needs `{name}`", where))
                    bad = True
                elif not words and (type(value) is not int or value < 0):
                    message = f"`{name}` must be a whole number at least 0, got `{value}`"
                    found.append(Diagnostic("CV-R010", message, where))
                    bad = True
            if bad:
                return recipe
            before = len(found)
            rewritten = self.rewrite(recipe, values, found)
            place = document.where(("merge",))
            found[before:] = [replace(d, where=d.where or place) for d in found[before:]]
            where = document.where(("merge", "layers"))
            modules = {name: _placed(module, where) for name, module in rewritten.modules.items()}
            return replace(rewritten, modules=modules, layer_count=values.get("layers"))

        return apply


def _placed(module: ModuleRecipe, where: Where) -> ModuleRecipe:
    """The module with every slice and input at a place of the recipe, for what is found of them later."""
    slices = (
        replace(part, where=where, inputs=tuple(replace(one, where=where) for one in part.inputs))
        for part in module.slices
    )
    return replace(module, slices=tuple(slices))


def _dus(recipe: Recipe, values: dict[str, Any], found: list[Diagnostic]) -> Recipe:
    names = _experts(recipe)
    total, drop = values["layers"], values["drop"]
    if len(names) != 1 or drop >= total:
        what = "exactly one expert" if len(names) != 1 else "a `drop` of less than `layers`"
        found.append(Diagnostic("CV-P035", f"`dus` takes {what}"))
        return recipe
    slices = (Slice((Input(names[0], (0, total - drop)),)), Slice((Input(names[0], (drop, total)),)))
    return replace(recipe, method="passthrough", modules={"*": ModuleRecipe(slices)}, settings={})


def _layer_swap(recipe: Recipe, values: dict[str, Any], found: list[Diagnostic]) -> Recipe:
    names = _experts(recipe)
    total, bottom, top, transition = (values[k] for k in ("layers", "bottom", "top", "transition"))
    outer = values["outer"] or (names[-1] if names else "")
    if len(names) != 2 or outer not in names:
        found.append(
            Diagnostic("CV-P035", "`layer_swap` takes exactly two experts; `outer` names one of them")
        )
        return recipe
    low, high = (
        transition if bottom else 0,
        transition if top else 0,
    )  # no seam at an end without outer layers
    if bottom + top + low + high > total:
        message = f"`bottom` + `top` + `transition` beside each seam must be at most `layers` ({total})"
        found.append(Diagnostic("CV-R010", message))
        return recipe
    inner = next(n for n in names if n != outer)
    blended = {*range(bottom, bottom + low), *range(total - top - high, total - top)}

    def share(layer: int) -> float:
        """The outer model's weight in a layer."""
        if layer < bottom or layer >= total - top:
            return 1.0
        return 0.5 if layer in blended else 0.0

    ends = (0, total - 1)
    slices = tuple(_donor(outer, inner, share(layer), layer, end=layer in ends) for layer in range(total))
    # The outer model comes first: its config and tokenizer go with its embeddings.
    sources = {name: recipe.sources[name] for name in sorted(recipe.sources, key=lambda name: name != outer)}
    whole = {"*": ModuleRecipe(slices)}
    return replace(recipe, sources=sources, method="linear", base=None, modules=whole, settings={})


def _donor(outer: str, inner: str, share: float, layer: int, *, end: bool) -> Slice:
    """One layer: from one parent, bit for bit, or the mean of both.

    What stands outside the layers goes with the first and the last one (`end`), always from the outer model.
    """
    span = (layer, layer + 1)
    weights = {outer: share, inner: 1.0 - share}
    needed = [name for name in (outer, inner) if weights[name] or (end and name == outer)]
    if len(needed) == 1:
        return Slice((Input(needed[0], span, {"weight": (Rule(1.0),)}),))
    inputs = []
    for name in needed:
        inside = Rule(weights[name], layers=(0, 1 << 30))
        outside = Rule(1.0 if name == outer else 0.0)
        inputs.append(Input(name, span, {"weight": (inside, outside)}))
    return Slice(tuple(inputs))


def _experts(recipe: Recipe) -> list[str]:
    (part,) = recipe.modules["*"].slices
    return [one.source for one in part.inputs if one.source != recipe.base]


LAYOUTS: dict[str, Arrangement] = {
    "dus": Arrangement(
        "dus",
        "Depth up-scaling: the first n − m layers of a model, then its last n − m",
        "Stacks layers [0, n − m) and [m, n) of one model (SOLAR). It needs continued pre-training afterwards.",
        "arXiv:2312.15166",
        {"layers": (None, "n, the model's layers"), "drop": (None, "m, layers left out at each seam")},
        _dus,
    ),
    "layer_swap": Arrangement(
        "layer_swap",
        "Bottom and top layers from one expert, the middle from another",
        "Bottom and top layers, embeddings, final norm and head come from `outer` (a language expert), the middle from "
        "the other (a task expert); `transition` layers beside each seam are means of both.",
        "arXiv:2410.01335",
        {
            "layers": (None, "layers of the models"),
            "bottom": (None, "layers at the bottom taken from `outer`"),
            "top": (None, "layers at the top taken from `outer`"),
            "transition": (0, "layers beside each seam that are averaged"),
            "outer": ("", "the expert that gives the outer layers (default: the second)"),
        },
        _layer_swap,
    ),
    "block_weighted": Arrangement(
        "block_weighted",
        "Two diffusion models with a share for each block of the U-Net or transformer (MBW)",
        "y = (1 − α) A + α B, or with `mode: add_difference` y = A + α (B − C) where C is the base. `alpha` has one "
        "value for each block: 25 for Stable Diffusion 1 and 2 (IN00-IN11, M00, OUT00-OUT11), 19 for XL (IN00-IN08, "
        "M00, OUT00-OUT08), one for each block of a transformer; time and class embeddings go with the first, the "
        "last convolution with the last. Text encoders, autoencoder and all else take `base_alpha`. Every other method "
        "takes values by block too: `weight: {blocks: [...], base: 0.5}`.",
        "",
        {
            "alpha": (None, "share of B in each block: a list, a text of numbers, or a curve"),
            "base_alpha": (0, "share of B in everything that is in no block"),
            "mode": ("", "`weighted_sum` (default) or `add_difference`"),
        },
        block_weighted,
        free=("alpha", "base_alpha"),
        models=("photo", "anime"),
    ),
    "dp_random_selection": Arrangement(
        "dp_random_selection",
        "One of several differentially private models, drawn at random",
        "Expert i is released with probability pᵢ, by fresh randomness of the operating system; the others are not "
        "read. With models trained on the same data, each with its profile δᵢ(ε), the release has δ(ε) ≤ Σ pᵢ δᵢ(ε). "
        "`cuvee.privacy.selection_probabilities` finds the best probabilities within a budget. They must not be chosen "
        "by looking at the private data, and one release is one draw: what was drawn is reported, and `chosen` makes "
        "it again.",
        "arXiv:2604.20985",
        {
            "probabilities": (None, "one for each expert, or numbers by expert; they sum to 1"),
            "chosen": ("", "the expert that was drawn before; nothing is drawn then"),
        },
        random_selection,
        free=("probabilities",),
    ),
}

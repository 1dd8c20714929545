"""What tensor names mean: families of architectures as data, and a matcher. Never imports torch."""

from cuvee.families.blocks import Block
from cuvee.families.config import (
    Disagreement,
    disagreements,
    get_path,
    set_path,
    with_layers,
    with_vocabulary,
)
from cuvee.families.family import Family, Module, Place, Position
from cuvee.families.infer import infer
from cuvee.families.match import canonical_names, identify
from cuvee.families.read import family_names, load
from cuvee.families.roles import ROLES

__all__ = [
    "ROLES",
    "Block",
    "Disagreement",
    "Family",
    "Module",
    "Place",
    "Position",
    "canonical_names",
    "disagreements",
    "family_names",
    "get_path",
    "identify",
    "infer",
    "load",
    "set_path",
    "with_layers",
    "with_vocabulary",
]

"""How MergeKit 0.1.5 spells the parameters of its methods: data shared by the presets.

Owns names, scopes, defaults and which are required, as facts of that release. Must not know recipes or files.
"""

from __future__ import annotations

import math
import sys
from typing import Any

from cuvee.methods.contract import Dialect, Spelling

NAME = "mergekit"

WEIGHT = Spelling("weight", "float", "expert", required=True, ours="weight")
DENSITY = Spelling("density", "float", "expert", default=1.0, ours="density", clamp=(0.0, 1.0))
GAMMA = Spelling("gamma", "float", "expert", default=0.01, ours="gamma")
EPSILON = Spelling("epsilon", "float", "expert", default=0.15, ours="epsilon")
# What is at most this is as good as nothing; it stands for 0 where ours must be more.
LEAST = (sys.float_info.min, math.inf)
# Of the RAM methods.
ACTIVITY = Spelling("epsilon", "float", "shared", default=1e-5, ours="epsilon", clamp=LEAST)
LAMBDA = Spelling("lambda", "float", "shared", default=1.0, ours="lambda")
INT8_MASK = Spelling("int8_mask", "bool", "shared", default=False)  # only shrinks a temporary there


NORMALIZE = Spelling("normalize", "bool", "shared", default=False, ours="normalize")


def ignored(spelling: Spelling) -> Spelling:
    """The same parameter, accepted without effect."""
    return Spelling(spelling.name, spelling.type, spelling.scope, spelling.required, spelling.default)


def flag(name: str, ours: str, *, default: bool, true: Any, false: Any) -> Spelling:
    """A shared boolean that chooses between two values of one of our parameters."""
    values = {True: true, False: false}
    return Spelling(name, "bool", "shared", default=default, ours=ours, values=values)


def rescale(default: bool) -> Spelling:
    """`rescale`: restore the l1 norm a tensor had before it was thinned out."""
    return flag("rescale", "rescale", default=default, true="l1", false="none")


def normalize_by_agreement(default: bool) -> Spelling:
    """`normalize` of the methods that elect a sign: divide by the weights that agree, or leave the sum."""
    return flag("normalize", "merge", default=default, true="mean", false="sum")


def task_vectors(*parameters: Spelling, **fixed: Any) -> dict[str, Dialect]:
    """The dialect of its task-vector methods: a base, any number of experts, absent ones left out."""
    return {NAME: Dialect(parameters, fixed=fixed, base="required", inputs=(0, None), missing="skip")}


ELECTION = {"vote": "weighted", "zero_sign": "plus", "divisor": "weight"}  # how it elects and merges

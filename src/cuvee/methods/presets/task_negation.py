"""Forgetting by negation: take task vectors away from the base."""

from __future__ import annotations

from cuvee.methods.contract import Method, Step
from cuvee.methods.presets.task_arithmetic import BIBTEX

TASK_NEGATION = Method(
    name="task_negation",
    steps=(Step("weighted_sum"), Step("negate")),
    base="required",
    inputs=(1, None),
    summary="base less the weighted sum of the task vectors: forget what the experts learned",
    doc="""\
θ = θ₀ − λ Σ wᵢτᵢ, where τᵢ was fine-tuned on the behaviour to remove.

Choose λ as the paper does: the largest on a grid (0 … 1 in steps of 0.05) that keeps at least 95 % of the
base's score on a control task. λ = 0 is the base, λ = −1 adds instead; adding and then negating with one λ
gives the base back. Negating an expert that was trained on a mixture removes everything in it.

The same as `task_arithmetic` with the sign of λ turned; MergeKit has no such method (write a negative
weight there). Paper: arXiv:2212.04089.
""",
    paper="arXiv:2212.04089",
    bibtex=BIBTEX,
)

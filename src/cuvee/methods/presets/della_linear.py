"""DELLA with a weighted sum: drop at random, sparing large entries, and add."""

from __future__ import annotations

from cuvee.methods import mergekit
from cuvee.methods.contract import Method, Step
from cuvee.methods.presets.della import BIBTEX

DELLA_LINEAR = Method(
    name="della_linear",
    steps=(Step("magprune"), Step("weighted_sum"), Step("scale")),
    base="required",
    inputs=(1, None),
    summary="drop entries at random, small ones more often, add the task vectors",
    doc="""\
The sampling of `della`, then θ = θ₀ + λ Σ wᵢτ̃ᵢ without an election.

Choose it over `dare_linear` where large changes should rather survive. What is said of `della` about paper,
official code and MergeKit holds here; MergeKit does not normalise unless asked to. Paper: arXiv:2406.11617.
""",
    paper="arXiv:2406.11617",
    dialects=mergekit.task_vectors(
        mergekit.WEIGHT,
        mergekit.DENSITY,
        mergekit.EPSILON,
        mergekit.NORMALIZE,
        mergekit.rescale(default=True),
        mergekit.LAMBDA,
        mergekit.INT8_MASK,
        window_size=None,
    ),
    bibtex=BIBTEX,
)

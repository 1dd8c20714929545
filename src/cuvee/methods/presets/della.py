"""DELLA: drop at random, sparing large entries; elect signs, merge those that agree."""

from __future__ import annotations

from cuvee.methods import mergekit
from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

BIBTEX = arxiv(
    "deep2024della",
    title="DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling",
    authors="Deep, Pala Tej and Bhardwaj, Rishabh and Poria, Soujanya",
    year=2024,
    number="2406.11617",
)

DELLA = Method(
    name="della",
    steps=(Step("magprune"), Step("elect"), Step("scale")),
    base="required",
    inputs=(1, None),
    summary="drop entries at random, small ones more often, elect signs, average those that agree",
    doc="""\
Within each row, the entry of rank r by |τ| of n is kept with probability q = (d − ε) + 2ε(r − 1)/(n − 1)
and divided by it; then signs are elected and the entries that agree are merged as in `ties`; θ = θ₀ + λτ.

Choose it like `dare_ties`, where large changes should rather survive. 0 < d − ε and d + ε < 1 must hold; ε
= 0 is DARE.

The paper's window (and the official `window_size`) is the whole width 2ε. Paper and official code divide by
q (`rescale: inverse_q`); MergeKit restores each tensor's sum of |τ| (`rescale: l1`), has ε = 0.15, and
keeps everything unless told otherwise. Both codes fail on rows of one entry; here such an entry is kept
with probability d. Paper: arXiv:2406.11617.
""",
    paper="arXiv:2406.11617",
    dialects=mergekit.task_vectors(
        mergekit.WEIGHT,
        mergekit.DENSITY,
        mergekit.EPSILON,
        mergekit.normalize_by_agreement(default=True),
        mergekit.rescale(default=True),
        mergekit.LAMBDA,
        mergekit.INT8_MASK,
        window_size=None,
        **mergekit.ELECTION,
    ),
    bibtex=BIBTEX,
)

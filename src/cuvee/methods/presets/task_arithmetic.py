"""Task arithmetic: add task vectors to the base."""

from __future__ import annotations

from cuvee.methods import mergekit
from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

BIBTEX = arxiv(
    "ilharco2022editing",
    title="Editing Models with Task Arithmetic",
    authors="Ilharco, Gabriel and Ribeiro, Marco Tulio and Wortsman, Mitchell and Gururangan, Suchin and "
    "Schmidt, Ludwig and Hajishirzi, Hannaneh and Farhadi, Ali",
    year=2022,
    number="2212.04089",
)

TASK_ARITHMETIC = Method(
    name="task_arithmetic",
    steps=(Step("weighted_sum"), Step("scale")),
    base="required",
    inputs=(1, None),
    summary="base plus the weighted sum of the task vectors",
    doc="""\
θ = θ₀ + λ Σ wᵢτᵢ with τᵢ = θᵢ − θ₀; with `normalize` the sum is divided by Σ wᵢ (not where |Σ wᵢ| < 1e-8).

The place to start: one pass, no data, nothing random. λ or the weights decide; with K experts of weight 1,
λ = 1/K is the plain average, and the paper tunes λ on validation data (about 0.3 for eight CLIP tasks).
Where the experts interfere, `ties`, `dare_ties` or `breadcrumbs` do more.

Paper and official code have λ alone; per-expert weights are MergeKit's, which requires them and also knows
`density` and `rescale` here, without effect. Paper: arXiv:2212.04089.
""",
    paper="arXiv:2212.04089",
    dialects=mergekit.task_vectors(
        mergekit.WEIGHT,
        mergekit.ignored(mergekit.DENSITY),
        mergekit.NORMALIZE,
        mergekit.ignored(mergekit.rescale(default=False)),
        mergekit.LAMBDA,
        mergekit.INT8_MASK,
    ),
    bibtex=BIBTEX,
)

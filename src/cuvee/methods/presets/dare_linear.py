"""DARE with a weighted sum: drop entries of the task vectors at random, scale up the rest, add."""

from __future__ import annotations

from cuvee.methods import mergekit
from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

BIBTEX = arxiv(
    "yu2023language",
    title="Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
    authors="Yu, Le and Yu, Bowen and Yu, Haiyang and Huang, Fei and Li, Yongbin",
    year=2023,
    number="2311.03099",
)

DARE_LINEAR = Method(
    name="dare_linear",
    steps=(Step("drop"), Step("weighted_sum"), Step("scale")),
    base="required",
    inputs=(1, None),
    summary="drop entries at random, scale up the rest, add the task vectors",
    doc="""\
τ̃ᵢ = mᵢ ⊙ τᵢ / d with mᵢ ~ Bernoulli(d) for each entry; θ = θ₀ + λ Σ wᵢτ̃ᵢ.

Choose it for fine-tuned language models whose changes are small (below about 0.03): most of a task vector
can go without loss, and sparse ones collide less. d = 1 − p is the density; the paper tries p from 0.1 to
0.99, our default of 0.5 is a middle. Masks depend on seed, expert and tensor only.

Paper, MergeLM and PEFT divide by d (`rescale: inverse_p`). MergeKit restores each tensor's sum of |τ|
instead (`rescale: l1`), which is not unbiased, and keeps everything unless told otherwise. Paper:
arXiv:2311.03099.
""",
    paper="arXiv:2311.03099",
    dialects=mergekit.task_vectors(
        mergekit.WEIGHT,
        mergekit.DENSITY,
        mergekit.NORMALIZE,
        mergekit.rescale(default=True),
        mergekit.LAMBDA,
        mergekit.INT8_MASK,
    ),
    bibtex=BIBTEX,
)

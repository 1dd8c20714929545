"""Reinforced agent merging (RAM): average shared changes, keep unique ones whole."""

from __future__ import annotations

from cuvee.methods import mergekit
from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

REINFORCED = arxiv(
    "yuan2026ram",
    title="Behavior Knowledge Merge in Reinforced Agentic Models",
    authors="Yuan, Xiangchi and Shi, Dachuan and Zhang, Chunhui and Liu, Zheyuan and Yao, Shenglong and Vosoughi, "
    "Soroush and Lee, Wenke",
    year=2026,
    number="2601.13572",
)

RAM = Method(
    name="ram",
    steps=(Step("ram"), Step("scale")),
    base="required",
    inputs=(1, None),
    summary="average changes that several experts share, keep changes of one expert whole",
    doc="""\
With nᵢ = 1 where |τᵢ| > ε: τ = Σ τᵢnᵢ / max(Σ nᵢ, 1); θ = θ₀ + λτ.

Choose it for experts tuned by reinforcement learning, whose changes are sparse: what one expert alone
changed is not diluted by the others. ε must exceed the rounding noise of the checkpoints (bfloat16 deltas
are coarse).

MergeKit is the released implementation and agrees; λ is ours. `ramplus_tl` also scales the unique changes
up. Paper: arXiv:2601.13572.
""",
    paper="arXiv:2601.13572",
    bibtex=REINFORCED,
    dialects=mergekit.task_vectors(mergekit.ACTIVITY),
)

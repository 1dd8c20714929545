"""Reinforced agent merging (RAM): average shared changes, keep unique ones whole."""

from __future__ import annotations

from cuvee.methods import mergekit
from cuvee.methods.contract import Method, Step

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
    dialects=mergekit.task_vectors(mergekit.ACTIVITY),
)

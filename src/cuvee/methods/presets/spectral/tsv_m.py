"""TSV-M: task singular vectors merged."""

from __future__ import annotations

from cuvee.methods import papers
from cuvee.methods.contract import Method, Step

TSV_M = Method(
    name="tsv_m",
    steps=(
        Step("tsv_m"),
        Step("scale"),
    ),
    base="required",
    inputs=(1, None),
    summary="keep each task's leading singular vectors, made orthogonal to the other tasks', and sum",
    doc="""\
Per matrix: the leading int(n/K) triplets of each τᵢ side by side, Û and V̂ replaced by their orthogonal polar factors,
τ = U⊥ Ŝ V⊥ᵀ; θ = θ₀ + λτ. Other tensors: mean.

The first choice for 2 to 20 fully fine-tuned experts; λ = 1 needs no tuning. Not for copies or near-copies of one
expert, and for LoRA experts set `rank_tol` to the noise of their rounding. Cost: K + 2 decompositions of each matrix,
which the store keeps for sweeps; memory of eight float32 copies at most.

Code: leaves out names with `text_projection` (`exclude`), as here, and lets triplets with σ ≈ 0 take part, whose
vectors depend on the library; here they do not. Embeddings are matrices and are decomposed: `spectral: false` under a
filter averages them block by block. A list for `weight` scales the task vectors first, as FusionBench.
Paper: arXiv:2412.00081.
""",
    paper="arXiv:2412.00081",
    bibtex=papers.TASK_SINGULAR_VECTORS,
)

"""DRM: decompose, renormalise, merge."""

from __future__ import annotations

from cuvee.methods import papers
from cuvee.methods.contract import Method, Step

DRM_H = Method(
    name="drm_h",
    steps=(
        Step("drm_h"),
        Step("scale"),
    ),
    base="required",
    inputs=(1, None),
    summary="merge in the left basis all tasks share, with renormalised rows, pruned and elected",
    doc="""\
Per matrix: [τ₁ … τ_K] = USVᵀ without directions under 1 % of the strongest; each task's rows brought to length 1, the
smallest entries of all tasks dropped (`drop_rate`), signs elected, disjoint mean; θ = θ₀ + λ U M. Other tensors: signs
elected, disjoint mean.

Choose it where TIES is used on fully fine-tuned or LoRA experts of language models; `drop_rate` 0.8 is the README's.
Not for matrices with very many rows (embeddings are left out by `tensors: layers`). Cost: one eigendecomposition of
rows × rows and five evaluations of each expert.

The released command line does not run as shipped; its function `drm_merging` is the reference.
Fused query-key-value matrices: `parts: 3` under a filter. Paper: arXiv:2505.23117.
""",
    paper="arXiv:2505.23117",
    bibtex=papers.DRM,
)

DRM_V = Method(
    name="drm_v",
    steps=(
        Step("drm_v"),
        Step("scale"),
    ),
    base="required",
    inputs=(1, None),
    summary="merge in the right basis all tasks share, with renormalised columns, pruned and elected",
    doc="""\
DRM-H of the transposed matrices, transposed back: the matrices are stacked as rows. Everything said there holds, with
columns for rows. Paper: arXiv:2505.23117.
""",
    paper="arXiv:2505.23117",
    bibtex=papers.DRM,
)

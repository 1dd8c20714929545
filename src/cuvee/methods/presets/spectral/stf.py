"""STF: superposed task-specific features."""

from __future__ import annotations

from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

STF = Method(
    name="stf",
    steps=(
        Step("stf"),
        Step("scale"),
    ),
    base="required",
    inputs=(1, None),
    summary="find strengths for all tasks' leading directions so that each task's come out as alone",
    doc="""\
Per matrix: T = U diag(a) Vᵀ over all tasks' leading triplets with u_pᵀ T v_p = σ_p; θ = θ₀ + λT. Other tensors: mean.

RECONSTRUCTED from abstracts: the code could not be had. Rank rule, the exact constraint and the treatment of other
tensors are ours. Choose it to study; prefer TSV-M otherwise. Cost: K decompositions of each matrix and one system of
up to n equations. Paper: arXiv:2502.10698.
""",
    paper="arXiv:2502.10698",
    status="reconstructed",
    bibtex=arxiv(
        "qiu2025superpose",
        title="Superpose Task-specific Features for Model Merging",
        authors="Qiu, Haiquan and others",
        year=2025,
        number="2502.10698",
    ),
)

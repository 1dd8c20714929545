"""LoRE: low-rank estimation."""

from __future__ import annotations

from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

LORE = Method(
    name="lore",
    steps=(Step("lore"),),
    base="optional",
    inputs=(1, None),
    summary="estimate a base and low-rank changes from the models alone, and merge the changes",
    doc="""\
Per matrix: minimise Σ ‖θ₀ + δᵢ − θᵢ‖² + μ‖δᵢ‖_*; θ = θ₀ + λ · aggregate(δᵢ). Other tensors: average. Needs no base.

Choose it where the common base of the models is not at hand. With `aggregate: mean` and λ = 1 the result IS the average
of the models: set λ, or `aggregate: sum`. μ is on the scale of singular values; the paper gives no default, so 0.01
is ours. Cost: steps × K decompositions of each matrix. Paper: arXiv:2502.10749.
""",
    paper="arXiv:2502.10749",
    status="exact-math",
    bibtex=arxiv(
        "liu2025lore",
        title="LoRE-Merging: Exploring Low-Rank Estimation For Large Language Model Merging",
        authors="Liu, Zehua and others",
        year=2025,
        number="2502.10749",
    ),
)

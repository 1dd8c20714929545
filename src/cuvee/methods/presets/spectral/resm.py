"""RESM (R-TSVM): reweighted TSV-M."""

from __future__ import annotations

from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

RESM = Method(
    name="resm",
    steps=(
        Step("resm"),
        Step("scale"),
    ),
    base="required",
    inputs=(1, None),
    summary="TSV-M with task weights by outliers and ranks by sparsity",
    doc="""\
Per matrix: wᵢ by the mass of τᵢ beyond three deviations, rᵢ = (n/K)(1 − γ · share of zeros), then TSV-M of wᵢτᵢ;
θ = θ₀ + λτ. Other tensors: mean.

RECONSTRUCTED: TSV-M + reweighting and ranks as the paper describes them in words; the formulas are ours. Meant for
helpful, honest and harmless experts of one language model. Cost: as TSV-M. Paper: arXiv:2502.06876.
""",
    paper="arXiv:2502.06876",
    status="reconstructed",
    bibtex=arxiv(
        "yang2025mix",
        title="Mix Data or Merge Models? Balancing the Helpfulness, Honesty, and Harmlessness of "
        "Large Language Model via Model Merging",
        authors="Yang, Jinluan and others",
        year=2025,
        number="2502.06876",
    ),
)

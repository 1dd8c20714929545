"""STAR: spectral truncation and rescale."""

from __future__ import annotations

from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

STAR = Method(
    name="star",
    steps=(
        Step("star"),
        Step("scale"),
    ),
    base="required",
    inputs=(1, None),
    summary="cut each task matrix to its leading directions, restore its nuclear norm, average",
    doc="""\
Per matrix: τᵢ = UΣVᵀ, the leading triplets that hold η percent of Σσ, times Σσ over what they hold; θ = θ₀ + λ · mean.

Choose it where many experts are averaged and their small directions disturb each other; η = 40 needs no tuning in the
paper. Not for experts whose changes have flat spectra: the kept directions are then lifted strongly. Cost: one
decomposition for each expert and matrix; memory of about six of its float32 copies.

Paper and official code: of the matrices, only those of LoRA are cut there, the rest is averaged; here all are
(`spectral: false` under a filter restores that). The command line's help says that η is cut away; it is kept.
Paper: arXiv:2502.10339.
""",
    paper="arXiv:2502.10339",
    bibtex=arxiv(
        "lee2025star",
        title="STAR: Spectral Truncation and Rescale for Model Merging",
        authors="Lee, Yu-Ang and Ko, Ching-Yun and Pedapati, Tejaswini and Chung, I-Hsin and Yeh, "
        "Mi-Yen and Chen, Pin-Yu",
        year=2025,
        number="2502.10339",
    ),
)

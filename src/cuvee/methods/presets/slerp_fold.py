"""Spherical interpolation of many models, one after the other."""

from __future__ import annotations

from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

SLERP_FOLD = Method(
    name="slerp_fold",
    steps=(Step("slerp_fold"),),
    base="optional",
    inputs=(1, None),
    summary="spherical interpolation of many models or task vectors, one after the other",
    doc="""\
y ← slerp(y, vᵢ, tᵢ) with tᵢ = wᵢ / Σ wⱼ up to i, from the first model to the last.

For two models it is `slerp` with t = w₂ / (w₁ + w₂). From three on the order matters: with equal weights the last of
three orthogonal models comes out weaker. `karcher` does not depend on the order and takes weights too; take it unless
an order is meant, as in WARP (`warp`), whose fold this is. With a base the task vectors are interpolated.
""",
    paper="arXiv:2406.16768",
    status="exact-math",
)

ZSASLM_SLERP = Method(
    name="zsaslm_slerp",
    steps=(Step("slerp_fold", defaults={"axis": "last"}),),
    base="optional",
    inputs=(1, None),
    summary="Z-SASLM's blending of many inputs, on weights: slerp one after the other, row by row",
    doc="""\
y ← slerp(y, vᵢ, wᵢ / Σ wⱼ up to i) for each vector along the last axis.

The original blends latents of reference images; its interpolation of several vectors is what is taken over here. The
released code scales the first vector by its weight and steps by wᵢ, so that norms shrink (`steps: weight`); `share`
is the rule that does not. For more than two models without an order `karcher` is the better choice.
Paper: arXiv:2503.23234.
""",
    paper="arXiv:2503.23234",
    status="exact-math",
    bibtex=arxiv(
        "borgi2025zsaslm",
        title="Z-SASLM: Zero-Shot Style-Aligned SLI Blending Latent Manipulation",
        authors="Borgi, Alessio and Maiano, Luca and Amerini, Irene",
        year=2025,
        number="2503.23234",
    ),
)

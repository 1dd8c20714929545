"""SeMe: merging language models in one latent space."""

from __future__ import annotations

from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

SEME = Method(
    name="seme",
    steps=(Step("seme"),),
    base="required",
    inputs=(1, None),
    summary="align latent spaces by the output heads, then merge as SCE does, in the base's coordinates",
    doc="""\
T = W_A W_B⁺ from the output heads; W_A's layers in the pivot's coordinates; θ = pivot + SCE of the differences.

The base is the pivot. Choose it for models of one vocabulary and size whose latent spaces may be turned against each
other; for models of one ancestor T is near the identity, and `sce` gives the same for less. Norms stay those of each
model, which is exact only for rotations that leave the norms' scales alone.

RECONSTRUCTED: semantic bases from the pseudo-inverse of the head, the map between two spaces and the three steps
select, compute, erase are known. The thresholds of the steps, the order of layers and what happens to the inner
dimensions of attention and feed-forward were not found: here the steps are those of `sce`, every layer is merged, inner
dimensions stay. Models of different sizes, which the paper allows, are refused. Paper: arXiv:2505.20144.
""",
    paper="arXiv:2505.20144",
    status="reconstructed",
    bibtex=arxiv(
        "gu2025seme",
        title="SeMe: Training-Free Language Model Merging via Semantic Alignment",
        authors="Gu, Jian and Aleti, Aldeida and Chen, Chunyang and Zhang, Hongyu",
        year=2025,
        number="2505.20144",
    ),
)

"""TIES-Merging: trim, elect signs, merge those that agree."""

from __future__ import annotations

from cuvee.methods import mergekit
from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

TIES = Method(
    name="ties",
    steps=(Step("trim"), Step("elect"), Step("scale")),
    base="required",
    inputs=(1, None),
    summary="trim small changes, elect one sign for each weight, average those that agree",
    doc="""\
τ̂ᵢ = the largest entries of τᵢ, the rest 0; γ = sign(Σ wᵢτ̂ᵢ); τ = Σ wᵢτ̂ᵢ / Σ wᵢ over those with sign γ; θ
= θ₀ + λτ.

Choose it where several experts change the same weights in different directions. Density 0.2 and λ = 1 are
the paper's; λ up to 1.8 can help. It looks at each expert twice: once for its threshold, once to merge.

Paper: 20 % are kept over the WHOLE model, no weights, disjoint mean. Official code: the same, but it keeps
one more entry and all that tie with it (`count: official`), and gives tied votes the majority's sign
(`zero_sign: majority`); `merge: sum` and `max` are its dis-sum and dis-max. MergeKit: trims each TENSOR,
keeps everything unless told otherwise, multiplies by the weights before it votes, divides by the weights
that agree unless `normalize: false`. PEFT: `vote: unweighted`, `divisor: count`, and a trim per tensor.
Paper: arXiv:2306.01708.
""",
    paper="arXiv:2306.01708",
    dialects=mergekit.task_vectors(
        mergekit.WEIGHT,
        mergekit.DENSITY,
        mergekit.normalize_by_agreement(default=True),
        mergekit.rescale(default=False),
        mergekit.LAMBDA,
        mergekit.INT8_MASK,
        scope="tensor",
        count="exact",
        **mergekit.ELECTION,
    ),
    bibtex=arxiv(
        "yadav2023ties",
        title="TIES-Merging: Resolving Interference When Merging Models",
        authors="Yadav, Prateek and Tam, Derek and Choshen, Leshem and Raffel, Colin and Bansal, Mohit",
        year=2023,
        number="2306.01708",
    ),
)

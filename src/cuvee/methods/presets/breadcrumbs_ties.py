"""Model Breadcrumbs with TIES: drop outliers and small changes, elect signs, merge those that agree."""

from __future__ import annotations

from cuvee.methods import mergekit
from cuvee.methods.contract import Method, Step
from cuvee.methods.presets.breadcrumbs import BIBTEX

BREADCRUMBS_TIES = Method(
    name="breadcrumbs_ties",
    steps=(Step("band"), Step("elect"), Step("scale")),
    base="required",
    inputs=(1, None),
    summary="drop the largest and the smallest changes, elect signs, average those that agree",
    doc="""\
The masking of `breadcrumbs`, then the election and disjoint merging of `ties`; θ = θ₀ + λτ.

Choose it over `breadcrumbs` where experts disagree in sign. A combination of MergeKit's; neither paper has
it. MergeKit: density 1 unless given, and what agrees is added up (`merge: sum`) unless `normalize: true`.
Papers: arXiv:2312.06795, arXiv:2306.01708.
""",
    paper="arXiv:2312.06795",
    dialects=mergekit.task_vectors(
        mergekit.WEIGHT,
        mergekit.DENSITY,
        mergekit.GAMMA,
        mergekit.normalize_by_agreement(default=False),
        mergekit.rescale(default=False),
        mergekit.LAMBDA,
        mergekit.INT8_MASK,
        **mergekit.ELECTION,
    ),
    bibtex=BIBTEX,
)

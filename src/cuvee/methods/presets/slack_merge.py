"""Merging a language expert and a task expert with a slack variable."""

from __future__ import annotations

from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

SLACK_MERGE = Method(
    name="slack_merge",
    steps=(Step("slack"),),
    base="required",
    inputs=(2, 2),
    summary="add two task vectors; where signs differ the first wins unless it is much smaller",
    doc="""\
θ = θ₀ + w₁τ₁ + w₂τ₂ where signs agree; in a conflict the first expert's entry if |τ₁| ≥ (1 − slack) |τ₂|, else the
second's.

For a model trained on a language and one tuned on tasks in another, of one base. Without conflicts it is task
arithmetic. The first expert is favoured: put the one first whose important entries get lost; slack 0 lets the larger
win, 1 always the first.

RECONSTRUCTED, inspired by the paper: that it adds a slack variable to TIES so that important entries survive is known,
its formula is not. A digest of the paper says that entries of the INSTRUCTION model are lost as the language model is
trained longer, so that this one comes first. Paper: arXiv:2407.03994.
""",
    paper="arXiv:2407.03994",
    status="reconstructed",
    bibtex=arxiv(
        "tao2024slack",
        title="Unlocking the Potential of Model Merging for Low-Resource Languages",
        authors="Tao, Mingxu and Zhang, Chen and Huang, Quzhe and Ma, Tianyao and Huang, Songfang and Zhao, Dongyan "
        "and Feng, Yansong",
        year=2024,
        number="2407.03994",
    ),
)

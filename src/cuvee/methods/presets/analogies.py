"""Arithmetic between experts: analogies, and forgetting on a deployed model."""

from __future__ import annotations

from cuvee.methods.contract import Method, Step
from cuvee.methods.presets.task_arithmetic import BIBTEX

TASK_ANALOGY = Method(
    name="task_analogy",
    steps=(Step("analogy"),),
    base="optional",
    inputs=(3, None),
    summary="A is to B as C is to the result",
    doc="""\
θ = θ_C + λ (θ_B − θ_A), the models in the order A, B, C; several pairs before C are averaged.

For a task without data: C was trained on synthetic data of the target, A and B on synthetic and real data of another
domain (synthetic to real, arXiv:2406.02925). A = B gives C, and C = A gives B with λ = 1. With a base, weights of
models count from it (θ = θ₀ + w_C τ_C + λ (w_B τ_B − w_A τ_A)); with weights of 1 it cancels and is not needed. All
must share ancestor and tokenizer. Paper: arXiv:2212.04089.
""",
    paper="arXiv:2212.04089",
    status="exact-math",
    missing="error",
    bibtex=BIBTEX,
)

TASK_NEGATION_DEPLOYED = Method(
    name="task_negation_deployed",
    steps=(Step("forget"),),
    base="required",
    inputs=(2, None),
    summary="a model in use less the task vectors of what it shall forget",
    doc="""\
θ = θ_d − λ Σ wᵢ (θᵢ − θ₀): the first expert θ_d is kept, the others were fine-tuned from the base on what to forget.

The same as `task_negation`, but taken away from a model that learned other things since. λ is chosen like there: the
largest that keeps the score of a control task. Trimming or dropping what is taken away is a chain, such as
`[trim, forget]` with a density of 1 for the first. Paper: arXiv:2212.04089.
""",
    paper="arXiv:2212.04089",
    bibtex=BIBTEX,
)

"""Methods that average, copy or exchange weights one by one: soups, NearSwap, Arcee Fusion, passthrough.

Owns their names, defaults and MergeKit spellings, as data. The mathematics is in `combine/`.
"""

from __future__ import annotations

import math

from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Dialect, Method, Spelling, Step
from cuvee.methods.mergekit import NAME

_SOUPS = arxiv(
    "wortsman2022soups",
    title="Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing "
    "inference time",
    authors="Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Yitzhak and others",
    year=2022,
    number="2203.05482",
)

_SOLAR = arxiv(
    "kim2024solar",
    title="SOLAR 10.7B: Scaling Large Language Models with Simple yet Effective Depth Up-Scaling",
    authors="Kim, Dahyun and Park, Chanjun and Kim, Sanghoon and others",
    year=2023,
    number="2312.15166",
)

LINEAR = Method(
    name="linear",
    steps=(Step("linear"),),
    base="ordinary",
    inputs=(1, None),
    summary="weighted average of the models",
    doc="""y = Σ wᵢ θᵢ / Σ wᵢ, element by element.

Use it first: for models fine-tuned from one ancestor it is a strong baseline, needs no base and no data,
and reads every input once. `normalize: false` leaves out the division, so that any linear combination can
be written. The weights of a tensor must not sum to 0 where they are normalized. Batch-norm statistics have
to be estimated anew after averaging convolutional networks.""",
    paper="arXiv:2203.05482",
    missing="skip",
    bibtex=_SOUPS,
    dialects={
        NAME: Dialect(
            (
                Spelling("weight", "float", "input", required=True, ours="weight"),
                Spelling("normalize", "bool", "shared", default=True, ours="normalize"),
            ),
            base="ordinary",
            inputs=(1, None),
            missing="skip",
        )
    },
)

_EQUAL = (Step("linear", fixed={"weight": 1.0, "normalize": True}),)

AVERAGE = Method(
    name="average",
    steps=_EQUAL,
    base="ordinary",
    inputs=(1, None),
    summary="plain average of the models",
    doc="""y = mean of the θᵢ: `linear` with equal weights and nothing to set. Also called a uniform soup.""",
    paper="arXiv:2203.05482",
    status="exact-math",
    bibtex=_SOUPS,
)

UNIFORM_SOUP = Method(
    name="uniform_soup",
    steps=_EQUAL,
    base="ordinary",
    inputs=(1, None),
    summary="plain average of the models (the name it has in the soups paper)",
    doc="""y = mean of the θᵢ: the same as `average`.

The reference point of its paper: 79.97 % on ImageNet for fine-tuned CLIP ViT-B/32 models, against 80.38 %
for the best of them.""",
    paper="arXiv:2203.05482",
    status="exact-math",
    bibtex=_SOUPS,
)

NEARSWAP = Method(
    name="nearswap",
    steps=(Step("nearswap"),),
    base="required",
    inputs=(1, 1),
    summary="adopt another model's weights where they are near the base's, nudge the rest by t",
    doc="""y = θ₀ + clip(θ₁ − θ₀, −t, t), for t of at least 1e-6.

Use it to let a second model colour a first one without changing it anywhere by more than `t`. Published as
an interpolation with weight t / |θ₀ − θ₁|, which is the same. Not symmetric: the base is the model that is
kept.""",
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    missing="base",
    dialects={
        NAME: Dialect(
            (Spelling("t", "float", "shared", required=True, ours="t", clamp=(0.0, math.inf)),),
            base="required",
            inputs=(1, 1),
            missing="base",
        )
    },
)

ARCEE_FUSION = Method(
    name="arcee_fusion",
    steps=(Step("arcee_fusion"),),
    base="required",
    inputs=(1, 1),
    summary="take over the few weights of another model whose change matters most",
    doc="""y = θ₁ where s ≥ q₅₀ + 1.5 (q₇₅ − q₂₅), else θ₀, with importance s = |θ₁ − θ₀| · KL(softmax θ₁
‖ softmax θ₀).

Use it to graft the strongest changes of one model onto the base. The divergence is taken along the last
axis, the quartiles over each tensor. They are exact here; MergeKit draws a random million elements from
larger tensors, so its results differ from run to run. `precision: float64` keeps the divergence of similar
models from drowning in rounding errors; through MergeKit's door it is computed as MergeKit does.""",
    missing="skip",
    dialects={
        NAME: Dialect(
            (),
            fixed={"precision": "compute", "clamp": False},
            base="required",
            inputs=(1, 1),
            missing="skip",
        )
    },
)

PASSTHROUGH = Method(
    name="passthrough",
    steps=(Step("passthrough"),),
    base="ordinary",
    inputs=(1, 1),
    summary="copy one model's tensors, optionally scaled; with slices, stack layers",
    doc="""y = θ, bit for bit, or scale · θ.

With slices it builds deeper models from the layers of one or several (frankenmerges; depth up-scaling as in
SOLAR, which then needs continued pre-training). Embeddings come from the first slice's model, final norm
and head from the last slice's. `scale: 0` on the attention output and MLP down projections (and their
biases) of repeated blocks makes those blocks the identity.""",
    paper="arXiv:2312.15166",
    missing="error",
    bibtex=_SOLAR,
    dialects={
        NAME: Dialect(
            (Spelling("scale", "float", "input", default=None, ours="scale"),),
            base="ordinary",
            inputs=(1, 1),
            missing="error",
        )
    },
)

"""Methods that look at layers or roles: LiNeS, LwPTV, one-bit task vectors, donors by module."""

from __future__ import annotations

from cuvee.methods import papers
from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

LINES = Method(
    name="lines",
    steps=(Step("weighted_sum"), Step("lines")),
    base="required",
    inputs=(1, None),
    summary="task arithmetic whose scale grows with the depth of the layer",
    doc="""\
θ = θ₀ + (α + β ℓ/(L − 1)) Σ wᵢτᵢ in layer ℓ of L, α outside the layers.

Choose it where a merge forgets what the base could do: shallow layers, which tasks share, are changed least. For one
expert α in 0 … 1 trades the task for the rest, and the last layer stays whole. For several α is 1/K where nothing is
given (found from the task vectors) and β is tuned like λ. As a stage it follows anything: `[trim, elect, lines]`.

The code finds the layer by the first number in the name and divides by 0 for a single layer; here it is the tensor's
layer in the output, and a single layer gets α. Paper: arXiv:2410.17146.
""",
    paper="arXiv:2410.17146",
    bibtex=arxiv(
        "wang2024lines",
        title="LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
        authors="Wang, Ke and Dimitriadis, Nikolaos and Favero, Alessandro and Ortiz-Jimenez, Guillermo and Fleuret, "
        "Fran\\c{c}ois and Frossard, Pascal",
        year=2024,
        number="2410.17146",
    ),
)

LWPTV = Method(
    name="lwptv",
    steps=(Step("layer_top"), Step("weighted_sum"), Step("scale")),
    base="required",
    inputs=(1, None),
    summary="drop whole layers of each task vector, then add them",
    doc="""\
τ'ᵢ = τᵢ in the layers where expert i changed most (‖τ‖ / ‖θ₀‖ of the layer), 0 in the others; θ = θ₀ + λ Σ wᵢτ'ᵢ.

Choose it where the merge should keep the base's abilities outside the experts' domains: a layer that nobody keeps is
the base, bit for bit. The stage `layer_top` goes before any other merge: `[layer_top, trim, elect, scale]`.

RECONSTRUCTED: that a score for each layer decides which layers of a task vector fall back to the base is the paper's;
the score here is ours, since the paper's formula was not to be had. Do not report it as LwPTV. Paper: arXiv:2506.09093.
""",
    paper="arXiv:2506.09093",
    status="reconstructed",
    bibtex=arxiv(
        "zhang2025lwptv",
        title="Merging Smarter, Generalizing Better: Enhancing Model Merging on OOD Data",
        authors="Zhang, Bingjie and Li, Hongkang and Shi, Changlong and Rong, Guowei and Zhao, He and Wang, Dongsheng "
        "and Guo, Dandan and Wang, Meng",
        year=2025,
        number="2506.09093",
    ),
)

ONEBIT_TASK_VECTOR = Method(
    name="onebit_task_vector",
    steps=(Step("one_bit"), Step("weighted_sum"), Step("scale")),
    base="required",
    inputs=(1, None),
    summary="replace task vectors by one bit for each weight and one number for each tensor, then add them",
    doc="""\
τ̂ᵢ = mean|τᵢ| · sign(τᵢ) for each tensor; θ = θ₀ + λ Σ wᵢτ̂ᵢ.

To see what an expert is worth at one bit a weight, and to merge such experts. Rules by role leave modules as they are:
`compress: [{role: mlp, value: false}, {value: true}]` for an expert of mathematics or code, `attention` for chat.

RECONSTRUCTED: the quantiser is exact; which modules the paper leaves whole was not verified, and its router, which
picks an expert's vector for each input, is not part of a checkpoint. Paper: arXiv:2502.10743.
""",
    paper="arXiv:2502.10743",
    status="reconstructed",
    bibtex=papers.ONE_BIT,
)

MODULE_DONOR = Method(
    name="module_donor",
    steps=(Step("donor"),),
    base="ordinary",
    inputs=(1, None),
    summary="take every tensor from one model, chosen by role or layer",
    doc="""\
y = θᵢ, bit for bit, where i is the one model whose `take` is true for the tensor.

Give each model rules: the first `take: [{role: attention, value: true}, {value: false}]`, the second
`take: [{role: attention, value: false}, {value: true}]`. The plan refuses tensors that nobody or more than one gives. A
donor may itself be a merge (a nested recipe), so that each role has a method of its own. `layer_swap` is the case of
outer and inner layers.
""",
    status="exact-math",
    missing="error",
)

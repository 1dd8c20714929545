"""SCE of FuseChat: select by variance, weigh by energy, erase what disagrees."""

from __future__ import annotations

from cuvee.methods import mergekit
from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Spelling, Step

SCE = Method(
    name="sce",
    steps=(Step("sce"), Step("scale")),
    base="required",
    inputs=(1, None),
    summary="select the coordinates experts differ in most, weigh experts by energy, erase minority signs",
    doc="""\
Per tensor: keep the share τ (`select_topk`) of the varying coordinates with the greatest variance over the
experts; wᵢ = Σ δᵢ² / Σⱼ Σ δⱼ²; δ = Σ wᵢδᵢ / Σ wᵢ over the experts whose sign is that of Σ δᵢ; θ = θ₀ + λδ.

Choose it where experts should be weighed by how much they changed, tensor by tensor, with no weights to
tune. One expert alone has no variance, so with τ < 1 the base is returned.

FuseChat uses τ = 0.1. In its released code the selection acts on the weights alone (`mask_scope:
weights_only`); paper and MergeKit select throughout. MergeKit selects everything unless told otherwise, and
treats energies below 1e-6 as none and divisors below 1e-6 as 1e-6 (`guard: mergekit`), which shrinks small
deltas. Paper: arXiv:2408.07990.
""",
    paper="arXiv:2408.07990",
    dialects=mergekit.task_vectors(
        Spelling("select_topk", "float", "shared", default=1.0, ours="select_topk", clamp=(0.0, 1.0)),
        mergekit.INT8_MASK,
        mask_scope="all",
        guard="mergekit",
    ),
    bibtex=arxiv(
        "wan2024fusechat",
        title="FuseChat: Knowledge Fusion of Chat Models",
        authors="Wan, Fanqi and Zhong, Longguang and Yang, Ziyi and Chen, Ruijun and Quan, Xiaojun",
        year=2024,
        number="2408.07990",
    ),
)

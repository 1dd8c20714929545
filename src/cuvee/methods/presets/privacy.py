"""Methods that protect a model, or the data behind several: locks of attention heads, linear private release.

Owns their names, defaults and guarantees in words. The mathematics is in `combine/` and `privacy/`.
"""

from __future__ import annotations

from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

_LOCK = arxiv(
    "wang2025mergelock",
    title="Model Unmerging: Making Your Models Unmergeable for Secure Model Sharing",
    authors="Wang, Zihao and Yang, Enneng and Yin, Lu and Liu, Shiwei and Shen, Li",
    year=2025,
    number="2509.01548",
)

_SECRET = """\
The secret is read from the environment variable CUVEE_LOCK_KEY and goes nowhere: the recipe, the manifest and the card
hold its fingerprint (`key`). `cuvee.privacy.new_secret()` makes one, `cuvee.privacy.fingerprint(secret)` names it."""

MERGELOCK = Method(
    name="mergelock",
    steps=(Step("mergelock", fixed={"direction": "lock"}),),
    base="ordinary",
    inputs=(1, 1),
    summary="make a model unfit for merging without changing what it computes",
    doc=f"""\
Per group of attention heads, with secret invertible P and R: W_q ← P W_q, W_k ← P⁻ᵀ W_k, W_v ← R W_v, W_o ← W_o R⁻¹,
biases of q, k, v alike. (P q)ᵀ(P⁻ᵀ k) = qᵀk and W_o R⁻¹ R v = W_o v, so every output stays the same up to rounding.

Use it before publishing a model that others should run but not merge: averaged with a sibling it is broken.
`mergeunlock` with the same secret and `kappa` restores the weights up to rounding. Where heads rotate with positions, P
turns and scales pairs of dimensions; behind norms of queries and keys it is a signed permutation; R is always free.

{_SECRET}

Do not take it for encryption. Attention with a changed basis is still attention: whoever brings each head into a
canonical form (singular vectors of W_qᵀW_k and of W_o W_v) undoes the lock of P and R together, up to signs and the
order of equal singular values, and can merge after all. Feed-forward layers, embeddings and norms are not touched.
Rounding to bfloat16 after the lock costs about kappa times the usual error; keep float32 or a small kappa.

The paper's code cannot be had and its sampling law is not known; here P and R are U diag(s) Vᵀ with uniform orthogonal
factors and log-uniform s within `kappa`. Refused with a reason: models whose heads are not described (fused q/k/v
other than Phi-3's, MLA, norms over all heads). Paper: arXiv:2509.01548.""",
    paper="arXiv:2509.01548",
    status="exact-math",
    missing="error",
    bibtex=_LOCK,
)

MERGEUNLOCK = Method(
    name="mergeunlock",
    steps=(Step("mergelock", fixed={"direction": "unlock"}),),
    base="ordinary",
    inputs=(1, 1),
    summary="take the lock off a model again, with the secret it was locked with",
    doc=f"""\
The inverse of `mergelock`: W_q ← P⁻¹ W_q, W_k ← Pᵀ W_k, W_v ← R⁻¹ W_v, W_o ← W_o R.

Weights come back up to rounding of the stored type: lock and unlock in float32 where the last digits matter. `kappa`
must be the one of the lock. A model that was never locked, or with other numbers, still computes the same afterwards:
nothing can tell that it is not restored.

{_SECRET}

Paper: arXiv:2509.01548.""",
    paper="arXiv:2509.01548",
    status="exact-math",
    missing="error",
    bibtex=_LOCK,
)

DP_LINEAR = Method(
    name="dp_linear",
    steps=(Step("linear", fixed={"normalize": True}),),
    base="ordinary",
    inputs=(1, None),
    summary="weighted average of differentially private models with weights fixed in advance",
    doc="""\
θ = Σ wᵢ θᵢ / Σ wᵢ: `linear`, under the name that goes with a guarantee.

Use it for models trained with differential privacy on the same data. What is released costs no more than releasing
them all: for independent runs the Rényi curve Σ εᵢ(α) over the models with a weight (post-processing and composition),
which `cuvee.privacy.linear_rdp` gives. Weights must not have been chosen by looking at the private data, and every
further release composes. The tighter Gaussian formula (`cuvee.privacy.gaussian_linear`) holds for noisy means with a
known sensitivity and never for the weights of neural networks.

The alternative is to release one model at random: `cuvee.privacy.select`. The paper's own bounds for models by DP-SGD
are not repeated here; ours are derived from composition. Paper: arXiv:2604.20985.""",
    paper="arXiv:2604.20985",
    status="exact-math",
    bibtex=arxiv(
        "yin2026dpmerging",
        title="Differentially Private Model Merging",
        authors="Yin, Qichuan and Zaheer, Manzil and Li, Tian",
        year=2026,
        number="2604.20985",
    ),
)

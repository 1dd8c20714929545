"""Methods that keep every task: written as packages, from which each model comes back by a recipe."""

from __future__ import annotations

from cuvee.methods import papers
from cuvee.methods.citation import arxiv
from cuvee.methods.contract import Method, Step

_PACKAGE = """
Made for `output: {kind: package}`, which stores the shared part and what each task adds to it, and gives any task back
as a source `./package#task`. Without it `restore` names the expert to see what a package would give.
"""

TALL_MASKS = Method(
    name="tall_masks",
    steps=(Step("tall_masks"),),
    base="required",
    inputs=(1, None),
    summary="one expert restored from the summed task vector by the mask of what it needs (package)",
    doc=f"""\
T = Σ τᵢ; maskᵢ = |τᵢ| > strengthᵢ · |T − τᵢ|; θ̂ᵢ = θ₀ + maskᵢ ⊙ T.
{_PACKAGE}
Size: the base, one vector, and one bit for each weight and task. Exact for one expert and for experts that change
different weights; `emr` needs no strength. A larger strength keeps fewer entries; 0 keeps all that the task changed.

Paper: ≥; code: >, as here (they differ where both sides are 0, with the same result). The paper picks each task's
strength on validation data, never on test data. Masks need the task's name at use. Paper: arXiv:2405.07813.
""",
    paper="arXiv:2405.07813",
    bibtex=papers.TALL_MASKS,
)

TSV_C = Method(
    name="tsv_c",
    steps=(Step("tsv_c"),),
    base="required",
    inputs=(1, None),
    summary="one expert restored from the leading singular triplets of its task matrices (package)",
    doc=f"""\
θ̂ᵢ = θ₀ + U_r Σ_r V_rᵀ with r = int(min(m, n) / K) of each matrix τᵢ; tensors of other than two axes whole.
{_PACKAGE}
Size for each task: r (m + n) numbers a matrix. A matrix whose factors would take more room than itself is kept whole,
so one expert comes back exactly. The nearest matrix of that rank: the squared error is Σ σ² of what is left out.

Code: leaves out names with `text_projection`; here they are cut like others. Paper: arXiv:2412.00081.
""",
    paper="arXiv:2412.00081",
    bibtex=papers.TASK_SINGULAR_VECTORS,
)

REVERSIBLE_MERGING = Method(
    name="reversible_merging",
    steps=(Step("reversible_merging"),),
    base="required",
    inputs=(1, None),
    summary="one expert restored as a combination of a few basis tensors (package)",
    doc=f"""\
X = [τ₁ … τₙ] ≈ M C for each tensor, M = U_pΣ_p (the `basis`), C = V_pᵀ; θ̂ᵢ = θ₀ + M cᵢ.
{_PACKAGE}
Size: `basis` tensors for each tensor, and as many numbers for each expert. Experts that lie in a space of `basis`
dimensions come back as they were; the squared error over all is Σ σ² of what is left out. Where every expert is an
adapter of one rank, a package stores a basis of each factor, after bringing the products into balanced form.

RECONSTRUCTED: one matrix of coefficients for a tensor, as the paper's summary has it; whether it centres the experts,
and how it spreads the basis over layers, was not verified. Paper: arXiv:2510.14163.
""",
    paper="arXiv:2510.14163",
    status="reconstructed",
    bibtex=arxiv(
        "alipour2025reversible",
        title="Towards Reversible Model Merging For Low-rank Weights",
        authors="Alipour, Mohammadsajad and Amiri, Mohammad Mohammadi",
        year=2025,
        number="2510.14163",
    ),
)

ONEBIT = Method(
    name="onebit",
    steps=(Step("one_bit"), Step("restore_expert")),
    base="required",
    inputs=(1, None),
    summary="one expert restored from the signs of its change and one number a tensor (package)",
    doc=f"""\
θ̂ᵢ = θ₀ + mean|τᵢ| · sign(τᵢ) for each tensor that is compressed; the others whole.
{_PACKAGE}
Size for each task: one bit a weight. Rules by role leave modules as they are: `compress: [{{role: attention, value:
false}}, {{value: true}}]`, as the paper found good for chat; vectors (norms) are best left whole too.

RECONSTRUCTED: the quantiser is exact; which modules the paper leaves whole was not verified. Paper: arXiv:2502.10743.
""",
    paper="arXiv:2502.10743",
    status="reconstructed",
    bibtex=papers.ONE_BIT,
)

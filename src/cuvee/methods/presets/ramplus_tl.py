"""RAM+ with counts per tensor: unique changes are scaled up."""

from __future__ import annotations

from cuvee.methods import mergekit
from cuvee.methods.contract import Method, Spelling, Step
from cuvee.methods.presets.ram import REINFORCED

RAMPLUS_TL = Method(
    name="ramplus_tl",
    steps=(Step("ram_plus", defaults={"scope": "tensor"}), Step("scale")),
    base="required",
    inputs=(1, None),
    summary="as ram, with the changes of one expert scaled up by how much it shares",
    doc="""\
As `ram`, but what expert i alone changed is multiplied by λᵢ = 1 + r·clip(sharedᵢ / max(uniqueᵢ, ε), 0, α),
where sharedᵢ and uniqueᵢ count the entries it changed together with others and alone.

Choose it over `ram` where experts overlap much, so that averaging weakens them. The defaults ε = 1e-5, r =
0.1 and α = 0.2 are the released ones.

The paper counts over the whole model (`scope: model`); the released variant, in MergeKit, within each
tensor, which the `tl` in the name stands for. Paper: arXiv:2601.13572.
""",
    paper="arXiv:2601.13572",
    bibtex=REINFORCED,
    dialects=mergekit.task_vectors(
        mergekit.ACTIVITY,
        Spelling("r", "float", "shared", default=0.1, ours="r"),
        Spelling("alpha", "float", "shared", default=0.2, ours="alpha"),
        scope="tensor",
    ),
)

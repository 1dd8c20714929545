"""Ask a plan questions before anything is read: sizes, and what a parameter is in every layer.

python examples/tiny_models.py models && python examples/inspect_plan.py models
"""

from __future__ import annotations

import sys
from pathlib import Path

import cuvee


def main(models: Path) -> None:
    blend = cuvee.merge(
        {"math": models / "math", "code": models / "code"},
        base=models / "base",
        method="ties",
        density={"*.mlp.*": 0.2, "default": 0.5},
        lam=cuvee.curve([0.4, 0.8]),
    )
    plan = blend.plan()
    print(plan)

    merged = [tensor for tensor in plan.value.tensors if tensor.action == "merged"]
    print(f"\n{len(merged)} of {len(plan.tensors)} tensors are merged; lambda in some of them:")
    for tensor in merged:
        if tensor.role in ("q", "embeddings", "head"):
            print(f"  {tensor.meta.name:<40} {tensor.parameters['lambda'].value}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "models"))

"""Blend a LoRA adapter with a fully fine-tuned model, without writing the adapter's merged copy.

    python examples/tiny_models.py models && python examples/lora_blend.py models

`base + adapter` is a source like any other: its product is computed block by block while the merge reads.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cuvee


def main(models: Path) -> None:
    base, code = models / "base", models / "code"
    math = f"{base} + {models / 'math-lora'}"

    touched = [t for t in cuvee.diff(base, math).tensors if t.status == "changed"]
    print(f"the adapter changes {len(touched)} tensors, for instance {touched[0].name}")

    blend = cuvee.merge(
        {"math": math, "code": code},
        base=base,
        method="task_arithmetic",
        weight=[1.0, 0.5],
    )
    saved = blend.save(models / "lora-blend", overwrite=True)
    print(f"{saved.path.name}: {cuvee.verify(saved.path) or 'complete and unchanged'}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "models"))

"""What a plain merge leaves unimported: each module that it does not need would cost every command its time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import cuvee

_SPARED = (
    "torch",
    "numpy",
    "cuvee.engine.fused.asking",
    "cuvee.engine.fused.balance",
    "cuvee.formats.package_form",
    "cuvee.formats.packed",
    "cuvee.methods.combine.pcb",
    "cuvee.recipe.export",
)
_PROGRAM = f"""
import sys
from cuvee.cli import main
sys.argv = ["cuvee", "merge", "r.yaml", "--out", "out", "-q"]
try:
    main()
except SystemExit as end:
    print(end.code or 0, [name for name in {_SPARED!r} if name in sys.modules])
"""


@pytest.mark.parametrize("method", ["sce", "model_stock"])
def test_a_plain_merge_imports_no_more_than_it_needs(method: str, tmp_path: Path) -> None:
    from cuvee.engine.kernels import kernels

    if kernels() is None:
        pytest.skip("no compiled kernels here")
    for name in ("base", "one", "two"):
        save_file({"w": torch.randn(8, 8).bfloat16()}, tmp_path / f"{name}.safetensors")
    models = ", ".join(f"{{model: ./{name}.safetensors}}" for name in ("one", "two"))
    recipe = f"merge_method: {method}\nmodels: [{models}]\nbase_model: ./base.safetensors\n"
    (tmp_path / "r.yaml").write_text(recipe)
    source = str(Path(cuvee.__file__).parent.parent)
    result = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stdout.splitlines()[-1] == "0 []", result.stdout + result.stderr

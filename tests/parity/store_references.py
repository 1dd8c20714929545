"""Store MergeKit's answers to a few recipes beside them: `python store_references.py THEIRS`, after run_theirs.py.

Only recipes over inputs that NumPy alone makes (`checkpoints.write_stored`, `write_bare`), so that the ordinary tests
compare with MergeKit where it is not installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

from outputs import tensors_of
from safetensors.torch import save_file

NAMES = (
    "linear_filters", "linear_base_unlisted_global_weight", "linear_half_out_float32", "linear_half",
    "slerp_gradients_and_filters", "slerp_far_models", "slerp_base_second", "nuslerp_with_base", "nuslerp_columns",
    "multislerp_base", "karcher_three", "task_arithmetic_normalized", "task_arithmetic_dtype_bfloat16", "ties_plain",
    "ties_not_normalized_rescaled", "ties_filters_everywhere", "breadcrumbs_much", "breadcrumbs_ties_plain",
    "dare_ties_density_one", "della_density_edges", "sce_shares_of_rounding", "model_stock_three_rows",
    "nearswap_gradient", "arcee_fusion_big", "ram_sparse", "ramplus_sparse", "passthrough_stack_scaled",
    "slices_precedence", "slices_per_slice_base", "slices_filter_names_of_inputs", "heads_tied", "multi_two_steps",
    "truncated_embeddings_ties", "gradient_of_booleans", "pytorch_ties", "pytorch_union_not_normalized",
)  # fmt: skip


def main(theirs: Path, out: Path) -> None:
    out.mkdir(exist_ok=True)
    for name in NAMES:
        save_file(tensors_of(theirs / name), out / f"{name}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "references")

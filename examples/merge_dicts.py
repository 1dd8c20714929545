"""Merge plain dictionaries of tensors: what three methods do to one weight that two experts disagree about.

python examples/merge_dicts.py
"""

from __future__ import annotations

import torch

import cuvee

BASE = {"w": torch.zeros(4)}
RED = {"w": torch.tensor([1.0, 0.1, 2.0, 0.0])}
BLUE = {"w": torch.tensor([-0.6, 0.1, 1.0, 3.0])}


def main() -> None:
    print("red     ", RED["w"].tolist())
    print("blue    ", BLUE["w"].tolist())
    for method, values in (
        ("linear", {"weight": 1.0}),
        ("task_arithmetic", {"lam": 0.5}),
        (
            "ties",
            {"density": 0.75},
        ),  # the smallest of four changes goes, then the sign of the larger sum wins
    ):
        base = None if method == "linear" else BASE
        merged = cuvee.merge({"red": RED, "blue": BLUE}, base=base, method=method, **values).load()
        print(f"{method:<16}", [round(x, 3) for x in merged["w"].tolist()])


if __name__ == "__main__":
    main()

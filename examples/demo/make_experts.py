"""Rebuilds `checkpoints/` and `tasks/` from installable packages: one base, five experts, one fixed seed.

Run `python examples/demo/make_experts.py DOWNLOADS` where torch, transformers, numpy, Pillow, fonttools and Debian's
`apt-get` are; DOWNLOADS is a folder for the 1.3 GB of packages. Takes about ten minutes on one core.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from data import Images, load
from packages import fetch
from safetensors.torch import save_file
from score import Head, accuracies
from train import Tuning, class_means, finetune, new_model, pretrain
from transformers import ViTModel

HERE = Path(__file__).parent
SEED = 0
# How many images of each kind the base sees per step: printed glyphs only, nothing of the five tasks.
PRETRAINING = {"kanji": 40, "katakana": 12, "small letters": 12, "printed digits": 8}
VALIDATION, TEST = 150, 500  # images, both from the held-out part of a task


def stored(model: ViTModel, name: str) -> None:
    """Write `checkpoints/<name>` as float16, 1.1 MB, leaving the model in float32 on the values written."""
    model.half().save_pretrained(HERE / "checkpoints" / name)
    model.float()


def store_task(name: str, held_out: Images, head: Head) -> None:
    images, labels = torch.from_numpy(held_out.x.copy()), torch.from_numpy(held_out.y.copy())
    test = slice(VALIDATION, VALIDATION + TEST)
    seen = {image.numpy().tobytes() for image in images[test]}  # two typefaces may draw the same picture
    apart = [row for row in range(VALIDATION) if images[row].numpy().tobytes() not in seen]
    parts = {"validation": apart, "test": test}
    tensors = {"head.centre": head.centre, "head.classes": head.classes}
    for part, rows in parts.items():
        tensors[f"{part}.images"] = images[rows].contiguous()
        tensors[f"{part}.labels"] = labels[rows].to(torch.uint8)
    save_file(tensors, HERE / "tasks" / f"{name}.safetensors")


def trained_base(glyphs: dict[str, Images]) -> ViTModel:
    model = new_model()
    mixture = {name: (glyphs[name], count) for name, count in PRETRAINING.items()}
    pretrain(model, mixture, steps=3000, rate=1.5e-3, seed=SEED)
    stored(model, "base")
    return model


def joined(parts: list[Images]) -> Images:
    return Images(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]))


def main(downloads: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    (HERE / "tasks").mkdir(exist_ok=True)
    fetch(downloads)
    tasks, glyphs = load(downloads)
    began = time.monotonic()
    base = trained_base(glyphs)
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    heads = {name: class_means(base, training) for name, (training, _) in tasks.items()}
    for name, (_, held_out) in tasks.items():
        store_task(name, held_out, heads[name])
    print(f"base {time.monotonic() - began:.0f} s", accuracies(HERE / "checkpoints" / "base"), flush=True)
    tuning = Tuning(seed=SEED, steps=600, rate=4e-4, anchoring=8.0)
    for name, (training, _) in tasks.items():
        base.load_state_dict(weights)
        finetune(base, training, heads[name], joined(list(glyphs.values())), tuning)
        stored(base, name)
        print(f"{name} {time.monotonic() - began:.0f} s", accuracies(HERE / "checkpoints" / name), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

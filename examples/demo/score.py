"""Scores a checkpoint folder on the demo's five tasks, through transformers: `accuracies(folder)`.

Owns the tasks' files and how a feature becomes a class; knows nothing of merging or of training.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import ViTModel
from transformers.utils import logging

TASKS = Path(__file__).parent / "tasks"


class Head(NamedTuple):
    """Fixed for a task, never merged: `centre` (width,) and unit `classes` (classes, width)."""

    centre: Tensor
    classes: Tensor

    def logits(self, found: Tensor) -> Tensor:
        """Cosines between centred features (n, width) and the classes, times ten: (n, classes)."""
        return (
            10
            * functional.normalize(functional.normalize(found, dim=1) - self.centre, dim=1)
            @ self.classes.T
        )


def normalised(x: Tensor) -> Tensor:
    """uint8 (n, 28, 28) to what the network reads: float32 (n, 1, 28, 28) of about unit spread."""
    return ((x.float() / 255 - 0.25) / 0.35).unsqueeze(1)


def features(model: ViTModel, x: Tensor) -> Tensor:
    """The mean over all tokens of the last layer: (n, width)."""
    return model(pixel_values=x).last_hidden_state.mean(1)


def accuracies(folder: Path | str, part: str = "test") -> dict[str, float]:
    """Per cent of a part (`test` or `validation`) that the checkpoint in `folder` gets right, by task."""
    logging.disable_progress_bar()
    model = ViTModel.from_pretrained(
        folder, add_pooling_layer=False, dtype=torch.float32, local_files_only=True
    ).eval()
    return {path.stem: accuracy(model, load_file(path), part) for path in sorted(TASKS.glob("*.safetensors"))}


def accuracy(model: ViTModel, task: dict[str, Tensor], part: str) -> float:
    head = Head(task["head.centre"], task["head.classes"])
    with torch.no_grad():
        said = head.logits(features(model, normalised(task[f"{part}.images"]))).argmax(1)
    return 100 * (said == task[f"{part}.labels"]).double().mean().item()

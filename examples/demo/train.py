"""Trains the base and its experts: a small vision transformer of transformers' own class.

Owns the network, the augmentation and the two loops; knows nothing of where images come from. Only the encoder is
trained per task: its head is fixed (class means of the base's features), so that encoders can be merged.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from data import Images
from score import Head, features, normalised
from torch import Tensor
from torch.nn import functional
from transformers import ViTConfig, ViTModel

WIDTH, PATCHES = 128, 4
DARKEST, BRIGHTEST = normalised(torch.tensor([[[0]], [[255]]])).flatten().tolist()


class Tuning(NamedTuple):
    """How an expert is made: its seed, steps, highest learning rate, and the weight of the anchor."""

    seed: int
    steps: int
    rate: float
    anchoring: float


def new_model() -> ViTModel:
    """538,880 parameters. Weights start wider than the default, positions as sines: both learn faster when small."""
    config = ViTConfig(
        image_size=28,
        patch_size=28 // PATCHES,
        num_channels=1,
        hidden_size=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=2 * WIDTH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.08,
    )
    model = ViTModel(config, add_pooling_layer=False)
    cell = torch.arange(PATCHES**2)
    rate = 50.0 ** -(torch.arange(WIDTH // 4) * 4 / WIDTH)
    angles = [axis[:, None] * rate for axis in (cell // PATCHES, cell % PATCHES)]
    waves = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    model.embeddings.position_embeddings.data[0, 1:] = 0.7 * waves
    model.set_attn_implementation("eager")  # faster than the fused one for 17 tokens
    return model


def quick_features(model: ViTModel, x: Tensor) -> Tensor:
    """`features` with bfloat16 products, as both loops use it; heads and scores are computed in float32."""
    with torch.autocast("cpu", torch.bfloat16):
        return features(model, x).float()


def augmented(x: Tensor, random: torch.Generator) -> Tensor:
    """Each image turned by up to 12 degrees, scaled by up to 12 % and shifted by up to two pixels."""

    def uniform(limit: float) -> Tensor:
        return (2 * torch.rand(len(x), generator=random) - 1) * limit

    turn, scale = uniform(math.radians(12)), 1 + uniform(0.12)
    cosine, sine = scale * turn.cos(), scale * turn.sin()
    rows = [
        torch.stack(row, dim=1) for row in ((cosine, -sine, uniform(0.14)), (sine, cosine, uniform(0.14)))
    ]
    grid = functional.affine_grid(torch.stack(rows, dim=1), list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def sampled(images: Images, count: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    rows = torch.randint(len(images.y), (count,), generator=random)
    x = normalised(torch.from_numpy(images.x[rows.numpy()]))
    return augmented(x, random), torch.from_numpy(images.y[rows.numpy()])


def coarsened(x: Tensor) -> Tensor:
    """Two thirds of a batch changed: every third image blurred by way of 7x7 pixels, every third inverted."""
    small = functional.avg_pool2d(x[0::3], 4)
    blurred = functional.interpolate(small, size=x.shape[-2:], mode="bicubic", align_corners=False)
    return torch.cat([blurred, BRIGHTEST + DARKEST - x[1::3], x[2::3]])


def descend(parameters: Iterable[Tensor], loss: Callable[[], Tensor], steps: int, rate: float) -> None:
    """AdamW with 5 % warm-up and a cosine decay to zero."""
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.05, fused=True)
    warm = max(1, steps // 20)

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / warm) * 0.5 * (1 + math.cos(math.pi * step / steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, schedule)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
        optimiser.step()
        scheduler.step()


def pretrain(
    model: ViTModel, mixture: dict[str, tuple[Images, int]], steps: int, rate: float, seed: int
) -> None:
    """Classify a mixture; `mixture` maps a name to images and how many of them each step sees.

    One linear head per name is trained along and thrown away.
    """
    random = torch.Generator().manual_seed(seed)
    heads = {name: torch.nn.Linear(WIDTH, int(part.y.max()) + 1) for name, (part, _) in mixture.items()}
    learnt = [*model.parameters(), *(p for head in heads.values() for p in head.parameters())]

    def loss() -> Tensor:
        batches = [sampled(part, count, random) for part, count in mixture.values()]
        found = quick_features(model, torch.cat([x for x, _ in batches])).split([len(y) for _, y in batches])
        losses = [
            functional.cross_entropy(head(f), y, label_smoothing=0.1, reduction="sum")
            for head, f, (_, y) in zip(heads.values(), found, batches, strict=True)
        ]
        return sum(losses) / sum(count for _, count in mixture.values())

    descend(learnt, loss, steps, rate)


def class_means(model: ViTModel, images: Images) -> Head:
    """The fixed head of a task: centred class means of the model's features of at most 4,000 images."""
    rows = slice(0, 4000)
    labels = torch.from_numpy(images.y[rows])
    with torch.no_grad():
        parts = torch.from_numpy(images.x[rows]).split(500)
        found = functional.normalize(torch.cat([features(model, normalised(x)) for x in parts]), dim=1)
    centre = found.mean(0)
    means = [(found[labels == label] - centre).mean(0) for label in range(int(labels.max()) + 1)]
    return Head(centre, functional.normalize(torch.stack(means), dim=1))


def finetune(model: ViTModel, images: Images, head: Head, anchor: Images, plan: Tuning) -> None:
    """Move the encoder so that the fixed head is right about `images`, while features of `anchor` stay put.

    The anchor is of the pretraining, never of another task: it keeps what the base knew of shapes in general,
    and with it the experts close enough to be merged.
    """
    random = torch.Generator().manual_seed(plan.seed)
    base = copy.deepcopy(model).requires_grad_(False)

    def loss() -> Tensor:
        x, y = sampled(images, 48, random)
        kept = coarsened(sampled(anchor, 48, random)[0])
        found = quick_features(model, torch.cat([x, kept]))
        fit = functional.cross_entropy(head.logits(found[:48]), y, label_smoothing=0.1)
        drift = 1 - functional.cosine_similarity(found[48:], quick_features(base, kept)).mean()
        return fit + plan.anchoring * drift

    descend(list(model.parameters()), loss, plan.steps, plan.rate)

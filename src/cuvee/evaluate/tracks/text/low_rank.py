"""Track T with adapters: LoRA (Hu et al., 2022) on every linear layer of the encoder, trained with PEFT.

An expert's weights are the base's plus the product of its factors; the factors themselves are kept under PEFT's names.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.evaluate.task import Task
from cuvee.evaluate.tracks.heads import Head
from cuvee.evaluate.tracks.text.model import build
from cuvee.evaluate.tracks.text.train import train

if TYPE_CHECKING:
    from torch import Tensor

_LAYERS = ["query", "key", "value", "dense"]
_PREFIX = "base_model.model."
_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class LowRank:
    """Rank and scale (alpha) of the adapters, samples seen for each task, learning rate."""

    rank: int = 8
    alpha: int = 16
    samples: int = 4800
    rate: float = 5e-4
    decay: float = 0.0

    @classmethod
    def usual(cls, rank: int) -> LowRank:
        """The track's own training at a rank.

        Rate of rank 8 by the selection parts of movie, language and news20: 78.7, 78.4 and 78.3 with 1e-3, 78.0, 75.7
        and 78.3 with 5e-4.
        """
        return cls(rank, 2 * rank, rate=1e-3 if rank <= 8 else 5e-4)

    @property
    def config(self) -> dict[str, Any]:
        """PEFT's `adapter_config.json`."""
        return {
            "peft_type": "LORA",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "target_modules": _LAYERS,
            "bias": "none",
        }


def adapt(
    tasks: Sequence[Task], heads: Mapping[str, Head], seed: int, training: LowRank, model: Any = None
) -> dict[str, Tensor]:
    """The factors of one adapter trained on one task or several; `model`: an encoder other than the track's."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    torch.manual_seed(seed)
    known = {k: v for k, v in training.config.items() if k != "peft_type"}
    with warnings.catch_warnings():  # PEFT asks transformers for an attribute under its former name
        warnings.simplefilter("ignore", FutureWarning)
        adapted = get_peft_model(model if model is not None else build(), LoraConfig(**known)).train()
    train(adapted, tasks, heads, seed, training)
    return {name: tensor.detach().clone() for name, tensor in get_peft_model_state_dict(adapted).items()}


def applied(
    base: Mapping[str, Tensor], factors: Mapping[str, Tensor], training: LowRank
) -> dict[str, Tensor]:
    """base + alpha ÷ rank · B A for every adapted layer; the other tensors are the base's own."""
    out = dict(base)
    for name, first in factors.items():
        if name.endswith(_A):
            stem = name.removeprefix(_PREFIX).removesuffix(_A)
            second = factors[name.removesuffix(_A) + _B]
            out[f"{stem}.weight"] = base[f"{stem}.weight"] + training.alpha / training.rank * (second @ first)
    return out

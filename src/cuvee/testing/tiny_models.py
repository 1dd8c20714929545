"""Tiny random models of every known family, for tests: build one, perturb it, run it.

Models come from transformers' config classes with random weights, so nothing is downloaded. transformers,
torch and safetensors are imported when a function runs. For tests only: nothing else in the package may
import this.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch
from cuvee.testing.tiny_configs import TINY, TinyConfig
from cuvee.testing.tiny_inputs import inputs_for

if TYPE_CHECKING:
    from torch import Tensor

FAMILIES: tuple[str, ...] = tuple(TINY)
NOISE = 0.05  # added to fresh weights, so that no norm is all ones and no bias all zeros


def tiny(
    family_name: str,
    *,
    seed: int = 0,
    folder: Path,
    vocab: int = 96,
    layers: int = 2,
    dtype: str = "float32",
    tied: bool | None = None,
    shards: int | None = None,
    architecture: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Write a random model of 10 k to 300 k parameters as `save_pretrained` does; the same seed, the same
    bytes.

    Args:
        family_name: one of `FAMILIES`.
        folder: where to write; made if missing.
        vocab: rows of the embeddings (at least 16, the first ten ids have special uses).
        layers: layers of every stack (text, vision, encoder, decoder).
        dtype: torch name of the stored dtype.
        tied: whether the output head shares the embeddings; None keeps the family's default.
        shards: split the weights into about this many files with an index.
        architecture: another model class of the family, such as `LlamaForSequenceClassification`.
        config: further arguments of the config class, by dotted path.
    """
    import transformers

    row = TINY[family_name]
    with _quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = _settings(row, vocab=vocab, layers=layers, tied=tied, extra=config or {})
        built = getattr(transformers, row.config)(**settings)
        model = getattr(transformers, architecture or row.architecture)(built)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(NOISE * torch.randn_like(parameter))
        model.to(getattr(torch, dtype))
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        limit = {} if shards is None else {"max_shard_size": -(-size // shards)}
        model.save_pretrained(folder, **limit)
    return folder


def expert_of(folder: Path, out: Path, seed: int = 1, scale: float = 0.02) -> Path:
    """A copy of a model folder whose float tensors got Gaussian noise of standard deviation `scale`."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, out, dirs_exist_ok=True)
    draw = torch.Generator().manual_seed(seed)
    for path in sorted(out.glob("*.safetensors")):
        tensors = {}
        for name, tensor in sorted(load_file(path).items()):
            noise = scale * torch.randn(tensor.shape, generator=draw)
            tensors[name] = (
                (tensor.float() + noise).to(tensor.dtype) if tensor.is_floating_point() else tensor
            )
        save_file(tensors, path, metadata={"format": "pt"})
    return out


def load(folder: Path) -> Any:
    """The folder as a live model in evaluation mode, in the class its config names.

    Raises:
        ValueError: when a tensor is missing, unexpected or of another shape than the config says.
    """
    import transformers

    named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    with _quiet():
        model, report = getattr(transformers, named).from_pretrained(
            folder,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report lists them
        )
    found = {k: v for k, v in report.items() if v}
    if found:
        raise ValueError(f"loading {folder} as {named} reports {found}")
    return model.eval()


def logits(folder: Path) -> Tensor:
    """What the model computes, in float32, for a fixed input of its modality: logits, else the last hidden
    state.

    Raises:
        ValueError: as `load`.
    """
    with _quiet(), torch.no_grad():
        model = load(folder).float()
        result = model(**inputs_for(model))
    for key in ("logits", "logits_per_image", "last_hidden_state"):
        if getattr(result, key, None) is not None:
            found: Tensor = getattr(result, key)
            return found
    raise ValueError(f"{type(model).__name__} returned neither logits nor a hidden state")


def _settings(
    row: TinyConfig, *, vocab: int, layers: int, tied: bool | None, extra: Mapping[str, Any]
) -> dict[str, Any]:
    settings = copy.deepcopy(dict(row.values))
    changes = dict.fromkeys(row.vocabulary_at, vocab) | dict.fromkeys(row.layers_at, layers)
    if tied is not None:
        changes["tie_word_embeddings"] = tied
        if "text_config" in settings:
            changes["text_config.tie_word_embeddings"] = tied
    for path, value in {**changes, **extra}.items():
        *outer, last = path.split(".")
        place = settings
        for part in outer:
            place = place[part]
        place[last] = value
    return settings


@contextmanager
def _quiet() -> Iterator[None]:
    """One thread, no progress bars, no advice from transformers; all put back afterwards."""
    from transformers.utils import logging

    threads, level, bars = torch.get_num_threads(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

"""Fixed inputs for tiny models: token ids, pixels or sound, as the model's config asks for.

Knows config attributes of transformers' models, not how the models were built; resized models get fitting
inputs too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 9
FIRST_PLAIN_TOKEN = 8  # lower ids are special in tiny models (padding, start, image)


def inputs_for(model: Any) -> dict[str, Tensor]:
    """Keyword arguments for one forward pass of `model`; the same for every model of equal config."""
    config = model.config
    kind = config.model_type
    if kind == "whisper":
        sound = _wave(1, config.num_mel_bins, 2 * config.max_source_positions)
        return {"input_features": sound, "decoder_input_ids": _ids(config.vocab_size)}
    if kind.startswith("qwen") and "vl" in kind:
        return _qwen_images(config)
    if getattr(config, "vision_config", None) is not None:
        return _text_and_image(config)
    if getattr(config, "image_size", None) is not None:
        return {"pixel_values": _pixels(config)}
    ids = {"input_ids": _ids(config.vocab_size)}
    if config.is_encoder_decoder:
        ids["decoder_input_ids"] = _ids(config.vocab_size).flip(1)
    return ids


def _ids(vocabulary: int) -> Tensor:
    """(1, 9) ordinary token ids, spread over the vocabulary, last one the highest id."""
    return torch.linspace(FIRST_PLAIN_TOKEN, vocabulary - 1, LENGTH).long().unsqueeze(0)


def _wave(*shape: int) -> Tensor:
    """Smooth, bounded, non-constant numbers of the given shape."""
    steps = torch.arange(math.prod(shape), dtype=torch.float32)
    return torch.sin(steps * 0.37).reshape(shape)


def _pixels(config: Any) -> Tensor:
    return _wave(1, config.num_channels, config.image_size, config.image_size)


def _text_and_image(config: Any) -> dict[str, Tensor]:
    pixels, ids = _pixels(config.vision_config), _ids(config.text_config.vocab_size)
    kind = config.model_type
    if kind == "clip":
        ends = torch.tensor([[config.text_config.eos_token_id]])
        texts = torch.cat([ids, ids.flip(1), ids.roll(3, 1)])
        images = torch.cat([pixels, pixels.flip(-1)])
        return {"input_ids": torch.cat([texts, ends.expand(3, 1)], 1), "pixel_values": images}
    patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
    count = config.mm_tokens_per_image if kind == "gemma3" else patches
    if kind == "llava_next":  # the base view, then the only tile with one newline per row
        count = 2 * patches + config.vision_config.image_size // config.vision_config.patch_size
        pixels = torch.stack([pixels[0], pixels[0].flip(-1)]).unsqueeze(0)
    image = torch.full((1, count), _image_token(config))
    out = {"input_ids": torch.cat([ids[:, :2], image, ids[:, 2:]], 1), "pixel_values": pixels}
    if kind in ("llava_next", "mistral3"):
        side = config.vision_config.image_size
        out["image_sizes"] = torch.tensor([[side, side]])
    if kind == "gemma3":
        out["token_type_ids"] = (out["input_ids"] == _image_token(config)).long()
    return out


def _image_token(config: Any) -> int:
    found = getattr(config, "image_token_id", None)
    return int(config.image_token_index if found is None else found)


def _qwen_images(config: Any) -> dict[str, Tensor]:
    vision, text = config.vision_config, config.text_config
    rows = 2 * vision.spatial_merge_size
    grid = torch.tensor([[1, rows, rows]])
    size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    count = rows * rows // vision.spatial_merge_size**2
    middle = [config.vision_start_token_id, *[config.image_token_id] * count, config.vision_end_token_id]
    ids = _ids(text.vocab_size)
    ids = torch.cat([ids[:, :2], torch.tensor([middle]), ids[:, 2:]], 1)
    return {
        "input_ids": ids,
        "pixel_values": _wave(rows * rows, size),
        "image_grid_thw": grid,
        "mm_token_type_ids": (ids == config.image_token_id).long(),
    }

"""Tiny diffusers pipelines with random weights: Stable Diffusion 1, 2, XL and 3, and Flux, small enough to run.

They have every block and every module of the real ones, but few channels. Needs diffusers and transformers. Must not
know how pipelines are merged.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cuvee.core.lazy import torch

if TYPE_CHECKING:
    import torch as torch_types

_WIDTH = 8
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
START, END, TOKENS = 52, 53, 54


def tiny_pipeline(kind: str, folder: Path, seed: int = 0) -> Path:
    """Write a pipeline of a kind (`sd1`, `sd2`, `sdxl`, `sd3`, `flux`) with random weights; its folder.

    Every float is drawn anew, so that no norm or bias keeps the value that its module starts with.
    """
    torch.manual_seed(seed)
    pipeline = KINDS[kind](folder)
    generator = torch.Generator().manual_seed(seed)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            _randomise(part, generator)
    pipeline.save_pretrained(folder)
    return folder


def _randomise(module: Any, generator: torch_types.Generator) -> None:
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)


def _clip(cls: Any, **more: Any) -> Any:
    from transformers import CLIPTextConfig

    width = more.pop("width", _WIDTH)
    settings = {"hidden_act": "quick_gelu", "num_hidden_layers": 2, **more}
    return cls(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=2 * width,
            num_attention_heads=2,
            vocab_size=TOKENS,
            max_position_embeddings=16,
            bos_token_id=START,
            eos_token_id=END,
            pad_token_id=END,
            projection_dim=width,
            **settings,
        )
    )


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=TOKENS,
            d_model=_WIDTH,
            d_kv=4,
            d_ff=16,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
        )
    )


def _tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    words = [*_LETTERS, *(c + "</w>" for c in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = folder.parent / f"{folder.name}-vocab.json"
    merges = folder.parent / f"{folder.name}-merges.txt"
    vocabulary.write_text(json.dumps({word: i for i, word in enumerate(words)}))
    merges.write_text("#version: 0.2\n")
    made = CLIPTokenizer(str(vocabulary), str(merges), model_max_length=16)
    vocabulary.unlink()
    merges.unlink()
    return made


def _vae(latents: int = 4) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(_WIDTH,) * 4,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=latents,
        norm_num_groups=4,
        layers_per_block=2,
        sample_size=16,
    )


def _unet(**more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    settings = {"block_out_channels": (4, 8, 8, 8), "cross_attention_dim": _WIDTH, **more}
    return UNet2DConditionModel(norm_num_groups=4, attention_head_dim=2, sample_size=8, **settings)


def _sd(folder: Path, **more: Any) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from transformers import CLIPTextModel

    linear = more.pop("linear", False)
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(CLIPTextModel, **more),
        tokenizer=_tokenizer(folder),
        unet=_unet(use_linear_projection=linear),
        scheduler=DDIMScheduler(clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd2(folder: Path) -> Any:
    return _sd(folder, hidden_act="gelu", linear=True)


def _sdxl(folder: Path) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    unet = _unet(
        block_out_channels=(4, 8, 8),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 2),
        cross_attention_dim=3 * _WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 2 * _WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(CLIPTextModel),
        text_encoder_2=_clip(CLIPTextModelWithProjection, hidden_act="gelu", width=2 * _WIDTH),
        tokenizer=_tokenizer(folder),
        tokenizer_2=_tokenizer(folder),
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
    )


def _sd3(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=2 * _WIDTH,
        caption_projection_dim=8,
        pooled_projection_dim=3 * _WIDTH,
        out_channels=4,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=_clip(CLIPTextModelWithProjection),
        tokenizer=_tokenizer(folder),
        text_encoder_2=_clip(CLIPTextModelWithProjection, hidden_act="gelu", width=2 * _WIDTH),
        tokenizer_2=_tokenizer(folder),
        text_encoder_3=_t5(),
        tokenizer_3=_tokenizer(folder),
    )


def _flux(folder: Path) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=_WIDTH,
        pooled_projection_dim=_WIDTH,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    )
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(),
        text_encoder=_clip(CLIPTextModel),
        tokenizer=_tokenizer(folder),
        text_encoder_2=_t5(),
        tokenizer_2=_tokenizer(folder),
    )


KINDS: dict[str, Callable[[Path], Any]] = {
    "sd1": _sd,
    "sd2": _sd2,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
}


def run(folder: Path, steps: int = 1) -> Any:
    """Load a pipeline with diffusers, strictly, and run it for some steps; the latent image."""
    from diffusers import DiffusionPipeline

    loaded = DiffusionPipeline.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    width = _WIDTH
    given: dict[str, Any] = {
        "prompt_embeds": torch.ones(1, 16, width),
        "generator": torch.Generator().manual_seed(0),
        "num_inference_steps": steps,
        "output_type": "latent",
        "height": 64,
        "width": 64,
    }
    kind = type(loaded).__name__
    if kind == "StableDiffusionXLPipeline":
        given |= {
            "prompt_embeds": torch.ones(1, 16, 3 * width),
            "pooled_prompt_embeds": torch.ones(1, 2 * width),
        }
    elif kind == "StableDiffusion3Pipeline":
        given |= {
            "prompt_embeds": torch.ones(1, 16, 2 * width),
            "pooled_prompt_embeds": torch.ones(1, 3 * width),
        }
    elif kind == "FluxPipeline":
        given |= {"pooled_prompt_embeds": torch.ones(1, width)}
    elif kind == "StableDiffusionPipeline":
        given |= {"prompt_embeds": None, "prompt": "a cat"}
    return loaded(**given, guidance_scale=1.0).images

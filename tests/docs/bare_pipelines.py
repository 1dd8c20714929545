"""Folders that look like pipelines of Stable Diffusion, for the guide: every block, one or two tensors in each.

Written without diffusers, so that the pages are tested quickly; `tests/e2e/test_diffusion.py` has real ones.
"""

from __future__ import annotations

import json
from pathlib import Path

WIDTH = 4
CLASSES = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "DDIMScheduler"),
}
FILES = {
    "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler"},
    "tokenizer/tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"},
    "unet/config.json": {"_class_name": "UNet2DConditionModel"},
    "vae/config.json": {"_class_name": "AutoencoderKL"},
    "text_encoder/config.json": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
}


def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Tensors of each component: one resnet and, where there is one, one attention for each place."""
    unet = ["conv_in", "conv_out", "conv_norm_out", "time_embedding.linear_1", "time_embedding.linear_2"]
    for level in range(4):
        for layer in range(3):
            unet.append(f"up_blocks.{level}.resnets.{layer}.conv1")
            unet += [f"up_blocks.{level}.attentions.{layer}.proj_in"] if level > 0 else []
        unet += [f"down_blocks.{level}.resnets.{layer}.conv1" for layer in range(2)]
        unet += [f"down_blocks.{level}.attentions.0.transformer_blocks.0.attn2.to_k"] if level < 3 else []
        unet += (
            [f"down_blocks.{level}.downsamplers.0.conv", f"up_blocks.{level}.upsamplers.0.conv"]
            if level < 3
            else []
        )
    unet += [
        "down_blocks.3.resnets.1.norm1",
        "mid_block.resnets.0.conv1",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    ]
    vae = ["encoder.conv_in", "decoder.conv_out", "quant_conv", "encoder.down_blocks.0.resnets.0.conv1"]
    vae += ["decoder.up_blocks.0.resnets.0.conv1", "encoder.mid_block.attentions.0.to_q"]
    text = [f"encoder.layers.{i}.self_attn.{n}_proj" for i in range(2) for n in "qkv"] + [
        "embeddings.token_embedding"
    ]
    listed = {"unet": unet, "vae": vae, "text_encoder": [f"text_model.{n}" for n in text]}
    return {part: {f"{n}.weight": (WIDTH, WIDTH) for n in names} for part, names in listed.items()}


def write(folder: Path, seed: int) -> None:
    """A pipeline with random weights."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    for part, names in shapes().items():
        (folder / part).mkdir(parents=True)
        stem = "model" if part == "text_encoder" else "diffusion_pytorch_model"
        tensors = {n: torch.randn(shape, generator=generator) for n, shape in names.items()}
        save_file(tensors, folder / part / f"{stem}.safetensors", {"format": "pt"})
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    index = {"_class_name": "StableDiffusionPipeline", **{k: list(v) for k, v in CLASSES.items()}}
    (folder / "model_index.json").write_text(json.dumps(index))


def main(root: Path) -> None:
    """`photo` and `anime`, the latter in one file too, and a LoRA for both."""
    import torch
    from safetensors.torch import save_file

    from cuvee.api.blend import Blend
    from cuvee.recipe.load import parse_recipe

    for seed, name in enumerate(("photo", "anime")):
        write(root / name, seed)
    text = f"version: 1\nexperts: {{a: {root / 'anime'}}}\nmerge: {{method: passthrough}}\n"
    Blend(parse_recipe(text + "output: {form: single_file}")).save(root / "anime.safetensors")
    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file(
        {
            f"{module}.lora_down.weight": torch.ones(1, WIDTH),
            f"{module}.lora_up.weight": torch.ones(WIDTH, 1),
            f"{module}.alpha": torch.tensor(1.0),
        },
        root / "style.safetensors",
    )

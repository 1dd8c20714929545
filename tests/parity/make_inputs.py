"""Every input of the parity recipes, in one folder: `python make_inputs.py FOLDER`.

Tiny checkpoints of many families made with transformers (cuvee.testing), hand-made Llama checkpoints (checkpoints.py),
adapters made with PEFT, and the models with differing tokenizers of tokenizers/tokenizer_zoo.py.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import torch
from checkpoints import Shape, drawn, values, write, write_bare, write_family, write_refused, write_stored
from safetensors.torch import load_file, save_file

from cuvee.testing.tiny_models import expert_of, tiny

sys.path.append(str(Path(__file__).parent / "tokenizers"))
from tokenizer_zoo import MODELS, write_tokenizer

FAMILIES = (
    "mistral", "qwen2", "qwen3", "gpt2", "gpt_neox", "mixtral", "qwen3_moe", "t5", "bert", "roberta", "distilbert",
    "llava", "phi3", "gemma2", "gemma3", "whisper", "olmo", "olmo2", "falcon", "cohere", "stablelm", "opt", "vit",
    "mistral3", "qwen2_vl", "granite", "clip", "deberta",
)  # fmt: skip
DEEP = {"t5": 3, "llava": 3, "whisper": 3}


def main(root: Path) -> None:
    torch.set_num_threads(1)
    write_stored(root)
    dtypes(root)
    containers(root)
    heads(root)
    vocabularies(root)
    adapters(root)
    write_bare(root)
    write_refused(root)
    for family in FAMILIES:
        tiny(family, folder=root / family / "base", layers=DEEP.get(family, 2), seed=11)
        for number, letter in enumerate("ab", 1):
            expert_of(root / family / "base", root / family / letter, seed=number, scale=0.02)
    unprefixed(root)


def dtypes(root: Path) -> None:
    """The experts of `plain` in other types, and one of every type in a family."""
    shape = Shape()
    write(root / "dtypes" / "f16", values(shape, 1, 1), shape, "float16")
    write(root / "dtypes" / "bf16", values(shape, 1, 2), shape, "bfloat16")
    write(root / "dtypes" / "f64", values(shape, 1, 3), shape, "float64")
    write_family(root / "f16", seed=8, dtype="float16", scale=0.05)
    write_family(root / "near", seed=10, scale=1e-4)


def containers(root: Path) -> None:
    """`plain/a` in shards, `plain/b` as a pickle, `plain/c` as a sharded pickle."""
    shape = Shape()
    for name, number in (("sharded", 1), ("pickle", 2), ("shards", 3)):
        folder = write(root / "containers" / name, values(shape, 1, number), shape)
        content = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        if name == "pickle":
            torch.save(content, folder / "pytorch_model.bin")
            continue
        ending, start = (".safetensors", "model") if name == "sharded" else (".bin", "pytorch_model")
        names = sorted(content)
        parts = [names[0::3], names[1::3], names[2::3]]
        where = {}
        for i, part in enumerate(parts):
            file = f"{start}-{i + 1:05d}-of-00003{ending}"
            chosen = {n: content[n] for n in part}
            if ending == ".bin":
                torch.save(chosen, folder / file)
            else:
                save_file(chosen, folder / file, metadata={"format": "pt"})
            where |= dict.fromkeys(part, file)
        size = sum(t.numel() * t.element_size() for t in content.values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / f"{start}{ending}.index.json").write_text(json.dumps(index))


def heads(root: Path) -> None:
    """Models of one size whose output head is stored, tied, or tied and stored all the same."""
    untied, tied = Shape(), replace(Shape(), tied=True)
    write(root / "heads" / "untied", values(untied, 5, 3), untied)
    write(root / "heads" / "untied2", values(untied, 5, 4), untied)
    both = values(tied, 5, 5)
    write(
        root / "heads" / "both", {**both, "lm_head.weight": both["model.embed_tokens.weight"].clone()}, tied
    )
    extra = values(untied, 5, 6)
    extra["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.arange(2.0)
    write(root / "heads" / "extra", extra, untied)


def vocabularies(root: Path) -> None:
    for number, name in enumerate(MODELS):
        shape = Shape(layers=2, vocabulary=MODELS[name][2])
        write(root / "words" / name, values(shape, 20 + number), shape)
        write_tokenizer(root / "words" / name, name)
    tied = Shape(layers=2, vocabulary=MODELS["code"][2], tied=True)
    write(root / "words" / "tied", values(tied, 30), tied)
    write_tokenizer(root / "words" / "tied", "code")
    half = Shape(layers=2, vocabulary=MODELS["chat"][2])
    write(root / "words" / "half", values(half, 31), half, "bfloat16")
    write_tokenizer(root / "words" / "half", "chat")
    for name, template in (
        ("chat", "{{ messages }} chat"),
        ("code", "{{ messages }} code"),
        ("half", "{{ messages }} chat"),
    ):
        path = root / "words" / name / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    (root / "words" / "base" / "generation_config.json").write_text('{"bos_token_id": 1, "eos_token_id": 2}')


def adapters(root: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    settings = {
        "attention": LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
        "mlp": LoraConfig(
            r=3, lora_alpha=5, use_rslora=True, target_modules=["up_proj", "down_proj"],
            rank_pattern={"layers.1.mlp.up_proj": 2}, alpha_pattern={"layers.0.mlp.down_proj": 7},
        ),
        "head": LoraConfig(r=2, lora_alpha=4, target_modules=["o_proj"], modules_to_save=["lm_head"]),
    }  # fmt: skip
    for number, (name, setting) in enumerate(settings.items()):
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(root / "plain" / "base"), setting)
        with torch.no_grad():
            for key, parameter in sorted(model.named_parameters()):
                if parameter.requires_grad:
                    step = drawn(key, tuple(parameter.shape), 60 + number)
                    parameter.add_(torch.from_numpy(step) * 0.1)
        model.save_pretrained(root / "lora" / name)


def unprefixed(root: Path) -> None:
    """GPT-2 as it was published: without the `transformer.` prefix."""
    folder = root / "gpt2" / "bare"
    shutil.copytree(root / "gpt2" / "a", folder)
    path = folder / "model.safetensors"
    content = {n.removeprefix("transformer."): t for n, t in load_file(path).items()}
    save_file(content, path, metadata={"format": "pt"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Small checkpoints for the tests of sources, written by the reference libraries."""

import json

import torch
from safetensors.torch import save_file


def tensors(seed=0, prefix="", rows=5):
    """A few tensors of several dtypes and shapes."""
    g = torch.Generator().manual_seed(seed)
    made = {
        "model.embed_tokens.weight": torch.randn(rows, 4, generator=g).to(torch.bfloat16),
        "model.layers.0.q_proj.weight": torch.randn(4, 4, generator=g),
        "model.layers.0.q_proj.bias": torch.randn(4, generator=g).half(),
        "model.layers.10.norm.weight": torch.randn(4, generator=g, dtype=torch.float64),
        "model.scalar": torch.tensor(3.5),
        "model.empty": torch.empty(0, 4),
        "model.ids": torch.arange(6).reshape(2, 3),
        "model.mask": torch.tensor([True, False, True]),
        "model.low": torch.randn(3, 3, generator=g).to(torch.float8_e4m3fn),
    }
    return {prefix + name: tensor for name, tensor in made.items()}


def folder(path, shards=1, config=None, **more):
    """A model folder; returns its tensors."""
    path.mkdir(parents=True, exist_ok=True)
    made = tensors(**more)
    if shards == 1:
        save_file(made, path / "model.safetensors", metadata={"format": "pt"})
    else:
        names = list(made)
        where = {
            name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(names)
        }
        for file in set(where.values()):
            save_file({n: made[n] for n in names if where[n] == file}, path / file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (path / "config.json").write_text(json.dumps(config or {"model_type": "llama", "vocab_size": 5}))
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    (path / "README.md").write_text("# model")
    return made


def whole(source, name):
    """A tensor in its shape."""
    return source.read(name).reshape(source.tensors[name].shape)


def same(a, b):
    """Equal dtype, shape and bits."""
    return (
        a.dtype == b.dtype
        and a.shape == b.shape
        and (not a.numel() or torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)))
    )

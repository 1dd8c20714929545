"""The vocabulary of roles: what a tensor does in its layer or around the layers, the same words for every
family.

Owns the list and its meanings; says nothing about names (that is `data/*.toml`).
"""

from __future__ import annotations

from collections.abc import Mapping

ROLES: Mapping[str, str] = {
    # attention
    "q": "query projection",
    "k": "key projection",
    "v": "value projection",
    "o": "output projection of attention",
    "qkv": "query, key and value in one matrix",
    "cross_q": "query projection of cross-attention",
    "cross_k": "key projection of cross-attention",
    "cross_v": "value projection of cross-attention",
    "cross_o": "output projection of cross-attention",
    "position_q": "query side of relative positions",
    "position_k": "key side of relative positions",
    "q_norm": "norm of the queries",
    "k_norm": "norm of the keys",
    # feed-forward
    "gate": "gating projection of a gated feed-forward",
    "up": "first projection of a feed-forward",
    "down": "second projection of a feed-forward",
    "gate_up": "gate and up in one matrix",
    # mixture of experts
    "router": "scores that choose experts",
    "expert_gate": "gate of one expert, or of all stacked",
    "expert_up": "up of one expert, or of all stacked",
    "expert_down": "down of one expert, or of all stacked",
    "expert_gate_up": "gate and up of all experts in one tensor",
    "shared_gate": "gate of the expert that is always on",
    "shared_up": "up of the expert that is always on",
    "shared_down": "down of the expert that is always on",
    "shared_router": "score of the expert that is always on",
    # around the layers
    "norm": "normalisation, weight or bias",
    "embeddings": "one row per token",
    "position_embeddings": "positions, absolute or relative",
    "type_embeddings": "one row per segment type",
    "class_token": "learned class, mask or separator vector",
    "conv": "convolution, among them patch embeddings",
    "head": "output over the vocabulary",
    "head_transform": "layers between the last block and the output over the vocabulary",
    "classifier": "task head: classes, scores, spans",
    "pooler": "summary of a sequence for a task head",
    "projector": "from one modality's space into another's",
    "scale": "a learned factor",
    "buffer": "a constant that the model can make itself",
    "other": "nothing is known",
}

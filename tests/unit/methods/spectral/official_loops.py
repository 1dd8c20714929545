"""The iterative methods as their official codes run them: autograd of the written loss, and torch's own optimizers."""

from __future__ import annotations

import torch


def wudi(taus, steps=300, lr=1e-5):
    vectors = torch.stack(taus)
    point = torch.nn.Parameter(vectors.sum(0))
    optimizer = torch.optim.Adam([point], lr=lr, weight_decay=0)
    norms = vectors.reshape(len(taus), -1).norm(dim=1).square()
    for _ in range(steps):
        inner = torch.matmul(point[None] - vectors, vectors.transpose(1, 2))
        loss = (inner.square() / norms[:, None, None]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return point.detach()


def optmerge(taus, steps=300, lora=False, lr=None):
    vectors = torch.stack(taus)
    n = min(vectors.shape[1:])
    rank, mean = max(1, n // len(taus)), vectors.mean(0)
    targets, rows = [], []
    for tau in vectors:
        u, s, vh = torch.linalg.svd(tau, full_matrices=False)
        rows.append(s[:rank, None] * vh[:rank])
        if lora:
            targets.append((u[:, :rank] * s[:rank]) @ vh[:rank])
        else:
            a, b, c = torch.linalg.svd(tau - mean, full_matrices=False)
            targets.append((a[:, :rank] * b[:rank]) @ c[:rank] + mean)
    point = torch.nn.Parameter(mean.clone() if lora else vectors.sum(0))
    if lora:
        optimizer = torch.optim.SGD([point], lr=lr or 1e-4, momentum=0.9)
    else:
        optimizer = torch.optim.Adam([point], lr=lr or 1e-5)
    norms = vectors.reshape(len(taus), -1).norm(dim=1).square()
    for _ in range(steps):
        inner = torch.matmul(point[None] - torch.stack(targets), torch.stack(rows).transpose(1, 2))
        loss = (inner.square() / norms[:, None, None]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return point.detach()


def doge_delta(taus, eta=0.07, subspace=6.0, steps=400, lr=1e-4, sgd=False):
    """The common change of one layer, and the strengths λᵢ."""
    vectors = torch.stack(taus)
    strengths = torch.stack([eta / tau.norm() for tau in taus])
    n = min(vectors.shape[1:])
    rank = n // len(taus)
    stacked = torch.zeros(vectors.shape[1], n, dtype=vectors.dtype)
    for i, tau in enumerate(vectors):
        stacked[:, i * rank : (i + 1) * rank] = torch.linalg.svd(tau, full_matrices=False)[0][:, :rank]
    left = torch.linalg.svd(stacked, full_matrices=False)[0][:, : int(n / subspace)]
    delta = torch.nn.Parameter(torch.zeros_like(vectors[0]))
    optimizer = torch.optim.SGD([delta], lr=lr, momentum=0.9) if sgd else torch.optim.Adam([delta], lr=lr)
    merged = (vectors * strengths[:, None, None]).sum(0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(
            (-v * merged - v * (delta * strengths[:, None, None]).sum(0) + v * v).sum(1).square().sum()
            for v in vectors
        )
        loss.backward()
        delta.grad -= left @ (left.T @ delta.grad)
        optimizer.step()
    return delta.detach(), strengths, left


def official_mask(vector, percent):
    """The largest entries by magnitude, the threshold and all that tie with it among them."""
    k = vector.numel() - int(vector.numel() * percent)
    return vector.abs() >= vector.abs().kthvalue(k).values

"""The averaging and geometric methods in plain float64 NumPy, written from their definitions.

Shares nothing with the package, on purpose: sorts, loops and whole vectors, not Gram matrices and streams.
"""

from __future__ import annotations

import numpy as np


def linear(tensors, weights, *, normalize=True):
    total = sum(w * x for w, x in zip(weights, tensors, strict=True))
    return total / sum(weights) if normalize else total


def slerp(a, b, t, *, threshold=0.9995, eps=1e-8):
    norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
    unit_a = a / norm_a if norm_a > eps else a
    unit_b = b / norm_b if norm_b > eps else b
    cosine = np.clip((unit_a * unit_b).sum(), -1, 1)
    if abs(cosine) > threshold:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def nuslerp(a, b, weights, *, cut="whole"):
    total = weights[0] + weights[1]
    t = 0.5 if abs(total) < 1e-6 else weights[1] / total
    if cut == "whole":
        return _arc(a.ravel(), b.ravel(), t).reshape(a.shape)
    axis = -1 if cut == "last" else 0
    if a.ndim == 0:
        return _arc(a.reshape(1), b.reshape(1), t).reshape(())
    out = np.empty_like(a)
    lines = np.moveaxis(a, axis, -1), np.moveaxis(b, axis, -1), np.moveaxis(out, axis, -1)
    for index in np.ndindex(lines[0].shape[:-1]):
        lines[2][index] = _arc(lines[0][index], lines[1][index], t)
    return out


def _arc(a, b, t):
    unit_a, unit_b = (v / max(np.linalg.norm(v), 1e-7) for v in (a, b))
    angle = np.arccos(np.clip(unit_a @ unit_b, -1, 1))
    if abs(np.sin(angle)) < 1e-7:  # the card says 1e-8, which a float64 cosine does not resolve
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def multislerp_in_tangent_space(tensors, weights, *, eps=1e-8):
    """As published: project the unit vectors onto the tangent space at their mean, average, map back."""
    shares = np.asarray(weights) / sum(weights)
    flat = np.stack([x.ravel() for x in tensors])
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    units = flat / (norms + eps)
    mean = shares @ units
    mean = mean / np.linalg.norm(mean)
    tangents = units - (units @ mean)[:, None] * mean
    step = shares @ tangents
    length = np.linalg.norm(step) + eps
    point = mean * np.cos(length) + step * (np.sin(length) / length)
    return (point * (shares @ norms[:, 0])).reshape(tensors[0].shape)


def karcher(tensors, weights=None, *, steps=10, tol=1e-5):
    shares = np.full(len(tensors), 1.0) if weights is None else np.asarray(weights, dtype=float)
    shares = shares / shares.sum()
    norms = [np.linalg.norm(x) for x in tensors]
    alive = [i for i, n in enumerate(norms) if n > tol]
    if not alive:
        return np.zeros_like(tensors[0])
    units = [tensors[i].ravel() / norms[i] for i in alive]
    alphas = shares[alive] / shares[alive].sum()
    mean = sum(a * u for a, u in zip(alphas, units, strict=True))
    mean = units[0] if np.linalg.norm(mean) < tol else mean / np.linalg.norm(mean)
    for _ in range(steps):
        tangent = logarithm(mean, units, alphas, tol)
        length = np.linalg.norm(tangent)
        if length < tol:
            break
        mean = np.cos(length) * mean + np.sin(length) * tangent / length
        mean = mean / np.linalg.norm(mean)
    return (float(shares @ norms) * mean).reshape(tensors[0].shape)


def logarithm(mean, units, alphas, tol=1e-12):
    """Σ αᵢ log_mean(uᵢ), which is 0 at the Karcher mean."""
    total = np.zeros_like(mean)
    for alpha, unit in zip(alphas, units, strict=True):
        angle = np.arccos(np.clip(mean @ unit, -1, 1))
        if tol <= angle < np.pi - 1e-6:
            total = total + alpha * angle / np.sin(angle) * (unit - np.cos(angle) * mean)
    return total


def model_stock_step(vectors, *, average="cosines", clamp=True, floor=0.0):
    """t for a list of flat task vectors."""
    count, pairs = len(vectors), []
    for i in range(count):
        for j in range(i + 1, count):
            length = max(np.linalg.norm(vectors[i]) * np.linalg.norm(vectors[j]), floor)
            pairs.append(0.0 if length == 0 else float(np.clip(vectors[i] @ vectors[j] / length, -1, 1)))
    cosine = np.mean(pairs) if average == "cosines" else np.cos(np.mean(np.arccos(pairs)))
    denominator = 1 + (count - 1) * cosine
    t = 0.0 if abs(denominator) < 1e-6 else count * cosine / denominator
    return min(max(t, 0.0), 1.0) if clamp else t


def model_stock(deltas, *, cut="whole", **options):
    mean = sum(deltas) / len(deltas)
    if cut == "whole" or mean.ndim < 2:
        return mean * model_stock_step([d.ravel() for d in deltas], **options)
    outer = mean.shape[:1] if cut == "output" else mean.shape[:-1]
    out = np.empty_like(mean)
    for index in np.ndindex(outer):
        out[index] = mean[index] * model_stock_step([d[index].ravel() for d in deltas], **options)
    return out


def nearswap(base, other, t, *, floor=1e-6):
    weight = np.clip(t / np.maximum(np.abs(base - other), floor), 0, 1)
    return weight * other + (1 - weight) * base


def arcee_importance(base, other, *, clamp=True):
    p, q = _softmax(other) + 1e-8, _softmax(base) + 1e-8
    divergence = (p * np.log(p / q)).sum(-1, keepdims=True)
    return np.abs(other - base) * (np.maximum(divergence, 0) if clamp else divergence)


def arcee_fusion(base, other, *, clamp=True):
    scores = arcee_importance(base, other, clamp=clamp)
    ordered = np.sort(scores.ravel())
    lower, median, upper = (ordered[int(np.floor(q * (ordered.size - 1)))] for q in (0.25, 0.5, 0.75))
    return np.where(scores >= median + 1.5 * (upper - lower), other, base)


def _softmax(x):
    raised = np.exp(x - x.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)

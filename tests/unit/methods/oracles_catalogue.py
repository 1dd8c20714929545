"""More methods in plain float64 NumPy, written from their definitions: whole models, sorts, loops over entries.

Shares no code with the package. A model is a dictionary of float64 arrays; `flat` joins one in name order.
"""

from __future__ import annotations

import numpy as np


def flat(model):
    return np.concatenate([model[name].reshape(-1) for name in sorted(model)])


def split(vector, like):
    out, start = {}, 0
    for name in sorted(like):
        out[name] = vector[start : start + like[name].size].reshape(like[name].shape)
        start += like[name].size
    return out


def energy(taus, groups):
    """Σ wᵢτᵢ with weights from squared norms within each group of names."""
    out = {}
    for names in groups:
        squares = np.array([sum((tau[n] ** 2).sum() for n in names) for tau in taus])
        total = squares.sum()
        weights = squares / total if total > 0 else np.full(len(taus), 1 / len(taus))
        for n in names:
            out[n] = sum(w * tau[n] for w, tau in zip(weights, taus, strict=True))
    return out


def energy_by_element(taus):
    out = {}
    for name in taus[0]:
        stack = np.stack([tau[name] for tau in taus])
        total = (stack**2).sum(axis=0)
        out[name] = np.where(total > 0, (stack**3).sum(axis=0) / np.where(total > 0, total, 1), 0.0)
    return out


def norm01(rows):
    low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
    return np.where(high > low, (rows - low) / np.where(high > low, high - low, 1), 0.0)


def clamped(rows, min_ratio, max_ratio):
    d = rows.shape[1]
    ordered = np.sort(rows, axis=1)
    return np.clip(rows, ordered[:, [int(d * min_ratio)]], ordered[:, [int(d * (1 - max_ratio) - 1)]])


def pcb(vectors, ratio, clamp, variant, weights):
    """Rows are experts; straight after the reference file, and the vision script."""
    rows = np.stack(vectors)
    count = len(rows)
    sizes = clamped(np.abs(rows), clamp, clamp)
    intra = np.exp(count * norm01(sizes) ** 2)
    other = rows.sum(axis=0) if variant == "reference" else (np.sign(rows) * norm01(sizes)).sum(axis=0)
    scores = intra * np.tanh(rows * other)
    scale = norm01(clamped(scores, 1 - ratio, 0))
    moved = np.sign(rows) * sizes * np.array(weights)[:, None]
    return (moved * scale).sum(axis=0) / np.maximum(scale.sum(axis=0), 1e-12)


def tall_masks(taus, total, strengths):
    return [np.abs(t) > s * np.abs(total - t) for t, s in zip(taus, strengths, strict=True)]


def emr(taus):
    """Unified vector and masks, one coordinate after the other."""
    columns = np.stack([t.reshape(-1) for t in taus], axis=1)
    unified = np.zeros(len(columns))
    masks = np.zeros(columns.shape, dtype=bool)
    for j, column in enumerate(columns):
        sign = 1 if sum(column) > 0 else -1
        masks[j] = column * sign > 0
        unified[j] = sign * max([abs(x) for x in column if x * sign > 0], default=0.0)
    shape = taus[0].shape
    return unified.reshape(shape), [masks[:, i].reshape(shape) for i in range(len(taus))]


def emr_factor(tau, unified, mask, mean=False):
    """λ of one expert over a model, each argument a dictionary."""
    size = {n: x.size if mean else 1 for n, x in tau.items()}
    before = sum(np.abs(x).sum() / size[n] for n, x in tau.items() if x.size)
    after = sum(np.abs(unified[n] * mask[n]).sum() / size[n] for n in tau if tau[n].size)
    return before / after if after else 1.0


def magmax(taus):
    stack = np.stack(taus)
    best = stack[0].copy()
    for tau in stack[1:]:
        best = np.where(np.abs(tau) >= np.abs(best), tau, best)
    return best


def largest_of_groups(vector, n, m, trailing):
    mask = np.zeros(vector.size, dtype=bool)
    for start in range(0, vector.size, m):
        group = np.abs(vector[start : start + m])
        quota = n if group.size == m else round(n * group.size / m) if trailing == "complete" else 0
        order = sorted(range(group.size), key=lambda i: (-group[i], i))[:quota]
        mask[[start + i for i in order]] = True
    return mask


def cabs(taus, weights, n, m, trailing):
    free = np.ones(taus[0].size, dtype=bool)
    out = np.zeros(taus[0].size)
    for tau, weight in zip(taus, weights, strict=True):
        rest = np.where(free, tau.reshape(-1), 0.0)
        mask = largest_of_groups(rest, n, m, trailing) & (rest != 0)
        out += weight * np.where(mask, rest, 0.0)
        free &= ~mask
    return out.reshape(taus[0].shape)


def localized(vectors, density):
    """Dataless localisation and stitching of flat task vectors, as in the released code."""
    masks = []
    for vector in vectors:
        k = int(density * vector.size)
        threshold = np.sort(np.abs(vector))[::-1][:k].min()
        masks.append(np.abs(vector) > threshold)
    shared = np.maximum(sum(m.astype(int) for m in masks), 1)
    return sum(m * v / shared for m, v in zip(masks, vectors, strict=True))


def widen(base, others, ratio, calibration, transposed=False):
    """As the released code does it, in float64."""
    if base.ndim < 2:
        significance = np.stack([np.abs(o - base).reshape(-1) for o in others])
        weights = widen_scores(significance, ratio, calibration)
        return base + sum((o - base) * w.reshape(base.shape) for o, w in zip(others, weights, strict=True))
    matrices = [x.reshape(len(x), -1) for x in (base, *others)]
    if transposed:
        matrices = [x.T for x in matrices]
    lengths = [np.linalg.norm(x, axis=0) for x in matrices]
    moved = np.stack([np.abs(length - lengths[0]) for length in lengths[1:]])
    turned = np.stack(
        [
            1 - (x * matrices[0]).sum(axis=0) / (length * lengths[0])
            for x, length in zip(matrices[1:], lengths[1:], strict=True)
        ]
    )
    scores = [widen_scores(rank_shares(figure), ratio, calibration) for figure in (moved, turned)]
    out = matrices[0].copy()
    for matrix, first, second in zip(matrices[1:], *scores, strict=True):
        out += (matrix - matrices[0]) * (first + second) / 2
    return (out.T if transposed else out).reshape(base.shape)


def rank_shares(figures):
    shares = np.zeros(figures.shape)
    for row, out in zip(figures, shares, strict=True):
        for rank, j in enumerate(sorted(range(len(row)), key=lambda j: (row[j], j))):
            out[j] = rank / len(row)
    return shares


def widen_scores(significance, ratio, calibration):
    power = np.exp(significance)
    scores = power / power.sum(axis=0)
    mean = significance.mean(axis=1, keepdims=True)
    beyond = ratio * mean + 1e-12 * np.abs(mean)  # equal up to rounding is not more
    return np.where(significance > beyond, calibration, scores)


def slerp(a, b, t):
    na, nb = np.linalg.norm(a), np.linalg.norm(b)
    if na == 0 or nb == 0:
        return (1 - t) * a + t * b
    angle = np.arccos(np.clip((a / na) @ (b / nb), -1, 1))
    if np.sin(angle) < 1e-7:
        return (1 - t) * a + t * b
    return (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)


def folded(vectors, weights, steps="share"):
    """Slerp from one vector to the next, on the vectors themselves."""
    result = vectors[0] * (weights[0] if steps == "weight" else 1)
    for i in range(1, len(vectors)):
        t = weights[i] if steps == "weight" else weights[i] / (sum(weights[: i + 1]) or 1)
        result = slerp(result, vectors[i], t)
    return result

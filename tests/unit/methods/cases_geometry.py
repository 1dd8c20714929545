"""Inputs that the tests of averaging and geometric methods share: ordinary shapes, and hostile ones."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# (name, shape): a matrix of several blocks, a long vector, a convolution, one element, a scalar, thin ones
SHAPES = {
    "matrix": (48, 100),
    "vector": (3000,),
    "convolution": (7, 5, 3, 3),
    "one": (1,),
    "scalar": (),
    "column": (2050, 1),
    "row": (1, 2050),
}
BLOCKS = (1024, 2048, 1 << 20)


def normal(shape: tuple[int, ...], count: int, *, seed: int = 0, scale: float = 1.0) -> list[Tensor]:
    """Independent float32 tensors, not centred, so that angles are neither 0 nor right."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(shape, generator=generator)
    return [scale * (0.7 * common + torch.randn(shape, generator=generator)) for _ in range(count)]


def wide(tensors: list[Tensor]) -> list[np.ndarray]:
    return [tensor.double().numpy() for tensor in tensors]


def hostile(count: int) -> dict[str, list[Tensor]]:
    """Inputs at which formulas divide by nothing: each is a full list of inputs."""
    some = normal((6, 40), count, seed=5)
    zero = torch.zeros(6, 40)
    return {
        "all zero": [zero.clone() for _ in some],
        "identical": [some[0].clone() for _ in some],
        "antipodal": [some[0] if i % 2 == 0 else -some[0] for i in range(count)],
        "one zero": [zero, *some[1:]],
        "huge": [tensor * 1e30 for tensor in some],
        "tiny": [tensor * 1e-30 for tensor in some],
        "mixed sizes": [some[0] * 1e-20, *(tensor * 1e20 for tensor in some[1:])],
        "one element": [tensor[:1, :1] for tensor in some],
        "zero rows": [torch.cat([zero[:2], tensor[2:]]) for tensor in some],
        "subnormal": [tensor * 1e-41 for tensor in some],
        "empty": [torch.empty(0, 4) for _ in some],
    }


def close(found: Tensor, expected: np.ndarray, *, relative: float = 3e-6) -> None:
    """Within a few float32 roundings of the largest expected element (or two steps of the subnormals)."""
    assert tuple(found.shape) == expected.shape
    size = float(np.abs(expected).max()) if expected.size else 0.0
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=relative * size + 3e-45)

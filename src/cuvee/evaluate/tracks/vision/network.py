"""EfficientNet-Lite: inverted residual blocks without squeeze-and-excitation, ReLU6 (Tan and Le, 2019; Lite, 2020).

Owns the architecture, with the tensor names of the published PyTorch weights. Imports torch: import it when needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_EPSILON = 1e-3  # of BatchNorm, as trained


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one shape: how many, kernel, stride of the first, expansion, output channels."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    channels: int


@dataclass(frozen=True, slots=True)
class Shape:
    """A whole network: channels of the stem, stages, channels of the features."""

    stem: int
    stages: tuple[Stage, ...]
    features: int


LITE0 = Shape(
    32,
    (
        Stage(1, 3, 1, 1, 16),
        Stage(2, 3, 2, 6, 24),
        Stage(2, 5, 2, 6, 40),
        Stage(3, 3, 2, 6, 80),
        Stage(3, 5, 1, 6, 112),
        Stage(4, 5, 2, 6, 192),
        Stage(1, 3, 1, 6, 320),
    ),
    1280,
)
SMALL = Shape(8, (Stage(1, 3, 2, 1, 8), Stage(1, 3, 2, 4, 16), Stage(1, 3, 2, 4, 24)), 48)


class Convolution(nn.Conv2d):
    """A convolution padded as TensorFlow pads: to ceil(size / stride), the odd pixel after the picture."""

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, c, h, w) to (n, c', ceil(h / stride), ceil(w / stride))."""
        pads: list[int] = []
        for size, kernel, stride in zip(
            reversed(pictures.shape[-2:]), reversed(self.kernel_size), reversed(self.stride), strict=True
        ):
            missing = max(0, (-(-size // stride) - 1) * stride + kernel - size)
            pads += [missing // 2, missing - missing // 2]
        if pads[0] == pads[1] == pads[2] == pads[3]:
            return nn.functional.conv2d(
                pictures, self.weight, None, self.stride, pads[0], self.dilation, self.groups
            )
        return super().forward(nn.functional.pad(pictures, pads))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_EPSILON)


class Block(nn.Module):
    """Expand, filter each channel, project; the input is added where shapes agree."""

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        super().__init__()
        width = inputs * stage.expansion
        self._expands = stage.expansion != 1
        if self._expands:
            self._expand_conv = Convolution(inputs, width, 1, bias=False)
            self._bn0 = _norm(width)
        self._depthwise_conv = Convolution(width, width, stage.kernel, stride, groups=width, bias=False)
        self._bn1 = _norm(width)
        self._project_conv = Convolution(width, stage.channels, 1, bias=False)
        self._bn2 = _norm(stage.channels)
        self._adds = stride == 1 and inputs == stage.channels

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, c, h, w) to (n, c', h', w')."""
        seen = pictures
        if self._expands:
            seen = nn.functional.relu6(self._bn0(self._expand_conv(seen)))
        seen = nn.functional.relu6(self._bn1(self._depthwise_conv(seen)))
        seen = self._bn2(self._project_conv(seen))
        out: Tensor = pictures + seen if self._adds else seen
        return out


class EfficientNetLite(nn.Module):
    """Pictures (n, 3, h, w) to pooled features (n, features). There is no classifier."""

    def __init__(self, shape: Shape = LITE0) -> None:
        super().__init__()
        self._conv_stem = Convolution(3, shape.stem, 3, 2, bias=False)
        self._bn0 = _norm(shape.stem)
        self._blocks = nn.ModuleList(_blocks(shape))
        self._conv_head = Convolution(shape.stages[-1].channels, shape.features, 1, bias=False)
        self._bn1 = _norm(shape.features)

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 3, h, w) to (n, features)."""
        seen = nn.functional.relu6(self._bn0(self._conv_stem(pictures)))
        for block in self._blocks:
            seen = block(seen)
        return nn.functional.relu6(self._bn1(self._conv_head(seen))).mean((2, 3))


def _blocks(shape: Shape) -> Iterator[Block]:
    inputs = shape.stem
    for stage in shape.stages:
        for number in range(stage.blocks):
            yield Block(inputs, stage, stage.stride if number == 0 else 1)
            inputs = stage.channels


def parameters(network: nn.Module) -> dict[str, Tensor]:
    """The trained tensors; running statistics of BatchNorm are frozen and stay with the network."""
    return matrices({name: tensor.detach() for name, tensor in network.named_parameters()})


def matrices(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pointwise convolutions (out, in, 1, 1) as the matrices (out, in) they are, for methods of matrices."""
    return {n: t.flatten(1) if t.ndim == 4 and t.shape[2:] == (1, 1) else t for n, t in weights.items()}


def new(shape: Shape, seed: int) -> EfficientNetLite:
    """A network with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return EfficientNetLite(shape).eval()

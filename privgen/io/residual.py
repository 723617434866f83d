"""Deliver a change of an image at the image's own size: resized, scaled to a quality, and rounded as files are."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privgen.io.pixels import levels_of, luma, resize, resize_image, rows_of_strips


_ROUNDS, _CLOSE_DB, _LARGEST_GAIN = 8, 0.002, 16.0


@dataclass(frozen=True, eq=False)
class ChangedImage:
    """An image with a change that should not be seen.

    Attributes:
        pixels: (3, H, W), the size of the image and, like it, floats in [0, 1] or samples.
        psnr: against the image, in dB; infinite where nothing changed.
        gain: the factor by which the residual was multiplied.
    """

    pixels: Tensor
    psnr: float
    gain: float


def to_canvas(images: Sequence[Tensor], size: int | tuple[int, int]) -> Tensor:
    """Resize images to the model's canvas.

    Args:
        images: each (3, H, W), floats in [0, 1] or samples.
        size: side of a square in pixels, or height and width.

    Returns:
        (B, 3, height, width) in [0, 1].

    Raises:
        ValueError: an image has another shape.
    """
    sides = (size, size) if isinstance(size, int) else size
    return torch.stack([resize_image(check_pixels(pixels), sides).clamp(0, 1) for pixels in images])


def at_psnr(image: Tensor, residual: Tensor, psnr: Tensor) -> Tensor:
    """Add a residual that is scaled to a quality, for each image of a batch.

    Args:
        image: (B, 3, H, W) in [0, 1].
        residual: the same shape.
        psnr: (B,), in dB, of the sum before it is clipped to [0, 1].
    """
    rms = residual.square().mean(dim=(1, 2, 3)).sqrt()
    gain = 10 ** (-psnr / 20) / (rms + 1e-8)
    return (image + gain[:, None, None, None] * residual).clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Layers:
    """A change of an image as a weighted sum of parts, which are enlarged to the image strip by strip.

    Attributes:
        parts: each (3, h, w), or (1, h, w) for the same change of all channels, at any size.
        weights: of the parts.
    """

    parts: tuple[Tensor, ...]
    weights: tuple[float, ...]

    def on(self, image: Tensor) -> Iterator[Tensor]:
        """Yield the change of an image (3, H, W) from top to bottom, strip by strip: (3, rows, W) or (1, rows, W)."""
        enlarged = [_enlarged(part.to(image.device, torch.float32), image) for part in self.parts]
        for strips in zip(*enlarged, strict=True):
            total = self.weights[0] * strips[0]
            for weight, strip in zip(self.weights[1:], strips[1:], strict=True):
                total = total + weight * strip
            yield total


def rms_on(image: Tensor, part: Tensor) -> float:
    """Return the root mean square of a change after it is resized to an image.

    Args:
        image: (3, H, W).
        part: (3, h, w) or (1, h, w).
    """
    return _rms(_enlarged(part.to(image.device, torch.float32), image), image)


def add_residual(
    pixels: Tensor, residual: Tensor | Layers, *, psnr: float | None, grey: bool = False, levels: int | None = None
) -> ChangedImage:
    """Add a residual to an image at the image's own size, strip by strip.

    Args:
        pixels: (3, H, W), floats in [0, 1] or samples of a file.
        residual: (3, h, w), of the image resized to a canvas; or a sum of such.
        psnr: quality of the result in dB, met to about 0.01 dB; None adds the residual as it is. Where clipping leaves
            no room (an image that is all white), the change stays weaker.
        grey: write the residual's luma into all channels, because the image is greyscale.
        levels: round the result to multiples of 1 / levels, as the file will that stores it: 255 or 65535. Samples are
            rounded anyway.

    Raises:
        ValueError: an image of another shape, or a quality that is not positive.
    """
    if psnr is not None and not psnr > 0:
        raise ValueError(f"expected a quality above 0 dB, got {psnr}")
    addition = _Addition(check_pixels(pixels), residual, grey, levels)
    if psnr is None:
        return ChangedImage(addition.result, addition(1.0), 1.0)
    rms = _rms(addition.changes(), pixels)
    gain = 0.0 if rms == 0 else gain_for(psnr, _first_gain(psnr, rms, addition.levels), addition)
    reached = addition(gain) if gain != addition.gain else addition.psnr
    return ChangedImage(addition.result, reached, gain)


class _Addition:
    """Adds a change to an image, with any gain. The result and its quality are those of the last call."""

    def __init__(self, pixels: Tensor, residual: Tensor | Layers, grey: bool, levels: int | None) -> None:
        self.pixels, self.grey, self.levels = pixels, grey, levels_of(pixels) or levels
        self.change = residual if isinstance(residual, Layers) else Layers((residual,), (1.0,))
        self.result = torch.empty_like(pixels, memory_format=torch.preserve_format)
        if 0 in pixels.stride():  # the channels of a grey image share their memory
            self.result = torch.empty(pixels.shape, dtype=pixels.dtype, device=pixels.device)
        self.gain, self.psnr = math.nan, math.nan

    def changes(self) -> Iterator[Tensor]:
        """Yield the change, strip by strip."""
        return (luma(strip) if self.grey and len(strip) == 3 else strip for strip in self.change.on(self.pixels))

    def __call__(self, gain: float) -> float:
        """Add the change times a gain, and return the quality in dB, infinite where nothing changed."""
        scale, top, total = self.levels or 1, 0, 0.0
        samples = levels_of(self.pixels) is not None
        for change in self.changes():
            rows = slice(top, top + change.shape[1])
            plain = self.pixels[:, rows]
            plain = plain.contiguous().float() if samples else plain.float() * scale
            changed = torch.add(plain, change, alpha=gain * scale).clamp_(0, scale)
            if self.levels is not None:
                changed.round_()
            total += float(torch.linalg.vector_norm(changed - plain)) ** 2
            self.result[:, rows] = changed if samples else changed.div_(scale)
            top = rows.stop
        error = total / self.pixels.numel() / scale**2
        self.gain, self.psnr = gain, -10 * math.log10(error) if error > 0 else math.inf
        return self.psnr


def check_pixels(pixels: Tensor) -> Tensor:
    """Check that a tensor is one image, and return it.

    Raises:
        ValueError: its shape is not (3, H, W).
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise ValueError(f"expected pixels of shape (3, height, width), got {tuple(pixels.shape)}")
    return pixels


def _first_gain(psnr: float, rms: float, levels: int | None) -> float:
    """The gain that gives a change of some root mean square a quality, if nothing is clipped."""
    wanted = 10 ** (-psnr / 10)
    rounding = 0.0 if levels is None else 1 / (12 * levels**2)
    return math.sqrt(max(wanted - rounding, wanted / 2)) / rms


def gain_for(psnr: float, first: float, quality: Callable[[float], float]) -> float:
    """The gain with which a change has a quality, found from a first guess by a few fixed-point rounds.

    Args:
        psnr: the quality to meet, in dB.
        first: the gain that would do if nothing were clipped or rounded; 16 times as much is the most.
        quality: the quality in dB that a gain gives.
    """
    gain = first
    for _ in range(_ROUNDS):
        excess = quality(gain) - psnr
        if abs(excess) < _CLOSE_DB:
            break
        gain = min(gain * 10 ** (min(excess, 20) / 20), _LARGEST_GAIN * first)
    return gain


def _rms(strips: Iterable[Tensor], image: Tensor) -> float:
    """The root mean square of a change that comes in strips."""
    total = 0.0
    for strip in strips:
        total += float(torch.linalg.vector_norm(strip)) ** 2 * (3 / len(strip))
    return math.sqrt(total / image.numel())


def _enlarged(part: Tensor, image: Tensor) -> Iterator[Tensor]:
    """Resize a change (C, h, w) to an image, strip by strip."""
    (height, width), rows = image.shape[1:], rows_of_strips(image)
    wide = resize(part[None], (part.shape[1], width))[0]
    if part.shape[1] == height:
        yield from wide.split(rows, dim=1)
        return
    # Each new row is a weighted sum of a few old ones; the weights are what resizing makes of one row at a time.
    old = torch.eye(part.shape[1], device=part.device)
    for weights in resize(old[None, None], (height, part.shape[1]))[0, 0].split(rows):
        used = weights.abs().sum(0).nonzero()
        near = slice(int(used.min()), int(used.max()) + 1)
        yield weights[:, near] @ wide[:, near]

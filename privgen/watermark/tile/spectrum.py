"""The evidence of an image: its whitened spectrum, sampled at the harmonics of a tile in any pose.

Marks are faint, and images are not: most of an image's contrast is in edges, texture and slow shading. So the image is
split into octaves, and each is divided by its own local power, which gives smooth parts the most weight (the matched
filter in noise that varies from place to place). Then the spectrum is divided by its own local level.

Nothing here depends on a key.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, grid_sample, pad

from privgen.io.pixels import floats, levels_of, luma, resize, strips
from privgen.io.residual import check_pixels
from privgen.watermark.tile.pattern import count_below
from privgen.watermark.tile.poses import Poses
from privgen.watermark.tile.wave import harmonics_on


WORK_PIXELS = 2**18
"""Larger images are read from a copy of about so many pixels."""

_KERNEL = (1 / 16, 4 / 16, 6 / 16)  # outer, inner and middle weights of a cubic B-spline
_OCTAVES = 4
_FLOOR = 2e-5  # power of what is there in any image: noise and rounding
_LINES, _LOUDEST, _FEWEST_LINES = 12.0, 4.0, 20  # cycles a tile that `line_energy` reads; power counts up to this
_AT_ONCE = 2**11  # poses whose energy is read at a time
_STRIP = 2**20  # pixels that are shrunk at a time


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """The whitened spectrum of an image about its centre.

    Attributes:
        plane: (1, 2, P, Q) float32, real and imaginary parts; frequency 0 is at (P // 2, Q // 2).
        size: height and width of the image, in pixels.
        work: height and width of the copy that was read.
    """

    plane: Tensor
    size: tuple[int, int]
    work: tuple[int, int]


@torch.no_grad()
def spectrum_of(pixels: Tensor) -> Spectrum:
    """Return the whitened spectrum of an image.

    Args:
        pixels: (3, H, W), floats in [0, 1] or samples of a file.

    Raises:
        ValueError: an image of another shape or type.
    """
    size = check_image(pixels).shape[1], pixels.shape[2]
    evidence = whitened(working_copy(pixels))
    height, width = evidence.shape
    rows, columns = _fast_length(2 * height), _fast_length(2 * width)
    canvas = evidence.new_zeros(rows, columns)
    canvas[:height, :width] = evidence
    # The centre goes to the origin: there the phase of the spectrum changes slowest, and can be interpolated.
    spectrum = torch.fft.fftshift(torch.fft.fft2(canvas.roll((-(height // 2), -(width // 2)), (0, 1))))
    plane = torch.view_as_real(spectrum).permute(2, 0, 1)[None]
    level = plane.square().sum(1, keepdim=True)
    for spacing in (1, 2):
        level = _smooth(level, spacing)
    return Spectrum(plane / (level.sqrt() + 1e-12), size, (height, width))


def sample(spectrum: Spectrum, poses: Poses, count: int) -> Tensor:
    """Read the spectrum where a tile in a given pose has its harmonics.

    Args:
        spectrum: of the image.
        poses: N poses, with sides of tiles in pixels of the working copy.
        count: how many of the `harmonics()` to read, the lowest ones.

    Returns:
        (N, count) complex64; 0 for harmonics that are too fine for the copy.
    """
    place, inside = _places(spectrum.plane, poses, count)
    real, imaginary = grid_sample(spectrum.plane, place[None], align_corners=True)[0]
    return torch.complex(real, imaginary) * inside


@torch.no_grad()
def line_energy(spectrum: Spectrum, poses: Poses) -> Tensor:
    """Return how much more energy than elsewhere a spectrum has at the harmonics of tiles in some poses.

    A periodic mark of any key raises the power there. So these numbers tell, without a key, where marks may be.

    Args:
        spectrum: of the image.
        poses: N poses, see `sample`.

    Returns:
        (N,) float32, in about the same units for all poses.
    """
    power = spectrum.plane.square().sum(1, keepdim=True).clamp(max=_LOUDEST)
    power = power - power.mean()
    energy = [power.new_zeros(0)]
    for part in range(0, len(poses), _AT_ONCE):
        place, inside = _places(power, poses[part : part + _AT_ONCE].to(power.device), count_below(_LINES))
        values = grid_sample(power, place[None], align_corners=True)[0, 0] * inside
        energy.append(values.sum(1) / inside.sum(1).clamp(min=_FEWEST_LINES).sqrt())
    return torch.cat(energy)


def _places(plane: Tensor, poses: Poses, count: int) -> tuple[Tensor, Tensor]:
    """Where harmonics lie in a plane: (N, count, 2) for `grid_sample`, and (N, count) whether they lie in it."""
    rows, columns = plane.shape[2:]
    across, down = (wave[:count] for wave in harmonics_on(plane.device))
    angle, widen = torch.deg2rad(poses.degrees), poses.stretch[:, None].sqrt()
    cos, sin = ((wave / poses.tile)[:, None] for wave in (angle.cos(), angle.sin()))
    x, y = (cos * across + sin * down) / widen, (cos * down - sin * across) * widen  # cycles a pixel
    place = torch.stack(
        [2 * (x * columns + columns // 2) / (columns - 1) - 1, 2 * (y * rows + rows // 2) / (rows - 1) - 1], dim=-1
    )
    return place, (x.abs() < 0.5) & (y.abs() < 0.5)


def check_image(pixels: Tensor) -> Tensor:
    """Check that a tensor is one image, of floats or of samples, and return it.

    Raises:
        ValueError: its shape is not (3, H, W), it holds numbers of another type, or a pixel is not finite.
    """
    if levels_of(check_pixels(pixels)) is not None:
        return pixels
    if not pixels.is_floating_point():
        raise ValueError(f"expected floats in [0, 1], or samples of type uint8 or uint16, got {pixels.dtype}")
    if not pixels.sum(dtype=torch.float32).isfinite():
        raise ValueError("expected finite pixels in [0, 1], got NaN or infinity")
    return pixels


def working_copy(pixels: Tensor) -> Tensor:
    """The luma (h, w) of a copy of bounded size."""
    height, width = pixels.shape[1:]
    block = int(math.sqrt(height * width / WORK_PIXELS) / 2)
    if block > 1:  # average blocks first, strip by strip, so that large images need little memory
        rows = max(1, _STRIP // (width * block)) * block
        grey = torch.cat(
            [avg_pool2d(luma(floats(strip)), block, ceil_mode=True) for strip in pixels.split(rows, dim=1)], dim=1
        )
    else:
        grey = torch.cat([luma(strip) for strip in strips(pixels)], dim=1)
    shrunk = min(1.0, math.sqrt(WORK_PIXELS / (height * width)))
    return resize(grey[None], (max(1, round(height * shrunk)), max(1, round(width * shrunk))))[0, 0]


def whitened(grey: Tensor, power: float = 1.0) -> Tensor:
    """Return the octaves of a plane (h, w), each divided by its local power, added up.

    Args:
        grey: the plane, about in [0, 1].
        power: what the local power is raised to before; 1 is the matched filter, and with 0.5 all places weigh alike.
    """
    rest, evidence = grey[None, None], torch.zeros_like(grey)[None, None]
    for octave in range(_OCTAVES):
        smooth = _smooth(rest, 2**octave)
        detail, rest = rest - smooth, smooth
        evidence += detail / (_smooth(detail.square(), 2**octave) + _FLOOR) ** power
    return evidence[0, 0]


def _smooth(planes: Tensor, spacing: int) -> Tensor:
    """Smooth planes (1, 1, h, w) by the kernel with holes; edges are repeated outwards."""
    outer, inner, middle = _KERNEL
    for dim in (-1, -2):
        reach, length = 2 * spacing, planes.shape[dim]
        padded = pad(planes, (reach, reach, 0, 0) if dim == -1 else (0, 0, reach, reach), mode="replicate")
        a, b, c, d, e = (padded.narrow(dim, i * spacing, length) for i in range(5))
        planes = (a + e).mul_(outer).add_(b + d, alpha=inner).add_(c, alpha=middle)
    return planes


def _fast_length(least: int) -> int:
    """The smallest even length from `least` on that has no prime factor above 5, for which transforms are fast."""
    length = least + least % 2
    while True:
        rest = length
        for factor in (2, 3, 5):
            while rest % factor == 0:
                rest //= factor
        if rest == 1:
            return length
        length += 2

"""Give images the flaws of generated ones: small ones that a judge should ignore, and unrecognisable objects."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from privgen.data.scenes import Scene, draw


Array = NDArray[np.float32]

SPOILINGS = ("smeared", "shuffled", "melted")
"""Ways to make an object unrecognisable."""
_BLUR_REACH = 4  # pixels from the middle of a kernel to its end


def spoil(scene: Scene, which: Sequence[int], rng: np.random.Generator) -> Array:
    """Draw a scene again, with some objects made unrecognisable.

    Args:
        scene: the drawn scene.
        which: indices of the objects to spoil.
        rng: source of randomness.

    Returns:
        (3, size, size) in [0, 1].
    """
    kept = tuple(placed for i, placed in enumerate(scene.spec.objects) if i not in which)
    pixels = draw(replace(scene.spec, objects=kept), scene.pixels.shape[-1]).pixels
    for i in which:
        mask = scene.masks[i]
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (slice(None), slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        layer = np.concatenate([scene.pixels * mask, mask[None]])[box]
        spoilt = _spoil(layer, SPOILINGS[rng.integers(len(SPOILINGS))], rng)
        pixels[box] = np.clip(pixels[box] * (1 - spoilt[3]) + spoilt[:3], 0, 1)
    return pixels


def _spoil(layer: Array, kind: str, rng: np.random.Generator) -> Array:
    """Spoil one object, (4, height, width), whose colours are premultiplied by the last channel, its opacity."""
    if kind == "shuffled":
        return _shuffle(layer, int(rng.integers(3, 5)), rng)
    x = torch.from_numpy(layer)[None]
    if kind == "smeared":
        side = int(rng.integers(3, 8))
        small = F.interpolate(x, (side, side), mode="area")
        x = F.interpolate(small, x.shape[-2:], mode="bilinear", align_corners=False)
    else:
        height, width = layer.shape[1:]
        bend = rng.standard_normal((1, 2, 5, 5), dtype=np.float32) * 0.18 * min(height, width)
        x = warp(x, torch.from_numpy(bend), padding="zeros")
    spoilt: Array = x[0].clamp(0, 1).numpy()
    return spoilt


def _shuffle(layer: Array, n: int, rng: np.random.Generator) -> Array:
    """Cut an object into n x n tiles and exchange them; a rim that no tile covers becomes transparent."""
    channels, height, width = layer.shape
    h, w = height // n, width // n
    tiles = layer[:, : n * h, : n * w].reshape(channels, n, h, n, w).transpose(1, 3, 0, 2, 4)
    tiles = tiles.reshape(n * n, channels, h, w)[rng.permutation(n * n)].reshape(n, n, channels, h, w)
    shuffled = np.zeros_like(layer)
    shuffled[:, : n * h, : n * w] = tiles.transpose(2, 0, 3, 1, 4).reshape(channels, n * h, n * w)
    return shuffled


def warp(
    images: Tensor,
    bend: Tensor,
    *,
    zoom: Tensor | None = None,
    shift: Tensor | None = None,
    padding: str = "reflection",
) -> Tensor:
    """Distort images smoothly.

    Args:
        images: (batch, channels, height, width).
        bend: coarse field of displacements (x, y) in pixels, (batch, 2, rows, columns).
        zoom: by which fraction each image shows more of the scene, or less if negative, (batch,).
        shift: displacement (x, y) of the whole image in pixels, (batch, 2).
        padding: pixels outside the image, as `torch.nn.functional.grid_sample` names them.
    """
    batch, _, height, width = images.shape
    unit = torch.tensor([2 / width, 2 / height]).to(images)
    theta = torch.eye(2, 3).to(images).repeat(batch, 1, 1)
    if zoom is not None:
        theta *= 1 + zoom[:, None, None]
    if shift is not None:
        theta[:, :, 2] = shift * unit
    grid = F.affine_grid(theta, [batch, 1, height, width], align_corners=False)
    field = F.interpolate(bend, (height, width), mode="bilinear", align_corners=False)
    grid = grid + field.permute(0, 2, 3, 1) * unit
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by a Gaussian of its own.

    Args:
        images: (batch, channels, height, width), with sides of more than 4 pixels.
        sigma: standard deviations in pixels, (batch,), at most about 1.5, since the kernels end 4 pixels from their
            middle.
    """
    batch, channels, height, width = images.shape
    offsets = torch.arange(-_BLUR_REACH, _BLUR_REACH + 1).to(images)
    kernel = torch.exp(-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    x = F.pad(images, (_BLUR_REACH,) * 4, mode="reflect").view(1, batch * channels, height + 8, width + 8)
    x = F.conv2d(x, kernel[:, :, :, None], groups=batch * channels)
    x = F.conv2d(x, kernel[:, :, None, :], groups=batch * channels)
    return x.view(images.shape)

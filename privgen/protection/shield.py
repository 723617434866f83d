"""The default protection: one forward pass of a small network shifts what several autoencoders see."""

import os
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

from privgen.errors import PrivgenError
from privgen.io.fingerprints import file_fingerprint, weights_fingerprint
from privgen.io.images import load_image
from privgen.metrics.visibility import TOLERANCE_REACH, tolerance
from privgen.models.loading import explained, quiet_loading
from privgen.models.shield import Shield
from privgen.protection.descent import descend_in_ball
from privgen.protection.encoder import EncoderAttack
from privgen.protection.method import Method
from privgen.protection.surrogate import Surrogate, to_working_size


SHIPPED = Path(__file__).parents[1] / "models" / "shield"
"""Folder of the network that ships."""

_LEAST_TILE = 64  # pixels; smaller tiles are nearly all margin


@dataclass(frozen=True, repr=False)
class ShieldMethod(Method):
    """Draws the change with a network that was trained to shift what several autoencoders see at once.

    One pass takes seconds for a large photograph, and needs no other model. `privgen train shield` trains the network.

    Args:
        network: folder of a trained `privgen.models.shield.Shield`; None is the one that ships.
        size: short side in pixels at which the change is drawn. Adversaries train at about 512 pixels; a change that
            is drawn at the size of a large photograph is gone after they scale it down. Smaller photographs keep
            their size; 0 draws all at their own sizes.
        tile: side in pixels of the parts in which large photographs are worked on, a multiple of 4 and at least 64.
            The result does not depend on it; smaller tiles need less memory and more time.
        toward: image file; after the pass, gradient steps move the latents of the surrogate's autoencoders toward
            those of this image. They take about as long as the encoder attack. None leaves them out.
        steps: number of these gradient steps.

    Raises:
        ValueError: a setting out of its range.
    """

    name: ClassVar[str] = "shield"
    uses_model: ClassVar[bool] = False

    _: KW_ONLY
    network: str | os.PathLike[str] | None = None
    size: int = 512
    tile: int = 384
    toward: str | os.PathLike[str] | None = None
    steps: int = 10

    def __post_init__(self) -> None:
        if self.size < 0 or 0 < self.size < 16 or self.size % 8:
            raise ValueError(f"expected a size of 0 or at least 16 pixels, a multiple of 8, got {self.size}")
        if self.tile < _LEAST_TILE or self.tile % 4:
            raise ValueError(f"expected tiles of at least {_LEAST_TILE} pixels, a multiple of 4, got {self.tile}")
        if self.steps < 1:
            raise ValueError(f"expected steps >= 1, got {self.steps}")
        # Files are made anew for other autoencoders only if these count.
        object.__setattr__(self, "uses_model", self.toward is not None)

    def prepare(self, surrogate: Surrogate) -> None:
        load_shield(self.network)
        if self.toward is not None:
            load_image(self.toward)
            _ = surrogate.encoders

    def made_by(self) -> str:
        decoy = "" if self.toward is None else f", image={file_fingerprint(Path(self.toward))[:16]}"
        return f"{self!r}, weights={weights_fingerprint(load_shield(self.network))[:16]}{decoy}"

    @torch.no_grad()
    def change(self, pixels: Tensor, surrogate: Surrogate, rms: float, generator: torch.Generator) -> Tensor:
        network = load_shield(self.network).to(surrogate.device)
        smaller = 0 < self.size < min(pixels.shape[-2:])
        small = to_working_size(pixels, self.size) if smaller else pixels
        noise = torch.randn(small[:, :1].shape, generator=generator)
        drawn = draw_change(network, small, noise, tile=self.tile)
        if self.toward is None:
            return drawn
        attack = EncoderAttack(toward=self.toward)
        start = (rms / drawn.square().mean().sqrt().clamp(min=1e-12) * drawn).to(surrogate.device)
        near = small.to(start)
        loss = attack.objective(near, surrogate, generator)
        return descend_in_ball(near, loss, rms=rms, steps=self.steps, generator=generator, start=start)


def load_shield(folder: str | os.PathLike[str] | None = None) -> Shield:
    """Load the network of the shield, in float32 and evaluation mode. Later calls give the same network.

    Args:
        folder: that `privgen train shield` has written, its `model`; None is the network that ships.

    Raises:
        PrivgenError: the folder holds no such network.
    """
    source = Path(folder) if folder is not None else SHIPPED
    if not (source / "config.json").is_file():
        raise PrivgenError(f"There is no shield in {source}; train one with `privgen train shield`.")
    weights = source / SAFETENSORS_WEIGHTS_NAME
    return _load(source, weights.stat().st_mtime_ns if weights.is_file() else 0)


@lru_cache(maxsize=2)
def _load(source: Path, changed: int) -> Shield:
    """The network of a folder, kept for the next image. `changed` is when its weights were written."""
    with quiet_loading(), explained(str(source), "load"):
        network: Shield = Shield.from_pretrained(source, use_safetensors=True, torch_dtype=torch.float32)
    return network.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def shield_pattern(network: Shield, pixels: Tensor, noise: Tensor) -> Tensor:
    """The change before its size is set: the network's pattern, strong where the image hides it.

    Args:
        network: draws the pattern.
        pixels: (B, 3, H, W) in [0, 1], on the network's device.
        noise: (B, 1, H, W), of the standard normal law, on the network's device.

    Returns:
        (B, 3, H, W), zero on average over each channel, of a size that means nothing.
    """
    pattern = network(pixels, noise) * tolerance(pixels)
    return pattern - pattern.mean(dim=(-2, -1), keepdim=True)


@torch.no_grad()
def draw_change(network: Shield, pixels: Tensor, noise: Tensor, *, tile: int) -> Tensor:
    """The same as `shield_pattern`, part by part, so that a large photograph needs little memory.

    Each tile is worked on with a margin that is as wide as the network reaches, so no seam is to be seen.

    Args:
        network: draws the pattern.
        pixels: (1, 3, H, W) in [0, 1].
        noise: (1, 1, H, W), of the standard normal law.
        tile: side of the parts in pixels, a multiple of the network's patch.

    Returns:
        (1, 3, H, W), on the CPU.
    """
    patch = network.config.patch
    margin = -(-(network.reach + TOLERANCE_REACH) // patch) * patch  # keeps tiles on the grid of the cells
    drawn = torch.empty(pixels.shape)
    height, width = pixels.shape[-2:]
    for rows, outer_rows in _spans(height, tile, margin):
        for columns, outer_columns in _spans(width, tile, margin):
            part, grain = (x[..., outer_rows, outer_columns].to(network.device) for x in (pixels, noise))
            pattern = network(part, grain) * tolerance(part)
            top, left = rows.start - outer_rows.start, columns.start - outer_columns.start
            inner = pattern[..., top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]
            drawn[..., rows, columns] = inner.cpu()
    return drawn.sub_(drawn.mean(dim=(-2, -1), keepdim=True))


def _spans(length: int, tile: int, margin: int) -> Iterator[tuple[slice, slice]]:
    """Split a side into tiles; gives each, and the same with its margins."""
    for start in range(0, length, tile):
        stop = min(start + tile, length)
        yield slice(start, stop), slice(max(start - margin, 0), min(stop + margin, length))

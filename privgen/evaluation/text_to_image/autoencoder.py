"""How faithfully does an autoencoder reproduce scenes, photographs and faint textures?"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from privgen.data.patterns import TEXTURES, texture
from privgen.data.photos import load_photos, random_crop
from privgen.data.scenes import TEXTURE_RMS, draw_scene
from privgen.diffusion.latents import decode, encode
from privgen.evaluation.intervals import Measured, mean
from privgen.io.progress import Bar
from privgen.metrics.quality import psnr


def heldout_photos() -> Path:
    """The folder of packaged photographs that no shipped model has seen."""
    return Path(str(files("privgen"))) / "data" / "photos" / "heldout"


@torch.no_grad()
def reconstruct(vae: Any, images: Tensor, *, batch_size: int = 8, progress: str = "") -> Tensor:
    """Encode images to the mean of the encoder's distribution, and decode them.

    Args:
        vae: an autoencoder of Diffusers.
        images: (batch, 3, height, width) in [0, 1].
        batch_size: images at a time.
        progress: text of a progress bar on standard error; an empty text shows no bar.

    Returns:
        The same shape in float32 on the CPU, not clipped.
    """
    batches: Bar[Tensor] = Bar(images.split(batch_size), desc=progress, unit="batch", disable=not progress)
    return torch.cat([decode(vae, encode(vae, x)).cpu() for x in batches])


def psnr_of_scenes(vae: Any, n: int, seed: int, size: int) -> Measured:
    """The mean PSNR of scenes after an autoencoder, in dB.

    Args:
        vae: an autoencoder of Diffusers.
        n: how many scenes.
        seed: of the first scene.
        size: side in pixels.
    """
    return _psnr(vae, "autoencoder, scenes", [draw_scene(seed + i, size=size).pixels for i in range(n)])


def psnr_of_crops(vae: Any, seed: int, size: int, folder: Path) -> Measured:
    """The mean PSNR of crops of photographs after an autoencoder, in dB.

    Each photograph gives one square at a random place and zoom, as in training.

    Args:
        vae: an autoencoder of Diffusers.
        seed: of places and zooms. Zooms are log-uniform, from the photograph's own pixels to the whole photograph.
        size: side in pixels.
        folder: of the photographs.
    """
    photos = load_photos(folder)
    rngs = [np.random.Generator(np.random.PCG64([seed, i])) for i in range(len(photos))]
    crops = [random_crop((photo,), size, rng) for photo, rng in zip(photos, rngs, strict=True)]
    return _psnr(vae, "autoencoder, crops", crops)


def psnr_of_whole_photos(vae: Any, size: int, folder: Path) -> Measured:
    """The mean PSNR of whole photographs after an autoencoder, in dB.

    Each photograph gives the largest square in its middle, resized. This is harder than crops.

    Args:
        vae: an autoencoder of Diffusers.
        size: side in pixels.
        folder: of the photographs.
    """
    return _psnr(vae, "autoencoder, photographs", [_whole(photo, size) for photo in load_photos(folder)])


def texture_gain(vae: Any, n: int, seed: int, size: int) -> Measured:
    """How much of a faint texture an autoencoder preserves; 1 is all of it.

    For a scene x and a texture w with the contrast of training scenes, this is <D(E(x + w)) - D(E(x)), w> / |w|^2.

    Args:
        vae: an autoencoder of Diffusers.
        n: how many scenes; they take the textures in turn.
        seed: of the first scene.
        size: side in pixels.
    """
    x = torch.from_numpy(np.stack([draw_scene(seed + i, size=size, textured=False).pixels for i in range(n)]))
    fields = np.stack([TEXTURE_RMS * texture(TEXTURES[i % len(TEXTURES)], size) for i in range(n)])
    w = torch.from_numpy(fields)[:, None]
    difference = reconstruct(vae, x + w) - reconstruct(vae, x)
    return mean((difference * w).mean((1, 2, 3)) / w.square().mean((1, 2, 3)))


def _psnr(vae: Any, progress: str, pixels: list[NDArray[np.float32]]) -> Measured:
    images = torch.from_numpy(np.stack(pixels))
    return mean(psnr(reconstruct(vae, images, progress=progress).clamp(0, 1), images))


def _whole(photo: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    height, width = photo.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(photo[top : top + side, left : left + side])
    pixels = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))

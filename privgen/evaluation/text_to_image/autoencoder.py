"""How faithful a pipeline's autoencoder is, to scenes, to photographs and to faint textures."""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from privgen.data.patterns import TEXTURES, texture
from privgen.data.photos import load_photos, random_crop
from privgen.data.scenes import TEXTURE_RMS, draw_scene
from privgen.evaluation.intervals import Measured, mean
from privgen.metrics.quality import psnr


def heldout_photos() -> Path:
    """The packaged photographs that no shipped model has seen."""
    return Path(str(files("privgen"))) / "data" / "photos" / "heldout"


@torch.no_grad()
def reconstruct(vae: Any, images: Tensor, *, batch_size: int = 8, progress: str = "") -> Tensor:
    """Encode pictures, to the mean of the encoder's distribution, and decode them.

    Args:
        vae: an autoencoder of Diffusers.
        images: (batch, 3, height, width) in [0, 1].
        batch_size: pictures at a time.
        progress: what the progress bar on standard error says; without it there is none.

    Returns:
        The same shape in float32 on the CPU, not clipped.
    """
    decoded = []
    for x in tqdm(images.split(batch_size), desc=progress, unit="batch", disable=not progress):
        posterior = vae.encode((2 * x - 1).to(vae.device, vae.dtype)).latent_dist
        decoded.append(vae.decode(posterior.mode()).sample.float().cpu() / 2 + 0.5)
    return torch.cat(decoded)


def psnr_of_scenes(vae: Any, n: int, seed: int, size: int) -> Measured:
    """Mean PSNR in dB of scenes that went through an autoencoder.

    Args:
        vae: an autoencoder of Diffusers.
        n: number of scenes.
        seed: of the first scene.
        size: side in pixels.
    """
    return _psnr(vae, "autoencoder, scenes", [draw_scene(seed + i, size=size).pixels for i in range(n)])


def psnr_of_crops(vae: Any, seed: int, size: int, folder: Path) -> Measured:
    """Mean PSNR in dB of photographs: of each one square at a random place and zoom, drawn as training draws them.

    Args:
        vae: an autoencoder of Diffusers.
        seed: of places and zooms, which lie log-uniformly between the photograph's own pixels and all of it.
        size: side in pixels.
        folder: of the photographs.
    """
    photos = load_photos(folder)
    rngs = [np.random.Generator(np.random.PCG64([seed, i])) for i in range(len(photos))]
    crops = [random_crop((photo,), size, rng) for photo, rng in zip(photos, rngs, strict=True)]
    return _psnr(vae, "autoencoder, crops", crops)


def psnr_of_whole_photos(vae: Any, size: int, folder: Path) -> Measured:
    """Mean PSNR in dB of photographs: of each the largest square in its middle, resized; the harder of the two.

    Args:
        vae: an autoencoder of Diffusers.
        size: side in pixels.
        folder: of the photographs.
    """
    return _psnr(vae, "autoencoder, photographs", [_whole(photo, size) for photo in load_photos(folder)])


def texture_gain(vae: Any, n: int, seed: int, size: int) -> Measured:
    """How much of a faint texture an autoencoder lets through: 1 for all of it.

    For a scene x and a texture w of the contrast that scenes have: <D(E(x + w)) - D(E(x)), w> / |w|^2.

    Args:
        vae: an autoencoder of Diffusers.
        n: number of scenes, each with the next texture in turn.
        seed: of the first scene.
        size: side in pixels.
    """
    x = torch.from_numpy(np.stack([draw_scene(seed + i, size=size, textured=False).pixels for i in range(n)]))
    fields = np.stack([TEXTURE_RMS * texture(TEXTURES[i % len(TEXTURES)], size) for i in range(n)])
    w = torch.from_numpy(fields)[:, None]
    difference = reconstruct(vae, x + w) - reconstruct(vae, x)
    return mean((difference * w).mean((1, 2, 3)) / w.square().mean((1, 2, 3)))


def _psnr(vae: Any, what: str, pictures: list[NDArray[np.float32]]) -> Measured:
    images = torch.from_numpy(np.stack(pictures))
    return mean(psnr(reconstruct(vae, images, progress=what).clamp(0, 1), images))


def _whole(photo: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    height, width = photo.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(photo[top : top + side, left : left + side])
    pixels = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS), np.float32) / 255
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))

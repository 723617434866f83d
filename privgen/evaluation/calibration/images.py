"""Images without a mark: drawn scenes, images that a model made, and photographs; as they are and distorted."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from privgen.attacks import Attack, Sequence, parse_attack
from privgen.data.scenes import PREVIEW_SEED, draw, sample_spec
from privgen.errors import UsageError
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.evaluation.watermark.generation import Generation, as_saved
from privgen.evaluation.watermark.marking import evenly
from privgen.io.files import iter_image_files
from privgen.io.fingerprints import file_fingerprint, seed_from
from privgen.io.images import load_image
from privgen.watermark.networks import Networks


CLEAN = "clean"
DISTORTIONS: dict[str, Attack | Sequence | None] = {
    CLEAN: None,
    "jpeg_50": parse_attack("jpeg=50"),
    "crop_half": parse_attack("crop=0.5"),
    "resize_half": parse_attack("scale=0.5"),
    "noise": parse_attack("noise=0.025"),
    "blur": parse_attack("blur=2"),
}
"""What images go through before they are read, by the name that results call it."""


@dataclass(frozen=True)
class Unmarked:
    """An image without a mark, which is made or loaded when it is asked for.

    Attributes:
        source: where it comes from: "scenes" are drawn, "generated" are made by the model, "photographs" are packaged,
            and "folder" are the user's own.
        name: tells it from all others of its source: a number, or the digest of a file.
        load: returns its pixels (3, H, W) in [0, 1].
    """

    source: str
    name: str
    load: Callable[[], Tensor] = field(repr=False)

    def distorted(self, pixels: Tensor, distortion: str) -> Tensor:
        """Return its pixels after a distortion of `DISTORTIONS`, as a file with 8 bits a channel keeps them."""
        attack = DISTORTIONS[distortion]
        if attack is None:
            return pixels
        generator = torch.Generator().manual_seed(seed_from(self.source, self.name, distortion))
        return as_saved(attack(pixels[None], generator=generator)[0])


def unmarked_images(networks: Networks, n: int, seed: int, folder: Path | None) -> list[Unmarked]:
    """Up to n images of each source.

    Args:
        networks: their pipeline makes images.
        n: images of each source; fewer photographs if there are fewer.
        seed: of scenes and noise.
        folder: of more images; None for none.

    Raises:
        UsageError: the folder holds no images, or does not exist.
        PrivgenError: an image cannot be read.
    """
    if folder is not None and not folder.is_dir():
        raise UsageError(f"There is no folder {folder}; name one that holds images.")
    images = [Unmarked("scenes", str(i), partial(_drawn, seed, i)) for i in range(n)]
    images += [Unmarked("generated", str(i), partial(_generated, networks, seed, i)) for i in range(n)]
    images += _files("photographs", heldout_photos(), n)
    return images if folder is None else images + _files("folder", folder, n)


def _drawn(seed: int, number: int) -> Tensor:
    spec = sample_spec(PREVIEW_SEED + 1_000_000 * seed + number)
    return as_saved(torch.from_numpy(draw(spec).pixels))


def _generated(networks: Networks, seed: int, number: int) -> Tensor:
    return Generation(networks.pipeline, seed).images([number])[0]


def _files(source: str, folder: Path, n: int) -> list[Unmarked]:
    paths = evenly(iter_image_files([folder]), n)
    return [Unmarked(source, file_fingerprint(path)[:16], partial(_loaded, path)) for path in paths]


def _loaded(path: Path) -> Tensor:
    return load_image(path).pixels

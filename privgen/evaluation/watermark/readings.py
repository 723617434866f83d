"""What an extractor reads from images: as they are, and after attacks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from privgen.attacks import Attack, get_attack
from privgen.evaluation.watermark.generation import as_saved
from privgen.watermark.protocols import ExtractorLike
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.logits import read_logits


Bits: TypeAlias = NDArray[np.uint8]
"""(images, n_bits) of 0 and 1."""

Weighed: TypeAlias = NDArray[np.int8]
"""(images, n_bits) as `privgen.watermark.read.bits.weigh_bits` returns them: signs are bits, sizes their weights."""

Readings: TypeAlias = Mapping[str, Weighed]
"""What was read, by name of the attack; `CLEAN` is without one."""

CLEAN = "clean"

RATES = {"1e-3": 1e-3, "1e-6": 1e-6}
"""False-positive rates at which detections are counted, by the name that results call them."""

ATTACKS: dict[str, Attack] = {
    "jpeg_75": get_attack("jpeg", strength=75),
    "blur_1": get_attack("blur", strength=1, reference=None),
    "brightness_1_5": get_attack("brightness", strength=1.5),
}
"""Mild attacks, by the name that results call them; the blur's radius is in pixels of the image itself."""


def read(images: Iterable[Tensor], extractor: ExtractorLike) -> Readings:
    """Read images as they are, and as they are saved after each attack.

    Args:
        images: each (3, H, W) in [0, 1], of any size; (B, 3, H, W) is B of them.
        extractor: images to logits.

    Returns:
        For `CLEAN` and each of `ATTACKS` an array (images, n_bits), see `Weighed`.
    """
    pixels = list(images)
    readings = {CLEAN: weigh_bits(read_logits(pixels, extractor))}
    for name, attack in ATTACKS.items():
        attacked = [as_saved(attack(image[None])[0]) for image in pixels]
        readings[name] = weigh_bits(read_logits(attacked, extractor))
    return readings


def joined(parts: Sequence[Readings]) -> Readings:
    """The readings of several batches as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

"""Watermarks of photographs in a comparison: ours as users call it, and baselines at the sizes that suit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from privgen import __version__
from privgen.evaluation.robustness.contestants import Contestant, Findings, MarkingMethod
from privgen.evaluation.robustness.photographs.images import Photographs
from privgen.io.fingerprints import bytes_fingerprint
from privgen.io.images import from_pil, to_pil
from privgen.io.pixels import resize
from privgen.watermark.key import Key, Secret
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.detection import Detection
from privgen.watermark.read.p_values import p_values_of
from privgen.watermark.watermark import Watermark
from privgen.watermark.write.mark_spec import Carrier


NAME = "privgen"
"""The name that results give our marks."""


@dataclass(frozen=True)
class FrontDoor:
    """Marks and detects as `privgen.Watermark` does for any user.

    Attributes:
        mark: of a model.
        carrier: what the mark is written with and read as; None is the default of each.
        robust_steps: see `privgen.Watermark.embed`.
        search: whether marks are also looked for in parts of images, and in images that were turned or resized.
    """

    mark: Watermark = field(repr=False)
    carrier: Carrier | None = None
    robust_steps: int = 0
    search: bool = True

    def embed(self, picture: Image.Image, key: Key, *, check: bool = False) -> Image.Image:
        """The picture with the mark of a key, at its own size.

        Args:
            picture: a photograph.
            key: whose mark.
            check: read the mark back and warn of a picture that cannot carry it, as `privgen.Watermark` does.
        """
        return self.mark.embed(picture, key, carrier=self.carrier, robust_steps=self.robust_steps, check=check)

    def detect(self, picture: Image.Image, key: Key, *, search: bool) -> Detection:
        """What a picture says about a key."""
        found: Detection = self.mark.detect(picture, key, search=search, carrier=self.carrier)
        return found

    def look_for(self, images: Tensor, keys: Sequence[Key], size: tuple[int, int]) -> Findings:
        """Look for a key in each image, whose size when it was marked is not told.

        Args:
            images: (B, 3, H, W) in [0, 1].
            keys: B keys.
            size: not used.
        """
        found = [self.detect(to_pil(x), key, search=self.search) for x, key in zip(images, keys, strict=True)]
        bits = np.array([[2 * int(bit) - 1 for bit in one.bits] for one in found], np.int8)
        return Findings(bits, [1] * len(found), [float(one.p_value) for one in found])

    def contestant(self, photographs: Photographs) -> Contestant:
        """The marks of these photographs in a comparison."""

        def mark(numbers: Sequence[int], plain: Tensor, keys: Sequence[Key]) -> Tensor:
            [number], [key] = numbers, keys
            return _pixels(self.embed(photographs.picture(number), key))

        identity, n_bits = self._tried()
        return Contestant(NAME, n_bits, identity, mark, self)

    def _tried(self) -> tuple[str, int]:
        """What identifies marks and readings, and the length of the message, both by marking a small image.

        So a log of marks that were written or read in another way is not taken up.
        """
        key = Key("tried", Secret(bytes(range(32))))
        coarse = torch.rand(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
        picture = to_pil(F.interpolate(coarse, scale_factor=16, mode="bicubic").clamp(0, 1)[0])
        marked = self.embed(picture, key)
        part = marked.crop((0, 0, marked.width * 7 // 8, marked.height * 7 // 8))
        found = self.detect(part, key, search=self.search)
        written = bytes_fingerprint(marked.tobytes())[:16]
        return f"{__version__} {self!r} {written} {found.bits} {found.p_value:.2g}", found.n_bits


@dataclass(frozen=True)
class AtTwoSizes:
    """Reads a baseline's marks in images as they are, and resized to the size in which they were marked.

    Baselines do not look for marks at other sizes, so they are told the size that ours are not told. The better of the
    two readings counts, with twice its p-value. Images that kept their size are read once. A size at which an image is
    too small for the message is passed over.

    Attributes:
        method: the baseline.
    """

    method: MarkingMethod

    def look_for(self, images: Tensor, keys: Sequence[Key], size: tuple[int, int]) -> Findings:
        """Look for a key in each image; see `privgen.evaluation.robustness.contestants.KeyReader`."""
        best = [self._read(image[None], key, size) for image, key in zip(images, keys, strict=True)]
        return Findings(np.stack([bits for bits, _ in best]), [places for _, places in best], [None] * len(best))

    def _read(self, image: Tensor, key: Key, size: tuple[int, int]) -> tuple[np.ndarray, int]:
        """The better reading of one image, and how many there were."""
        tried = [image] if tuple(image.shape[-2:]) == size else [image, resize(image, size).clamp(0, 1)]
        readings: list[tuple[float, np.ndarray]] = []
        for pixels in tried:
            try:
                bits = weigh_bits(self.method.read(pixels))
            except ValueError:
                continue
            readings.append((float(p_values_of(bits, [key.bits(self.method.n_bits)], "weighted")[0, 0]), bits[0]))
        return min(readings, key=lambda reading: reading[0])[1], len(readings)


def at_two_sizes(contestant: Contestant, method: MarkingMethod) -> Contestant:
    """A baseline whose marks are read as `AtTwoSizes` does."""
    return replace(contestant, identity=f"{contestant.identity} at two sizes", reader=AtTwoSizes(method))


def _pixels(picture: Image.Image) -> Tensor:
    """The pixels of a Pillow image, (1, 3, H, W) in [0, 1]."""
    return from_pil(picture).pixels[None]

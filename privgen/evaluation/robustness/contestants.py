"""Watermarks in a comparison: each marks images with bits, and reads bits from images.

A method that marks existing pixels is a `MarkingMethod`. Ours marks images while they are generated. Both become a
`Contestant`, so that a comparison treats them alike: image by image, on the same scenes and from the same noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from privgen.errors import PrivgenError
from privgen.evaluation.watermark.generation import Generation, as_saved
from privgen.evaluation.watermark.model import WatermarkModel
from privgen.evaluation.watermark.readings import Bits, Weighed
from privgen.io.fingerprints import weights_fingerprint
from privgen.watermark.key import Key
from privgen.watermark.protocols import N_BITS, ExtractorLike, config_value
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.logits import read_logits, to_reader
from privgen.watermark.read.search import SEARCH, AlignedReader
from privgen.watermark.write.mark_spec import NetworkCarrier


Reader: TypeAlias = Callable[[Tensor], Tensor]
"""Maps (B, 3, H, W) in [0, 1] to logits (B, n_bits), positive for 1. Rows of an earlier run are used again only if the
repr of its reader was the same."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What images say about a key each.

    Attributes:
        weighed: (B, n_bits) weighed bits, read where the key matches best.
        places: for each image the factor by which the search multiplies p-values.
        p_values: for each image the p-value that the reader itself gives, corrected for its search; None where it
            follows from `weighed` and `places`.
    """

    weighed: Weighed
    places: Sequence[int]
    p_values: Sequence[float | None]


@runtime_checkable
class KeyReader(Protocol):
    """Looks for one key in each image, and may try several places or sizes. Its repr is as for `Reader`."""

    def look_for(self, images: Tensor, keys: Sequence[Key], size: tuple[int, int]) -> Findings:
        """Look for a key in each image.

        Args:
            images: (B, 3, H, W) in [0, 1].
            keys: B keys.
            size: height and width that the images had when they were marked.
        """
        ...


class MarkingMethod(Protocol):
    """A watermark on existing images. Its repr must name everything that its marks depend on."""

    @property
    def name(self) -> str:
        """The name that results use."""
        ...

    @property
    def n_bits(self) -> int:
        """Bits of a message."""
        ...

    def embed(self, images: Tensor, bits: Tensor) -> Tensor:
        """Mark images.

        Args:
            images: (B, 3, H, W) in [0, 1].
            bits: (B, n_bits) of 0 and 1.

        Returns:
            The shape and range of `images`.

        Raises:
            ValueError: shapes that do not fit, or images that are too small for so many bits.
        """
        ...

    def read(self, images: Tensor) -> Tensor:
        """Read images.

        Args:
            images: (B, 3, H, W) in [0, 1], marked or not.

        Returns:
            (B, n_bits), positive for 1.
        """
        ...


@dataclass(frozen=True)
class ExtractorReader:
    """Reads with an extractor, as `privgen watermark detect` does without a search.

    Args:
        extractor: images to logits.
    """

    extractor: ExtractorLike

    def __call__(self, images: Tensor) -> Tensor:
        return read_logits(images, self.extractor)

    def __repr__(self) -> str:
        network = self.extractor
        known = weights_fingerprint(network)[:8] if isinstance(network, torch.nn.Module) else "unknown"
        return f"ExtractorReader({type(network).__name__}_{known})"


@dataclass(frozen=True)
class SearchingReader:
    """Reads as `privgen watermark detect --search` does, also images that were cut out or turned.

    Args:
        aligned: extractor and aligner.
        fpr: an image is searched only if its key is not found at this false-positive rate without a search.
    """

    aligned: AlignedReader
    fpr: float = 1e-6

    def __call__(self, images: Tensor) -> Tensor:
        return read_logits(images, self.aligned.extractor)

    def look_for(self, images: Tensor, keys: Sequence[Key], size: tuple[int, int]) -> Findings:
        """Look for a key in each image; see `KeyReader`."""
        n_bits = int(config_value(self.aligned.extractor, "n_bits", N_BITS))
        messages = torch.tensor([key.bits(n_bits) for key in keys])
        small = torch.stack([to_reader(image, self.aligned.extractor) for image in images])
        aspect = images.shape[-1] / images.shape[-2]
        found = self.aligned(small, messages[:, None], fpr=self.fpr, aspect=aspect)
        return Findings(weigh_bits(found.logits[:, 0]), found.places[:, 0].tolist(), [None] * len(images))

    def __repr__(self) -> str:
        networks = [weights_fingerprint(network)[:8] for network in (self.aligned.extractor, self.aligned.aligner)]
        return f"SearchingReader({'_'.join(networks)}, {SEARCH}, {self.fpr:g})"


@dataclass(frozen=True, eq=False)
class Contestant:
    """A watermark in a comparison.

    Attributes:
        name: the name that results use.
        n_bits: bits of a message.
        identity: names everything that its marks and readings depend on beside the images.
        mark: maps the numbers of images, these images without a mark (B, 3, H, W), and a key for each to marked images
            as they are saved.
        reader: reads the marks. Methods that share a reader read unmarked images once.
        slow: whether presets give the method fewer images, because it is slow.
    """

    name: str
    n_bits: int
    identity: str
    mark: Callable[[Sequence[int], Tensor, Sequence[Key]], Tensor] = field(repr=False)
    reader: Reader | KeyReader = field(repr=False)
    slow: bool = False

    def messages(self, keys: Sequence[Key]) -> Bits:
        """The messages of keys: (keys, n_bits) of 0 and 1."""
        return np.array([key.bits(self.n_bits) for key in keys], np.uint8)


def read_weighed(reader: Reader, images: Tensor) -> Weighed:
    """The weighed bits that a reader gives for images: (B, n_bits)."""
    with torch.no_grad():
        return weigh_bits(reader(images))


def reader_of(model: WatermarkModel, search: bool | None = None) -> Reader | KeyReader:
    """What reads a model's marks.

    Args:
        model: its extractor reads images as they are.
        search: also look for marks in images that were cut out or turned; None does so if the model has an aligner.

    Raises:
        PrivgenError: a search was asked for, and the model has no aligner.
    """
    if search is not False:
        try:
            return SearchingReader(AlignedReader(model.networks.extractor, model.networks.aligner))
        except PrivgenError:
            if search:
                raise
    return ExtractorReader(model.extractor)


def on_generated(
    carrier: NetworkCarrier, generation: Generation, model: WatermarkModel, reader: Reader | KeyReader
) -> Contestant:
    """Our mark, written while an image is generated.

    Args:
        carrier: what it is written with; the model has it.
        generation: the images.
        model: writes the marks.
        reader: reads them.
    """

    def mark(numbers: Sequence[int], plain: Tensor, keys: Sequence[Key]) -> Tensor:
        with model.marking(generation, keys, carrier):
            return generation.images(numbers)

    mapper = model.networks.mapper(carrier)
    settings = {key: value for key, value in dict(getattr(mapper, "config", {})).items() if not key.startswith("_")}
    identity = f"{carrier} {weights_fingerprint(mapper)[:8]} {settings} {reader!r}"
    if steps := model.spec(carrier).robust_steps:
        identity += f" fitted in {steps} steps to {ExtractorReader(model.extractor)!r}"
    n_bits = int(config_value(model.extractor, "n_bits", N_BITS))
    return Contestant(carrier, n_bits, identity, mark, reader)


def on_pixels(method: MarkingMethod, *, slow: bool = False, version: str = "") -> Contestant:
    """A mark that another method writes on existing images.

    Args:
        method: marks and reads.
        slow: see `Contestant`.
        version: of the package that the method comes from.
    """

    def mark(numbers: Sequence[int], plain: Tensor, keys: Sequence[Key]) -> Tensor:
        return as_saved(method.embed(plain, torch.tensor([key.bits(method.n_bits) for key in keys])))

    return Contestant(method.name, method.n_bits, f"{method!r} {version}", mark, method.read, slow)

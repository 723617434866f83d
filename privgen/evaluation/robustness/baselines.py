"""Watermarks of other packages, as a `MarkingMethod`: invisible-watermark (MIT) and blind-watermark (MIT).

Both come with the extra `baselines`. We use their inner classes, because the outer ones of invisible-watermark refuse
images below 256 x 256 pixels, and those of blind-watermark print to standard output. Marks and decisions on bits are
the packages' own, with their defects and defaults; they get 8-bit BGR images, as they expect.

Each writes one bit into a block of 8 x 8 pixels, and repeats the message over the image. An image of 128 x 128 pixels
has 256 blocks, so a message of 48 bits is there five times in a channel. dwtDct and dwtDctSvd write into one channel,
blind_watermark into three. rivaGan is a network for 32 bits.
"""

from __future__ import annotations

import importlib
import multiprocessing
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privgen.errors import UsageError
from privgen.evaluation.robustness.contestants import Contestant, MarkingMethod, on_pixels


BLOCK = 8
"""Side in pixels of the block that carries one bit."""

SLOW = ("rivaGan",)
"""Methods that take tenths of a second for a small image, because they are networks."""


@dataclass(frozen=True)
class _Baseline:
    """What all baselines share: they take 8-bit images, one at a time."""

    name: ClassVar[str]
    package: ClassVar[str]

    n_bits: int = 48

    def __post_init__(self) -> None:
        if self.n_bits < 1:
            raise ValueError(f"{self.name}: expected at least one bit, got {self.n_bits}")

    def embed(self, images: Tensor, bits: Tensor) -> Tensor:
        if bits.shape != (len(images), self.n_bits):
            raise ValueError(f"{self.name}: expected bits {(len(images), self.n_bits)}, got {tuple(bits.shape)}")
        self._check_capacity(images)
        pairs = zip(to_bgr(images), bits.cpu().numpy().astype(np.int64), strict=True)
        return from_bgr([self._embed(image, row) for image, row in pairs]).to(images)

    def read(self, images: Tensor) -> Tensor:
        self._check_capacity(images)
        rows = [np.asarray(self._read(image), np.float32) for image in to_bgr(images)]
        return torch.from_numpy(2 * np.stack(rows) - 1)

    def _check_capacity(self, images: Tensor) -> None:
        blocks = (images.shape[-2] // BLOCK) * (images.shape[-1] // BLOCK)
        if blocks <= self.n_bits:
            size = "x".join(map(str, images.shape[-2:]))
            raise ValueError(
                f"{self.name}: expected more blocks of {BLOCK} x {BLOCK} pixels than the {self.n_bits} bits, "
                f"got {blocks} in an image of {size}; use larger images, or fewer bits"
            )

    def _embed(self, image: NDArray[np.uint8], bits: NDArray[np.int64]) -> NDArray[Any]:
        raise NotImplementedError

    def _read(self, image: NDArray[np.uint8]) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class DwtDct(_Baseline):
    """Wavelet and cosine transform; the largest coefficient of a block is quantised."""

    name = "dwtDct"
    package = "invisible-watermark"

    def _embed(self, image: NDArray[np.uint8], bits: NDArray[np.int64]) -> NDArray[Any]:
        encoder = _imported("imwatermark.maxDct", self).EmbedMaxDct(bits.tolist(), wmLen=self.n_bits)
        return np.asarray(encoder.encode(image))

    def _read(self, image: NDArray[np.uint8]) -> Any:
        return _imported("imwatermark.maxDct", self).EmbedMaxDct([], wmLen=self.n_bits).decode(image)


@dataclass(frozen=True)
class DwtDctSvd(_Baseline):
    """As `DwtDct`, with the largest singular value of a block."""

    name = "dwtDctSvd"
    package = "invisible-watermark"

    def _embed(self, image: NDArray[np.uint8], bits: NDArray[np.int64]) -> NDArray[Any]:
        encoder = _imported("imwatermark.dwtDctSvd", self).EmbedDwtDctSvd(bits.tolist(), wmLen=self.n_bits)
        return np.asarray(encoder.encode(image))

    def _read(self, image: NDArray[np.uint8]) -> Any:
        return _imported("imwatermark.dwtDctSvd", self).EmbedDwtDctSvd([], wmLen=self.n_bits).decode(image)


@dataclass(frozen=True)
class RivaGan(_Baseline):
    """RivaGAN, Zhang et al., arXiv 1909.01285; the package's network, which runs in onnxruntime."""

    name = "rivaGan"
    package = "invisible-watermark"

    n_bits: int = 32

    def __post_init__(self) -> None:
        if self.n_bits != 32:
            raise ValueError(f"rivaGan: expected 32 bits, got {self.n_bits}")

    def _embed(self, image: NDArray[np.uint8], bits: NDArray[np.int64]) -> NDArray[Any]:
        return np.asarray(self._network(bits.tolist()).encode(image))

    def _read(self, image: NDArray[np.uint8]) -> Any:
        return self._network([]).decode(image)

    def _network(self, bits: list[int]) -> Any:
        _imported("onnxruntime", self)
        network = _imported("imwatermark.rivaGan", self).RivaWatermark
        network.loadModel()  # which it does once
        return network(bits, self.n_bits)


@dataclass(frozen=True)
class BlindWatermark(_Baseline):
    """Singular values of shuffled cosine coefficients of wavelets; two means tell bits apart, as in the package."""

    name = "blind_watermark"
    package = "blind-watermark"

    def _embed(self, image: NDArray[np.uint8], bits: NDArray[np.int64]) -> NDArray[Any]:
        core = self._core()
        core.read_img_arr(image)
        core.read_wm(bits)
        return np.asarray(core.embed())

    def _read(self, image: NDArray[np.uint8]) -> Any:
        with warnings.catch_warnings():
            # Where all values are equal, one of the two means is that of no values.
            warnings.simplefilter("ignore", RuntimeWarning)
            return self._core().extract_with_kmeans(image, self.n_bits)

    def _core(self) -> Any:
        with _start_method_kept():
            return _imported("blind_watermark.bwm_core", self).WaterMarkCore()


BASELINES: dict[str, type[_Baseline]] = {cls.name: cls for cls in (DwtDct, DwtDctSvd, RivaGan, BlindWatermark)}
"""By the name that results call them."""


def load_baselines(names: Iterable[str], size: tuple[int, int]) -> tuple[list[Contestant], dict[str, str]]:
    """Baselines by name, ready to mark.

    Args:
        names: of `BASELINES`.
        size: height and width of the images.

    Returns:
        The baselines; and by name of each one for which the images are too small, why.

    Raises:
        UsageError: a name is unknown, or a package is not installed.
    """
    found, left_out = [], {}
    for name in names:
        if name not in BASELINES:
            raise UsageError(f"No baseline is called {name!r}; choose from {', '.join(BASELINES)}.")
        method: MarkingMethod = BASELINES[name]()
        try:
            # Mark a first image, so that what is missing shows before the work begins.
            method.embed(torch.full((1, 3, *size), 0.5), torch.zeros(1, method.n_bits))
        except ValueError as error:
            left_out[name] = str(error)
            continue
        found.append(on_pixels(method, slow=name in SLOW, version=version(BASELINES[name].package)))
    return found, left_out


def to_bgr(images: Tensor) -> list[NDArray[np.uint8]]:
    """Images (B, 3, H, W) in [0, 1] as arrays (H, W, 3) of 8 bits, blue first."""
    samples = images.detach().clamp(0, 1).mul(255).round().to("cpu", torch.uint8)
    return [np.ascontiguousarray(image.permute(1, 2, 0).flip(-1).numpy()) for image in samples]


def from_bgr(arrays: list[NDArray[Any]]) -> Tensor:
    """The reverse of `to_bgr`, for any numbers in [0, 255]: (B, 3, H, W) float32 in [0, 1]."""
    pixels = np.stack([array.astype(np.float32) for array in arrays])
    return torch.from_numpy(pixels).flip(-1).permute(0, 3, 1, 2).contiguous().clamp(0, 255) / 255


def _imported(module: str, baseline: _Baseline) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"The baseline {baseline.name} needs {error.name or module}; run `pip install 'privgen[baselines]'`, or "
            "pass --no-baselines (baselines=False in Python)."
        ) from error


@contextmanager
def _start_method_kept() -> Iterator[None]:
    """Keep the start method of processes: blind-watermark sets it on import, and fails if one is set already."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(None, force=True)
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)

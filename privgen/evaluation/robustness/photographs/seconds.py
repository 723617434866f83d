"""How long marking and reading a large photograph takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from PIL import Image

from privgen.evaluation.robustness.photographs.contestants import FrontDoor
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.watermark.key import Key


MEGAPIXELS = 12
"""Pixels of the photograph, in millions; about those of a telephone's camera."""

_PHOTOGRAPH = "sklearn-flower.jpg"

Result = TypeVar("Result")


def measure_seconds(door: FrontDoor, key: Key, megapixels: float = MEGAPIXELS) -> dict[str, float]:
    """Seconds that marking and reading one large photograph takes, after networks are loaded.

    The photograph is a packaged one, enlarged. Each figure is measured once.

    Args:
        door: marks and reads.
        key: whose mark.
        megapixels: of the photograph.

    Returns:
        `seconds_embed`, which includes that the mark is read back; `seconds_detect`, to find the mark in the marked
        photograph as it is; and `seconds_search`, to look everywhere in the photograph without the mark, which is left
        out without a search.
    """
    with Image.open(heldout_photos() / _PHOTOGRAPH) as opened:
        small = opened.convert("RGB")
    factor = (megapixels * 1e6 / (small.width * small.height)) ** 0.5
    large = small.resize((round(small.width * factor), round(small.height * factor)), Image.Resampling.BICUBIC)
    door.detect(door.embed(small, key, check=True), key, search=door.search)  # loads what is needed
    seconds_embed, marked = _timed(lambda: door.embed(large, key, check=True))
    seconds_detect, _ = _timed(lambda: door.detect(marked, key, search=False))
    seconds = {"seconds_embed": seconds_embed, "seconds_detect": seconds_detect}
    if door.search:
        seconds["seconds_search"], _ = _timed(lambda: door.detect(large, key, search=True))
    return seconds


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result

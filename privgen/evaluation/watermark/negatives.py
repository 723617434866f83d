"""What an extractor reads from images without a mark: generated images and photographs."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from privgen import __version__
from privgen.evaluation.watermark.generation import Generation
from privgen.evaluation.watermark.model import WatermarkModel
from privgen.evaluation.watermark.readings import ATTACKS, CLEAN, Readings, joined, read
from privgen.io.fingerprints import settings_fingerprint, weights_fingerprint
from privgen.io.images import load_image
from privgen.io.journal import Journal
from privgen.io.progress import Bar
from privgen.watermark.protocols import ExtractorLike


LOG = "negatives.jsonl"
"""Name of the file, in the output folder, that keeps what was read from generated images."""

_NETWORKS = ("unet", "vae", "text_encoder")


@dataclass(frozen=True)
class Negatives:
    """What was read from images without a mark.

    Attributes:
        generated: from generated images.
        photographs: from photographs.
        training: how many of the photographs are from the training set.
    """

    generated: Readings
    photographs: Readings
    training: int

    @property
    def all(self) -> Readings:
        """Both kinds together."""
        return joined([self.generated, self.photographs])

    def counts(self, keys: int) -> dict[str, int]:
        """How many there are of each kind, and of pairs with so many keys, as results call them."""
        generated, photographs = len(self.generated[CLEAN]), len(self.photographs[CLEAN])
        return {
            "negatives": generated + photographs,
            "negatives_generated": generated,
            "negatives_photos": photographs,
            "negatives_photos_training": self.training,
            "negative_keys": keys,
            "negative_pairs": (generated + photographs) * keys,
        }


class NegativesLog:
    """Readings of generated images by number, in a journal that later runs of the same work take up.

    Args:
        path: the file; need not exist. None keeps no log.
        work: all that the readings depend on; lines of other work are passed over.

    Raises:
        PrivgenError: the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None, work: str) -> None:
        self.work = work
        self._journal = Journal(path)
        self._lines = dict(self._journal.read(_numbered, work))

    def has(self, number: int) -> bool:
        """Whether the image of that number has been read."""
        return number in self._lines

    def get(self, number: int) -> Readings:
        """Readings of one image, each (1, n_bits)."""
        return {name: np.array([row], np.int8) for name, row in self._lines[number].items()}

    def add(self, numbers: Sequence[int], readings: Readings) -> None:
        """Write down a batch.

        Raises:
            PrivgenError: the file cannot be written.
        """
        rows = ({name: values[i].tolist() for name, values in readings.items()} for i in range(len(numbers)))
        self._journal.append(
            {"work": self.work, "image": number, **row} for number, row in zip(numbers, rows, strict=True)
        )


def read_generated(generation: Generation, extractor: ExtractorLike, numbers: range, log: NegativesLog) -> Readings:
    """Generate unmarked images and read them; what the log holds is not generated again.

    Args:
        generation: what to generate.
        extractor: reads the images.
        numbers: of the images, at least one.
        log: keeps what is read.
    """
    parts = [log.get(i) for i in numbers if log.has(i)]
    missing = [i for i in numbers if not log.has(i)]
    with Bar(total=len(numbers), initial=len(parts), desc="unmarked", unit="image") as bar:
        for first in range(0, len(missing), generation.batch_size):
            batch = missing[first : first + generation.batch_size]
            parts.append(read(generation.images(batch), extractor))
            log.add(batch, parts[-1])
            bar.update(len(batch))
    return joined(parts)


def read_photos(paths: Sequence[Path], extractor: ExtractorLike) -> Readings:
    """Read photographs at their own sizes, one at a time.

    Args:
        paths: at least one.
        extractor: reads them.

    Raises:
        PrivgenError: a photograph cannot be read.
    """
    parts = [read([load_image(path).pixels], extractor) for path in Bar(paths, "unmarked photographs", unit="image")]
    return joined(parts)


def fingerprint(model: WatermarkModel, generation: Generation) -> str:
    """Sixteen hexadecimal digits for all that readings depend on: weights, settings, seed and version."""
    networks = [*(getattr(model.pipeline, name) for name in _NETWORKS), model.extractor]
    weights = [
        weights_fingerprint(network, sorted({str(value.dtype) for value in network.state_dict().values()}))
        for network in networks
        if isinstance(network, torch.nn.Module)
    ]
    attacks = {name: repr(attack) for name, attack in ATTACKS.items()}
    sampled = [generation.sampling.steps, generation.guidance_scale, generation.sampling.negative_prompt]
    settings = [generation.seed, generation.prompts, sampled, attacks, __version__]
    return settings_fingerprint(weights, settings, model.pipeline.scheduler.to_json_string())[:16]


def _numbered(record: dict[str, Any]) -> tuple[int, dict[str, list[int]]]:
    return int(record["image"]), {name: [int(weight) for weight in record[name]] for name in (CLEAN, *ATTACKS)}

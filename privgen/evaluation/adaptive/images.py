"""What an adaptive attacker works on: images to attack, and images that were collected before."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from privgen.data.photos import load_photos, random_view
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.evaluation.watermark.marking import WatermarkModel
from privgen.evaluation.watermark.readings import Generation, as_saved
from privgen.io.files import iter_image_files
from privgen.io.images import load_image
from privgen.watermark.key import Key
from privgen.watermark.write.mark_spec import Carrier
from privgen.watermark.write.residual import add_residual, to_canvas


Source: TypeAlias = Literal["photographs", "generated"]
SOURCES: tuple[Source, ...] = get_args(Source)

_BATCH = 8


@dataclass(frozen=True, eq=False)
class Material:
    """Images of an attack on one key, all of one size and rounded to 8 bits.

    Attributes:
        plain: (n, 3, S, S) in [0, 1], images to forge the mark on.
        marked: the same images with the mark, which is to be removed.
        collected_marked: (N, 3, S, S), other images with the mark, which the attacker has.
        collected_unmarked: (N, 3, S, S), yet other images without it, which the attacker has.
    """

    plain: Tensor
    marked: Tensor
    collected_marked: Tensor
    collected_unmarked: Tensor


def photograph_material(
    model: WatermarkModel,
    carrier: Carrier,
    key: Key,
    *,
    n: int,
    collected: int,
    seed: int,
    heldout: Path | None = None,
    training: Path | None = None,
) -> Material:
    """Photographs squeezed to the model's square.

    Targets are held-out photographs, spread evenly over the folder; what was collected are random views of training
    photographs, those that are marked from one half of them and the others from the other half.

    Args:
        model: marks them.
        carrier: with what.
        key: whose mark.
        n: targets; fewer if the folder holds fewer.
        collected: views of each kind.
        seed: of the views, and of the noise that the carrier `token` works through.
        heldout: folder of the targets; by default the packaged held-out photographs.
        training: folder of the others; by default the packaged training photographs.

    Raises:
        PrivgenError: a photograph cannot be read.
    """
    marker = model.marker(carrier, seed)
    files = iter_image_files([heldout or heldout_photos()])
    n = min(n, len(files))
    chosen = [files[i * len(files) // n] for i in range(n)]
    plain = as_saved(to_canvas([load_image(path).pixels for path in chosen], marker.size))
    photos, rng = load_photos(training or heldout_photos().with_name("train")), np.random.default_rng(seed)
    halves = [
        as_saved(torch.stack([torch.from_numpy(random_view(half, marker.size, rng)) for _ in range(collected)]))
        for half in (photos[::2], photos[1::2] or photos[::2])
    ]

    def marked(images: Tensor) -> Tensor:
        batches = tqdm(images.split(_BATCH), "marking", unit="batch")
        residuals = torch.cat([marker.residuals(batch, [key]) for batch in batches]).cpu()
        pairs = zip(images, residuals, strict=True)
        return torch.stack([add_residual(image, residual, levels=255).pixels for image, residual in pairs])

    return Material(plain, marked(plain), marked(halves[0]), halves[1])


def generated_material(
    model: WatermarkModel, carrier: Carrier, key: Key, *, n: int, collected: int, seed: int
) -> Material:
    """Images of held-out prompts: targets without and with the mark, and others of each kind.

    Args:
        model: generates them.
        carrier: what marks are written with.
        key: whose mark.
        n: targets.
        collected: images of each kind.
        seed: of scenes and noise.
    """
    generation = Generation(model.pipeline, seed, batch_size=_BATCH)
    others, unmarked = range(n, n + collected), range(n + collected, n + 2 * collected)
    plan = ((range(n), False), (range(n), True), (others, True), (unmarked, False))
    made = []
    with tqdm(total=sum(len(numbers) for numbers, _ in plan), desc="generating", unit="image") as bar:
        for numbers, marked in plan:
            parts = []
            for first in range(0, len(numbers), _BATCH):
                batch = numbers[first : first + _BATCH]
                options = model.marking(carrier, [key] * len(batch)) if marked else {}
                parts.append(generation.images(batch, **options))
                bar.update(len(batch))
            made.append(torch.cat(parts))
    return Material(*made)

"""The images of an adaptive evaluation: those that are attacked, and those that the attacker has collected."""

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privgen.data.photos import load_photos, random_view
from privgen.diffusion.sampling import Sampling
from privgen.evaluation.adaptive.plan import AdaptivePlan
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.evaluation.watermark.generation import Generation, as_saved
from privgen.evaluation.watermark.marking import evenly
from privgen.evaluation.watermark.model import WatermarkModel
from privgen.io.files import iter_image_files
from privgen.io.images import load_image
from privgen.io.progress import Bar
from privgen.io.residual import add_residual, to_canvas
from privgen.watermark.key import Key
from privgen.watermark.write.mark_spec import Carrier


TILE_SIDE = 256
"""Side in pixels of photographs that tiles are attacked on."""
_BATCH = 8


@dataclass(frozen=True, eq=False)
class Material:
    """Images of an attack on one key, all of one size and rounded to 8 bits.

    Attributes:
        plain: (n, 3, S, S) in [0, 1], images on which the attacker forges the mark.
        marked: the same images with the mark, which the attacker removes.
        collected_marked: (N, 3, S, S), other images with the mark, which the attacker has.
        collected_unmarked: (N, 3, S, S), yet other images without it, which the attacker has too.
    """

    plain: Tensor
    marked: Tensor
    collected_marked: Tensor
    collected_unmarked: Tensor


def photograph_material(model: WatermarkModel, carrier: Carrier, key: Key, plan: AdaptivePlan) -> Material:
    """Photographs, squeezed to a square: the model's, or one of `TILE_SIDE` pixels if a tile is written.

    The attacked ones are held-out photographs, spread evenly over the folder. The collected ones are random views of
    training photographs: one half of the photographs gives those with the mark, the other half those without.

    Args:
        model: marks them.
        carrier: what the marks are written with.
        key: whose mark.
        plan: how many, and from which folders.

    Raises:
        PrivgenError: a photograph cannot be read.
    """
    marker = model.marker(carrier, plan.seed)
    side = TILE_SIDE if marker.spec.has_tile else marker.size
    chosen = evenly(iter_image_files([plan.heldout or heldout_photos()]), plan.n)
    plain = as_saved(to_canvas([load_image(path).pixels for path in chosen], side))
    photos = load_photos(plan.training or heldout_photos().with_name("train"))
    rng = np.random.default_rng(plan.seed)
    halves = [
        as_saved(torch.stack([torch.from_numpy(random_view(half, side, rng)) for _ in range(plan.collected)]))
        for half in (photos[::2], photos[1::2] or photos[::2])
    ]

    def marked(images: Tensor) -> Tensor:
        made = []
        for batch in Bar(images.split(_BATCH), "marking", unit="batch"):
            for image, change in zip(batch, marker.changes(list(batch), [key]), strict=True):
                made.append(add_residual(image, change, psnr=marker.spec.quality, levels=255).pixels)
        return torch.stack(made)

    return Material(plain, marked(plain), marked(halves[0]), halves[1])


def generated_material(model: WatermarkModel, carrier: Carrier, key: Key, plan: AdaptivePlan) -> Material:
    """Images of held-out prompts: the attacked ones without and with the mark, and the collected ones.

    Args:
        model: generates them.
        carrier: what the marks are written with.
        key: whose mark.
        plan: how many.
    """
    generation = Generation(model.pipeline, plan.seed, sampling=Sampling(batch_size=_BATCH))
    attacked, others = range(plan.n), range(plan.n, plan.n + plan.collected)
    unmarked = range(others.stop, others.stop + plan.collected)
    made = []
    with Bar(total=2 * plan.n + 2 * plan.collected, desc="generating", unit="image") as bar:
        for numbers, marked in ((attacked, False), (attacked, True), (others, True), (unmarked, False)):
            parts = []
            for first in range(0, len(numbers), _BATCH):
                batch = numbers[first : first + _BATCH]
                with model.marking(generation, [key], carrier) if marked else nullcontext():
                    parts.append(generation.images(batch))
                bar.update(len(batch))
            made.append(torch.cat(parts))
    return Material(*made)

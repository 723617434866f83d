"""How well marks are found, on generated images and on photographs, and how often they are found where none is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from privgen.diffusion.sampling import Sampling
from privgen.environment import environment
from privgen.evaluation.intervals import Measured
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.evaluation.watermark.generation import Generation, draw_keys
from privgen.evaluation.watermark.marking import MarkedImages, evenly, mark_generated, mark_photos
from privgen.evaluation.watermark.model import WatermarkModel
from privgen.evaluation.watermark.negatives import (
    LOG,
    Negatives,
    NegativesLog,
    fingerprint,
    read_generated,
    read_photos,
)
from privgen.evaluation.watermark.pictures import draw_negatives, marks_sheet
from privgen.evaluation.watermark.readings import CLEAN, joined
from privgen.evaluation.watermark.report import CarrierScores, WatermarkEvaluation, marked_scores, unmarked_scores
from privgen.io.files import iter_image_files
from privgen.watermark.key import Key
from privgen.watermark.protocols import key_bits
from privgen.watermark.read.bits import count_matches
from privgen.watermark.write.mark_spec import NETWORK_CARRIERS, NetworkCarrier


NEGATIVE_KEYS = 20
"""Keys that every unmarked image is compared with."""


@dataclass(frozen=True)
class WatermarkPlan:
    """What is measured, and on how much.

    Attributes:
        n: pairs of a marked and an unmarked image for each carrier, at least 2.
        seed: of scenes, noise and keys.
        negatives: unmarked images to generate; those of the pairs count, and all of them are used.
        photos: held-out photographs to mark, spread evenly over the folder; fewer if it holds fewer.
        prompts: taken in turn; without prompts, captions of held-out scenes.
        heldout: folder of photographs to mark; None is the packaged held-out ones.
        training: folder of more photographs to use as negatives; None is the packaged training ones.

    Raises:
        ValueError: n below 2.
    """

    n: int = 200
    seed: int = 0
    negatives: int = 2000
    photos: int = 100
    prompts: tuple[str, ...] = ()
    heldout: Path | None = None
    training: Path | None = None

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"expected n of at least 2, got {self.n}")


def evaluate_watermark(
    model: WatermarkModel,
    plan: WatermarkPlan | None = None,
    sampling: Sampling | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
) -> WatermarkEvaluation:
    """Measure the marks of a model's carriers.

    Every prompt is generated without a mark and with each carrier's, from the same noise. Each image has a random key
    of its own. The negatives are these unmarked images, more generated images, and all photographs as they are.

    Args:
        model: see `privgen.evaluation.watermark.model.load_watermark_model`.
        plan: what is measured, and on how much.
        sampling: how images are sampled.
        folder: where the readings of unmarked images are kept, so that an interrupted run goes on. None keeps none.

    Raises:
        UsageError: prompts that leave no room for a token.
        PrivgenError: a photograph cannot be read, or the folder cannot be written to.
    """
    plan = plan or WatermarkPlan()
    generation = Generation(model.pipeline, plan.seed, plan.prompts, sampling or Sampling())
    log = NegativesLog(None if folder is None else Path(folder) / LOG, fingerprint(model, generation))
    heldout = iter_image_files([plan.heldout or heldout_photos()])
    training = iter_image_files([plan.training or heldout_photos().with_name("train")])
    chosen = evenly(heldout, plan.photos)
    generator = torch.Generator().manual_seed(plan.seed)
    negative_keys, keys, photo_keys = (
        draw_keys(count, generator, name)
        for count, name in ((NEGATIVE_KEYS, "negative"), (plan.n, "image"), (len(chosen), "photograph"))
    )
    marked, examples, plain = mark_generated(generation, model, keys)
    pictures = {str(carrier): marks_sheet(shown) for carrier, shown in examples.items()}
    carriers: dict[NetworkCarrier, CarrierScores | None] = dict.fromkeys(NETWORK_CARRIERS)
    for carrier, measured in marked.items():
        on_photos = None
        if chosen:
            marker = model.marker(carrier, plan.seed)
            on_photos, shown = mark_photos(chosen, photo_keys, marker, batch_size=generation.batch_size)
            pictures[f"{carrier}-photos"] = marks_sheet(shown)
        carriers[carrier] = _scores(model.networks.mapper(carrier), measured, on_photos)
    more = range(plan.n, plan.negatives)
    unmarked = Negatives(
        joined([plain, read_generated(generation, model.extractor, more, log)]) if more else plain,
        read_photos([*heldout, *training], model.extractor),
        len(training),
    )
    return _evaluation(model, generation, plan, carriers, unmarked, negative_keys, pictures)


def _evaluation(
    model: WatermarkModel,
    generation: Generation,
    plan: WatermarkPlan,
    carriers: dict[NetworkCarrier, CarrierScores | None],
    unmarked: Negatives,
    negative_keys: Sequence[Key],
    pictures: dict[str, Image.Image],
) -> WatermarkEvaluation:
    messages = key_bits(negative_keys, model.extractor).cpu().numpy().astype(np.uint8)
    histogram = draw_negatives(count_matches(unmarked.all[CLEAN] > 0, messages), messages.shape[1])
    figures = unmarked_scores(unmarked, messages)
    settings = {
        "model": model.name,
        "n": plan.n,
        "seed": plan.seed,
        "steps": generation.sampling.steps,
        "guidance_scale": generation.guidance_scale,
        "robust_steps": model.robust_steps,
    }
    return WatermarkEvaluation(
        settings,
        model.carriers[0] if model.carriers else None,
        carriers,
        unmarked.counts(len(negative_keys)),
        figures,
        Measured(figures[CLEAN]["fpr_1e-6"], **figures[CLEAN]["ci95"]["fpr_1e-6"]),
        environment(),
        {**pictures, "negatives": histogram},
    )


def _scores(mapper: torch.nn.Module, marked: MarkedImages, photos: MarkedImages | None) -> CarrierScores:
    return CarrierScores(
        sum(weight.numel() for weight in mapper.parameters()),
        len(marked.messages),
        int(np.isinf(marked.psnr_db).sum()),
        marked_scores(marked),
        0 if photos is None else len(photos.messages),
        {} if photos is None else marked_scores(photos),
    )

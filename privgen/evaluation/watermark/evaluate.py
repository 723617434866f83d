"""How well marks are found, on generated images and on photographs, and how often they are found where none is."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from privgen.diffusion.sampling import BATCH_SIZE, GUIDANCE, STEPS
from privgen.environment import environment
from privgen.evaluation.intervals import Measured
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.evaluation.watermark.marking import MarkedImages, WatermarkModel, mark_generated, mark_photos
from privgen.evaluation.watermark.negatives import (
    LOG,
    Negatives,
    NegativesLog,
    fingerprint,
    read_generated,
    read_photos,
)
from privgen.evaluation.watermark.pictures import draw_negatives, marks_sheet
from privgen.evaluation.watermark.readings import CLEAN, Generation, Readings, draw_keys, joined
from privgen.evaluation.watermark.report import CarrierScores, WatermarkEvaluation, marked_scores, unmarked_scores
from privgen.io.files import iter_image_files
from privgen.watermark.key import Key
from privgen.watermark.protocols import key_bits
from privgen.watermark.read.bits import count_matches
from privgen.watermark.write.mark_spec import CARRIERS, Carrier


NEGATIVES = 2000
"""Unmarked images to generate, those of the pairs among them."""

NEGATIVE_KEYS = 20
"""Keys that every unmarked image is compared with."""

PHOTOS = 100
"""Photographs to mark."""


def evaluate_watermark(
    model: WatermarkModel,
    *,
    n: int = 200,
    seed: int = 0,
    negatives: int = NEGATIVES,
    photos: int = PHOTOS,
    batch_size: int = BATCH_SIZE,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE,
    prompts: Sequence[str] = (),
    heldout: Path | None = None,
    training: Path | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> WatermarkEvaluation:
    """Measure the marks of a model's carriers.

    Each of n prompts is generated without a mark and with each carrier's, from the same noise, one fresh random key an
    image. Negatives are the unmarked ones of these, more generated images and all photographs as they are.

    Args:
        model: see `load_watermark_model`.
        n: pairs, at least 2.
        seed: of scenes, noise and keys.
        negatives: unmarked images to generate; the n of the pairs count, and are all used.
        photos: held-out photographs to mark, spread evenly over the folder; fewer if it holds fewer.
        batch_size: images at a time.
        steps: denoising steps.
        guidance_scale: scale of classifier-free guidance.
        prompts: taken in turn; by default captions of held-out scenes.
        heldout: folder of photographs to mark; by default the packaged held-out ones.
        training: folder of more photographs for negatives; by default the packaged training ones.
        folder: where an interrupted run's unmarked images are noted, and taken up again; None starts afresh.

    Raises:
        ValueError: n below 2, or fewer than one image a batch.
        UsageError: prompts that leave no room for a token.
        PrivgenError: a photograph cannot be read, or the folder not be written to.
    """
    if n < 2 or batch_size < 1:
        raise ValueError(f"expected n of at least 2 and at least one image a batch, got {n} and {batch_size}")
    generation = Generation(model.pipeline, seed, tuple(prompts), batch_size, steps, guidance_scale)
    log = NegativesLog(None if folder is None else Path(folder) / LOG, fingerprint(model, generation))
    heldout_files = iter_image_files([heldout or heldout_photos()])
    training_files = iter_image_files([training or heldout_photos().with_name("train")])
    chosen = _evenly(heldout_files, photos)
    generator = torch.Generator().manual_seed(seed)
    negative_keys, keys, photo_keys = (
        draw_keys(count, generator, name)
        for count, name in ((NEGATIVE_KEYS, "negative"), (n, "image"), (len(chosen), "photograph"))
    )
    marked, examples, plain = mark_generated(generation, model, keys)
    sheets = {str(carrier): marks_sheet(shown) for carrier, shown in examples.items()}
    carriers: dict[Carrier, CarrierScores | None] = dict.fromkeys(CARRIERS)
    for carrier, measured in marked.items():
        on_photos, sheet = _photos(chosen, model, carrier, photo_keys, seed, batch_size)
        carriers[carrier] = _scores(model.mappers[carrier], measured, on_photos)
        sheets |= sheet
    unmarked = Negatives(
        _with_more(plain, generation, model, range(n, negatives), log),
        read_photos([*heldout_files, *training_files], model.extractor),
        len(training_files),
    )
    messages = key_bits(negative_keys, model.extractor).cpu().numpy().astype(np.uint8)
    sheets["negatives"] = draw_negatives(count_matches(unmarked.all[CLEAN] > 0, messages), messages.shape[1])
    figures = unmarked_scores(unmarked, messages)
    false_positives = Measured(figures[CLEAN]["fpr_1e-6"], **figures[CLEAN]["ci95"]["fpr_1e-6"])
    settings = (
        model.name,
        n,
        seed,
        steps,
        guidance_scale,
        model.robust_steps,
        model.present[0] if model.present else None,
    )
    negatives_found = (_counts(unmarked), figures, false_positives)
    return WatermarkEvaluation(*settings, carriers, *negatives_found, environment(), sheets)


def _scores(mapper: torch.nn.Module, marked: MarkedImages, photos: MarkedImages | None) -> CarrierScores:
    return CarrierScores(
        sum(weight.numel() for weight in mapper.parameters()),
        len(marked.messages),
        int(np.isinf(marked.psnr_db).sum()),
        marked_scores(marked),
        0 if photos is None else len(photos.messages),
        {} if photos is None else marked_scores(photos),
    )


def _photos(
    paths: Sequence[Path], model: WatermarkModel, carrier: Carrier, keys: Sequence[Key], seed: int, batch_size: int
) -> tuple[MarkedImages | None, dict[str, Image.Image]]:
    """What was measured on photographs, and their sheet; nothing without photographs."""
    if not paths:
        return None, {}
    measured, examples = mark_photos(paths, model, carrier, keys, seed=seed, batch_size=batch_size)
    return measured, {f"{carrier}-photos": marks_sheet(examples)}


def _with_more(
    plain: Readings, generation: Generation, model: WatermarkModel, numbers: range, log: NegativesLog
) -> Readings:
    """The unmarked images of the pairs and those of further numbers."""
    if not numbers:
        return plain
    return joined([plain, read_generated(generation, model.extractor, numbers, log)])


def _counts(unmarked: Negatives) -> dict[str, int]:
    generated, photographs = len(unmarked.generated[CLEAN]), len(unmarked.photographs[CLEAN])
    return {
        "negatives": generated + photographs,
        "negatives_generated": generated,
        "negatives_photos": photographs,
        "negatives_photos_training": unmarked.training,
        "negative_keys": NEGATIVE_KEYS,
        "negative_pairs": (generated + photographs) * NEGATIVE_KEYS,
    }


def _evenly(paths: Sequence[Path], n: int) -> list[Path]:
    """So many of them, spread evenly; all if there are fewer."""
    n = min(n, len(paths))
    return [paths[i * len(paths) // n] for i in range(n)]

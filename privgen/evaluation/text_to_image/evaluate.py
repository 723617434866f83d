"""How good is a text-to-image model of scenes?"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from privgen.data.patterns import TEXTURES
from privgen.data.scenes import PREVIEW_SEED, SceneSpec, sample_spec
from privgen.data.sheets import contact_sheet, picture
from privgen.diffusion.sampling import BATCH_SIZE, GUIDANCE, Sampling, generate, generate_batches
from privgen.environment import Environment, environment
from privgen.evaluation.intervals import Measured, ci95, fraction, mean, values
from privgen.evaluation.record import Report
from privgen.evaluation.text_to_image import autoencoder
from privgen.evaluation.text_to_image.textures import texture_response
from privgen.io.progress import Bar
from privgen.metrics.scenes import SceneJudgement, classified_right, judge
from privgen.models.classifier import SceneClassifier


SHOWN = 32
"""Most images on a sheet."""
_SETTINGS = ("model", "n", "seed", "steps", "guidance_scale", "seconds_per_image")


@dataclass(frozen=True)
class ModelEvaluation(Report):
    """The results of an evaluation.

    Attributes:
        model: its name.
        n: how many images were generated and judged.
        seed: of scenes, prompts and noise.
        steps: denoising steps.
        guidance_scale: of classifier-free guidance.
        seconds_per_image: median over all batches except the first, on this machine.
        measures: all other figures by name, with intervals.
        environment: versions and devices.
        pictures: sheets by name: the first prompts, and the images that were judged wrong.
    """

    model: str
    n: int
    seed: int
    steps: int
    guidance_scale: float
    seconds_per_image: float
    measures: dict[str, Measured]
    environment: Environment
    pictures: dict[str, Image.Image] = field(repr=False, compare=False)

    def figures(self) -> dict[str, Any]:
        """All numbers in one flat mapping, and their intervals under "ci95"."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return {**settings, **values(self.measures), "ci95": ci95(self.measures)}


def evaluate_model(
    pipeline: DiffusionPipeline,
    classifier: SceneClassifier,
    *,
    name: str = "",
    n: int = 200,
    seed: int = 0,
    sampling: Sampling | None = None,
    photos: Path | None = None,
) -> ModelEvaluation:
    """Measure a model on scenes, prompts and photographs that it has not seen.

    Prompts are captions of held-out scenes, with one and with two objects in turn. They name patterns and textures as
    often as in training. `background_accuracy` is that of the background's colour. `pattern_accuracy` counts images
    that show the pattern of their prompt, or none if the prompt names none; `named_pattern_accuracy` counts only
    prompts with a pattern.

    Args:
        pipeline: a text-to-image pipeline with an autoencoder; it is not changed.
        classifier: judges the images.
        name: of the model, for the results.
        n: how many images are judged, at least 2. A quarter as many pairs, at most 50, measure texture words.
        seed: of everything random.
        sampling: how images are sampled; by default 25 steps, guidance scale 3 and batches of 8.
        photos: folder of photographs; by default the packaged held-out ones.

    Raises:
        ValueError: n is below 2.
    """
    if n < 2:
        raise ValueError(f"expected n of at least 2, got {n}")
    first = PREVIEW_SEED + 1_000_000 * seed
    specs = [sample_spec(first + i, count=1 + i % 2) for i in range(n)]
    sampling = sampling or Sampling()
    images, seconds = _generate_timed(pipeline, specs, first, sampling)
    judged = judge(images, specs, classifier)
    measures = _accuracies(specs, judged)
    measures |= _texture_words(pipeline, first + 500_000, max(2, min(n // 4, 50)), sampling)
    measures["classifier_accuracy"] = fraction(classified_right(classifier, 5 * n, first + 600_000))
    vae, size, folder = pipeline.vae, images.shape[-1], photos or autoencoder.heldout_photos()
    measures |= {
        "vae_psnr_scenes_db": autoencoder.psnr_of_scenes(vae, n, first + 700_000, size),
        "vae_psnr_photos_db": autoencoder.psnr_of_crops(vae, first + 700_000, size, folder),
        "vae_psnr_whole_photos_db": autoencoder.psnr_of_whole_photos(vae, size, folder),
        "texture_gain": autoencoder.texture_gain(vae, min(n, len(TEXTURES)), first + 700_000, size),
    }
    return ModelEvaluation(
        model=name,
        n=n,
        seed=seed,
        steps=sampling.steps,
        guidance_scale=GUIDANCE if sampling.guidance_scale is None else sampling.guidance_scale,
        seconds_per_image=seconds,
        measures=measures,
        environment=environment(),
        pictures=_sheets(images, specs, judged),
    )


def _generate_timed(
    pipeline: DiffusionPipeline, specs: Sequence[SceneSpec], seed: int, sampling: Sampling
) -> tuple[Tensor, float]:
    """Images of the scenes' captions, and the seconds that each took."""
    prompts, seeds = [spec.caption for spec in specs], [_noise_seed(seed + i) for i in range(len(specs))]
    batches, times = [], []
    with Bar(total=len(specs), desc="images", unit="image") as bar:
        start = perf_counter()
        for batch in generate_batches(pipeline, prompts, seeds, sampling):
            times.append((perf_counter() - start) / len(batch))
            batches.append(batch)
            bar.update(len(batch))
            start = perf_counter()
    # The first batch includes setting up, and a short last one is not comparable.
    full = times[: max(1, len(specs) // (sampling.batch_size or BATCH_SIZE))]
    return torch.cat(batches), median(full[1:] or full)


def _accuracies(specs: Sequence[SceneSpec], judged: Sequence[SceneJudgement]) -> dict[str, Measured]:
    pairs = list(zip(specs, judged, strict=True))
    measures = {
        "one_object_accuracy": fraction(j.objects_right for spec, j in pairs if len(spec.objects) == 1),
        "two_object_accuracy": fraction(j.objects_right for spec, j in pairs if len(spec.objects) == 2),
        "exact_objects_accuracy": fraction(j.exact for j in judged),
        "background_accuracy": fraction(j.colour_right for j in judged),
        "pattern_accuracy": fraction(j.pattern_right for j in judged),
    }
    named = [j.pattern_right for spec, j in pairs if spec.pattern]
    return measures | ({"named_pattern_accuracy": fraction(named)} if named else {})


def _texture_words(pipeline: DiffusionPipeline, seed: int, pairs: int, sampling: Sampling) -> dict[str, Measured]:
    plain = [sample_spec(seed + i, count=1, textured=False) for i in range(pairs)]
    # Each texture comes once before any comes again.
    words = [TEXTURES[(seed + i) % len(TEXTURES)] for i in range(pairs)]
    named = [replace(spec, textures=(word,)) for spec, word in zip(plain, words, strict=True)]
    seeds = [_noise_seed(seed + i) for i in range(pairs)]
    prompts = [spec.caption for spec in (*named, *plain)]
    with_word, without = generate(pipeline, prompts, seeds * 2, sampling, progress="textures").split(pairs)
    response = texture_response(with_word, without, words)
    return {
        "texture_response": mean(response.contrast),
        "texture_energy_fraction": mean(response.energy),
        "texture_first_accuracy": fraction(response.first.tolist()),
    }


def _sheets(images: Tensor, specs: Sequence[SceneSpec], judged: Sequence[SceneJudgement]) -> dict[str, Image.Image]:
    pictures = [picture(image.numpy()) for image in images]
    captions = [spec.caption for spec in specs]
    sheets = {"prompts": contact_sheet(pictures[:SHOWN], captions[:SHOWN], 8)}
    wrong = [i for i, j in enumerate(judged) if not (j.objects_right and j.colour_right and j.pattern_right)][:SHOWN]
    if wrong:
        texts = [f"{captions[i]}: {judged[i]}" for i in wrong]
        sheets["wrong"] = contact_sheet([pictures[i] for i in wrong], texts, 8)
    return sheets


def _noise_seed(seed: int) -> int:
    return seed % 2**63

"""How good a text-to-image model of scenes is."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from privgen.data.patterns import TEXTURES
from privgen.data.scenes import PREVIEW_SEED, SceneSpec, sample_spec
from privgen.data.sheets import contact_sheet, picture, save_picture
from privgen.diffusion.sampling import BATCH_SIZE, GUIDANCE, STEPS, Sampling, generate, generate_batches
from privgen.environment import Environment, environment
from privgen.evaluation.intervals import Measured, fraction, mean
from privgen.evaluation.text_to_image import autoencoder
from privgen.evaluation.text_to_image.textures import texture_response
from privgen.io.files import refuse_existing, write_text
from privgen.metrics.scenes import SceneJudgement, classified_right, judge
from privgen.models.classifier import SceneClassifier


SHOWN = 32
"""Pictures on the sheet."""
RESULTS = "results.json"
_SETTINGS = ("model", "n", "seed", "steps", "guidance_scale", "seconds_per_image")


@dataclass(frozen=True)
class ModelEvaluation:
    """What was measured, and pictures of it.

    Attributes:
        model: its name.
        n: pictures that were generated and judged.
        seed: of scenes, prompts and noise.
        steps: denoising steps.
        guidance_scale: scale of classifier-free guidance.
        seconds_per_image: median over the batches but the first, on this machine.
        measures: everything else by name, with intervals.
        environment: versions.
        sheets: pictures by name: the first prompts, and those judged wrong.
    """

    model: str
    n: int
    seed: int
    steps: int
    guidance_scale: float
    seconds_per_image: float
    measures: dict[str, Measured]
    environment: Environment
    sheets: dict[str, Image.Image] = field(repr=False, compare=False)

    def record(self) -> dict[str, Any]:
        """The numbers as one flat mapping; `ci95` holds their intervals, `environment` the versions."""
        settings = {name: getattr(self, name) for name in _SETTINGS}
        ci95 = {name: {k: v for k, v in asdict(m).items() if k != "value"} for name, m in self.measures.items()}
        values = {name: measured.value for name, measured in self.measures.items()}
        return {**settings, **values, "ci95": ci95, "environment": asdict(self.environment)}

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write `results.json` and the sheets.

        Raises:
            PrivgenError: a file exists and may not be replaced, or cannot be written.
        """
        for name, sheet in self.sheets.items():
            save_picture(sheet, Path(folder) / f"{name}.png", overwrite=overwrite)
        text = json.dumps(_finite(self.record()), indent=2)
        write_text(Path(folder) / RESULTS, f"{text}\n", overwrite=overwrite)


def evaluate_model(
    pipeline: DiffusionPipeline,
    classifier: SceneClassifier,
    *,
    name: str = "",
    n: int = 200,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE,
    photos: Path | None = None,
) -> ModelEvaluation:
    """Measure a model on scenes, prompts and photographs that it has not seen.

    Prompts are captions of held-out scenes, with one object and with two in turn; patterns and textures are named as
    often as in training. `background_accuracy` is that of the colour; `pattern_accuracy` counts a pattern that was
    named and is there, and none where none was named; `named_pattern_accuracy` only the former.

    Args:
        pipeline: a text-to-image pipeline with an autoencoder; it is left as it was.
        classifier: judges the pictures.
        name: what the results call the model.
        n: pictures to judge, at least 2; a quarter as many pairs, at most 50, tell what texture words do.
        seed: of everything random.
        batch_size: pictures at a time.
        steps: denoising steps.
        guidance_scale: scale of classifier-free guidance.
        photos: folder of photographs; by default the packaged held-out ones.

    Raises:
        ValueError: n is below 2.
    """
    if n < 2:
        raise ValueError(f"expected n of at least 2, got {n}")
    first = PREVIEW_SEED + 1_000_000 * seed
    specs = [sample_spec(first + i, count=1 + i % 2) for i in range(n)]
    sampling = Sampling(steps, guidance_scale, batch_size=batch_size)
    images, seconds = _timed(pipeline, specs, first, sampling)
    judged = judge(images, specs, classifier)
    measures = _scores(specs, judged)
    measures |= _texture_words(pipeline, first + 500_000, max(2, min(n // 4, 50)), sampling)
    measures["classifier_accuracy"] = fraction(classified_right(classifier, 5 * n, first + 600_000))
    measures |= _autoencoder(pipeline, n, first + 700_000, images.shape[-1], photos or autoencoder.heldout_photos())
    return ModelEvaluation(
        name, n, seed, steps, guidance_scale, seconds, measures, environment(), _sheets(images, specs, judged)
    )


def check_output(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a folder that holds an evaluation, before time is spent on another.

    Raises:
        PrivgenError: it holds one, and it may not be replaced.
    """
    refuse_existing(Path(folder) / RESULTS, overwrite=overwrite)


def _timed(
    pipeline: DiffusionPipeline, specs: Sequence[SceneSpec], seed: int, sampling: Sampling
) -> tuple[Tensor, float]:
    """The pictures of scenes' captions, and the seconds that each took."""
    prompts, seeds = [spec.caption for spec in specs], [_noise_seed(seed + i) for i in range(len(specs))]
    batches, times = [], []
    with tqdm(total=len(specs), desc="pictures", unit="image") as bar:
        start = perf_counter()
        for batch in generate_batches(pipeline, prompts, seeds, sampling):
            times.append((perf_counter() - start) / len(batch))
            batches.append(batch)
            bar.update(len(batch))
            start = perf_counter()
    # The first batch also pays for what is set up once; a short last one is not comparable.
    full = times[: max(1, len(specs) // (sampling.batch_size or BATCH_SIZE))]
    return torch.cat(batches), median(full[1:] or full)


def _scores(specs: Sequence[SceneSpec], judged: Sequence[SceneJudgement]) -> dict[str, Measured]:
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
    # Every texture once before one comes again.
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


def _autoencoder(pipeline: Any, n: int, seed: int, size: int, photos: Path) -> dict[str, Measured]:
    vae = pipeline.vae
    return {
        "vae_psnr_scenes_db": autoencoder.psnr_of_scenes(vae, n, seed, size),
        "vae_psnr_photos_db": autoencoder.psnr_of_crops(vae, seed, size, photos),
        "vae_psnr_whole_photos_db": autoencoder.psnr_of_whole_photos(vae, size, photos),
        "texture_gain": autoencoder.texture_gain(vae, min(n, len(TEXTURES)), seed, size),
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


def _finite(value: Any) -> Any:
    """Without the numbers that JSON lacks."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""How much each method against hallucination helps, at equal network calls.

The task is the grid of 25 Gaussians: a small network is trained on it from every seed, and each method samples from
that network. A method that rejects samples takes fewer steps, so that an image it keeps costs no more calls.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from scipy.stats import t as student
from torch import Tensor
from tqdm import tqdm

from privgen.data.sheets import save_picture
from privgen.data.toys import GaussianMixture, gaussian_grid
from privgen.diffusion.amplification import Amplification, AmplifiedScheduler, Window
from privgen.diffusion.learned_variance import HybridLoss
from privgen.diffusion.train_toy import ToyTraining, toy_scheduler, train_toy, training_set
from privgen.environment import Environment, environment
from privgen.evaluation.hallucination_pictures import draw_samples, draw_shares
from privgen.evaluation.spread import Measured
from privgen.files import refuse_existing, write_text
from privgen.metrics.hallucination import (
    auroc,
    keep_best,
    mode_coverage,
    nearest_training_distance,
    validate_mixture,
)
from privgen.models.toy import ToyDenoiser


RESULTS = "results.json"
WATCHED: Window = (0.0, 400.0)
"""Timesteps that the detector looks at."""

INTERPOLATED = 5.0
"""Standard deviations from every mode at which a sample is between modes and not in a mode's tail."""
MIN_NFE = 8
"""Network calls with which the detector has something to look at, also when samples are rejected."""

Sampler = Literal["ddim", "ddpm"]
LOSSES: Mapping[str, HybridLoss | None] = {
    "simple": None,
    "hybrid": HybridLoss(),
    "precision": HybridLoss(precision=0.01),
}
"""What the networks minimise."""


@dataclass(frozen=True)
class Method:
    """One way to sample.

    Attributes:
        sampler: deterministic (ddim) or ancestral (ddpm).
        loss: of the network that it samples from, one of `LOSSES`.
        amplification: of the score.
        reject: share of the samples to drop by the detector.
    """

    sampler: Sampler
    loss: str = "simple"
    amplification: Amplification | None = None
    reject: float = 0.0


LATE: Window = (0.0, 100.0)
"""Timesteps at which a sample is near a mode or between two: on this grid, amplification helps only there."""
_VARIANTS: Mapping[str, tuple[str, Amplification | None, float]] = {
    "plain": ("simple", None, 0.0),
    "gamma 1.1": ("simple", Amplification(1.1), 0.0),
    "gamma 1.3 late": ("simple", Amplification(1.3, window=LATE), 0.0),
    "gamma 1.6 late": ("simple", Amplification(1.6, window=LATE), 0.0),
    "trajectory gate 2 late": ("simple", Amplification(2.0, gate="trajectory", window=LATE), 0.0),
    "tangent 1.25 late": ("simple", Amplification(eta=1.25, window=LATE), 0.0),
    "reject 0.1": ("simple", None, 0.1),
    "hybrid loss": ("hybrid", None, 0.0),
    "learned gate 2 late": ("hybrid", Amplification(2.0, gate="learned", window=LATE), 0.0),
    "precision penalty": ("precision", None, 0.0),
}
_SAMPLERS: tuple[Sampler, ...] = ("ddim", "ddpm")
METHODS: Mapping[str, Method] = {
    f"{sampler} {name}": Method(sampler, *variant) for sampler in _SAMPLERS for name, variant in _VARIANTS.items()
}
"""By name; the first of each sampler is what its others are compared with."""


@dataclass(frozen=True)
class HallucinationEvaluation:
    """What was measured.

    Attributes:
        task: the data.
        nfe: network calls an image, for every method.
        seeds: of trainings and samples.
        samples: kept by each method without rejection, by seed.
        reader_error: share of real data that the validator takes for hallucinated, exactly.
        methods: for each method its figures over the seeds: "hallucinated", "reduction" (of that share against the
            sampler's plain one, by seed), "interpolated" (farther than 5 standard deviations from every mode, where
            real data have none), "covered" (modes), "imbalance" and "spread" (see `ModeCoverage`), "nearest" (distance
            to the training data) and "auroc" (of the detector); "data" is a held-out set of real samples.
        environment: versions.
        pictures: plots by name.
    """

    task: str
    nfe: int
    seeds: int
    samples: int
    reader_error: float
    methods: dict[str, dict[str, Measured]]
    environment: Environment
    pictures: dict[str, Image.Image] = field(repr=False, compare=False)

    def record(self) -> dict[str, Any]:
        """Everything but the pictures, in the terms of JSON."""
        settings = {name: getattr(self, name) for name in ("task", "nfe", "seeds", "samples", "reader_error")}
        measured = {name: {key: _plain(m) for key, m in row.items()} for name, row in self.methods.items()}
        return {**settings, "methods": measured, "environment": asdict(self.environment)}

    def table(self) -> list[dict[str, object]]:
        """A row for each method."""
        return [{"method": name, **{k: m.value for k, m in row.items()}} for name, row in self.methods.items()]

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write `results.json` and the plots.

        Raises:
            PrivgenError: a file exists and may not be replaced, or cannot be written.
        """
        for name, picture in self.pictures.items():
            save_picture(picture, Path(folder) / f"{name}.png", overwrite=overwrite)
        write_text(Path(folder) / RESULTS, json.dumps(self.record(), indent=2) + "\n", overwrite=overwrite)


def evaluate_hallucination(
    *,
    nfe: int = 100,
    seeds: int = 5,
    samples: int = 4000,
    seed: int = 0,
    training: ToyTraining | None = None,
    methods: Mapping[str, Method] = METHODS,
) -> HallucinationEvaluation:
    """Train on the grid of 25 Gaussians and sample with every method.

    Args:
        nfe: network calls an image.
        seeds: how often everything is repeated, with other training data, weights and noise.
        samples: of each method and seed, before rejection.
        seed: the first one.
        training: of the networks.
        methods: by name; the first of each sampler is its baseline.

    Raises:
        ValueError: fewer than 2 seeds, or fewer calls than `MIN_NFE`.
    """
    if seeds < 2 or nfe < MIN_NFE:
        raise ValueError(f"expected at least 2 seeds and {MIN_NFE} network calls, got {seeds} and {nfe}")
    grid, training = gaussian_grid(), training or ToyTraining()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("data", *methods)}
    shown: dict[str, Tensor] = {}
    for number in tqdm(range(seed, seed + seeds), desc="seeds", unit="seed"):
        data = training_set(grid, training, seed=number)
        held_out = grid.sample(samples, torch.Generator().manual_seed(number + 2_000_003))
        rows["data"].append(_measure(held_out, None, grid, data))
        for name, x, scores in _samples(methods, data, training, number, nfe, samples):
            rows[name].append(_measure(x, scores, grid, data))
            shown.setdefault(name, x)
    _add_reductions(rows, methods)
    measured = {name: _over_seeds(found) for name, found in rows.items()}
    pictures = {"samples": draw_samples(shown, grid), "shares": draw_shares(measured)}
    error = validate_mixture(held_out, grid).reader_error
    return HallucinationEvaluation("grid", nfe, seeds, samples, error, measured, environment(), pictures)


def sample(
    network: ToyDenoiser, method: Method, *, nfe: int, samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sample with a method.

    Returns:
        The samples that are left, (B, D), and the detector's scores of all `samples`, with those left first: (N,).
    """
    steps = max(math.floor(nfe * (1 - method.reject)), 2)
    plain = toy_scheduler()
    if method.loss != "simple":
        plain.register_to_config(variance_type="learned_range")
        plain.variance_type = "learned_range"
    inner = plain if method.sampler == "ddpm" else DDIMScheduler.from_config(plain.config)
    scheduler = AmplifiedScheduler(inner, method.amplification, watch=WATCHED)
    scheduler.set_timesteps(steps)
    noise = {"generator": generator} if method.sampler == "ddpm" else {}
    x = torch.randn(samples, network.config["dimensions"], generator=generator)
    with torch.inference_mode():
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t).sample, t, x, return_dict=False, **noise)[0]
    scores = scheduler.trajectory_variance()
    kept = keep_best(scores, method.reject)
    dropped = torch.ones(samples, dtype=torch.bool)
    dropped[kept] = False
    return x[kept], torch.cat([scores[kept], scores[dropped]])


def over_seeds(values: Sequence[float]) -> Measured:
    """The mean over seeds with its 95 % interval by Student's t; values that are none are left out."""
    x = np.asarray([value for value in values if math.isfinite(value)], dtype=np.float64)
    if x.size == 0:
        return Measured(math.nan, 0, math.nan, math.nan)
    half = float(student.ppf(0.975, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else math.nan
    return Measured(float(x.mean()), int(x.size), float(x.mean()) - half, float(x.mean()) + half)


def check_output(folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Refuse a folder that holds an evaluation, before time is spent on another.

    Raises:
        PrivgenError: it holds one, and it may not be replaced.
    """
    refuse_existing(Path(folder) / RESULTS, overwrite=overwrite)


def _over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, Measured]:
    return {key: over_seeds([row[key] for row in rows]) for key in rows[0]}


def _samples(
    methods: Mapping[str, Method], data: Tensor, training: ToyTraining, seed: int, nfe: int, samples: int
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Names of methods, their samples and the detector's scores."""
    networks: dict[str, ToyDenoiser] = {}
    for name, method in methods.items():
        if method.loss not in networks:
            settings = ToyTraining(**{**vars(training), "variance": LOSSES[method.loss]})
            networks[method.loss] = train_toy(data, settings, seed=seed)
        # The same noise for every method.
        generator = torch.Generator().manual_seed(seed)
        yield name, *sample(networks[method.loss], method, nfe=nfe, samples=samples, generator=generator)


def _measure(x: Tensor, scores: Tensor | None, grid: GaussianMixture, data: Tensor) -> dict[str, float]:
    validation = validate_mixture(x, grid)
    valid = bool((~validation.hallucinated).any())
    coverage = mode_coverage(x, grid) if valid else None
    finite = x[x.isfinite().all(1)]
    row = {
        "hallucinated": validation.share.value,
        "interpolated": validate_mixture(x, grid, radius=INTERPOLATED).share.value,
        "covered": float(coverage.covered) if coverage else 0.0,
        "imbalance": coverage.imbalance if coverage else math.nan,
        "spread": coverage.spread if coverage else math.nan,
        "nearest": float(nearest_training_distance(finite, data).mean()) if len(finite) else math.nan,
    }
    if scores is not None:
        row["auroc"] = auroc(scores[: len(x)], validation.hallucinated)
    return row


def _add_reductions(rows: Mapping[str, list[dict[str, float]]], methods: Mapping[str, Method]) -> None:
    baselines: dict[str, str] = {}
    for name, method in methods.items():
        plain = baselines.setdefault(method.sampler, name)
        for row, before in zip(rows[name], rows[plain], strict=True):
            share = before["hallucinated"]
            row["reduction"] = 1 - row["hallucinated"] / share if share else math.nan


def _plain(measured: Measured) -> dict[str, float | int | None]:
    return {k: v if math.isfinite(v) else None for k, v in asdict(measured).items()}

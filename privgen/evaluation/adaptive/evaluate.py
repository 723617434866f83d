"""How marks stand against those who attack this very watermark: removed, and written where their owner never did."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from privgen.attacks import (
    Attack,
    AveragingForgery,
    AveragingRemoval,
    Embedding,
    Examples,
    ExtractorForgery,
    ExtractorRemoval,
    SurrogateForgery,
    SurrogateRemoval,
)
from privgen.attacks.adaptive.surrogate import FIT_STEPS
from privgen.environment import Environment, environment
from privgen.errors import UsageError
from privgen.evaluation.adaptive.images import Material, Source, generated_material, photograph_material
from privgen.evaluation.intervals import Measured, ci95, fraction, mean, values
from privgen.evaluation.record import Report
from privgen.evaluation.watermark.marking import WatermarkModel
from privgen.evaluation.watermark.readings import RATES, as_saved, draw_keys
from privgen.metrics.quality import psnr
from privgen.watermark.protocols import key_bits
from privgen.watermark.read.bits import count_matches, weigh_bits
from privgen.watermark.read.logits import read_logits
from privgen.watermark.read.p_values import p_values_of
from privgen.watermark.write.mark_spec import Carrier


EPSILONS = (2.0, 4.0, 8.0)
"""Largest changes of a value, in 1/255."""

STEPS = 40
"""Of the gradient."""

COLLECTED = 100
"""Marked images of the key that the attacker has, and as many unmarked ones."""

NONE = "none"
"""Without an attack."""


@dataclass(frozen=True)
class Adversary:
    """One way of attacking.

    Attributes:
        name: what results call it.
        removal: what is done to marked images; None leaves them.
        forgery: what is done to unmarked images; None leaves them.
    """

    name: str
    removal: Attack | None = None
    forgery: Attack | None = None


@dataclass(frozen=True)
class AdaptiveEvaluation(Report):
    """What was measured.

    Attributes:
        model: its name.
        carrier: what marks were written with.
        source: what the images are.
        n: images of each kind that were attacked.
        seed: of the key, the images and the attacks.
        collected: marked images that the attacker had, and as many unmarked ones.
        steps: of the gradient.
        removal: by attack, measures on marked images: `detected_...`, `bit_accuracy`, `psnr_db`.
        forgery: by attack, the same on unmarked images.
        environment: versions.
    """

    model: str
    carrier: Carrier
    source: Source
    n: int
    seed: int
    collected: int
    steps: int
    removal: Mapping[str, Mapping[str, Measured]] = field(repr=False)
    forgery: Mapping[str, Mapping[str, Measured]] = field(repr=False)
    environment: Environment = field(repr=False)

    def figures(self) -> dict[str, Any]:
        """The settings, and the measures of each attack by aim."""
        settings = ("model", "carrier", "source", "n", "seed", "collected", "steps")
        record: dict[str, Any] = {name: getattr(self, name) for name in settings}
        for aim in ("removal", "forgery"):
            scores: Mapping[str, Mapping[str, Measured]] = getattr(self, aim)
            record[aim] = {name: {**values(found), "ci95": ci95(found)} for name, found in scores.items()}
        return record

    def table(self) -> list[dict[str, Any]]:
        """A row for each attack and aim, without intervals."""
        return [
            {"aim": aim, "attack": attack, **values(measures)}
            for aim, scores in (("removal", self.removal), ("forgery", self.forgery))
            for attack, measures in scores.items()
        ]


def evaluate_adaptive(
    model: WatermarkModel,
    *,
    n: int = 20,
    seed: int = 0,
    source: Source = "photographs",
    carrier: Carrier | None = None,
    collected: int = COLLECTED,
    epsilons: Sequence[float] = EPSILONS,
    steps: int = STEPS,
    fit_steps: int = FIT_STEPS,
    heldout: Path | None = None,
    training: Path | None = None,
) -> AdaptiveEvaluation:
    """Attack the marks of one key.

    Removal is tried on n images with the mark, forgery on the same images without it. Results are rounded to 8 bits,
    as files are, and compared with the key that was attacked and no other.

    Args:
        model: see `privgen.evaluation.watermark.marking.load_watermark_model`.
        n: images, at least 2.
        seed: of the key, the images and the attacks.
        source: what the images are: see `photograph_material` and `generated_material`.
        carrier: what marks are written with; by default the model's own choice.
        collected: marked images of the key that the attacker has, at least 2, and as many unmarked ones.
        epsilons: largest changes of a value by attacks that follow a gradient, in 1/255.
        steps: of these attacks.
        fit_steps: of the surrogate extractor's training.
        heldout: folder of photographs to attack; by default the packaged held-out ones.
        training: folder of photographs that are collected; by default the packaged training ones.

    Raises:
        ValueError: n or `collected` below 2.
        UsageError: a model without that carrier.
        PrivgenError: a photograph cannot be read.
    """
    if n < 2 or collected < 2:
        raise ValueError(f"expected n and collected of at least 2, got {n} and {collected}")
    chosen = (model.present or (None,))[0] if carrier is None else carrier
    if chosen is None or model.mappers.get(chosen) is None:
        raise UsageError(
            f"The model {model.name} has no mapper for the carrier {chosen or 'token or latent'}; use another model "
            "or --carrier (carrier= in Python)."
        )
    (key,) = draw_keys(1, torch.Generator().manual_seed(seed), "attacked")
    amounts = {"n": n, "collected": collected, "seed": seed}
    if source == "generated":
        material = generated_material(model, chosen, key, **amounts)
    else:
        material = photograph_material(model, chosen, key, heldout=heldout, training=training, **amounts)
    message = key_bits([key], model.extractor).cpu().numpy().astype(np.uint8)
    removal: dict[str, dict[str, Measured]] = {}
    forgery: dict[str, dict[str, Measured]] = {}
    planned = adversaries(model, material, epsilons=epsilons, steps=steps, fit_steps=fit_steps, seed=seed)
    for adversary in tqdm(planned, "attacks", unit="attack"):
        for scores, attack, images in (
            (removal, adversary.removal, material.marked),
            (forgery, adversary.forgery, material.plain),
        ):
            if attack is not None or adversary.name == NONE:
                attacked = images if attack is None else attack_each(attack, images, seed)
                scores[adversary.name] = measure(model, message, attacked, images)
    settings = (model.name, chosen, source, len(material.plain), seed, collected, steps)
    return AdaptiveEvaluation(*settings, removal, forgery, environment())


def adversaries(
    model: WatermarkModel,
    material: Material,
    *,
    epsilons: Sequence[float] = EPSILONS,
    steps: int = STEPS,
    fit_steps: int = FIT_STEPS,
    seed: int = 0,
) -> list[Adversary]:
    """The attacks, from none to averages of all images that were collected.

    Args:
        model: its extractor and autoencoder are what attackers have who have something.
        material: what was collected.
        epsilons: see `evaluate_adaptive`.
        steps: see `evaluate_adaptive`.
        fit_steps: see `evaluate_adaptive`.
        seed: of the surrogate extractor.
    """
    marked, unmarked = Examples(material.collected_marked, "marked"), Examples(material.collected_unmarked, "unmarked")
    held: dict[str, Any] = {"steps": steps, "model": model.extractor}
    images: dict[str, Any] = {"marked": marked, "unmarked": unmarked}
    fitted = {**images, "steps": steps, "fit_steps": fit_steps, "fit_seed": seed}
    planned = [Adversary(NONE)]
    for e in epsilons:
        pair = ExtractorRemoval(strength=e, **held), ExtractorForgery(strength=e, marked=marked, **held)
        planned.append(Adversary(f"extractor_{e:g}", *pair))
    encoder: dict[str, Any] = {"steps": steps, "model": model.pipeline}
    planned += [Adversary(f"embedding_{e:g}", Embedding(strength=e, **encoder)) for e in epsilons]
    for e in epsilons:
        both = SurrogateRemoval(strength=e, **fitted), SurrogateForgery(strength=e, **fitted)
        planned.append(Adversary(f"surrogate_{e:g}", *both))
    for count in sorted({1, min(10, len(marked)), len(marked)}):
        averages = AveragingRemoval(count=count, **images), AveragingForgery(count=count, **images)
        planned.append(Adversary(f"averaging_{count}", *averages))
    return planned


def attack_each(attack: Attack, images: Tensor, seed: int) -> Tensor:
    """Attack images one by one, each with randomness of its own, and round the results to 8 bits.

    Args:
        attack: any.
        images: (n, 3, S, S) in [0, 1].
        seed: of all randomness.
    """
    attacked = [
        attack(image[None], generator=torch.Generator().manual_seed(seed + i)) for i, image in enumerate(images)
    ]
    return as_saved(torch.cat(attacked))


def measure(model: WatermarkModel, message: Any, attacked: Tensor, images: Tensor) -> dict[str, Measured]:
    """What an attack came to.

    Args:
        model: its extractor reads.
        message: (1, n_bits) of 0 and 1, the key's.
        attacked: (n, 3, S, S) in [0, 1].
        images: the same images before.

    Returns:
        The shares that are detected, bit accuracy, and PSNR over the images that changed, if any did.
    """
    n_bits = message.shape[1]
    weighed = weigh_bits(read_logits(attacked, model.extractor))
    matches, p = count_matches(weighed > 0, message)[:, 0], p_values_of(weighed, message, "weighted")[:, 0]
    measures = {f"detected_{name}": fraction(p <= fpr) for name, fpr in RATES.items()}
    quality = psnr(attacked, images).numpy()
    changed = quality[np.isfinite(quality)]
    return {
        **measures,
        "bit_accuracy": mean(matches / n_bits),
        **({"psnr_db": mean(changed)} if changed.size else {}),
    }

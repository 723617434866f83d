"""How marks stand against attackers who know this very watermark: who remove marks, or forge them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privgen.attacks import (
    Attack,
    AveragingForgery,
    AveragingRemoval,
    Embedding,
    Examples,
    ExtractorForgery,
    ExtractorRemoval,
    Remarking,
    SurrogateForgery,
    SurrogateRemoval,
)
from privgen.environment import Environment, environment
from privgen.errors import UsageError
from privgen.evaluation.adaptive.images import Material, generated_material, photograph_material
from privgen.evaluation.adaptive.plan import AdaptivePlan
from privgen.evaluation.intervals import Measured, ci95, fraction, mean, values
from privgen.evaluation.record import Report
from privgen.evaluation.watermark.generation import as_saved, draw_keys
from privgen.evaluation.watermark.model import WatermarkModel
from privgen.evaluation.watermark.readings import RATES
from privgen.io.progress import Bar
from privgen.metrics.quality import psnr
from privgen.watermark.read.detection import Detector, DetectSpec
from privgen.watermark.write.mark_spec import Carrier, MarkSpec


NONE = "none"
"""What results call images without an attack."""

REMARKINGS: tuple[tuple[str, int, float | None], ...] = (
    ("remarking_1", 1, None),
    ("remarking_3", 3, None),
    ("remarking_3_loud", 3, 34.0),
)
"""Who marks again: name, number of keys, and quality in dB; None is the tool's own."""


@dataclass(frozen=True)
class Adversary:
    """One way of attacking.

    Attributes:
        name: what results call it.
        removal: what is done to marked images; None if this adversary removes nothing.
        forgery: what is done to unmarked images; None if this adversary forges nothing.
    """

    name: str
    removal: Attack | None = None
    forgery: Attack | None = None


@dataclass(frozen=True)
class AdaptiveEvaluation(Report):
    """How well marks stand.

    Attributes:
        settings: model, carrier, source, n (images of each kind that were attacked), seed, collected (marked images
            that the attacker had, and as many unmarked ones), and steps of the attacks that follow a gradient.
        removal: measures on marked images by name of the adversary; see `measure`.
        forgery: the same on unmarked images.
        environment: versions.
    """

    settings: Mapping[str, Any]
    removal: Mapping[str, Mapping[str, Measured]] = field(repr=False)
    forgery: Mapping[str, Mapping[str, Measured]] = field(repr=False)
    environment: Environment = field(repr=False)

    @property
    def _aims(self) -> dict[str, Mapping[str, Mapping[str, Measured]]]:
        return {"removal": self.removal, "forgery": self.forgery}

    def figures(self) -> dict[str, Any]:
        """The settings, and the measures of each adversary by aim."""
        scores = {
            aim: {name: {**values(found), "ci95": ci95(found)} for name, found in adversaries.items()}
            for aim, adversaries in self._aims.items()
        }
        return {**self.settings, **scores}

    def table(self) -> list[dict[str, Any]]:
        """A row for each adversary and aim, without intervals."""
        return [
            {"aim": aim, "attack": name, **values(found)}
            for aim, adversaries in self._aims.items()
            for name, found in adversaries.items()
        ]


def evaluate_adaptive(model: WatermarkModel, plan: AdaptivePlan | None = None) -> AdaptiveEvaluation:
    """Attack the marks of one key.

    Removal is tried on images with the mark, forgery on the same images without it. The results are rounded to 8 bits,
    as files are, and compared with the attacked key alone.

    Args:
        model: see `privgen.evaluation.watermark.model.load_watermark_model`.
        plan: which marks are attacked, and how hard.

    Raises:
        UsageError: the model lacks the carrier.
        PrivgenError: a photograph cannot be read.
    """
    plan = plan or AdaptivePlan()
    carrier = plan.carrier or next(iter(model.carriers), None)
    network_carrier = MarkSpec(carrier).network_carrier
    if carrier is None or (network_carrier is not None and network_carrier not in model.carriers):
        raise UsageError(
            f"The model {model.name} has no mapper for the carrier {carrier or 'token or latent'}; use another model "
            "or --carrier (carrier= in Python)."
        )
    (key,) = draw_keys(1, torch.Generator().manual_seed(plan.seed), "attacked")
    make = generated_material if plan.source == "generated" else photograph_material
    material = make(model, carrier, key, plan)
    detector = Detector(model.networks, [key], DetectSpec(carrier=carrier))
    removal: dict[str, dict[str, Measured]] = {}
    forgery: dict[str, dict[str, Measured]] = {}
    for adversary in Bar(adversaries(model, carrier, material, plan), "attacks", unit="attack"):
        for scores, attack, images in (
            (removal, adversary.removal, material.marked),
            (forgery, adversary.forgery, material.plain),
        ):
            if attack is not None or adversary.name == NONE:
                attacked = images if attack is None else attack_each(attack, images, plan.seed)
                scores[adversary.name] = measure(detector, attacked, images)
    settings = {
        "model": model.name,
        "carrier": carrier,
        "source": plan.source,
        "n": len(material.plain),
        "seed": plan.seed,
        "collected": plan.collected,
        "steps": plan.steps,
    }
    return AdaptiveEvaluation(settings, removal, forgery, environment())


def adversaries(model: WatermarkModel, carrier: Carrier, material: Material, plan: AdaptivePlan) -> list[Adversary]:
    """The adversaries, from none to one who marks images again, louder.

    Args:
        model: some adversaries have its extractor, others its autoencoder.
        carrier: what marks are written with. No extractor reads a tile, so none can be used against one.
        material: the collected images.
        plan: strengths and steps of the attacks.
    """
    marked, unmarked = Examples(material.collected_marked, "marked"), Examples(material.collected_unmarked, "unmarked")
    extractor, steps = model.extractor, plan.steps
    planned = [Adversary(NONE)]
    for e in plan.epsilons if carrier != "tile" else ():
        removal: Attack = ExtractorRemoval(strength=e, steps=steps, model=extractor)
        forgery: Attack = ExtractorForgery(strength=e, steps=steps, model=extractor, marked=marked)
        planned.append(Adversary(f"extractor_{e:g}", removal, forgery))
    planned += [
        Adversary(f"embedding_{e:g}", Embedding(strength=e, steps=steps, model=model.pipeline)) for e in plan.epsilons
    ]
    for e in plan.epsilons:
        removal, forgery = (
            kind(
                strength=e,
                steps=steps,
                marked=marked,
                unmarked=unmarked,
                fit_steps=plan.fit_steps,
                fit_seed=plan.seed,
            )
            for kind in (SurrogateRemoval, SurrogateForgery)
        )
        planned.append(Adversary(f"surrogate_{e:g}", removal, forgery))
    for count in sorted({1, min(10, len(marked)), len(marked)}):
        removal = AveragingRemoval(count=count, marked=marked, unmarked=unmarked)
        forgery = AveragingForgery(count=count, marked=marked, unmarked=unmarked)
        planned.append(Adversary(f"averaging_{count}", removal, forgery))
    for name, keys, quality in REMARKINGS:
        again = Remarking(keys, model=model.networks, carrier=carrier, psnr=quality)
        planned.append(Adversary(name, again))
    return planned


def attack_each(attack: Attack, images: Tensor, seed: int) -> Tensor:
    """Attack images one by one, each with randomness of its own, and round the results to 8 bits.

    Args:
        attack: any.
        images: (n, 3, S, S) in [0, 1].
        seed: of image 0; image i has seed + i.
    """
    attacked = [
        attack(image[None], generator=torch.Generator().manual_seed(seed + i)) for i, image in enumerate(images)
    ]
    return as_saved(torch.cat(attacked))


def measure(detector: Detector, attacked: Tensor, images: Tensor) -> dict[str, Measured]:
    """How well a key's mark is read from attacked images.

    Args:
        detector: looks for the key.
        attacked: (n, 3, S, S) in [0, 1].
        images: the same images before the attack.

    Returns:
        `detected_...`, the fractions of images in which the key is detected at `RATES`; `bit_accuracy`; and `psnr_db`
        over the images that changed, if any did.
    """
    found = detector(list(attacked))
    p = np.array([detection.p_value for detection in found])
    measures = {f"detected_{name}": fraction(p <= fpr) for name, fpr in RATES.items()}
    measures["bit_accuracy"] = mean([detection.best.matches / detection.n_bits for detection in found])
    quality = psnr(attacked, images).numpy()
    changed = quality[np.isfinite(quality)]
    return measures | ({"psnr_db": mean(changed)} if changed.size else {})

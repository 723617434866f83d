"""The report of a study of protection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from privgen.environment import Environment
from privgen.evaluation.protection.latents import LatentShift
from privgen.evaluation.protection.plan import CLEAN, CONTROL, NONE
from privgen.evaluation.protection.summary import Outcome, Setting, sentence
from privgen.evaluation.record import Report


PAGE = "protection.html"
"""Name of the file of the page."""

NOTE = (
    "success is 0 for the model before it is personalised and 1 for the best that the adversary reaches on clean "
    "images; it is judged by a linear probe that is trained with noise, blur and JPEG. drop is 1 less the success at "
    "the best effort and guidance scale. cost_factor is the number of steps to half of the success on clean images, "
    "over that on clean images: the median over pairs of subject and seed; null with the text 'not reached' stands "
    "for infinity. noise is the control: white noise of the same PSNR. drop_over_noise is drop less that of noise on "
    "the same pairs. Intervals are Student's t over subjects; for a single subject over its seeds."
)
"""Goes into every record, and onto the page."""


@dataclass(frozen=True)
class ProtectionStudy(Report):
    """How much more work an adversary needs when images are protected.

    Attributes:
        settings: models, preset, seed, subjects, PSNR and judge.
        outcomes: by setting.
        latents: by name of the method and of the autoencoder, shifts in latent spaces.
        left_out: by name of each method that could not be run, why.
        seconds_per_cell: how long a training run with its images took, on average.
        environment: versions.
        command: the command that makes the same results.
        pages: the HTML page; see `privgen.evaluation.protection.page`.
    """

    settings: Mapping[str, Any]
    outcomes: Mapping[Setting, Outcome]
    latents: Mapping[str, Mapping[str, LatentShift]]
    left_out: Mapping[str, str]
    seconds_per_cell: float
    environment: Environment
    command: str
    pages: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def figures(self) -> dict[str, Any]:
        """All numbers by name."""
        return {
            **self.settings,
            "models": self._by_model(),
            "sentences": self.sentences(),
            "latents": {
                method: {name: shift.record() for name, shift in spaces.items()}
                for method, spaces in self.latents.items()
            },
            "left_out": dict(self.left_out),
            "seconds_per_cell": self.seconds_per_cell,
            "note": NOTE,
            "command": self.command,
        }

    def sentences(self) -> dict[str, str]:
        """What each protection does against each adversary, in words."""
        return {
            f"{setting.model}/{setting.adversary}/{setting.method}": self.sentence(setting)
            for setting in self.outcomes
            if setting.method not in (CLEAN, CONTROL) and (setting.purification, setting.fraction) == (NONE, 1)
        }

    def sentence(self, setting: Setting) -> str:
        """What one protection does, in words."""
        control = Setting(setting.model, setting.adversary, CONTROL, setting.purification, setting.fraction)
        return sentence(setting, self.outcomes[setting], self.outcomes.get(control))

    def summary(self) -> dict[str, Any]:
        """The most important numbers, for people to read."""
        record = self.record()
        shown = {
            f"{setting.model}/{setting.adversary}/{setting.method}": {
                "drop": round(outcome.drop.value, 2),
                "cost_factor": record["models"][setting.model][setting.adversary][setting.method]["cost_factor_text"],
            }
            for setting, outcome in self.outcomes.items()
            if setting.method != CLEAN and (setting.purification, setting.fraction) == (NONE, 1)
        }
        return {**self.settings, **shown, "sentences": self.sentences(), "left_out": dict(self.left_out)}

    def _by_model(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Records by model, adversary and method; those with a purification or a fraction lie inside."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for setting, outcome in sorted(self.outcomes.items(), key=lambda item: _is_variant(item[0])):
            methods = found.setdefault(setting.model, {}).setdefault(setting.adversary, {})
            record = methods.setdefault(setting.method, {})
            if setting.purification != NONE:
                record.setdefault("purified", {})[setting.purification] = outcome.record()
            elif setting.fraction != 1:
                record.setdefault("fractions", {})[f"{setting.fraction:g}"] = outcome.record()
            else:
                record |= outcome.record()
        return found


def _is_variant(setting: Setting) -> bool:
    return (setting.purification, setting.fraction) != (NONE, 1)

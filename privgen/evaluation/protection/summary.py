"""From rows to figures: what each protection takes from each adversary."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from privgen.evaluation.intervals import Measured, ci95, median, over_seeds, values
from privgen.evaluation.protection.log import Row
from privgen.evaluation.protection.plan import CLEAN, CONTROL, NONE, UNTRAINED
from privgen.evaluation.protection.scores import cost_factor, drop, success


@dataclass(frozen=True)
class Learnt:
    """One training run, measured against the untrained model and clean images.

    Attributes:
        curve: success by training steps, each at the adversary's best guidance scale.
        drop: 1 less the success at the adversary's best.
        cost_factor: see `privgen.evaluation.protection.scores.cost_factor`.
        similarity: feature similarity of the images at the adversary's best.
    """

    curve: Mapping[int, float]
    drop: float
    cost_factor: float
    similarity: float


@dataclass(frozen=True)
class Outcome:
    """What a protection takes from an adversary: means over subjects and their seeds, with intervals over subjects.

    Attributes:
        n: pairs that count.
        not_learnt: pairs that do not count, because the adversary did not learn from clean images either.
        success: by training steps.
        drop: at the adversary's best.
        drop_over_noise: drop less that of the control on the same pairs; None where the control was not measured.
        cost_factor: the median; infinite if half of the success on clean images is mostly not reached.
        not_reached: fraction of the pairs in which it was not reached.
        feature_similarity: at the adversary's best.
        costs: `psnr_db`, `visible_de_p99` and `seconds_per_image` of the protection; empty for clean images.
    """

    n: int
    not_learnt: int
    success: Mapping[int, Measured]
    drop: Measured
    drop_over_noise: Measured | None
    cost_factor: Measured
    not_reached: float
    feature_similarity: Measured
    costs: Mapping[str, Measured] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The figures by name, with their intervals under "ci95"."""
        single = {"drop": self.drop, "cost_factor": self.cost_factor, "feature_similarity": self.feature_similarity}
        single |= {} if self.drop_over_noise is None else {"drop_over_noise": self.drop_over_noise}
        single |= self.costs
        by_effort = {str(effort): measured for effort, measured in self.success.items()}
        return {
            "n": self.n,
            "not_learnt": self.not_learnt,
            "success": values(by_effort),
            **values(single),
            "cost_factor_text": cost_text(self.cost_factor.value),
            "not_reached": self.not_reached,
            "ci95": {**ci95(single), "success": ci95(by_effort)},
        }


@dataclass(frozen=True)
class Setting:
    """What one outcome is of.

    Attributes:
        model: name.
        adversary: name.
        method: of protection, or `CLEAN`.
        purification: before the training.
        fraction: of the images that are protected.
    """

    model: str
    adversary: str
    method: str
    purification: str = NONE
    fraction: float = 1.0


def cost_text(factor: float) -> str:
    """A cost factor as text: "1.8", "not reached", or "unknown"."""
    if math.isnan(factor):
        return "unknown"
    return "not reached" if math.isinf(factor) else f"{factor:.2g}"


def outcomes(rows: Sequence[Row]) -> dict[Setting, Outcome]:
    """The outcome of each setting, in the order of the rows.

    Args:
        rows: of all cells.
    """
    pairs = _by_pair(rows)
    learnt: dict[Setting, dict[tuple[str, int], Learnt]] = {}
    for setting, by_pair in pairs.items():
        if setting.method == UNTRAINED:
            continue
        plain = Setting(setting.model, setting.adversary, UNTRAINED)
        clean = Setting(setting.model, setting.adversary, CLEAN)
        learnt[setting] = {pair: _learnt(own, pairs[plain][pair], pairs[clean][pair]) for pair, own in by_pair.items()}
    return {setting: _outcome(setting, learnt, pairs[setting]) for setting in learnt}


def _by_pair(rows: Iterable[Row]) -> dict[Setting, dict[tuple[str, int], list[Row]]]:
    found: dict[Setting, dict[tuple[str, int], list[Row]]] = {}
    for row in rows:
        cell = row.cell
        setting = Setting(cell.model, cell.adversary, cell.method, cell.purification, cell.fraction)
        found.setdefault(setting, {}).setdefault((cell.subject, cell.seed), []).append(row)
    return found


def _learnt(rows: Sequence[Row], untrained: Sequence[Row], clean: Sequence[Row]) -> Learnt:
    floor = max(row.score for row in untrained)
    ceiling = max(row.score for row in clean)

    def curve(of: Sequence[Row]) -> dict[int, float]:
        efforts = sorted({row.effort for row in of})
        best = {effort: max(row.score for row in of if row.effort == effort) for effort in efforts}
        return {effort: success(score, floor, ceiling) for effort, score in best.items()}

    own = curve(rows)
    factor = math.nan if any(map(math.isnan, own.values())) else cost_factor(own, curve(clean))
    return Learnt(own, drop(list(own.values())), factor, max(rows, key=lambda row: row.score).similarity)


def _outcome(
    setting: Setting,
    learnt: Mapping[Setting, Mapping[tuple[str, int], Learnt]],
    rows: Mapping[tuple[str, int], Sequence[Row]],
) -> Outcome:
    own = {pair: run for pair, run in learnt[setting].items() if not math.isnan(run.drop)}
    control = Setting(setting.model, setting.adversary, CONTROL, setting.purification, setting.fraction)
    # A control that was not measured with this purification or fraction is none.
    noise = learnt.get(control, {}) if setting.method not in (CLEAN, CONTROL) else {}
    shared = {pair: own[pair].drop - noise[pair].drop for pair in own if pair in noise}
    factors = [run.cost_factor for run in own.values() if not math.isnan(run.cost_factor)]
    efforts = sorted({effort for run in own.values() for effort in run.curve})
    first = {pair: group[0] for pair, group in rows.items()}
    costs = {
        name: _over_subjects({pair: getattr(row, name) for pair, row in first.items()})
        for name in ("psnr_db", "visible_de_p99", "seconds_per_image")
        if next(iter(first.values())).psnr_db is not None
    }

    def over(value: Callable[[Learnt], float]) -> Measured:
        return _over_subjects({pair: value(run) for pair, run in own.items()})

    return Outcome(
        len(own),
        len(learnt[setting]) - len(own),
        {effort: over(lambda run, effort=effort: run.curve[effort]) for effort in efforts},  # type: ignore[misc]
        over(lambda run: run.drop),
        _over_subjects(shared) if shared else None,
        median(factors) if factors else Measured(math.nan, 0, math.nan, math.nan),
        sum(map(math.isinf, factors)) / len(factors) if factors else math.nan,
        over(lambda run: run.similarity),
        costs,
    )


def _over_subjects(values: Mapping[tuple[str, int], float]) -> Measured:
    """The mean over subjects, each of which is the mean over its seeds.

    The seeds of one subject share its images and its judge, so they are not independent. If there is one subject only,
    the interval is over its seeds, and says nothing about other subjects.

    Args:
        values: by subject and seed.
    """
    by_subject: dict[str, list[float]] = {}
    for (subject, _), value in values.items():
        by_subject.setdefault(subject, []).append(value)
    groups = list(by_subject.values())
    return over_seeds(groups[0] if len(groups) == 1 else [sum(group) / len(group) for group in groups])


def sentence(setting: Setting, outcome: Outcome, noise: Outcome | None) -> str:
    """What a protection does, in one or two sentences for people.

    Args:
        setting: of the outcome.
        outcome: of the protection.
        noise: of the control; None if it was not measured.
    """
    who = f"the adversary {setting.adversary} on the model {setting.model}"
    if not outcome.n:
        return (
            f"With clean images, {who} did not learn this subject either, so this says nothing about the protection."
        )
    factor, longest = outcome.cost_factor.value, max(outcome.success)
    if math.isnan(factor):
        text = f"How many more steps {who} needs on images protected by {setting.method} could not be measured."
    elif math.isinf(factor):
        text = (
            f"To learn this subject an adversary needs more than the {longest} steps that were tried: with images "
            f"protected by {setting.method}, {who} did not reach half of the success on clean ones."
        )
    elif factor >= 1.15:
        text = (
            f"To learn this subject an adversary needs about {factor:.2g} times the steps: measured with {who}, on "
            f"images protected by {setting.method}."
        )
    else:
        text = f"{setting.method}'s protection did not change how many steps {who} needs to learn this subject."
    text += f" At its best the adversary lost {max(outcome.drop.value, 0):.0%} of its success."
    if outcome.n == 1:
        text += " This is one measurement, and another seed may give something else."
    if noise is not None and noise.n:
        known = math.isfinite(noise.cost_factor.value)
        times = cost_text(noise.cost_factor.value) + (" times the steps" if known else "")
        text += f" Noise of the same PSNR: {times}, {max(noise.drop.value, 0):.0%} lost."
    return text

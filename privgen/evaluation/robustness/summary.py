"""From rows to results: the scores of each method, and how far ours is ahead of the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from privgen.evaluation.intervals import mean
from privgen.evaluation.robustness.baselines import BASELINES
from privgen.evaluation.robustness.contestants import Contestant
from privgen.evaluation.robustness.curves import LossScales, curves_of, fit_losses
from privgen.evaluation.robustness.log import Row
from privgen.evaluation.robustness.perception import perception
from privgen.evaluation.robustness.report import Lead, MethodScores
from privgen.evaluation.robustness.run import Comparison
from privgen.evaluation.robustness.scores import mean_detected, score, visibility
from privgen.evaluation.watermark.readings import CLEAN, RATES


def method_scores(comparison: Comparison, rows: Sequence[Row], *, with_losses: bool = True) -> list[MethodScores]:
    """The scores of all methods, in the order of the comparison.

    Args:
        comparison: what was measured.
        rows: all rows of all methods.
        with_losses: whether scores hold the loss of quality, and curves over it. Attacks that change the size of
            images have none.
    """
    losses = fit_losses(rows) if with_losses else None
    return [_scores(comparison, contestant, rows, losses) for contestant in comparison.contestants]


def lead_over_baselines(
    comparison: Comparison, rows: Sequence[Row], scores: Sequence[MethodScores], rate: str = "1e-3"
) -> Lead | None:
    """How far the first of our methods is ahead of the best baseline, on the images that both were measured on.

    Args:
        comparison: what was measured.
        rows: all rows of all methods.
        scores: see `method_scores`.
        rate: the false-positive rate, a key of `RATES`.

    Returns:
        None where one of the two is missing, or no distortion was run at its middle strength.
    """
    own, baselines = [s for s in scores if not s.baseline and s.means], [s for s in scores if s.baseline and s.means]
    if not own or not baselines:
        return None
    best = max(baselines, key=lambda baseline: baseline.means[f"mean_tpr_{rate}"].value)
    middle = [entry.key for entry in comparison.planned if entry.middle]
    messages = {contestant.name: contestant.messages(comparison.keys) for contestant in comparison.contestants}
    rates, qualities = [], []
    for name in (own[0].name, best.name):
        of_method = [row for row in rows if row.method == name]
        rates.append(mean_detected(of_method, middle, messages[name], RATES[rate]))
        clean = [row for row in of_method if row.attack == CLEAN]
        qualities.append({row.image: row.psnr_db for row in clean if row.psnr_db is not None})
    return Lead(best.name, mean(_differences(*rates)), mean(_differences(*qualities)))


def _scores(
    comparison: Comparison, contestant: Contestant, rows: Sequence[Row], losses: LossScales | None
) -> MethodScores:
    messages = contestant.messages(comparison.keys)
    own = [row for row in rows if row.method == contestant.name]
    by_attack = {key: [row for row in own if row.attack == key] for key in {row.attack for row in own}}
    clean = by_attack[CLEAN]
    attacks = {
        entry.key: score(by_attack[entry.key], messages, losses) | perception(by_attack[entry.key], clean)
        if entry.key in by_attack
        else None
        for entry in comparison.planned
    }
    middle = [entry.key for entry in comparison.planned if entry.middle and entry.key in by_attack]
    means = {
        f"mean_tpr_{name}": mean(list(mean_detected(own, middle, messages, fpr).values()))
        for name, fpr in (RATES.items() if middle else ())
    }
    return MethodScores(
        contestant.name,
        contestant.name in BASELINES,
        contestant.n_bits,
        len(clean),
        score(clean, messages, None) | perception(clean, ()) | visibility(clean),
        attacks,
        means,
        curves_of(comparison.planned, attacks) if losses else {},
    )


def _differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    common = sorted(ours.keys() & theirs.keys())
    return [ours[image] - theirs[image] for image in common] or [float("nan")]

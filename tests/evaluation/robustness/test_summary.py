"""From rows, made by hand, to the scores of methods and to the record."""

import math
from dataclasses import replace

import numpy as np
import pytest

from privgen.environment import environment
from privgen.evaluation.robustness.contestants import Contestant
from privgen.evaluation.robustness.log import Row
from privgen.evaluation.robustness.plan import Planned
from privgen.evaluation.robustness.report import RobustnessEvaluation
from privgen.evaluation.robustness.run import Comparison
from privgen.evaluation.robustness.summary import lead_over_baselines, method_scores
from privgen.evaluation.watermark.generation import Generation
from privgen.watermark.key import Key, Secret


BITS = 16
KEYS = [Key(f"k{i}", Secret(bytes([i]) * 32)) for i in range(3)]
PLANNED = [
    Planned("jpeg_90", "jpeg", 90, "quality", 3, False, None),
    Planned("jpeg_50", "jpeg", 50, "quality", 3, True, None),
    Planned("noise_0_05", "noise", 0.05, "std", 3, True, None),
    Planned("diffpure_100", "diffpure", 100, "t*", 3, False, None, "No denoiser."),
]


def contestant(name):
    return Contestant(name, BITS, name, mark=None, reader=None)


def row(method, attack, image, *, found, psnr_db=30.0, ssim=0.9):
    """An image in which all bits are right, or every second one."""
    message = 2 * np.array(KEYS[image].bits(BITS)) - 1
    marked = message if found else message * np.array([1, -1] * (BITS // 2))
    return Row(method, attack, image, marked.tolist(), (-message).tolist(), psnr_db, ssim)


def rows(method, found, *, images=3, marking_db=38.0):
    """Images 0..: of each the attacks after which its mark is found."""
    made = []
    for image in range(images):
        made.append(row(method, "clean", image, found=True, psnr_db=marking_db + image))
        for key, loss in (("jpeg_90", 0), ("jpeg_50", 5), ("noise_0_05", 10)):
            made.append(row(method, key, image, found=key in found[image], psnr_db=30.0 - loss))
    return made


OURS = [("jpeg_90", "jpeg_50", "noise_0_05"), ("jpeg_90", "jpeg_50"), ("jpeg_90", "jpeg_50")]
WEAK, STRONG = [(), (), ()], [("jpeg_90", "jpeg_50"), ("jpeg_90",), ("noise_0_05", "jpeg_50")]


@pytest.fixture(scope="module")
def comparison():
    methods = [contestant(name) for name in ("latent", "dwtDct", "blind_watermark")]
    return Comparison(methods, PLANNED, Generation(None), KEYS, slow=3, negatives=3)


@pytest.fixture(scope="module")
def measured():
    weak, strong = rows("dwtDct", WEAK), rows("blind_watermark", STRONG, images=2, marking_db=36.5)
    return [*rows("latent", OURS), *weak, *strong]


@pytest.fixture(scope="module")
def scores(comparison, measured):
    return method_scores(comparison, measured)


def test_scores_of_methods(scores):
    ours, weak, strong = scores
    assert [(s.name, s.baseline, s.n) for s in scores] == [
        ("latent", False, 3),
        ("dwtDct", True, 3),
        ("blind_watermark", True, 2),
    ]
    assert ours.means["mean_tpr_1e-3"].value == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert ours.means["mean_tpr_1e-6"].value == 0, "16 bits cannot show it"
    assert weak.means["mean_tpr_1e-3"].value == 0
    assert strong.means["mean_tpr_1e-3"].value == pytest.approx((0.5 + 0) / 2)
    assert ours.clean["psnr_db"].value == pytest.approx(39)
    assert "quality_loss" not in ours.clean
    assert ours.attacks["diffpure_100"] is None
    assert ours.attacks["noise_0_05"]["tpr_1e-3"].value == pytest.approx(1 / 3)
    # Of 16 rows without a difference in SSIM, the PSNRs of a third each are 30, 25 and 20 dB.
    losses = [ours.attacks[key]["quality_loss"].value for key in ("jpeg_90", "jpeg_50", "noise_0_05")]
    assert losses == pytest.approx([(0.1 + 0.5) / 2, (0.5 + 0.5) / 2, (0.9 + 0.5) / 2])
    assert ours.curves["jpeg"].strengths == (90, 50)
    assert ours.curves["jpeg"].losses == pytest.approx((0.3, 0.5))


def test_the_lead_is_over_the_best_baseline_on_common_images(comparison, measured, scores):
    lead = lead_over_baselines(comparison, measured, scores)
    assert lead.baseline == "blind_watermark"
    # Images 0 and 1: 1 against 0.5, and 0.5 against 0.
    assert (lead.tpr.value, lead.tpr.n) == (0.5, 2)
    assert (lead.psnr_db.value, lead.psnr_db.n) == (1.5, 2)


def test_images_that_a_mark_leaves_unchanged_have_no_quality_to_compare(comparison, measured, scores):
    unchanged = [
        replace(r, psnr_db=None) if (r.method, r.attack, r.image) == ("latent", "clean", 0) else r for r in measured
    ]
    lead = lead_over_baselines(comparison, unchanged, scores)
    assert (lead.psnr_db.value, lead.psnr_db.n) == (1.5, 1)
    assert lead.tpr.n == 2


def test_no_lead_without_two_of_them(comparison, measured, scores):
    assert lead_over_baselines(comparison, measured, scores[:1]) is None
    assert lead_over_baselines(comparison, measured, scores[1:]) is None


def test_a_lead_without_common_images_is_not_a_number(comparison, scores):
    apart = [*rows("latent", OURS)[:4], *[r for r in rows("blind_watermark", STRONG) if r.image == 1]]
    lead = lead_over_baselines(comparison, apart, scores)
    assert math.isnan(lead.tpr.value)
    assert math.isnan(lead.psnr_db.value)


def evaluation(scores, carrier, lead=None):
    return RobustnessEvaluation(
        {"model": "m", "n": 3},
        carrier,
        scores,
        PLANNED,
        {"rivaGan": "too slow"},
        lead,
        environment(),
        "privgen evaluate robustness",
    )


def test_the_record(comparison, measured, scores):
    lead = lead_over_baselines(comparison, measured, scores)
    record = evaluation(scores, "latent", lead).record()
    assert (record["model"], record["n"], record["carrier"]) == ("m", 3, "latent")
    assert record["mean_over"] == ["jpeg_50", "noise_0_05"]
    assert (record["lead_over_best_baseline"], record["psnr_lead_db"]) == (0.5, 1.5)
    assert record["best_baseline"] == "blind_watermark"
    assert record["carriers"].keys() == {"latent"}
    assert record["baselines"].keys() == {"dwtDct", "blind_watermark", "rivaGan"}
    assert record["baselines"]["rivaGan"] is None
    assert (record["not_run"], record["left_out"]) == ({"diffpure_100": "No denoiser."}, {"rivaGan": "too slow"})
    assert record["attacks"]["diffpure_100"] is None
    assert record["attacks"]["jpeg_50"]["n"] == 3
    assert record["ci95"].keys() == {"mean_tpr_1e-3", "mean_tpr_1e-6", "lead_over_best_baseline", "psnr_lead_db"}
    curve = record["curves"]["jpeg"]
    assert (curve["strength"], curve["tpr_1e-3"]) == ([90, 50], [1, 1])
    assert curve["quality_at_tpr_0_95"] == {"quality_loss": None, "state": "not reached"}


def test_the_summary(scores):
    summary = evaluation(scores, "latent").summary()
    assert summary["tpr_1e-3"] == {
        "jpeg_90": 1,
        "jpeg_50": 1,
        "noise_0_05": pytest.approx(1 / 3),
        "diffpure_100": None,
    }
    assert summary["baselines"]["rivaGan"] is None
    assert summary["baselines"]["dwtDct"] == {"n_bits": BITS, "mean_tpr_1e-3": 0, "mean_tpr_1e-6": 0}
    assert summary["lead_over_best_baseline"] is None
    assert summary["best_baseline"] is None


def test_baselines_alone_have_no_headline(scores):
    record = evaluation(scores[1:], None).record()
    assert [record[name] for name in ("carrier", "mean_tpr_1e-3", "mean_tpr_1e-6", "clean")] == [None] * 4
    assert (record["attacks"], record["carriers"], record["ci95"]) == ({}, {}, {})

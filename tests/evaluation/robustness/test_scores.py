import math

import numpy as np
import pytest

from privgen.attacks import list_attacks
from privgen.errors import PrivgenError, UsageError
from privgen.evaluation.intervals import Measured
from privgen.evaluation.robustness.curves import Crossing, curves_of, fit_losses, fit_scale
from privgen.evaluation.robustness.curves import crossing as crossing_of
from privgen.evaluation.robustness.log import LOG, Log, Row
from privgen.evaluation.robustness.plan import PRESETS, Planned, attack_key, get_preset, plan_attacks, strengths
from privgen.evaluation.robustness.scores import (
    falsely_detected,
    marked_p_values,
    matches_of,
    mean_detected,
    score,
    visibility,
)
from privgen.evaluation.watermark.model import WatermarkModel
from privgen.hub import Placement
from privgen.watermark.networks import Networks


BITS = 16
MESSAGES = np.array([[0, 1] * 8, [1, 0] * 8, [1] * 16], np.uint8)


def row(image, wrong, attack="jpeg_50", *, psnr_db=30.0, ssim=0.9, unmarked=(-1,) * BITS, **places):
    """An image whose first bits are read wrong."""
    bits = MESSAGES[image].copy()
    bits[:wrong] ^= 1
    return Row("latent", attack, image, weighed(bits), unmarked and list(unmarked), psnr_db, ssim, **places)


def weighed(bits):
    """All equally clear."""
    return [1 if bit else -1 for bit in bits]


# Scaling and curves


def test_quantiles_are_where_waves_has_them():
    values = np.arange(101.0)
    scale = fit_scale(values)
    assert scale([10, 50, 90]).tolist() == pytest.approx([0.1, 0.5, 0.9])
    assert scale([0, 100]).tolist() == pytest.approx([0, 1])
    assert fit_scale([3.0, 3.0])([3.0, 4.0]).tolist() == [0.5, 0.5]


def test_loss_is_the_mean_of_scaled_metrics():
    rows = [row(0, 0, psnr_db=40.0 - i, ssim=1 - i / 100) for i in range(11)]
    losses = fit_losses([*rows, row(0, 0, attack="clean", psnr_db=5.0, ssim=0.1)])
    assert losses(rows).tolist() == pytest.approx([i / 10 for i in range(11)])
    mixed = row(0, 0, psnr_db=39.0, ssim=0.91)  # 0.1 by one and 0.9 by the other
    assert losses([mixed]).tolist() == pytest.approx([0.5])
    assert fit_losses([row(0, 0, attack="clean")]) is None


def test_an_unchanged_image_counts_as_a_rounded_one():
    rows = [row(0, 0, psnr_db=None), row(0, 0, psnr_db=60.0), row(0, 0, psnr_db=70.0), row(0, 0, psnr_db=20.0)]
    unchanged, least, less, much = fit_losses(rows)(rows).tolist()
    assert unchanged == least == less < much


@pytest.mark.parametrize(
    ("points", "level", "expected"),
    [
        ([(0.2, 1.0), (0.4, 0.9), (0.8, 0.5)], 0.95, Crossing(pytest.approx(0.3), "reached")),
        ([(0.8, 0.5), (0.2, 1.0), (0.4, 0.9)], 0.70, Crossing(pytest.approx(0.6), "reached")),
        ([(0.2, 0.95), (0.4, 0.0)], 0.95, Crossing(pytest.approx(0.2), "reached")),
        ([(0.2, 1.0), (0.4, 0.95)], 0.95, Crossing(None, "not reached")),
        ([(0.2, 0.9), (0.4, 1.0)], 0.95, Crossing(None, "below from the start")),
        ([(0.5, 1.0)], 0.70, Crossing(None, "not reached")),
        ([(0.1, 1.0), (0.2, 0.6), (0.3, 0.9), (0.4, 0.2)], 0.70, Crossing(pytest.approx(0.175), "reached")),
    ],
)
def test_where_a_curve_falls(points, level, expected):
    assert crossing_of(points, level) == expected


def test_curves_follow_strengths():
    figures = [{"quality_loss": Measured(x, 3, x, x), "tpr_1e-3": Measured(1 - x, 3, 0, 1)} for x in (0.1, 0.4)]
    planned = [Planned(attack_key("jpeg", s), "jpeg", s, "quality", 3, False, None) for s in (90, 50, 10)]
    curves = curves_of(planned, {"jpeg_90": figures[0], "jpeg_50": figures[1], "jpeg_10": None})
    assert curves.keys() == {"jpeg"}
    assert (curves["jpeg"].strengths, curves["jpeg"].losses) == ((90, 50), (0.1, 0.4))
    assert curves["jpeg"].crossings()["0_70"].quality_loss == pytest.approx(0.3)


# Scores


def test_scores_in_closed_form():
    # 16 of 16 bits: p = 1.5e-5; 15: 2.6e-4; 13: 1.1e-2.
    rows = [row(0, 0, psnr_db=30.0, ssim=0.9), row(1, 1, psnr_db=None, ssim=1.0), row(2, 3, psnr_db=20.0, ssim=0.5)]
    figures = score(rows, MESSAGES, None)
    assert figures["tpr_1e-3"].value == pytest.approx(2 / 3)
    assert figures["tpr_1e-6"].value == 0
    assert figures["bit_accuracy"].value == pytest.approx((16 + 15 + 13) / 48)
    assert (figures["psnr_db"].value, figures["psnr_db"].n) == (25.0, 2)
    assert figures["ssim"].value == pytest.approx(0.8)
    assert "quality_loss" not in figures
    assert figures["tpr_1e-3"].low == pytest.approx(0.0943, abs=1e-4)  # Clopper and Pearson


def test_unmarked_images_meet_every_key():
    unmarked = weighed(MESSAGES[1])  # by chance what key 1 says
    rows = [row(0, 0, unmarked=unmarked), row(2, 0), row(1, 0, unmarked=None)]
    figures = score(rows, MESSAGES, None)
    assert figures["fpr_1e-3"].value == pytest.approx(1 / 6)
    assert figures["fpr_1e-3"].n == 2 * len(MESSAGES)
    assert figures["tpr_1e-3"].n == 3


# All 16 bits are right: p = 2^-16, which is above 1e-3 when it is multiplied by 66 places, and not by 65.
PLACES = [(1, True), (65, True), (66, False)]


@pytest.mark.parametrize(("places", "found"), PLACES)
def test_a_searched_mark_pays_for_the_search(places, found):
    rows = [row(0, 0, places=places)]
    assert score(rows, MESSAGES, None)["tpr_1e-3"].value == found
    assert mean_detected(rows, ["jpeg_50"], MESSAGES, 1e-3) == {0: float(found)}
    assert marked_p_values(rows, MESSAGES).tolist() == pytest.approx([places / 2**16])


@pytest.mark.parametrize(("places", "found"), PLACES)
def test_a_searched_unmarked_image_pays_too_and_meets_its_own_key_alone(places, found):
    rows = [
        row(1, 0, unmarked=weighed(MESSAGES[1]), unmarked_places=places),
        row(0, 0, unmarked=weighed(MESSAGES[1]), unmarked_places=places),
        row(2, 0, unmarked=None),
        row(2, 0, unmarked=weighed(MESSAGES[2])),  # a row of a run without a search
    ]
    figures = score(rows, MESSAGES, None)
    assert (figures["fpr_1e-3"].value, figures["fpr_1e-3"].n) == (found / 2, 2)
    assert figures["fpr_1e-6"].value == 0


def test_a_rate_that_is_met_exactly_counts():
    rows = [row(0, 0, unmarked=weighed(MESSAGES[0]))]
    assert falsely_detected(rows, MESSAGES, 2.0**-16).tolist() == [True, False, False]
    assert mean_detected(rows, ["jpeg_50"], MESSAGES, 2.0**-16) == {0: 1.0}
    assert mean_detected(rows, ["jpeg_50"], MESSAGES, 0.99 * 2.0**-16) == {0: 0.0}


def test_corrected_p_values_are_probabilities():
    assert marked_p_values([row(0, 8, places=1000)], MESSAGES).tolist() == [1]


def test_nothing_changed():
    figures = score([row(0, 0, psnr_db=None), row(1, 0, psnr_db=None)], MESSAGES, None)
    assert math.isnan(figures["psnr_db"].value)
    assert figures["psnr_db"].n == 0


def test_matches_are_those_with_the_own_key():
    assert matches_of([row(2, 4), row(0, 1)], MESSAGES).tolist() == [12, 15]


def test_means_are_taken_image_by_image():
    rows = [row(0, 0, "jpeg_50"), row(0, 5, "crop_0_75"), row(1, 0, "jpeg_50"), row(1, 0, "crop_0_75")]
    rows += [row(2, 0, "jpeg_50"), row(2, 0, "noise_0_05")]
    found = mean_detected(rows, ["jpeg_50", "crop_0_75"], MESSAGES, 1e-3)
    assert found == {0: 0.5, 1: 1.0}
    assert mean_detected(rows, ["rotation_10"], MESSAGES, 1e-3) == {}


# Plan


@pytest.mark.parametrize("name", PRESETS)
def test_barred_strengths_are_among_those_run(name):
    preset = get_preset(name)
    keys = {attack_key(kind.name, strength) for kind in list_attacks() for strength in strengths(kind, preset)}
    assert keys >= {"jpeg_50", "crop_0_5", "rotation_10", "diffpure_100", "regeneration_60", "rinse_2x"}


def test_plan(tiny_pipe, tmp_path):
    tiny_pipe.save_pretrained(tmp_path / "model")
    preset, folder = get_preset("standard", 30, 5), str(tmp_path / "model")
    model = WatermarkModel(folder, Networks(folder, Placement("cpu")))
    planned = plan_attacks(preset, model)
    middle = [entry for entry in planned if entry.middle]
    assert {entry.name for entry in middle} == {
        *(
            "all",
            "blur",
            "brightness",
            "contrast",
            "crop",
            "degradation",
            "erase",
            "gamma",
            "geometric",
            "hue",
            "jpeg",
        ),
        *("noise", "photometric", "rotation", "saturation", "sharpness", "webp"),
    }
    assert len(middle) == 17
    by_key = {entry.key: entry for entry in planned}
    assert len(by_key) == len(planned)
    assert (by_key["jpeg_50"].n, by_key["regeneration_60"].n) == (30, preset.few)
    assert by_key["diffpure_100"].attack is None
    assert (
        "has no pixel denoiser" in by_key["diffpure_100"].reason
        or "No pixel denoiser" in by_key["diffpure_100"].reason
    )
    assert all(entry.attack is not None for entry in planned if not entry.reason)
    jpegs = [entry.strength for entry in planned if entry.name == "jpeg"]
    assert jpegs == [90, 50, 10]  # mild to hard
    assert [by_key[f"jpeg_{strength}"].n for strength in jpegs] == [preset.ends, 30, preset.ends]
    assert (by_key["crop_0_75"].n, by_key["crop_0_5"].n, by_key["crop_0_9"].n) == (30, 30, preset.ends)
    chosen = plan_attacks(preset, model, only=["jpeg_50", "rinsing"])
    assert [entry.key for entry in chosen] == ["jpeg_50", "rinse_2x", "rinse_4x"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: get_preset("slow"), "No preset is called 'slow'; choose from quick, standard"),
        (lambda: get_preset("quick", 1), "--n must be at least 2, got 1"),
        (
            lambda: plan_attacks(get_preset("quick"), WatermarkModel("mini", Networks()), only=["jpeg_51"]),
            "--attack jpeg_51 is not among those of the preset quick; choose from all, blur",
        ),
    ],
)
def test_bad_plans(call, message):
    with pytest.raises(UsageError, match=message):
        call()


# Log


def test_the_log_takes_up_what_is_whole(tmp_path):
    works = {("latent", "jpeg_50"): "a", ("latent", "clean"): "b"}
    rows = [row(0, 0), row(1, 2, psnr_db=None), row(2, 1, attack="clean", ssim=1 / 3)]
    log = Log(tmp_path / "out", works)
    log.add(rows)
    path = tmp_path / "out" / LOG
    text = path.read_text()
    path.write_text(text + text[:20])
    again = Log(tmp_path / "out", works)
    assert again.get("latent", "jpeg_50", [0, 1]) == rows[:2]
    assert again.get("latent", "clean", [2]) == rows[2:]
    assert again.get("latent", "jpeg_50", [0, 2]) is None
    assert Log(tmp_path / "out", {**works, ("latent", "jpeg_50"): "c"}).get("latent", "jpeg_50", [0]) is None


def test_processes_read_each_others_files(tmp_path):
    works = {("latent", "jpeg_50"): "a"}
    for rank in (0, 1):
        Log(tmp_path, works, rank).add([row(rank, 0)])
    assert (tmp_path / "robustness-1.jsonl").is_file()
    assert Log(tmp_path, works).get("latent", "jpeg_50", [0, 1]) == [row(0, 0), row(1, 0)]


def test_a_log_without_a_folder():
    log = Log(None, {})
    log.add([row(0, 0)])
    assert log.get("latent", "jpeg_50", [0]) == [row(0, 0)]


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PrivgenError, match="was not written"):
        Log(tmp_path / "file", {("latent", "jpeg_50"): "a"}).add([row(0, 0)])


# What readers and attacks on photographs leave to the rows


def test_the_p_value_of_a_reader_counts():
    known = row(0, 8, p_value=1e-9, unmarked_p_value=1e-4, unmarked_places=1)
    assert marked_p_values([known], MESSAGES).tolist() == [1e-9]
    assert falsely_detected([known], MESSAGES, 1e-3).tolist() == [True]
    assert falsely_detected([known], MESSAGES, 1e-6).tolist() == [False]


def test_images_of_another_size_have_no_quality():
    figures = score([row(0, 0, psnr_db=None, ssim=None), row(1, 0, psnr_db=None, ssim=None)], MESSAGES, None)
    assert math.isnan(figures["psnr_db"].value)
    assert math.isnan(figures["ssim"].value)
    assert figures["bit_accuracy"].value == 1
    mixed = score([row(0, 0, psnr_db=None, ssim=None), row(1, 0, ssim=0.5)], MESSAGES, None)
    assert (mixed["ssim"].value, mixed["ssim"].n) == (0.5, 1)


def test_visibility_is_a_median_of_percentiles_and_a_mean_of_means():
    rows = [row(0, 0, visible_de_p99=p99, visible_de_mean=mean) for p99, mean in ((1, 1), (2, 1), (9, 4))]
    figures = visibility([*rows, row(1, 0)])
    assert (figures["visible_de_p99"].value, figures["visible_de_mean"].value) == (2, 2)
    assert visibility([row(1, 0)]) == {}

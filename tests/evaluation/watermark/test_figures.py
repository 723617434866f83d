import math

import numpy as np
import pytest
import torch

from privgen.evaluation.watermark.calibration import calibrate, tails
from privgen.evaluation.watermark.marking import Example, MarkedImages
from privgen.evaluation.watermark.pictures import draw_negatives, marks_sheet
from privgen.evaluation.watermark.readings import CLEAN
from privgen.evaluation.watermark.report import marked_scores
from privgen.watermark.read.bits import weigh_bits


# Figures


def test_calibration_of_fair_bits():
    rng = np.random.default_rng(0)
    keys = rng.integers(2, size=(20, 48), dtype=np.uint8)
    figures = calibrate(weigh_bits(rng.standard_normal((3000, 48))), keys)
    assert (figures["images"], figures["pairs"]) == (3000, 60_000)
    assert figures["matches_mean"] == pytest.approx(24, abs=0.1)
    assert figures["matches_std"] == pytest.approx(figures["matches_std_binomial"], rel=0.02)
    assert figures["matches_std_binomial"] == pytest.approx(12**0.5)
    assert figures["fpr_1e-3"] == pytest.approx(1e-3, abs=5e-4)
    assert figures["fpr_1e-6"] == 0
    assert figures["ci95"]["fpr_1e-6"]["high"] == pytest.approx(3.69 / 60_000, rel=0.01)
    assert figures["bit_bias"] < figures["bit_bias_by_chance"] < 0.05


def test_calibration_of_an_extractor_that_always_says_the_same():
    keys = np.stack([np.ones(48, np.uint8), np.zeros(48, np.uint8)])
    figures = calibrate(np.ones((10, 48), np.int8), keys)
    assert (figures["fpr_1e-6"], figures["worst_key_fpr_1e-3"], figures["bit_bias"]) == (0.5, 1, 0.5)
    assert (figures["matches_mean"], figures["matches_std"]) == (24, 24)


def test_calibration_by_hand():
    keys = np.stack([np.ones(48, np.uint8), np.repeat(np.array([1, 0], np.uint8), 24)])
    read = np.ones((4, 48), np.int8)
    read[3] = -1
    figures = calibrate(read, keys)
    # Three of four images agree with the first key in all bits, one in none; with the second all agree in half.
    assert (figures["images"], figures["pairs"]) == (4, 8)
    assert (figures["fpr_1e-3"], figures["worst_key_fpr_1e-3"]) == (3 / 8, 3 / 4)
    assert figures["matches_mean"] == (3 * 48 + 4 * 24) / 8
    assert (figures["matches_mean_binomial"], figures["bit_bias"]) == (24, 0.25)


def test_the_bias_of_fair_bits_exceeds_what_is_stated_once_in_twenty_times():
    stated = calibrate(np.ones((400, 48), np.int8), np.ones((1, 48), np.uint8))["bit_bias_by_chance"]
    largest = np.abs(np.random.default_rng(0).binomial(400, 0.5, (4000, 48)) / 400 - 0.5).max(axis=1)
    # Means of 400 bits are multiples of 1 / 400, so the fraction is not exactly 5 %.
    assert (largest > stated + 1 / 800).mean() < 0.05 < (largest > stated - 1 / 800).mean()


def test_scores_of_marked_images():
    messages = np.zeros((3, 48), np.uint8)
    read = np.full((3, 48), -1, np.int8)
    read[0, :7] = 1  # 41 matches are enough for 1e-6
    read[1, :8] = 1  # 40 are not, 36 are enough for 1e-3
    read[2, :24] = 1
    marked = MarkedImages(messages, {CLEAN: read, "blur_1": -read}, np.array([40.0, np.inf, 42.0]), np.ones(3))
    scores = marked_scores(marked)
    assert scores["bit_accuracy"].value == pytest.approx((41 + 40 + 24) / 144)
    assert (scores["tpr_1e-6"].value, scores["tpr_1e-3"].value) == pytest.approx((1 / 3, 2 / 3))
    assert scores["blur_1"].value == pytest.approx((7 + 8 + 24) / 144)
    assert scores["blur_1_tpr_1e-3"].value == 0
    assert (scores["psnr_db"].value, scores["psnr_db"].n) == (41, 2)
    assert "time_ratio" not in scores
    unchanged = MarkedImages(messages, {CLEAN: read}, np.full(3, np.inf), np.ones(3), (1.0, 3.0, 2.0))
    assert math.isnan(marked_scores(unchanged)["psnr_db"].value)
    assert marked_scores(unchanged)["time_ratio"].value == 2


def test_tails():
    measured, theory = tails(np.random.default_rng(0).binomial(48, 0.5, (500, 20)), 48)
    assert measured.shape == theory.shape == (49,)
    assert measured[0] == theory[0] == 1
    assert np.abs(measured - theory).max() < 0.02
    # Of the matches 0, 2, 2 and 3 of 3 bits, so many are at least 0, 1, 2 and 3.
    assert tails([[0, 2], [2, 3]], 3)[0].tolist() == [1, 0.75, 0.75, 0.25]


# Pictures


def test_a_sheet_shows_the_difference(generator):
    plain = torch.full((3, 20, 30), 0.5)
    marked = plain.clone()
    marked[:, :, 15:] += 0.02
    sheet = marks_sheet([Example("a cat", plain, marked, 47, 48, 1e-13, 37.0)])
    third = np.asarray(sheet)[8:28, 8 + 2 * 38 : 8 + 2 * 38 + 30] / 255
    assert third[:, :15] == pytest.approx(0.5, abs=0.01)
    assert third[:, 15:] == pytest.approx(0.7, abs=0.01)


def test_large_pictures_are_shown_smaller():
    large = torch.zeros(3, 1000, 500)
    assert marks_sheet([Example("", large, large, 24, 48, 0.5, math.inf)]).width < 700


def test_the_histogram():
    fair, biased = (np.random.default_rng(0).binomial(48, p, size=(50, 20)) for p in (0.5, 0.6))
    first, second = draw_negatives(fair, 48), draw_negatives(biased, 48)
    assert first.size == second.size == (1000, 400)
    assert not np.array_equal(np.asarray(first), np.asarray(second))

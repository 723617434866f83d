"""Closed forms of success, drop and cost factor, and what becomes of them over pairs of subject and seed."""

import math
import statistics

import pytest

from privgen.evaluation.protection.log import Row
from privgen.evaluation.protection.plan import CLEAN, UNTRAINED, Cell
from privgen.evaluation.protection.scores import cost_factor, drop, steps_to, success
from privgen.evaluation.protection.summary import Setting, outcomes, sentence


def test_success_is_0_untrained_and_1_like_clean():
    assert [success(score, 0.2, 0.8) for score in (0.2, 0.5, 0.8)] == pytest.approx([0, 0.5, 1])
    assert math.isnan(success(0.2, 0.2, 0.25)), "an adversary that does not learn from clean images says nothing"


def test_drop_is_at_the_adversarys_best():
    assert drop([0.1, 0.7, 0.3]) == pytest.approx(0.3)
    assert math.isnan(drop([0.1, math.nan]))


def test_steps_are_interpolated_from_nothing_at_0():
    curve = {60: 0.4, 120: 0.6, 240: 1.0}
    assert steps_to(0.2, curve) == pytest.approx(30)
    assert steps_to(0.5, curve) == pytest.approx(90)
    assert steps_to(0.6, curve) == pytest.approx(120)
    assert math.isinf(steps_to(1.01, curve))


def test_cost_factor():
    clean = {60: 0.5, 120: 1.0}
    assert cost_factor(clean, clean) == pytest.approx(1)
    assert cost_factor({60: 0.25, 120: 0.5}, clean) == pytest.approx(2)
    assert math.isinf(cost_factor({60: 0.1, 120: 0.49}, clean)), "half was not reached"
    assert cost_factor({60: 0.25, 120: 0.4}, {60: 0.25, 120: 0.8}) == pytest.approx(120 / (60 + 60 * 0.15 / 0.55))
    assert math.isnan(cost_factor(clean, {60: -1.0, 120: 0.0}))


def rows(scores, *, method, seed=0, subject="panda", untrained=0.0):
    cell = Cell("mini", "lora", subject, seed, method)
    cost = {"psnr_db": 34.0, "visible_de_p99": 2.0, "seconds_per_image": 0.1}
    more = {} if method in (CLEAN, UNTRAINED) else cost
    return [Row(cell, effort, scale, score, score, **more) for (effort, scale), score in scores.items()]


def study(protected, *, noise=None, clean=None):
    found = []
    for seed, scores in enumerate(protected):
        found += rows({(0, 1.5): 0.1, (0, 3.0): 0.2}, method=UNTRAINED, seed=seed)
        found += rows(
            clean or {(60, 1.5): 0.3, (60, 3.0): 0.5, (120, 1.5): 0.7, (120, 3.0): 0.6}, method=CLEAN, seed=seed
        )
        found += rows(scores, method="shield", seed=seed)
        found += rows(noise or scores, method="noise", seed=seed)
    return outcomes(found)


SHIELD, NOISE = Setting("mini", "lora", "shield"), Setting("mini", "lora", "noise")


def test_outcome_is_at_the_best_guidance_scale():
    """The floor is .2, the ceiling .7; at 60 steps clean images reach .6, so half of success is at 50 steps."""
    found = study([{(60, 1.5): 0.2, (60, 3.0): 0.3, (120, 1.5): 0.5, (120, 3.0): 0.4}] * 2)
    outcome = found[SHIELD]
    assert {effort: m.value for effort, m in outcome.success.items()} == pytest.approx({60: 0.2, 120: 0.6})
    assert outcome.drop.value == pytest.approx(0.4)
    assert outcome.cost_factor.value == pytest.approx((60 + 60 * 0.3 / 0.4) / 50)
    assert outcome.feature_similarity.value == pytest.approx(0.5)
    assert (outcome.n, outcome.not_learnt, outcome.not_reached) == (2, 0, 0)
    assert outcome.costs["psnr_db"].value == 34
    clean = found[Setting("mini", "lora", CLEAN)]
    assert (clean.drop.value, clean.cost_factor.value, dict(clean.costs)) == (0, 1, {})


def test_drop_over_noise_is_paired():
    weak = {(60, 1.5): 0.2, (60, 3.0): 0.3, (120, 1.5): 0.65, (120, 3.0): 0.4}
    found = study([{(60, 1.5): 0.2, (120, 1.5): 0.5}, {(60, 1.5): 0.2, (120, 1.5): 0.4}], noise=weak)
    assert found[SHIELD].drop_over_noise.value == pytest.approx((0.4 + 0.6) / 2 - 0.1)
    assert found[NOISE].drop_over_noise is None


def test_intervals_are_over_subjects_whose_seeds_are_averaged():
    drops = {("panda", 0): 0.2, ("panda", 1): 0.6, ("snail", 0): 0.5, ("snail", 1): 0.5, ("gift", 0): 0.9}
    found = []
    for (subject, seed), value in drops.items():
        found += rows({(0, 1.5): 0.0}, method=UNTRAINED, subject=subject, seed=seed)
        found += rows({(60, 1.5): 1.0}, method=CLEAN, subject=subject, seed=seed)
        found += rows({(60, 1.5): 1 - value}, method="shield", subject=subject, seed=seed)
    drop_of = outcomes(found)[SHIELD].drop
    by_subject = [0.4, 0.5, 0.9]
    half = 4.302652729911275 * statistics.stdev(by_subject) / 3**0.5  # Student's t, two degrees of freedom
    assert (drop_of.value, drop_of.low, drop_of.high) == pytest.approx((0.6, 0.6 - half, 0.6 + half))


def test_half_that_is_not_reached_is_infinite_and_null_in_records():
    found = study([{(60, 1.5): 0.2, (120, 1.5): 0.3}] * 2)
    assert math.isinf(found[SHIELD].cost_factor.value)
    record = found[SHIELD].record()
    assert (record["cost_factor_text"], record["not_reached"]) == ("not reached", 1)
    assert "more than the 120 steps" in sentence(SHIELD, found[SHIELD], found[NOISE])


def test_sentences():
    slow = study([{(60, 1.5): 0.2, (60, 3.0): 0.3, (120, 1.5): 0.5, (120, 3.0): 0.4}] * 2)
    text = sentence(SHIELD, slow[SHIELD], slow[NOISE])
    assert "To learn this subject an adversary needs about 2.1 times the steps" in text
    assert "lost 40% of its success" in text
    same = study([{(60, 1.5): 0.6, (120, 1.5): 0.7}])
    assert "did not change how many steps" in sentence(SHIELD, same[SHIELD], None)


def test_pairs_in_which_clean_images_teach_nothing_do_not_count():
    found = study([{(60, 1.5): 0.2, (120, 1.5): 0.3}], clean={(60, 1.5): 0.2, (120, 1.5): 0.25})
    assert (found[SHIELD].n, found[SHIELD].not_learnt) == (0, 1)
    assert "says nothing about the protection" in sentence(SHIELD, found[SHIELD], None)

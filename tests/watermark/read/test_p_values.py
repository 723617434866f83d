import dataclasses
import json
import time
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import binom, binomtest

from privgen.watermark.key import Key, Secret
from privgen.watermark.read.bits import count_matches, weigh_bits
from privgen.watermark.read.p_values import (
    TESTS,
    KeyTest,
    adjust,
    match_keys,
    p_value,
    p_values_of,
    threshold_matches,
)


N_BITS = 48


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def messages(n_keys, n_bits=N_BITS):
    return np.array([Key("k", Secret(i.to_bytes(32, "big"))).bits(n_bits) for i in range(n_keys)])


def with_matches(message, matches):
    """Logits that agree with a message in its first `matches` bits."""
    signs = 2.0 * np.asarray(message) - 1
    signs[matches:] *= -1
    return signs


@pytest.mark.parametrize(
    ("n_bits", "fpr", "needed"),
    [(48, 1e-3, 36), (48, 1e-6, 41), (48, 1e-9, 44), (10, 1e-6, 11), (16, 1e-6, 17), (20, 1e-6, 20), (1, 0.5, 1)],
)
def test_known_thresholds(n_bits, fpr, needed):
    assert threshold_matches(n_bits, fpr) == needed


@pytest.mark.parametrize("n_bits", [1, 7, 48, 64, 300])
@pytest.mark.parametrize("fpr", [0.3, 1e-2, 1e-4, 1e-6, 1e-9, 1e-12])
def test_threshold_is_the_smallest(n_bits, fpr):
    needed = threshold_matches(n_bits, fpr)
    assert needed == n_bits + 1 or binom.sf(needed - 1, n_bits, 0.5) <= fpr
    assert binom.sf(needed - 2, n_bits, 0.5) > fpr


@pytest.mark.parametrize("n_bits", [1, 48, 256])
def test_p_values_equal_scipy(n_bits):
    matches = np.arange(n_bits + 1)
    np.testing.assert_allclose(p_value(matches, n_bits), binom.sf(matches - 1, n_bits, 0.5), rtol=1e-12)


def test_p_value_shapes_and_ends():
    assert p_value(0, 48) == 1
    assert p_value(48, 48) == 2.0**-48
    assert p_value([[24, 30]], 48).shape == (1, 2)


@pytest.mark.parametrize("matches", [-1, 49, 3.5, [3, 50], float("nan")])
def test_impossible_matches(matches):
    with pytest.raises(ValueError, match=r"expected matches to be integers in 0\.\.48"):
        p_value(matches, 48)


def test_null_follows_the_binomial(rng):
    """Random logits against random keys: each tail within its exact 99.9 % interval."""
    n = 200_000
    logits, keys = rng.standard_normal((n // 20, N_BITS)), messages(20)
    matches = count_matches(weigh_bits(logits) > 0, keys).ravel()
    for needed in range(24, 36):
        found = int((matches >= needed).sum())
        interval = binomtest(found, n).proportion_ci(0.999, "exact")
        assert interval.low <= binom.sf(needed - 1, N_BITS, 0.5) <= interval.high


@pytest.mark.parametrize("correction", ["bonferroni", "holm"])
def test_share_of_unmarked_images_called_marked(rng, correction):
    """With 20 keys for each image, at most `fpr` of the images match any key."""
    results = match_keys(rng.standard_normal((5000, N_BITS)), messages(20), fpr=0.05, correction=correction)
    called = sum(any(result.detected for result in row) for row in results)
    assert binomtest(called, len(results)).proportion_ci(0.999, "exact").low <= 0.05
    assert called > 0


def test_marked_image():
    keys = messages(3)
    (row,) = match_keys(with_matches(keys[1], 43), keys)
    assert row[1] == KeyTest(
        bits=tuple(keys[1][:43]) + tuple(1 - keys[1][43:]),
        matches=43,
        n_bits=48,
        p_value=pytest.approx(binom.sf(42, 48, 0.5)),
        p_adjusted=pytest.approx(3 * binom.sf(42, 48, 0.5)),
        candidates=3,
        fpr=1e-6,
        threshold=41,
        detected=True,
        test="weighted",
    )
    assert [other.detected for other in row] == [False, True, False]


def test_many_equal_one_by_one(rng):
    logits, keys = rng.standard_normal((7, N_BITS)), messages(5)
    logits[2] = with_matches(keys[3], 47)
    together = match_keys(logits, keys)
    for image, row in zip(logits, together, strict=True):
        assert match_keys(image, keys) == [row]
        for message, result in zip(keys, row, strict=True):
            assert match_keys(image, message, candidates=5) == [[result]]


@pytest.mark.parametrize("correction", ["bonferroni", "holm", "none"])
def test_order_of_keys_and_images_does_not_matter(rng, correction):
    keys, order, swap = messages(6), rng.permutation(6), rng.permutation(4)
    logits = np.stack([with_matches(keys[i], 38 + i) for i in range(4)])
    plain = match_keys(logits, keys, correction=correction)
    assert match_keys(logits[swap], keys[order], correction=correction) == [[plain[i][k] for k in order] for i in swap]


@pytest.mark.parametrize("fpr", [0.05, 1e-3, 1e-6])
def test_decision_is_the_threshold(rng, fpr):
    keys = messages(4)
    logits = np.stack([with_matches(keys[0], matches) for matches in range(20, 49)])
    for correction in ("bonferroni", "none"):
        for row in match_keys(logits, keys, fpr=fpr, correction=correction):
            assert all(result.detected == (result.matches >= result.threshold) for result in row)
    for row in match_keys(logits, keys, fpr=fpr, correction="holm"):
        assert all(result.detected or result.matches < result.threshold for result in row)


def test_candidates_make_it_harder():
    message = messages(1)
    logits = with_matches(message[0], 41)
    assert match_keys(logits, message)[0][0].detected
    searched = match_keys(logits, message, candidates=100)[0][0]
    assert not searched.detected
    assert (searched.candidates, searched.threshold) == (100, 43)
    assert searched.p_adjusted == pytest.approx(100 * searched.p_value)


def test_equal_weights_are_the_binomial_test():
    message = messages(1)
    for matches in range(49):
        logits = with_matches(message[0], matches)
        weighted, binomial = (match_keys(logits, message, test=test)[0][0] for test in TESTS)
        assert weighted.p_value == pytest.approx(binomial.p_value, rel=1e-12)
        assert binomial.p_value == p_value(matches, 48)


def test_weighted_p_values_count_all_messages(rng):
    """Against the definition: every message of ten bits in turn."""
    every = np.array(list(product((0, 1), repeat=10)))
    read = weigh_bits(rng.standard_normal((6, 10)))
    agreement = read.astype(int) @ (2 * every - 1).T
    expected = [[(row >= own).mean() for own in row] for row in agreement]
    np.testing.assert_allclose(p_values_of(read, every, "weighted"), expected, rtol=1e-12)


def test_weighted_test_keeps_its_rate_whatever_is_read(rng):
    """Readings that are biased, alike, and of all sizes: keys are random, and that is enough."""
    logits = rng.standard_normal(N_BITS) + 0.3 * rng.standard_normal((20, N_BITS)) ** 3
    keys = rng.integers(0, 2, (20_000, N_BITS))
    p = p_values_of(weigh_bits(logits), keys, "weighted")
    for image in p:
        for fpr in (0.1, 0.01, 0.001):
            interval = binomtest(int((image <= fpr).sum()), len(keys)).proportion_ci(0.9999, "exact")
            assert interval.low <= fpr


def test_weights_find_more(rng):
    """Half of the bits are lost, as in a cut-out: noise of a size that shows that it is."""
    keys = messages(200)
    gain = np.where(np.arange(N_BITS) < 24, 1.0, 0.01)
    logits = gain * (2 * keys - 1 + 0.3 * rng.standard_normal(keys.shape)) + 0.1 * rng.standard_normal(keys.shape)
    p = {test: p_values_of(weigh_bits(logits), keys, test).diagonal() for test in TESTS}
    assert (p["weighted"] <= 1e-6).mean() > (p["binomial"] <= 1e-6).mean() + 0.3


def test_weights_follow_logits_of_any_scale(rng):
    logits = rng.standard_normal((5, N_BITS))
    read = weigh_bits(logits)
    assert read.dtype == np.int8
    assert (np.abs(read) >= 1).all()
    assert ((read > 0) == (logits > 0)).all()
    assert (weigh_bits(1e-20 * logits) == read).all()
    order = np.argsort(np.abs(logits[0]))
    assert (np.diff(np.abs(read[0].astype(int))[order]) >= 0).all()
    assert weigh_bits(np.zeros(3)).tolist() == [[-100, -100, -100]]


def test_weights_in_units_of_the_rms():
    """Full weight from three times the RMS on."""
    assert weigh_bits([2.0, -2.0, 2.0]).tolist() == [[33, -33, 33]]
    outlier = np.array([40.0] + [1.0] * 99)  # RMS 4.12: 40 is 9.7 times that, and 1 a quarter
    assert weigh_bits(outlier)[0, :2].tolist() == [100, 8]


@pytest.mark.parametrize("read", [[[0] * 48], [[0.5] * 48], [[1] * 47]])
def test_bits_without_weights(read):
    with pytest.raises(ValueError, match=r"weigh_bits makes them of logits|as many bits"):
        p_values_of(read, messages(1), "weighted")


def test_few_bits_never_detect():
    (((result),),) = match_keys(np.ones(16), np.ones((1, 16), int))
    assert (result.matches, result.threshold, result.detected) == (16, 17, False)


def test_zero_logit_reads_as_zero():
    assert (weigh_bits([0.0, -0.0, 1e-30, -1e-30]) > 0).tolist() == [[False, False, True, False]]
    matches = count_matches(weigh_bits(np.zeros(N_BITS)) > 0, messages(2000))
    assert abs(matches.mean() / N_BITS - 0.5) < 0.01


@pytest.mark.parametrize("kind", [list, np.asarray, torch.tensor, lambda x: torch.tensor(x, dtype=torch.bfloat16)])
def test_kinds_of_input(kind):
    keys = messages(2)
    logits = [with_matches(keys[0], 45).tolist()]
    assert match_keys(kind(logits), kind(keys.tolist())) == match_keys(logits, keys)
    assert match_keys(torch.tensor(logits, requires_grad=True), keys) == match_keys(logits, keys)


def test_no_images():
    assert match_keys(np.zeros((0, N_BITS)), messages(2)) == []


GOOD = np.ones((2, N_BITS))


@pytest.mark.parametrize(
    ("logits", "keys", "options", "match"),
    [
        (np.full((2, N_BITS), np.nan), messages(1), {}, "expected finite logits, got NaN or infinity for image 0"),
        (np.where(np.eye(2, N_BITS, -1), np.inf, 1.0), messages(1), {}, "for image 1"),
        (np.ones((2, 2, N_BITS)), messages(1), {}, r"expected logits of shape \(rows, n_bits\), got \(2, 2, 48\)"),
        (np.ones((2, 0)), messages(1), {}, "expected logits of shape"),
        ("text", messages(1), {}, "expected logits to be a matrix of numbers"),
        ([[1.0], [1.0, 2.0]], messages(1), {}, "expected logits to be a matrix of numbers"),
        (np.ones((2, 47)), messages(1), {}, "expected as many bits of images as of keys, got 47 and 48"),
        (GOOD, np.ones((0, N_BITS)), {}, "expected at least one key"),
        (GOOD, GOOD * 2, {}, "expected the bits of keys to be 0 or 1"),
        (GOOD, GOOD * np.nan, {}, "expected the bits of keys to be 0 or 1"),
        (GOOD, messages(3), {"candidates": 2}, "at least as many candidates as keys, got 2 and 3"),
        (GOOD, messages(1), {"fpr": 0}, "a rate in"),
        (GOOD, messages(1), {"fpr": 1}, "a rate in"),
        (GOOD, messages(1), {"test": "exact"}, "expected the test weighted or binomial, got 'exact'"),
        (GOOD, messages(1), {"correction": "sidak"}, "expected the correction bonferroni, holm or none, got 'sidak'"),
    ],
)
def test_bad_input(logits, keys, options, match):
    with pytest.raises(ValueError, match=match):
        match_keys(logits, keys, **options)


def test_holm_by_hand():
    """The step-down procedure on Holm's own scheme: 4, 3, 2, 1 times, never falling."""
    adjusted = adjust([0.01, 0.04, 0.03, 0.005], "holm")
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])


def test_corrections(rng):
    p = rng.random((200, 9)) ** 3
    bonferroni, holm, none = (adjust(p, correction) for correction in ("bonferroni", "holm", "none"))
    assert (none == p).all()
    assert (p <= holm).all()
    assert (holm <= bonferroni).all()
    assert (holm < bonferroni).any()
    assert (bonferroni <= 1).all()
    for row, expected in zip(p, holm, strict=True):
        assert np.array_equal(adjust(row, "holm"), expected)


def test_holm_with_unseen_candidates_is_never_easier(rng):
    p = rng.random((200, 9)) ** 4
    whole = adjust(p, "holm")[:, :4]
    part = adjust(p[:, :4], "holm", candidates=9)
    assert (part >= whole - 1e-15).all()


def test_result_is_json():
    (row,) = match_keys(np.ones(N_BITS), messages(1))
    record = json.loads(json.dumps(dataclasses.asdict(row[0])))
    assert record["bits"] == [1] * N_BITS
    assert isinstance(record["detected"], bool)


def test_many_at_once_are_quick(rng):
    logits, keys = rng.standard_normal((2000, N_BITS)), messages(20)
    start = time.perf_counter()
    results = match_keys(logits, keys)
    assert time.perf_counter() - start < 5
    assert (len(results), len(results[0])) == (2000, 20)

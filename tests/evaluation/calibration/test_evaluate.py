"""What is said of p-values whose law is known, and once the command from end to end."""

import json

import numpy as np
import pytest
from PIL import Image

from privgen.evaluation.calibration.evaluate import RATES, CalibrationPlan, calibration, exceeded, work_of
from privgen.evaluation.calibration.images import DISTORTIONS, Unmarked
from privgen.evaluation.calibration.rates import bit_figures, rate_over_images
from privgen.evaluation.calibration.readings import NOMINAL, ImageReadings, counted


IMAGES, KEYS = 40, 500


def readings_of(p_values, kind="tile", source="scenes"):
    """Readings of images, from p-values (images, keys)."""
    return [ImageReadings(kind, source, str(i), "clean", len(p), counted(p), min(p)) for i, p in enumerate(p_values)]


@pytest.mark.parametrize(("factor", "above"), [(1, False), (3, True), (1 / 3, False)])
def test_p_values_that_are_too_small_by_a_factor_are_noticed(factor, above):
    p = np.random.default_rng(1).random((IMAGES, KEYS)) / factor
    rates = calibration("mini", CalibrationPlan(), readings_of(p.tolist())).kinds["tile"]["rates"]["all"]
    for name in ("1e-1", "1e-2", "1e-3"):
        true = min(1, factor * float(name))
        assert rates[name].low <= true <= rates[name].high
        assert rates[name].value == (p <= float(name)).mean()
    assert (rates["1e-2"].low > 1e-2) == above


@pytest.mark.parametrize(("factor", "above"), [(1, False), (3, True)])
def test_the_number_of_rates_is_accounted_for(factor, above):
    """Of many kinds without fault none is named, and of many kinds the one that is wrong."""
    rng, keys = np.random.default_rng(2), np.full(IMAGES, KEYS)

    def figures(wrong):
        hits = {name: rng.binomial(keys, min(1, wrong * float(name))) for name in RATES}
        return {"rates": {"all": {name: rate_over_images(row, keys, float(name)) for name, row in hits.items()}}}

    kinds = {f"fair {i}": figures(1) for i in range(100)}
    assert any(rate.low > rate.nominal for row in kinds.values() for rate in row["rates"]["all"].values())
    named = exceeded({**kinds, "wrong": figures(factor)})
    assert ("wrong, all, 1e-2" in named) == above
    assert not [name for name in named if name.startswith("fair")]


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(3)
    hits = rng.binomial(100, rng.uniform(0.01, 0.19, (400, 30)))  # true rates of images differ, with a mean of .1
    found = [rate_over_images(row, np.full(30, 100), 0.1) for row in hits]
    assert np.mean([rate.low <= 0.1 <= rate.high for rate in found]) > 0.93
    assert np.mean([rate.excess_p <= 0.05 for rate in found]) < 0.08


def test_images_that_fare_alike_count_as_their_readings_and_others_as_images():
    alike = rate_over_images([5] * 20, [100] * 20, 0.05)
    assert (alike.value, alike.n) == (0.05, 2000)
    assert alike.low == pytest.approx(0.0405, abs=0.002)
    apart = rate_over_images([100] + [0] * 19, [100] * 20, 0.05)  # as good as 20 readings
    assert (apart.value, apart.n) == (0.05, 2000)
    assert apart.low < 0.002 < 0.2 < apart.high
    none = rate_over_images([0] * 20, [100] * 20, 0.05)
    assert (none.low, none.excess_p) == (0, 1)
    assert none.high == pytest.approx(3.69 / 2000, rel=0.2)


def test_rates_are_counted_where_they_are_reported():
    assert [NOMINAL[place] for place in RATES.values()] == pytest.approx([float(name) for name in RATES])
    assert [counted([0.5, 0.05, 1e-3])[place] for place in RATES.values()] == [2, 1, 1, 0]


def test_bits_of_fair_coins_and_of_others():
    rng = np.random.default_rng(4)
    fair = rng.integers(2, size=(300, 48))
    figures = bit_figures(fair)
    assert figures["bit_bias"] < figures["bit_bias_by_chance"] == pytest.approx(0.095, abs=0.005)
    assert figures["correlation"] < figures["correlation_by_chance"] == pytest.approx(0.0478, abs=0.001)
    assert 0.01 < figures["bias_chi2_p"] < 0.99
    biased = fair.copy()
    biased[:, 7] = 1
    assert (bit_figures(biased)["bit_bias"], bit_figures(biased)["bias_chi2_p"] < 1e-9) == (0.5, True)
    assert bit_figures(np.repeat(fair[:, :1], 48, 1))["correlation"] == pytest.approx(1)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: CalibrationPlan(n=1),
        lambda: CalibrationPlan(keys=0),
        lambda: CalibrationPlan(searches=-1),
        lambda: rate_over_images([], [], 0.1),
        lambda: rate_over_images([1], [2, 3], 0.1),
        lambda: bit_figures([[0, 1]]),
        lambda: bit_figures([0, 1]),
    ],
)
def test_bad_values(wrong):
    with pytest.raises(ValueError, match="expected"):
        wrong()


def test_searches_take_the_distortions_in_turn():
    images = [Unmarked(source, str(i), lambda: None) for source in ("scenes", "photographs") for i in range(7)]
    work = list(work_of(images, CalibrationPlan(searches=2), ("objects", "tile_search", "objects_search")))
    assert [image for image, _ in work] == images
    parts = [[part for part in found if part[0] != "objects"] for _, found in work]
    assert parts[:7] == parts[7:]
    assert parts[:3] == [
        [("tile_search", "clean"), ("objects_search", "clean")],
        [("tile_search", "jpeg_50"), ("objects_search", "jpeg_50")],
        [("tile_search", "crop_half")],
    ]
    assert parts[6] == [("tile_search", "clean")]
    assert all([name for kind, name in found if kind == "objects"] == list(DISTORTIONS) for _, found in work)


def test_from_end_to_end(cli, model_folder, photo_files, tmp_path):
    (tmp_path / "photos").mkdir()
    for i, path in enumerate(photo_files[:2]):
        with Image.open(path) as image:
            image.resize((80, 64)).save(tmp_path / "photos" / f"{i}.png")
    words = ["evaluate", "calibration", "--model", str(model_folder), "--n", "2", "--keys", "3", "--device", "cpu"]
    for kind in ("tile", "extractor", "objects"):
        words += ["--kind", kind]
    words += ["--images", str(tmp_path / "photos"), "--seed", "1", "-o", str(tmp_path / "out"), "--json"]
    result = cli(*words)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads((tmp_path / "out" / "results.json").read_text())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("results.json", "readings.jsonl", "rates.png", "bits.png")
    }
    # Four sources of two images, six distortions, three keys.
    counts = {kind: (row["images"], row["readings"]) for kind, row in record["kinds"].items()}
    assert counts == {"tile": (8, 144), "extractor": (8, 144), "objects": (8, 144)}
    assert {"all", "folder", "clean", "jpeg_50"} < record["kinds"]["tile"]["rates"].keys()
    assert record["bits"]["tile"]["folder"]["blur"]["n"] == 6
    assert record["bits"]["extractor"]["folder"]["blur"]["n"] == 2
    assert (record["folder"], record["curves"]["tile"][0]) == ("photos", 1)
    # A run that was cut off goes on with what it had read.
    log = tmp_path / "out" / "readings.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-3]))
    again = cli(*words, "--overwrite")
    assert again.exit_code == 0, again.output
    assert log.read_bytes().splitlines(keepends=True) == lines
    assert json.loads(again.stdout) == record

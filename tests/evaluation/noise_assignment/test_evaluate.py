import json
import math
from dataclasses import replace

import pytest
import torch

from privgen.errors import PrivgenError, UsageError
from privgen.evaluation.noise_assignment.data import Judge, TrainingData
from privgen.evaluation.noise_assignment.evaluate import evaluate_training, fingerprint
from privgen.evaluation.noise_assignment.log import LOG
from privgen.evaluation.noise_assignment.ratio import first_reach, is_speedup, is_worse, ratio_over_seeds, steps_ratio
from privgen.evaluation.noise_assignment.runs import batches, build_network, noise_schedule, sample
from privgen.evaluation.noise_assignment.settings import METHODS, SETTINGS, Comparison, RunOptions, auto_method
from privgen.evaluation.record import check_output


CPU = torch.device("cpu")
SHORT = RunOptions(steps=4, batch_size=16, warmup=1, samples=12, checkpoints=(0.5, 1.0))


def tiny_set(name, classes, shape):
    x = torch.randn(64, *shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(64) % classes if classes else None

    def look(samples):
        rows = samples.flatten(1)[:, :3]
        return rows, (rows[:, 0] > 0).long()

    patch = 1 if classes else 2
    return TrainingData(name, x, labels, classes, patch, Judge.fit("test", look, look(x)[0], 3), "id")


@pytest.fixture(scope="module")
def sets():
    return {"fashion": tiny_set("fashion", 0, (1, 6, 6)), "scenes": tiny_set("scenes", 2, (2, 4, 4))}


COMPARISON = Comparison(methods=("linear", "within-label"), seeds=2)
FLOW = replace(COMPARISON, objectives=("flow",))
FASHION_FLOW = replace(FLOW, data=("fashion",), seeds=1)


def run(sets, comparison=COMPARISON, folder=None, options=SHORT):
    return evaluate_training(comparison, sets=sets, folder=folder, options=options)


def without_seconds(result):
    curves = result.record()["curves"]
    for runs in (runs for methods in curves.values() for runs in methods.values()):
        for point in (point for curve in runs for point in curve):
            del point["seconds"]
    return curves


# The ratio


def test_first_reach_interpolates_over_the_logarithm_of_steps():
    curve = [(100, 8.0), (400, 4.0), (1600, 2.0)]
    assert first_reach(curve, 6.0) == pytest.approx(200)
    assert first_reach(curve, 3.0) == pytest.approx(800)
    assert first_reach(curve, 2.0) == pytest.approx(1600)
    assert first_reach(curve, 9.0) == 100
    assert first_reach(curve, 1.9) == math.inf
    assert first_reach([(1, math.nan), (2, 1.0)], 1.0) == 2


def test_steps_ratio_of_power_laws():
    # Distance falls by one with each doubling; ours is where vanilla is with half of the steps.
    steps = [100, 200, 400, 800]
    vanilla, faster, slower = ([(s, 20 - math.log2(factor * s)) for s in steps] for factor in (1, 2, 0.5))
    assert steps_ratio(vanilla, faster) == pytest.approx(2)
    assert steps_ratio(vanilla, slower) == pytest.approx(0.5)
    assert steps_ratio(vanilla, vanilla) == 1


def test_steps_ratio_of_a_curve_against_itself_is_one_even_if_it_rises():
    curve = [(1, 5.0), (2, 2.0), (4, 3.0)]
    assert steps_ratio(curve, curve) == 1


def test_steps_ratio_without_numbers():
    assert math.isnan(steps_ratio([(1, 2.0), (2, 1.0)], [(1, math.nan), (2, math.nan)]))


def test_intervals_of_ratios():
    ratio = ratio_over_seeds([1.0, 2.0, 4.0, math.nan])
    assert (ratio.value, ratio.n) == (pytest.approx(2), 3)
    assert ratio.high / ratio.value == pytest.approx(math.exp(4.302653 * math.log(2) / math.sqrt(3)))
    assert ratio.low * ratio.high == pytest.approx(4)
    assert not is_speedup(ratio)
    assert is_speedup(ratio_over_seeds([1.4, 1.41, 1.42]))
    assert not is_speedup(ratio_over_seeds([1.2, 1.21, 1.22]))
    assert is_worse(ratio_over_seeds([0.8, 0.81, 0.82]))
    assert not is_worse(ratio_over_seeds([0.8]))


@pytest.mark.parametrize("curve", [[], [(0, 1.0)], [(2, 1.0), (2, 0.5)], [(3, 1.0), (2, 0.5)]])
def test_bad_curves(curve):
    with pytest.raises(ValueError, match="checkpoints at ascending positive steps"):
        first_reach(curve, 1.0)


# Runs


@pytest.mark.parametrize("method", ["linear", "within-label", "knn-4", "linear-pool", "within-label-pool"])
def test_methods_differ_by_the_assignment_only(sets, method):
    def drawn(name):
        return list(batches(sets["scenes"], METHODS[name], seed=3, options=SHORT, device=CPU))

    plain, ours = drawn("vanilla"), drawn(method)
    assert len(plain) == len(ours) == SHORT.steps
    for (x, noise, t, labels), (x_2, noise_2, t_2, labels_2) in zip(plain, ours, strict=True):
        assert torch.equal(x, x_2)
        assert torch.equal(t, t_2)
        assert torch.equal(labels, labels_2)
        assert 0 <= t.min() <= t.max() < 1
        assert not torch.equal(noise, noise_2)
        assert noise_2.shape == noise.shape
    if METHODS[method].kind == "linear":
        before, after = (torch.cat([batch[1] for batch in found]).flatten(1) for found in (plain, ours))
        assert torch.equal(before[before[:, 0].argsort()], after[after[:, 0].argsort()])
        near = [sum(float((b[0] * b[1]).sum()) for b in found) for found in (plain, ours)]
        assert near[1] > near[0]


def test_labels_keep_their_noise(sets):
    def noises(name):
        found = list(batches(sets["scenes"], METHODS[name], seed=0, options=SHORT, device=CPU))
        return [sorted(noise[labels == 1, 0, 0, 0].tolist()) for _, noise, _, labels in found]

    assert noises("within-label") == noises("vanilla")
    assert noises("linear") != noises("vanilla")


def test_samplers_of_a_network_that_predicts_zero():
    network = build_network(tiny_set("fashion", 0, (1, 6, 6)), 0)
    network.leave.bias.data.zero_()
    x = torch.randn(2, 1, 6, 6)
    # A velocity of zero leaves noise where it is on straight paths; DDIM turns it by an angle.
    assert torch.equal(sample(network, SETTINGS["fashion-flow"], x, None, steps=3), x)
    ratio = sample(network, SETTINGS["fashion-ddim"], x, None, steps=3) / x
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), atol=1e-4, rtol=0)
    assert not torch.allclose(ratio, torch.ones_like(ratio), atol=1e-3)


@pytest.mark.parametrize(("betas", "left"), [("linear", 0.006), ("scaled_linear", 0.068)])
def test_what_schedules_leave_of_the_image(betas, left):
    assert float(noise_schedule(betas).alphas_cumprod[-1].sqrt()) == pytest.approx(left, abs=5e-4)


def test_auto_is_what_assign_noise_takes():
    assert auto_method(0, RunOptions(batch_size=256), CPU) == "linear"
    assert auto_method(24, RunOptions(batch_size=256), CPU) == "within-label"
    assert auto_method(24, RunOptions(batch_size=64), CPU) == "within-label"
    assert auto_method(0, RunOptions(batch_size=8192), CPU) == "knn-4"


# The whole


@pytest.fixture(scope="module")
def result(sets):
    return run(sets)


def test_measures_every_setting(result):
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    names = {f"{name} {s.sampler}-{n}" for name, s in SETTINGS.items() for n in s.sampling if "scaled" not in name}
    assert set(record["settings"]) == names
    assert record["seeds"] == 2
    assert record["settings_with_speedup_1_3"] == len(record["with_speedup_1_3"])
    assert record["auto_never_worse"] in (0, 1)
    found = record["settings"]["scenes-flow euler-5"]
    assert set(found["methods"]) == {"linear", "within-label"}
    assert found["auto"] == "within-label"
    assert set(found["vanilla"]) == {"fd", "coverage", "accuracy", "ms_per_step"}
    assert found["methods"]["linear"]["steps_ratio"]["n"] == 2
    assert set(record["settings"]["fashion-ddim ddim-50"]["methods"]) == {"linear"}
    assert [point["step"] for point in record["curves"]["fashion-flow"]["vanilla"][0]] == [2, 4]
    assert set(record["real"]["scenes"]) == {"fd", "coverage", "accuracy"}


def test_pictures_and_files(result, tmp_path):
    result.save(tmp_path)
    names = {"fd-by-step.png", "fd-by-seconds.png", "accuracy-by-step.png", "coverage-by-step.png", "results.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    with pytest.raises(PrivgenError, match=r"results\.json exists"):
        check_output(tmp_path)


def test_a_resumed_evaluation_equals_a_fresh_one(sets, tmp_path):
    flow = replace(FLOW, data=("scenes",))
    fresh = without_seconds(run(sets, flow))
    run(sets, replace(flow, seeds=1), tmp_path)
    log = tmp_path / LOG
    lines = log.read_text().splitlines(keepends=True)
    # Killed while it wrote its third run.
    log.write_text("".join(lines[:2]) + lines[2][:40])
    assert without_seconds(run(sets, flow, tmp_path)) == fresh
    # The two runs that had finished are kept, seconds included; the other four of six are new.
    resumed = log.read_text().splitlines(keepends=True)
    assert (resumed[:2], len(resumed)) == (lines[:2], 6)
    assert without_seconds(run(sets, flow, tmp_path)) == fresh
    assert log.read_text() == "".join(resumed)
    # Runs with other options are new ones.
    run(sets, FASHION_FLOW, tmp_path, replace(SHORT, steps=2))
    assert len(log.read_text().splitlines()) == 8


def test_the_plan_goes_to_standard_error(sets, capsys):
    run(sets, FASHION_FLOW)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "fashion-flow: vanilla, linear; 1 seeds; judged with 5, 10, 20 sampling steps" in printed.err
    assert "2 runs of 4 steps of 16 images, 0 of them done" in printed.err


def test_one_seed_gives_no_verdict(sets):
    record = run(sets, FASHION_FLOW).record()
    assert record["auto_never_worse"] is None
    assert record["settings_with_speedup_1_3"] == 0


def test_fingerprints(sets):
    flow, ddim = SETTINGS["fashion-flow"], SETTINGS["fashion-ddim"]
    assert fingerprint(sets["fashion"], flow, SHORT) == fingerprint(sets["fashion"], flow, SHORT)
    assert fingerprint(sets["fashion"], flow, SHORT) != fingerprint(sets["fashion"], ddim, SHORT)


def test_the_plan_goes_seed_by_seed():
    runs = replace(COMPARISON, seeds=3).runs()
    assert len(runs) == 3 * (2 + 2 + 3 + 3)
    assert [one.seed for one in runs] == [0] * 10 + [1] * 10 + [2] * 10
    assert not any(one.method == "within-label" for one in runs if one.setting.startswith("fashion"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ("cifar",)}, "--data cifar does not exist; choose from fashion, scenes"),
        ({"data": ()}, "There is no --data; choose from fashion, scenes"),
        ({"objectives": ("gan",)}, "--objective gan does not exist; choose from ddim, ddim-scaled, flow"),
        ({"methods": ("best",)}, "--method best does not exist; choose from knn-16"),
        ({"methods": ("vanilla",)}, "nothing to compare with vanilla"),
        ({"data": ("fashion",), "methods": ("within-label",)}, "nothing to compare with vanilla"),
        ({"seeds": 0}, "--seeds is 0; give at least 1"),
    ],
)
def test_bad_plans(changes, message):
    with pytest.raises(UsageError, match=message):
        replace(COMPARISON, **changes)

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from privgen.data.shapes import PlacedShape, draw_shapes
from privgen.data.toys import gaussian_grid
from privgen.errors import PrivgenError, UsageError
from privgen.evaluation.hallucination.chess_boards import START, draw_board
from privgen.evaluation.hallucination.evaluate import evaluate_hallucination
from privgen.evaluation.hallucination.exact_denoiser import ExactDenoiser
from privgen.evaluation.hallucination.methods import SAMPLERS, SamplingMethod, TrainedModel, baseline, sample
from privgen.evaluation.hallucination.pictures import WRONG, mark_board, mark_shapes
from privgen.evaluation.hallucination.plan import Plan, plan
from privgen.evaluation.hallucination.runs import LOG, NETWORKS
from privgen.evaluation.hallucination.tasks import TASKS, Chess, Grid, Shapes
from privgen.evaluation.hallucination.train_pictures import PictureTraining, train_variance
from privgen.evaluation.hallucination.train_toy import ToyTraining, train_toy, training_set
from privgen.evaluation.record import check_output
from privgen.hallucination.amplification import Amplification
from privgen.hallucination.detector import HallucinationDetector


SHORT = ToyTraining(steps=30, batch_size=64, width=32, layers=1, training_samples=500)
SMALL = PictureTraining(
    steps=2, batch_size=4, patch=16, width=8, inner=8, depth=1, training_samples=6, dtype="float32"
)
FEW = {
    "plain": SamplingMethod("ddim"),
    "more": SamplingMethod("ddim", "simple", Amplification(1.3)),
    "same": SamplingMethod("ddim", "simple", Amplification(1.0)),
    "reject": SamplingMethod("ddim", "simple", None, 0.25),
    "learned": SamplingMethod("ddpm", "precision"),
    "vsm": SamplingMethod("ddpm", "vsm"),
}
OURS = {"sampling": "reject", "trained": "learned", "vsm": "vsm"}
GRID = Grid(methods=FEW, ours=OURS, training=SHORT)
SHAPES = Shapes(methods=FEW, ours=OURS, training=SMALL)
PLANS = [Plan(GRID, nfe=12, seeds=2, samples=100), Plan(SHAPES, nfe=12, seeds=2, samples=8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hallucination")


@pytest.fixture(scope="module")
def result(folder):
    return evaluate_hallucination(PLANS, folder=folder, cost_steps=7)


def test_measures_every_method(result):
    grid, shapes = result.tasks["grid"], result.tasks["shapes"]
    assert set(grid.methods) == set(shapes.methods) == {"data", *FEW}
    assert grid.reader_error == pytest.approx(math.exp(-4.5))
    assert grid.methods["data"]["hallucinated"].value < 0.1
    assert shapes.methods["data"]["hallucinated"].value == 0
    assert {"repeated", "unknown", "covered", "nearest"} <= set(shapes.methods["data"])
    plain, same = (grid.methods[name]["hallucinated"] for name in ("plain", "same"))
    # A net of 30 steps knows nothing; with the same noise, gamma = 1 is the plain method.
    assert plain.value > 0.5
    assert same == plain
    assert grid.methods["more"]["nearest"] != grid.methods["plain"]["nearest"]
    assert grid.methods["same"]["reduction"].value == 0


def test_record_summarises_the_chosen_methods(result):
    record = result.record()
    assert record == json.loads(json.dumps(record))
    methods = record["tasks"]["grid"]["methods"]
    assert record["grid"]["reduction"] == methods["reject"]["reduction"]
    assert record["grid"]["modes"] == methods["reject"]["even"]
    assert record["shapes"]["method_trained"] == "learned"
    assert {"reduction_sampling", "reduction_trained", "coverage_sampling"} <= set(record["shapes"])
    assert record["vsm"]["grid"]["method"] == "vsm"
    assert record["detector"]["auroc_grid"] == methods["plain"]["auroc"]
    for name in ("amplify_step_ratio", "variance_step_ratio"):
        assert 0 < record[name]["low"] <= record[name]["value"] <= record[name]["high"]
        assert record[name]["n"] == 7


def test_continues_where_it_stopped(result, folder):
    log, networks = folder / LOG, sorted((folder / NETWORKS).iterdir())
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 2 * 2 * (1 + len(FEW))
    log.write_text("".join(lines[:-1]) + lines[-1][:20])
    written = [path.stat().st_mtime_ns for path in networks]
    again = evaluate_hallucination(PLANS, folder=folder, cost_steps=1)
    assert again.record()["tasks"] == result.record()["tasks"]
    # One line is measured again, with the networks that were kept: three for each task and seed.
    assert log.read_text().splitlines(keepends=True) == lines
    assert len(networks) == 3 * 2 * 2
    assert [path.stat().st_mtime_ns for path in networks] == written


def test_saving(result, tmp_path):
    result.save(tmp_path)
    names = {f"{task}-{what}.png" for task in ("grid", "shapes") for what in ("samples", "fractions")}
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", *names}
    with pytest.raises(PrivgenError, match=r"results\.json exists"):
        check_output(tmp_path)


def test_rejecting_costs_no_more_calls():
    grid = gaussian_grid()
    network = train_toy(training_set(grid, SHORT, seed=0), SHORT, seed=0)
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    for reject, steps, drawn in ((0.0, 20, 30), (0.25, 14, 40)):
        calls.clear()
        found = sample(
            TrainedModel(GRID.denoiser(network), GRID.scheduler(), HallucinationDetector((20,))),
            SamplingMethod("ddpm", reject=reject),
            nfe=20,
            shape=(30, 2),
            generator=torch.Generator().manual_seed(1),
            chunk=50,
        )
        assert (len(calls), len(found.x), len(found.scores)) == (steps + 1, 30, 30)
        # The detector's call counts only if samples are rejected.
        assert not reject or len(calls) * drawn / 30 <= 20


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_detector_sees_how_far_a_sample_is_from_its_mode(prediction):
    mixture = gaussian_grid()
    scheduler = DDPMScheduler(1000, prediction_type=prediction)
    network = ExactDenoiser(mixture, scheduler, learn_variance=True)
    away = torch.tensor([0.0, 0.05, 0.1, 0.15])
    x = torch.stack([0.5 + away, torch.zeros(4)], 1)
    scores = HallucinationDetector((20,)).scores(lambda x, t: network(x, t).sample, scheduler, x)
    # Near a mode the noise of sqrt(alpha_bar) x is sigma alpha (x - mu) / (alpha^2 std^2 + sigma^2), on 1 of 2 axes.
    alpha_bar = float(scheduler.alphas_cumprod[20])
    variance = alpha_bar * mixture.std**2 + 1 - alpha_bar
    expected = (1 - alpha_bar) * alpha_bar * away**2 / variance**2 / 2
    assert scores.tolist() == pytest.approx(expected.tolist(), rel=0.1, abs=1e-6)


def test_a_detector_needs_timesteps():
    for timesteps in ((), (-1,)):
        with pytest.raises(ValueError, match="expected at least one timestep"):
            HallucinationDetector(timesteps)


def test_mixtures_of_one_dimension():
    line = TASKS["line"]()
    real = line.held_out(3000, 0)
    assert real.shape == (3000, 1)
    assert line.cover(real, real) == pytest.approx(
        {"covered": 3, "even": 3, "imbalance": 0, "spread": 0.97, "interpolated": 0}, abs=0.1
    )
    between = real + 0.25
    assert line.validate(real).fraction < 0.01 < 0.9 < line.validate(between).fraction
    denoise = line.denoiser(line.build("precision", 0))
    assert denoise(real[:5], torch.tensor(3)).shape == (5, 2)
    panels = np.asarray(line.draw({"real": real[:99], "between": between[:99]}))[60:].astype(int)
    reddish = panels[..., 0] - panels[..., 2] > 60
    half = panels.shape[1] // 2
    assert reddish[:, half:].sum() > 50 * max(1, reddish[:, :half].sum())


def test_training_is_seeded_and_learns():
    data = training_set(gaussian_grid(), SHORT, seed=0)
    a, b, c = (train_toy(data, SHORT, seed=seed) for seed in (0, 0, 1))
    x = torch.ones(3, 2)
    assert torch.equal(a(x, 5).sample, b(x, 5).sample)
    assert not torch.equal(a(x, 5).sample, c(x, 5).sample)
    longer = train_toy(data, ToyTraining(**{**vars(SHORT), "steps": 200}), seed=0)
    # Of almost pure noise, the noise is what is there.
    error = [float((net(2 * x, 990).sample - 2 * x).detach().abs().mean()) for net in (a, longer)]
    assert error[1] < error[0] < 2.5


def test_pictures_are_learnt():
    training = PictureTraining(
        patch=8, width=16, inner=16, depth=1, training_samples=16, batch_size=16, learning_rate=0.02, dtype="float32"
    )
    task = Shapes(training=training)
    data = task.training_set(0)
    learners = [replace(task, training=replace(training, steps=n)) for n in (1, 60)]
    simple = [learner.train(data, "simple", 0, pytest.fail) for learner in learners]
    noisy = 0.9 * data + 0.4 * torch.randn(data.shape, generator=torch.Generator().manual_seed(0))
    outputs = [task.denoiser(net)(noisy, torch.tensor(150)).detach() for net in simple]
    errors = [float((output - data).square().mean()) for output in outputs]
    assert errors[1] < 0.5 * errors[0]
    # The variance is trained after the prediction, whose weights it leaves as they are.
    learnt = [learner.train(data, "precision", 0, lambda: simple[1]) for learner in learners]
    variances = []
    for net in learnt:
        prediction, variance = task.denoiser(net)(noisy, torch.tensor(150)).detach().chunk(2, 1)
        torch.testing.assert_close(prediction, outputs[1], atol=1e-5, rtol=1e-5)
        variances.append(variance)
        weights = net.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in simple[1].state_dict().items())
    assert not torch.allclose(*variances, atol=0.01)
    assert max(float(variance.abs().max()) for variance in variances) <= 1
    with pytest.raises(ValueError, match="with a variance"):
        train_variance(simple[1], data, training, seed=0)


def test_bad_shapes_are_outlined():
    square, triangle = PlacedShape("square", 12, 12), PlacedShape("triangle", 50, 40)
    fine, repeated = draw_shapes((square, triangle)), draw_shapes((square, PlacedShape("square", 50, 40)))
    assert np.array_equal(mark_shapes(fine), np.repeat(fine, 3, axis=0))
    marked = (mark_shapes(repeated) == np.array(WRONG, np.float32)[:, None, None] / 255).all(0)
    assert marked[:32].any()
    assert marked[32:].any()
    assert not marked[:, 25:35].any()


def test_bad_squares_are_framed():
    fine, two_kings = draw_board(START), draw_board(START[:27] + "K" + START[28:])
    assert np.array_equal(mark_board(fine), fine)
    marked = (mark_board(two_kings) == np.array(WRONG, np.float32)[:, None, None] / 255).all(0)
    squares = marked.reshape(8, 16, 8, 16).any((1, 3))
    assert np.argwhere(squares).tolist() == [[3, 3], [7, 4]]


def test_boards_are_legal_and_near_the_start():
    task = Chess()
    data = task.held_out(5, 0)
    assert (data.shape, float(data.min()) >= -1, float(data.max()) <= 1) == ((5, 3, 128, 128), True, True)
    assert not task.validate(data).hallucinated.any()
    assert task.validate(torch.full((1, 3, 128, 128), math.nan)).hallucinated.all()
    small = replace(task, training=SMALL)
    assert small.denoiser(small.build("vsm", 0))(data, torch.tensor(10)).shape == (5, 6, 128, 128)
    assert task.cover(task.held_out(8, 0), task.held_out(8, 1)).keys() == {"covered"}


@pytest.mark.parametrize("task", [task() for task in TASKS.values()], ids=TASKS)
def test_methods_of_tasks(task):
    plain = {baseline(task.methods, name) for name in task.methods}
    assert plain <= {f"{sampler} plain" for sampler in SAMPLERS}
    assert all(task.methods[name] == SamplingMethod(task.methods[name].sampler) for name in plain)
    assert set(task.ours) == {"sampling", "trained", "vsm"}
    chosen = {what: task.methods[name] for what, name in task.ours.items()}
    assert (chosen["sampling"].loss, chosen["vsm"].loss) == ("simple", "vsm")


def test_plans():
    found = plan((), "standard", seeds=3, training_steps=7)
    assert [p.task.name for p in found] == [*TASKS, "scenes-15", "scenes-25"]
    assert {p.seeds for p in found} == {3}
    assert [p.task.training.steps for p in found[: len(TASKS)]] == [7] * len(TASKS)
    assert [(p.task.steps, p.nfe) for p in found[len(TASKS) :]] == [(15, 15), (25, 25)]
    assert [p.task.name for p in plan(["scenes"], "quick", nfe=20)] == ["scenes-20"]
    with pytest.raises(UsageError, match="--seeds is 1 and --nfe is 25; give at least 2 seeds and 12"):
        plan(["shapes"], "standard", seeds=1)

import json
import math

import pytest
import torch

from privgen.data.toys import gaussian_grid
from privgen.diffusion.amplification import Amplification
from privgen.diffusion.train_toy import ToyTraining, train_toy, training_set
from privgen.errors import PrivgenError
from privgen.evaluation.hallucination import (
    METHODS,
    Method,
    check_output,
    evaluate_hallucination,
    over_seeds,
    sample,
)


SHORT = ToyTraining(steps=30, batch_size=64, width=32, layers=1, training_samples=500)
FEW = {
    "plain": Method("ddim"),
    "more": Method("ddim", "simple", Amplification(1.3)),
    "same": Method("ddim", "simple", Amplification(1.0)),
    "learned": Method("ddpm", "hybrid"),
    "reject": Method("ddim", "simple", None, 0.25),
}


@pytest.fixture(scope="module")
def result():
    return evaluate_hallucination(nfe=8, seeds=2, samples=100, training=SHORT, methods=FEW)


def test_measures_every_method(result):
    assert set(result.methods) == {"data", *FEW}
    assert result.reader_error == pytest.approx(math.exp(-4.5))
    assert result.methods["data"]["hallucinated"].value < 0.1
    plain, same = (result.methods[name]["hallucinated"] for name in ("plain", "same"))
    # A net of 30 steps knows nothing; with the same noise, gamma = 1 is the plain method.
    assert plain.value > 0.5
    assert same == plain
    assert result.methods["more"]["nearest"] != result.methods["plain"]["nearest"]
    assert result.methods["same"]["reduction"].value == 0


def test_saving(result, tmp_path):
    result.save(tmp_path)
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["methods"]["plain"]["hallucinated"]["n"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "samples.png", "shares.png"}
    with pytest.raises(PrivgenError, match=r"results\.json exists"):
        check_output(tmp_path)


def test_rejection_costs_no_more_calls(monkeypatch):
    grid = gaussian_grid()
    network = train_toy(training_set(grid, SHORT, seed=0), SHORT, seed=0)
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    for reject, steps, kept in ((0.0, 20, 50), (0.25, 15, 38)):
        calls.clear()
        method = Method("ddpm", reject=reject)
        x, scores = sample(network, method, nfe=20, samples=50, generator=torch.Generator().manual_seed(1))
        assert (len(calls), len(x), len(scores)) == (steps, kept, 50)
        assert len(calls) * 50 / len(x) <= 20
    assert scores[:38].max() <= scores[38:].min()


def test_training_is_seeded_and_learns():
    data = training_set(gaussian_grid(), SHORT, seed=0)
    a, b, c = (train_toy(data, SHORT, seed=seed) for seed in (0, 0, 1))
    x = torch.ones(3, 2)
    assert torch.equal(a(x, 5).sample, b(x, 5).sample)
    assert not torch.equal(a(x, 5).sample, c(x, 5).sample)
    longer = train_toy(data, ToyTraining(**{**vars(SHORT), "steps": 200}), seed=0)
    # Of almost pure noise, the noise is what is there.
    error = [float((net(2 * x, 990).sample - 2 * x).abs().mean()) for net in (a, longer)]
    assert error[1] < error[0] < 2.5


def test_intervals_are_student_s():
    measured = over_seeds([0.1, 0.2, 0.3, math.nan])
    assert (measured.value, measured.n) == (pytest.approx(0.2), 3)
    assert measured.high - measured.value == pytest.approx(4.302653 * 0.1 / math.sqrt(3))


def test_first_methods_are_plain():
    plain = [name for name, method in METHODS.items() if method == Method(method.sampler)]
    assert plain == ["ddim plain", "ddpm plain"]


def test_refuses_one_seed():
    with pytest.raises(ValueError, match="expected at least 2 seeds and 8 network calls, got 1 and 100"):
        evaluate_hallucination(seeds=1)

import pytest

from privgen.evaluation.hallucination.evaluate import evaluate_hallucination
from privgen.evaluation.hallucination.methods import SamplingMethod
from privgen.evaluation.hallucination.plan import Plan
from privgen.evaluation.hallucination.scenes import SceneRun, Scenes
from privgen.hallucination.amplification import Amplification


FEW = {
    "plain": SamplingMethod("ddim"),
    "same": SamplingMethod("ddim", amplification=Amplification(1.0)),
    "spoilt": SamplingMethod("ddim", amplification=Amplification(0.0)),
    "reject 0.2": SamplingMethod("ddim", reject=0.2),
}


@pytest.fixture(scope="module")
def result():
    return evaluate_hallucination(
        [Plan(Scenes(methods=FEW, steps=12, read=20, shown=2), 12, seeds=2, samples=4)], cost_steps=6
    )


def test_what_is_not_asked_for_is_hallucinated(result):
    scenes = result.tasks["scenes-12"]
    plain, same, spoilt = (scenes.methods[name]["hallucinated"].value for name in ("plain", "same", "spoilt"))
    assert plain == same <= 0.25
    # Without a score there is only noise, and nothing that could be named.
    assert spoilt == scenes.methods["spoilt"]["unnamed"].value >= 0.75
    assert scenes.methods["data"]["hallucinated"].value == scenes.reader_error <= 0.01


def test_record_of_scenes(result):
    record = result.record()
    assert record["scenes-12"]["method_sampling"] == "reject 0.2"
    assert "scenes-12" not in record["vsm"]
    assert "auroc_scenes-12" in record["detector"]
    strip = result.pictures["scenes-12-samples"]
    assert strip.width >= 128


def test_rejecting_costs_no_more_calls():
    run, rows = SceneRun(Scenes(steps=12), 0, samples=4), []
    run.pipeline.unet.register_forward_hook(lambda network, args, output: rows.append(len(args[0])))
    run.figures(FEW["reject 0.2"])
    # Five scenes are drawn to keep four. Guidance doubles the rows of a step, but not those of the detector.
    assert rows == [10] * 8 + [5]
    assert len(rows) * 5 <= 12 * 4

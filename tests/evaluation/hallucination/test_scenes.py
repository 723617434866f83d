import pytest

from privgen.evaluation.hallucination import scenes as hallucination_scenes
from privgen.evaluation.hallucination.evaluate import evaluate_hallucination
from privgen.evaluation.hallucination.methods import Method
from privgen.evaluation.hallucination.plan import Plan
from privgen.evaluation.hallucination.scenes import SceneRun, Scenes
from privgen.hallucination.amplification import Amplification


FEW = {
    "plain": Method("ddim"),
    "same": Method("ddim", amplification=Amplification(1.0)),
    "spoilt": Method("ddim", amplification=Amplification(0.0)),
    "reject 0.2": Method("ddim", reject=0.2),
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


def test_rejecting_costs_no_more_calls(monkeypatch):
    called = []
    batches = hallucination_scenes.generate_batches

    def counted(pipeline, prompts, seeds, **options):
        called.append(len(prompts) * (options["steps"] + 1))
        return batches(pipeline, prompts, seeds, **options)

    monkeypatch.setattr(hallucination_scenes, "generate_batches", counted)
    SceneRun(Scenes(steps=12), 0, samples=4).figures(FEW["reject 0.2"])
    assert called == [5 * 9]
    assert called[0] <= 4 * 12

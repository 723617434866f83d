"""The judge: it knows the subject, and noise neither hides the subject nor looks like it."""

import pytest
import torch

from privgen.attacks.adversaries import squares
from privgen.evaluation.protection.judge import best_features, classifier_features, spoilt, train_judge
from privgen.evaluation.protection.subjects import Subject, scene_subject, scenes
from privgen.io.images import load_image
from privgen.metrics.mobilenet import mobilenet_installed


FRESH = 2_000_050_000  # scenes that the judge has not seen
OTHERS = ("fox", "cat", "banana", "clock", "snail", "whale")


@pytest.fixture(scope="module", params=["mobilenet", "classifier"])
def judge(request):
    if request.param == "mobilenet" and not mobilenet_installed():
        pytest.skip("the weights of MobileNetV2 are not installed")
    features = best_features() if request.param == "mobilenet" else classifier_features()
    drawn = torch.cat([scenes(noun, 1, 64, first=FRESH + 1) for noun in ("cat", "turtle", "house")])
    return train_judge(scene_subject("panda", 64), drawn, features, count=16)


def test_it_knows_the_subject_under_noise(judge):
    subject = scenes("panda", 6, 64, first=FRESH)
    others = torch.cat([scenes(noun, 1, 64, first=FRESH) for noun in OTHERS])
    plain = float(judge.probabilities(subject).mean())
    assert plain > 0.7
    forms = (spoilt(pictures, torch.Generator().manual_seed(7)) for pictures in (subject, others))
    for own, other in zip(*forms, strict=True):
        assert float(judge.probabilities(own).mean()) > plain - 0.25, "noise does not hide the subject"
        assert float(judge.probabilities(other).mean()) < 0.35, "noise does not look like the subject"


@pytest.mark.skipif(not mobilenet_installed(), reason="the weights of MobileNetV2 are not installed")
def test_a_photograph_of_something_else_is_not_the_subject(photo_files):
    """What tells photographs from drawings must not count."""
    photos = [load_image(path).pixels for path in photo_files]
    subject = Subject("place", "", photos[:4])
    drawn = torch.cat([scenes(noun, 1, 64, first=FRESH + 1) for noun in ("cat", "turtle", "house")])
    judge = train_judge(subject, drawn, best_features(), count=24)
    own, others = squares(photos[:4], 64), squares(photos[10:40], 64)
    assert float(judge.probabilities(own).mean()) > 0.7
    assert float(judge.probabilities(others).mean()) < 0.35


def test_verdict(judge):
    images = scenes("panda", 4, 64, first=FRESH)
    verdict = judge.judge(images)
    assert verdict.score == pytest.approx(float(judge.probabilities(images).mean()), abs=1e-6)
    other = judge.judge(scenes("banana", 4, 64, first=FRESH))
    assert other.similarity < verdict.similarity <= 1


def test_scenes_for_the_judge_are_others_than_those_that_are_protected():
    subject = scene_subject("panda", 32)
    shown = subject.shown(8, 32)
    assert not any(torch.equal(a, b) for a in subject.images for b in shown)


def test_photographs_are_shown_mirrored_in_turn():
    subject = Subject("mug", "", [torch.rand(3, 40, 32), torch.rand(3, 32, 50)])
    shown = subject.shown(5, 16)
    assert shown.shape == (5, 3, 16, 16)
    assert torch.equal(shown[2], shown[0].flip(-1))
    assert torch.equal(shown[4], shown[0])

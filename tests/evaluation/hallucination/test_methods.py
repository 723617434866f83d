import pytest

from privgen.evaluation.hallucination.methods import Budget, SamplingMethod, affordable
from privgen.hallucination.detector import HallucinationDetector


@pytest.mark.parametrize(
    ("reject", "expected"), [(0.0, Budget(100, 25)), (0.2, Budget(125, 19)), (0.5, Budget(200, 11))]
)
def test_affordable(reject, expected):
    detector = HallucinationDetector((800,))
    found = affordable(25, 100, SamplingMethod("ddpm", reject=reject), detector)
    assert found == expected
    asked = detector.calls if reject else 0
    assert found.samples * (found.steps + asked) <= 2500
    # One more step per sample would cost too much.
    assert found.samples * (found.steps + 1 + asked) > 2500

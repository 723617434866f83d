import re

import pytest
import torch
from diffusers import DDPMScheduler
from scipy.optimize import linear_sum_assignment

from privgen.noise_assignment.assign import assign_noise, noise_permutation


def batch(shape, generator, dtype=torch.float32):
    """Images of that shape, uniform in [-1, 1], and noise."""
    x_0 = torch.rand(shape, generator=generator).mul(2).sub(1)
    return x_0.to(dtype), torch.randn(shape, generator=generator).to(dtype)


def rows(noise):
    """The noises as sorted bytes."""
    return sorted(map(bytes, noise.flatten(1).contiguous().view(torch.uint8).numpy()))


# Conditional training.


@pytest.mark.parametrize("method", ["linear", "auction"])
@pytest.mark.parametrize(
    "labels", [torch.arange(30) % 4, torch.arange(30) > 11, ["a cat", "a dog", None] * 10, list(range(30))], ids=repr
)
def test_noise_stays_within_its_label(method, labels, generator):
    x_0, eps = batch((30, 3, 8, 8), generator)
    noise = assign_noise(x_0, eps, method=method, labels=labels)
    values = labels.tolist() if isinstance(labels, torch.Tensor) else labels
    for value in set(values):
        group = torch.tensor([label == value for label in values])
        assert rows(noise[group]) == rows(eps[group])
        assert torch.equal(noise[group], assign_noise(x_0[group], eps[group], method=method))


def test_labels_keep_the_noise_of_a_class_normal_where_their_absence_skews_it(generator):
    labels = torch.arange(400) % 2
    direction = torch.ones(3, 8, 8) / 192**0.5
    x_0 = torch.randn(400, 3, 8, 8, generator=generator) + 5 * direction * (2 * labels - 1)[:, None, None, None]
    eps = torch.randn(400, 3, 8, 8, generator=generator)

    def mean_along_class(noise):
        return (noise[labels == 1] * direction).sum((1, 2, 3)).mean().item()

    # Its standard error is 0.07.
    assert mean_along_class(assign_noise(x_0, eps, method="linear", labels=labels)) == pytest.approx(0, abs=0.2)
    assert mean_along_class(assign_noise(x_0, eps, method="linear")) > 0.5


def test_condition_of_no_weight_is_no_condition(generator):
    x_0, eps = batch((40, 3, 8, 8), generator)
    condition = torch.randn(40, 16, generator=generator)
    free = assign_noise(x_0, eps, method="linear")
    assert torch.equal(assign_noise(x_0, eps, method="linear", condition=condition, condition_weight=0), free)
    assert not torch.equal(assign_noise(x_0, eps, method="linear", condition=condition), free)


@pytest.mark.parametrize("method", ["linear", "auction"])
def test_condition_of_great_weight_is_a_label(method, generator):
    x_0, eps = batch((40, 3, 8, 8), generator)
    labels = torch.arange(40) % 4
    condition = torch.eye(4)[labels].unflatten(1, (2, 2))
    noise = assign_noise(x_0, eps, method=method, condition=condition, condition_weight=100.0)
    within = assign_noise(x_0, eps, method=method, labels=labels)
    if method == "linear":
        assert torch.equal(noise, within)
    for label in range(4):
        assert rows(noise[labels == label]) == rows(eps[labels == label])


def test_condition_is_the_cost_of_conditional_optimal_transport(generator):
    x_0, eps = batch((40, 3, 8, 8), generator)
    condition = torch.randn(40, 16, generator=generator)
    distances = (x_0.double().flatten(1)[:, None] - eps.double().flatten(1)[None]).square().sum(2)
    direction = torch.nn.functional.normalize(condition.double(), dim=1)
    varying = distances - distances.mean(0) - distances.mean(1, keepdim=True)
    penalty = 0.7 * varying.std(correction=0) * (1 - direction @ direction.T)
    _, columns = linear_sum_assignment((distances + penalty).numpy())
    permutation = noise_permutation(x_0, eps, condition=condition, condition_weight=0.7)
    assert torch.equal(permutation, torch.from_numpy(columns))


def test_condition_of_zeros_and_half_precision_is_taken(generator):
    x_0, eps = batch((16, 3, 8, 8), generator)
    condition = torch.zeros(16, 77, 8, dtype=torch.float16)
    free = assign_noise(x_0, eps, method="linear")
    assert torch.equal(assign_noise(x_0, eps, method="linear", condition=condition), free)


# In a training step.


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noised_images_and_targets_hold_the_same_noise(prediction_type, generator):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    x_0, eps = batch((32, 4, 8, 8), generator)
    t = torch.randint(1000, (32,), generator=generator)
    noise = assign_noise(x_0, eps, method="linear")
    noised = scheduler.add_noise(x_0, noise, t)
    alpha = scheduler.alphas_cumprod[t].sqrt()[:, None, None, None]
    sigma = (1 - scheduler.alphas_cumprod[t]).sqrt()[:, None, None, None]
    if prediction_type == "epsilon":
        target, mismatched = noise, eps
        recovered, wrong = ((noised - sigma * e) / alpha for e in (target, mismatched))
    else:
        target, mismatched = scheduler.get_velocity(x_0, noise, t), scheduler.get_velocity(x_0, eps, t)
        recovered, wrong = (alpha * noised - sigma * v for v in (target, mismatched))
    torch.testing.assert_close(recovered, x_0, rtol=1e-3, atol=1e-3)
    assert (wrong - x_0).abs().mean() > 0.1


def test_flow_matching_is_straighter(generator):
    x_0, eps = batch((64, 4, 8, 8), generator)
    noise = assign_noise(x_0, eps, method="linear")
    t = torch.rand(64, 1, 1, 1, generator=generator)
    x_t, velocity = (1 - t) * x_0 + t * noise, noise - x_0
    torch.testing.assert_close(x_t - t * velocity, x_0)
    assert velocity.square().sum() < (eps - x_0).square().sum()


def test_noise_offset_after_assignment_does_not_learn_the_brightness(generator):
    brightness = torch.randn(256, 1, 1, 1, generator=generator)
    x_0 = 0.3 * torch.randn(256, 4, 8, 8, generator=generator) + brightness
    eps = torch.randn(256, 4, 8, 8, generator=generator)
    offset = torch.randn(256, 4, 1, 1, generator=generator)

    def correlation(offset):
        return torch.corrcoef(torch.stack([brightness.flatten(), offset.mean(1).flatten()]))[0, 1].item()

    # The offset added before would be dealt out by brightness, and a sampler draws none that way.
    permutation = noise_permutation(x_0, eps + offset)
    assert correlation(offset) == pytest.approx(0, abs=0.2)
    assert correlation(offset[permutation]) > 0.5


def test_the_documented_scripts_assign_before_the_offset_and_the_target(root):
    text = (root / "docs" / "how-to" / "train-with-assigned-noise.md").read_text(encoding="utf-8")
    blocks = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "add_noise(" in block]
    assert len(blocks) >= 2
    for block in blocks:
        assigned = block.index("assign_noise(")
        assert block.count("noise = assign_noise(") == 1
        for later in ("noise_offset", "input_perturbation", "add_noise(", "target", "get_velocity"):
            assert later not in block[:assigned]

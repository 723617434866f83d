import copy

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from privgen.diffusion.noise_level import noise_level, prediction_type
from privgen.diffusion.parameterisation import add_noise, predict_noise, predict_original
from privgen.errors import UsageError


SCHEDULERS = [
    ("DDIMScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"clip_sample": False}),
    ("PNDMScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("DPMSolverSinglestepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("DEISMultistepScheduler", {}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
]


def build(name, options, prediction):
    return getattr(diffusers, name)(prediction_type=prediction, beta_schedule="scaled_linear", **options)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("name", "options"), SCHEDULERS)
def test_level_is_that_of_the_scheduler(name, options, prediction):
    check_levels(build(name, options, prediction), prediction)


def test_level_of_flow_matching():
    check_levels(FlowMatchEulerDiscreteScheduler(), "flow_prediction")


def check_levels(scheduler, prediction):
    """Noise and original compose the sample, and the original is the one that the scheduler returns, if it does."""
    scheduler.set_timesteps(7)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 1, 3, 3, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps[:5]:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        level = noise_level(scheduler, t)
        output = torch.randn(x.shape, generator=generator)
        original = predict_original(output, x, level, prediction)
        composed = add_noise(original, predict_noise(output, x, level, prediction), level)
        torch.testing.assert_close(composed, x, atol=2e-3, rtol=1e-4)
        theirs = getattr(copy.deepcopy(scheduler).step(output, t, x), "pred_original_sample", None)
        # Heun's second steps return the original of another sample.
        if theirs is not None and not isinstance(scheduler, diffusers.HeunDiscreteScheduler):
            torch.testing.assert_close(theirs, original, atol=1e-3, rtol=1e-3)
        x = scheduler.step(output, t, x, return_dict=False)[0]


def test_prediction_types():
    assert prediction_type(DDIMScheduler(prediction_type="v_prediction")) == "v_prediction"
    assert prediction_type(FlowMatchEulerDiscreteScheduler()) == "flow_prediction"
    with pytest.raises(UsageError, match="EDMEulerScheduler takes predictions of another kind"):
        prediction_type(EDMEulerScheduler())

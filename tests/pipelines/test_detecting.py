import pytest
import torch
from diffusers import EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from privgen.errors import UsageError
from privgen.hallucination.amplification import Amplification
from privgen.hallucination.detector import HallucinationDetector
from privgen.pipelines.detecting import Call, detecting


@pytest.fixture
def pipe(tiny):
    return tiny.tiny_pipeline("sd21")


def run(pipe, prompts=("cat", "dog"), **options):
    generator = [torch.Generator().manual_seed(seed) for seed in range(1, 1 + len(prompts))]
    return pipe(list(prompts), num_inference_steps=3, generator=generator, output_type="latent", **options).images


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
@pytest.mark.parametrize("scheduler", [None, EulerDiscreteScheduler])
def test_is_the_network_s_noise_in_finished_latents(pipe, guidance_scale, scheduler):
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    plain = run(pipe, guidance_scale=guidance_scale)
    with detecting(pipe, detector=HallucinationDetector((500,))) as detector:
        latents = run(pipe, guidance_scale=guidance_scale)
        found = detector.scores()
        assert torch.equal(detector.scores(), found)
    assert torch.equal(latents, plain)
    words = pipe.encode_prompt(["cat", "dog"], "cpu", 1, False)[0]
    alpha_bar = pipe.scheduler.alphas_cumprod[500]
    x_t = alpha_bar.sqrt() * latents
    with torch.no_grad():
        velocity = pipe.unet(x_t, 500, encoder_hidden_states=words).sample
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    noise = alpha_bar.sqrt() * velocity + (1 - alpha_bar).sqrt() * x_t
    torch.testing.assert_close(found, noise.square().mean((1, 2, 3)), rtol=1e-4, atol=1e-6)


def test_batched_equals_single(pipe):
    with detecting(pipe, Amplification(1.3)) as detector:
        run(pipe)
        both = detector.scores()
        run(pipe, ["cat"])
        torch.testing.assert_close(detector.scores(), both[:1], rtol=1e-4, atol=1e-6)


def test_asks_with_the_conditions_of_the_prompt():
    """The last rows of all, the residuals of a ControlNet too, which come as a list."""
    rows, x, t = torch.arange(4.0)[:, None], torch.ones(2, 1), torch.tensor(800)
    kwargs = {"residuals": [rows, (rows,)], "added": {"size": rows}, "scale": 2.0, "mask": None}
    args, found = Call((rows, torch.tensor(3)), kwargs).with_inputs(x, t)
    assert [*args] == [x, t]
    last = [found["residuals"][0], found["residuals"][1][0], found["added"]["size"]]
    assert all(torch.equal(part, rows[2:]) for part in last)
    assert (found["scale"], found["mask"]) == (2.0, None)
    args, found = Call((), {"hidden_states": rows, "timestep": torch.full((4,), 3)}).with_inputs(x, t)
    assert args == []
    assert found["hidden_states"] is x
    assert found["timestep"].tolist() == [800, 800]


def test_leaves_the_pipeline_as_it_was(pipe):
    scheduler = pipe.scheduler
    with pytest.raises(KeyError), detecting(pipe):
        raise KeyError
    assert pipe.scheduler is scheduler
    assert not pipe.unet._forward_pre_hooks


def test_what_it_cannot_look_at(pipe):
    with detecting(pipe) as detector, pytest.raises(UsageError, match="call the pipeline first"):
        detector.scores()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with (
        pytest.raises(UsageError, match="FlowMatchEulerDiscreteScheduler has no noise"),
        detecting(pipe),
    ):
        pass

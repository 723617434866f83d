import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from privgen.hallucination.amplification import Amplification
from privgen.hallucination.scheduler import AmplifiedScheduler, amplified


def images(pipe, steps=3, **options):
    generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return pipe(["cat", "dog"], num_inference_steps=steps, generator=generator, output_type="pt", **options).images


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ("sd15", "DDIMScheduler"),
        ("sd15", "EulerDiscreteScheduler"),
        ("sd21", "DDPMScheduler"),
        ("sd21", "DPMSolverMultistepScheduler"),
    ],
)
def test_pipeline(tiny, shape, name):
    tiny_pipe = tiny.tiny_pipeline(shape)
    tiny_pipe.scheduler = getattr(diffusers, name).from_config(tiny_pipe.scheduler.config)
    plain = images(tiny_pipe)
    with amplified(tiny_pipe, watch=(0, 900)) as idle:
        assert torch.equal(images(tiny_pipe), plain)
        assert idle.running_variance().shape == (2,)
    with amplified(tiny_pipe, Amplification(gamma=1.5, eta=1.1)):
        changed = images(tiny_pipe)
    assert not torch.equal(changed, plain)
    assert torch.equal(images(tiny_pipe), plain)
    assert type(tiny_pipe.scheduler).__name__ == name
    with pytest.raises(RuntimeError), amplified(tiny_pipe):
        raise RuntimeError
    assert type(tiny_pipe.scheduler).__name__ == name


def test_pipeline_with_eta_of_ddim(tiny):
    tiny_pipe = tiny.tiny_pipeline()
    plain = images(tiny_pipe, eta=1.0)
    with amplified(tiny_pipe):
        assert torch.equal(images(tiny_pipe, eta=1.0), plain)
    assert not torch.equal(images(tiny_pipe), plain)


def test_a_saved_pipeline_comes_back_amplified(tiny, tmp_path):
    pipe = tiny.tiny_pipeline()
    pipe.scheduler = AmplifiedScheduler(pipe.scheduler, Amplification(gamma=1.4))
    pipe.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, AmplifiedScheduler)
    assert torch.equal(images(again), images(pipe))


def test_outdated_configurations_are_repaired_within(tiny):
    parts = tiny.tiny_pipeline().components
    inner = DDIMScheduler(clip_sample=True, steps_offset=0)
    with pytest.warns(FutureWarning):
        pipe = StableDiffusionPipeline(
            **parts | {"scheduler": AmplifiedScheduler(inner)}, requires_safety_checker=False
        )
    assert (inner.config.clip_sample, inner.config.steps_offset) == (False, 1)
    assert pipe.scheduler.config.clip_sample is False

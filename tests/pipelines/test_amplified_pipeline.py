import json

import pytest
import torch
from diffusers import StableDiffusionPipeline

from privgen.hallucination.amplification import Amplification
from privgen.pipelines.pipeline_stable_diffusion_amplified import StableDiffusionAmplifiedPipeline


@pytest.fixture
def pipe(tiny):
    return tiny.tiny_pipeline("sd21", StableDiffusionAmplifiedPipeline)


def run(pipe, **options):
    generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return pipe(["cat", "dog"], num_inference_steps=3, generator=generator, output_type="pt", **options)


def test_switched_off_every_bit_is_the_plain_pipeline_s(pipe):
    plain = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    expected = run(plain).images
    output = run(pipe, watch=(0, 1000))
    assert torch.equal(output.images, expected)
    assert output.running_variance.shape == (2,)
    assert run(pipe).running_variance is None
    images, unsafe, variance = run(pipe, return_dict=False, amplification=Amplification(1.0))
    assert torch.equal(images, expected)
    assert (unsafe, variance) == (None, None)


def test_amplified(pipe):
    scheduler = pipe.scheduler
    plain = run(pipe).images
    assert not torch.equal(run(pipe, amplification=Amplification(1.5)).images, plain)
    assert pipe.scheduler is scheduler
    assert torch.equal(run(pipe).images, plain)
    with pytest.raises(TypeError, match="unexpected arguments: amplify"):
        run(pipe, amplify=2)


def test_is_saved_as_a_plain_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "StableDiffusionPipeline"

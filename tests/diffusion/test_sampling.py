import pytest
import torch
from diffusers import StableDiffusionPipeline

from privgen.diffusion.sampling import Sampling, generate, generate_batches


@pytest.fixture(scope="module")
def pipeline(tiny):
    return tiny.tiny_pipeline("sd21")


def test_images_are_those_of_the_pipeline(pipeline):
    prompts, seeds = ["a cat", "a car", "a clock"], [5, 7, 9]
    images = generate(pipeline, prompts, seeds, Sampling(2, 2.0, batch_size=2))
    assert images.shape == (3, 3, 32, 32)
    assert images.dtype == torch.float32
    expected = pipeline(
        "a clock",
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(9),
        output_type="pt",
    ).images
    torch.testing.assert_close(images[2:], expected, atol=1e-4, rtol=0)
    alone = generate(pipeline, prompts, seeds, Sampling(2, 2.0, batch_size=1))
    torch.testing.assert_close(images, alone, atol=1e-3, rtol=0)


def test_the_pipeline_keeps_its_progress_bar(pipeline, capsys):
    own = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    for shown in (True, False):
        if not shown:
            own.set_progress_bar_config(disable=True)
        next(generate_batches(own, ["a cat"], [0], Sampling(1)))
        with pytest.raises(ValueError, match="divisible by 8"):
            next(generate_batches(own, ["a cat"], [0], Sampling(1), height=7, width=7))
        assert "1/1" not in capsys.readouterr().err
        own("a cat", num_inference_steps=1, output_type="latent")
        assert ("1/1" in capsys.readouterr().err) == shown


def test_arguments_go_to_the_pipeline(pipeline):
    latents = torch.zeros(2, 4, 16, 16)
    (same,) = generate_batches(pipeline, ["a cat"] * 2, [0, 1], Sampling(1), latents=latents)
    torch.testing.assert_close(same[0], same[1], atol=1e-4, rtol=0)


def test_seeds_must_match(pipeline):
    with pytest.raises(ValueError, match="got 2, 1 and 8"):
        next(generate_batches(pipeline, ["a cat", "a car"], [0]))

"""What differs between models is read off their components."""

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, FluxPipeline, StableDiffusion3Pipeline, StableDiffusionXLPipeline

from privgen.errors import UsageError
from privgen.hub import load_extra, load_pipeline
from privgen.models.family import FAMILIES, Canvas, attention_layers, describe_model, family_of


def test_mini():
    model = describe_model(load_pipeline("mini"))
    assert model.family.name == "stable-diffusion"
    assert model.canvas == Canvas(size=128, patch=8, channels=8)
    assert (model.canvas.latents, model.canvas.values) == (16, 2048)
    assert model.prediction == "v_prediction"
    assert Canvas.of_reader(load_extra("extractor")) == model.canvas == Canvas.of_reader(load_extra("aligner"))


def test_tiny_pipelines(tiny):
    for shape, prediction in (("sd15", "epsilon"), ("sd21", "v_prediction")):
        pipe = tiny.tiny_pipeline(shape)
        model = describe_model(pipe)
        assert model.canvas == Canvas(size=32, patch=2, channels=4)
        assert model.prediction == prediction
        (encoder,) = model.family.text_encoders
        assert (encoder.width(pipe), encoder.max_tokens(pipe)) == (32, 77)
        assert (model.latent_scale, model.latent_shift) == (pytest.approx(0.18215), 0)


def empty(cls):
    """A pipeline of the class without any of its components."""
    pipe = cls.__new__(cls)
    for name in cls._get_signature_keys(cls)[0]:
        object.__setattr__(pipe, name, None)
    return pipe


@pytest.mark.parametrize(
    ("cls", "name", "encoders", "attention"),
    [
        (StableDiffusionXLPipeline, "stable-diffusion-xl", 2, "cross"),
        (StableDiffusion3Pipeline, "stable-diffusion-3", 3, "joint"),
        (FluxPipeline, "flux", 2, "joint"),
    ],
)
def test_families_are_known_by_their_components(cls, name, encoders, attention):
    family = family_of(empty(cls))
    assert family is FAMILIES[name]
    assert (len(family.text_encoders), family.attention) == (encoders, attention)


def test_attention_layers_are_those_that_see_the_text(tiny):
    pipe = tiny.tiny_pipeline()
    seen = []
    for name, layer in attention_layers(pipe).items():
        layer.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: seen.append((name, kwargs["encoder_hidden_states"].shape[1])),
            with_kwargs=True,
        )
    pipe("a cat", num_inference_steps=1, output_type="latent")
    assert {length for _, length in seen} == {77}
    assert {name for name, _ in seen} == set(attention_layers(pipe))


def test_an_unknown_family_is_named():
    with pytest.raises(UsageError, match="belongs to no family that privgen knows"):
        family_of(torch.nn.Identity())


def test_autoencoders():
    kl = AutoencoderKL(
        block_out_channels=(8, 8, 8),
        norm_num_groups=8,
        latent_channels=6,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    assert Canvas.of_vae(kl) == Canvas(64, 4, 6)
    assert Canvas.of_vae(kl, 256) == Canvas(256, 4, 6)
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    tiny = AutoencoderTiny(**widths, latent_channels=16)
    assert Canvas.of_vae(tiny, 512) == Canvas(512, 8, 16)
    with pytest.raises(UsageError, match="says no image size"):
        Canvas.of_vae(tiny)

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import AutoencoderTiny, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from privgen.errors import PrivgenError
from privgen.models.initialise import seeded_weights
from privgen.training.loop import LoopOptions, fit, sample_generator
from privgen.training.mini.autoencoder import AutoencoderRecipe, build_autoencoder
from privgen.training.mini.text_to_image import TextToImageRecipe, TextToImageTask
from privgen.training.recipes import Recipe
from privgen.training.run import export_average


LOOP = LoopOptions(steps=4, batch_size=12, learning_rate=1e-3, warmup=1, seed=3, preview_every=1000)
INDICES = list(range(24, 36))


class Quiet(TextToImageTask):
    """Without pictures, which take long."""

    def preview(self):
        return Image.new("RGB", (4, 4))


@pytest.fixture(scope="module", autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A small model in the latents of a small autoencoder."""
    folder = tmp_path_factory.mktemp("inputs")
    with seeded_weights(0):
        small = AutoencoderRecipe(size=64, channels=(8, 8, 8, 8), latent_channels=2)
        build_autoencoder(small).save_pretrained(folder / "vae")
    return TextToImageRecipe(
        vae=folder / "vae",
        latents=folder / "latents.safetensors",
        scenes=20,
        channels=(16,),
        heads=(2,),
        text_width=16,
        text_layers=1,
        max_length=16,
        immiscible=True,
    )


@pytest.fixture(scope="module")
def near(recipe):
    return Quiet(recipe, LOOP.seed)


@pytest.fixture(scope="module")
def plain(recipe):
    return Quiet(replace(recipe, immiscible=False), LOOP.seed)


def rows(tensor):
    return sorted(tuple(row) for row in tensor.flatten(1).tolist())


@pytest.mark.parametrize("indices", [INDICES, INDICES[::2], INDICES[:3], INDICES[:1]], ids=len)
def test_immiscible_noise_is_a_permutation(near, plain, indices):
    ours, theirs = near.batch(indices), plain.batch(indices)
    assert rows(ours["noise"]) == rows(theirs["noise"])
    for name in ("latents", "ids", "t"):
        assert torch.equal(ours[name], theirs[name])
    distances = [(batch["latents"] - batch["noise"]).square().sum() for batch in (ours, theirs)]
    assert distances[0] <= distances[1]


def test_immiscible_noise_is_nearer(near, plain):
    assert not torch.equal(near.batch(INDICES)["noise"], plain.batch(INDICES)["noise"])


def test_without_it_every_sample_keeps_its_noise(plain):
    noise = plain.batch(INDICES)["noise"]
    for index, row in zip(INDICES, noise, strict=True):
        assert torch.equal(row, torch.randn(row.shape, generator=sample_generator(LOOP.seed, index)))


def test_a_batch_depends_on_its_indices_alone(near, recipe):
    state = torch.get_rng_state()
    first = near.batch(INDICES)
    near.batch(INDICES[:3])
    again, elsewhere = near.batch(INDICES), Quiet(recipe, LOOP.seed).batch(INDICES)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(torch.equal(first[name], elsewhere[name]) for name in first)


@pytest.fixture(scope="module")
def runs(recipe, tmp_path_factory):
    """An immiscible run that nothing interrupted, and one that was stopped and went on."""
    folder = tmp_path_factory.mktemp("runs")
    for name, stops in (("whole", [None]), ("stopped", [1, 3, None])):
        for stop in stops:
            fit(Quiet(recipe, LOOP.seed), LOOP, folder / name, accelerator=Accelerator(cpu=True), stop_at=stop)
    return folder


def test_stopped_and_resumed_is_the_uninterrupted_run(runs):
    for name in ("model", "ema", "optimizer"):
        whole, stopped = (load_file(runs / run / "checkpoint" / f"{name}.safetensors") for run in ("whole", "stopped"))
        assert all(torch.equal(stopped[key], value) for key, value in whole.items())


def test_the_average_of_a_checkpoint_is_what_the_run_exports(runs, recipe, tmp_path):
    few = replace(recipe, scenes=1, latents=tmp_path / "one.safetensors")
    assert export_average(Recipe("text-to-image", few, LOOP), runs / "whole", tmp_path / "model", device="cpu") == 4
    ours, theirs = (
        StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        for folder in (tmp_path / "model", runs / "whole" / "model")
    )
    for part in ("unet", "text_encoder", "vae"):
        expected = getattr(theirs, part).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in getattr(ours, part).state_dict().items())


def test_a_checkpoint_of_another_recipe(runs, recipe, tmp_path):
    wider = Recipe("text-to-image", replace(recipe, text_width=32), LOOP)
    with pytest.raises(PrivgenError, match="whole belongs to another recipe"):
        export_average(wider, runs / "whole", tmp_path / "model")
    with pytest.raises(PrivgenError, match="has no checkpoint yet"):
        export_average(Recipe("text-to-image", recipe, LOOP), tmp_path, tmp_path / "model")


def test_learned_variances(recipe, tmp_path):
    """What is saved is sampled by Diffusers alone; the rest of the loss is that of a model without."""
    chosen = replace(recipe, immiscible=False, learn_variance=True, precision_weight=0.1)
    task = Quiet(chosen, LOOP.seed)
    figures = task(task.batch(INDICES))
    assert float(figures["loss_vlb"].detach()) > 0
    assert float(figures["loss_precision"].detach()) > 0
    figures["loss_vlb"].backward()
    half = task.unet.config.in_channels
    gradient = task.unet.conv_out.weight.grad
    assert not gradient[:half].any()  # the mean is not taught by the bound
    assert bool(gradient[half:].any())
    task.export(tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    assert (type(pipe.scheduler).__name__, pipe.scheduler.config.variance_type) == ("DDPMScheduler", "learned_range")
    pipe.set_progress_bar_config(disable=True)
    latents = pipe("a cat", num_inference_steps=3, output_type="latent", guidance_scale=2.0).images
    assert latents.shape == (1, half, 8, 8)
    assert bool(latents.isfinite().all())


def test_training_starts_from_a_model_in_the_latents_of_another_autoencoder(recipe, near, tmp_path):
    near.export(tmp_path / "start")
    widths = {"encoder_block_out_channels": (8,) * 2, "decoder_block_out_channels": (8,) * 2}
    blocks = {"num_encoder_blocks": (1,) * 2, "num_decoder_blocks": (1,) * 2}
    with seeded_weights(0):
        AutoencoderTiny(**widths, **blocks, latent_channels=3).save_pretrained(tmp_path / "vae")
    other = replace(
        recipe,
        vae=tmp_path / "vae",
        start=str(tmp_path / "start"),
        size=32,
        latents=tmp_path / "latents.safetensors",
        texture_weight=0.0,
    )
    task = Quiet(other, LOOP.seed + 1)
    assert task.latents.shape == (20, 3, 16, 16)
    assert task.unet.config.in_channels == 3
    for old, new in ((near.unet, task.unet), (near.text_encoder, task.text_encoder)):
        old, new = old.state_dict(), new.state_dict()
        kept = [name for name in new if old[name].shape == new[name].shape]
        assert {*new} - {*kept} <= {"conv_in.weight", "conv_out.weight", "conv_out.bias"}
        assert all(torch.equal(old[name], new[name]) for name in kept)
    scalars = task(task.batch([0, 1]))
    assert scalars["mse_textures"] == 0
    scalars["loss"].backward()

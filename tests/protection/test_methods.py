"""Every method of protection: its budget, its randomness, and what it does to the model's loss."""

import shutil

import pytest
import torch

from privgen.cli.protect import METHODS as CLI_METHODS
from privgen.data.scenes import PREVIEW_SEED, draw_scene
from privgen.diffusion.latents import encode
from privgen.errors import PrivgenError, UsageError
from privgen.protection.denoiser import Mist, ScoreDistillation, texture_target
from privgen.protection.descent import descend_in_ball, into_ball
from privgen.protection.encoder import EncoderAttack
from privgen.protection.objectives import DenoisingTask
from privgen.protection.protection import Protection
from privgen.protection.registry import METHODS, method_class
from privgen.protection.shield import ShieldMethod
from privgen.protection.surrogate import Surrogate, to_working_size


RMS = 10 ** (-30 / 20)
SETTINGS = {
    "encoder": {"steps": 2},
    "advdm": {"steps": 2},
    "mist": {"steps": 2},
    "sds": {"steps": 2},
    "aspl": {"steps": 1, "rounds": 2, "training_steps": 1},
    "shift": {"steps": 2, "n": 2},
    "universal": {"steps": 2, "batch_size": 2},
    "noise": {},
}


@pytest.fixture(scope="module")
def surrogate(tiny, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.tiny_pipeline().save_pretrained(path)
    return Surrogate(path)


@pytest.fixture
def image():
    return torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(3))


def change(name, image, surrogate, seed=0, **settings):
    method = method_class(name)(**SETTINGS[name] | settings)
    return method.change(image, surrogate, RMS, torch.Generator().manual_seed(seed))


def test_the_command_line_names_the_methods():
    assert CLI_METHODS == METHODS


@pytest.mark.parametrize("name", SETTINGS)
def test_a_change_has_the_aspect_ratio_and_depends_on_the_seed_alone(name, image, surrogate):
    first, again, other = (change(name, image, surrogate, seed) for seed in (0, 0, 1))
    assert first.shape[:2] == (1, 3)
    assert abs(first.shape[3] / first.shape[2] - 56 / 40) < 0.25
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (name == "universal")
    assert first.isfinite().all()
    assert float(first.abs().max()) > 0


@pytest.mark.parametrize("name", ["encoder", "advdm", "mist", "sds", "aspl"])
def test_the_model_is_left_as_it_was(name, image, surrogate):
    before = {k: v.clone() for k, v in surrogate.pipeline.unet.state_dict().items()}
    change(name, image, surrogate)
    after = surrogate.pipeline.unet.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert not any(p.requires_grad for p in surrogate.pipeline.unet.parameters())


def loss_of(surrogate, image, difference):
    """The loss of fine-tuning, over draws that no method has seen."""
    task = DenoisingTask.of(surrogate.pipeline)
    pixels = to_working_size(image, surrogate.canvas.size)
    with torch.no_grad():
        latents = encode(task.vae, (pixels + difference).clamp(0, 1)).expand(64, -1, -1, -1)
        return float(task.loss(latents, task.draw(latents, torch.Generator().manual_seed(99))).mean())


def test_advdm_raises_the_loss_more_than_noise_and_score_distillation_lowers_it():
    mini, scene = Surrogate("mini"), torch.from_numpy(draw_scene(PREVIEW_SEED, count=1).pixels)[None]
    noise = RMS * torch.randn(scene.shape, generator=torch.Generator().manual_seed(1))
    losses = {
        "noise": loss_of(mini, scene, noise),
        "advdm": loss_of(mini, scene, change("advdm", scene, mini, steps=15)),
        "down": loss_of(mini, scene, change("sds", scene, mini, steps=15)),
        "up": loss_of(mini, scene, change("sds", scene, mini, steps=15, direction="up")),
    }
    assert losses["advdm"] > 1.1 * losses["noise"], losses
    assert losses["down"] < 0.9 * losses["up"], losses


def test_the_encoder_attack_goes_away_or_toward(image, surrogate, tmp_path, photo_files):
    vae, pixels = surrogate.pipeline.vae, to_working_size(image, surrogate.canvas.size)
    with torch.no_grad():
        own = encode(vae, pixels)
        away = encode(vae, pixels + change("encoder", image, surrogate, steps=30))
        noise = encode(vae, pixels + RMS * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(5)))
    assert (away - own).square().mean() > 1.5 * (noise - own).square().mean()
    method = EncoderAttack(steps=30, toward=photo_files[0])
    goal, _ = method._goal(vae, pixels)
    found = method.change(image, surrogate, RMS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (encode(vae, pixels + found) - goal).square().mean() < 0.99 * (own - goal).square().mean()


def test_mist_ends_nearer_to_the_texture(image, surrogate):
    vae, pixels = surrogate.pipeline.vae, to_working_size(image, surrogate.canvas.size)
    found = Mist(steps=30, texture_weight=100).change(image, surrogate, RMS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        goal = encode(vae, texture_target(pixels))
        assert (encode(vae, pixels + found) - goal).square().mean() < (encode(vae, pixels) - goal).square().mean()


def test_several_autoencoders_are_moved_together(image, surrogate):
    path = f"{surrogate.model}/vae"
    twice = Surrogate(surrogate.model, autoencoders=(path, path))
    assert len(twice.encoders) == 2
    one, two = (change("encoder", image, s, steps=3, size=32) for s in (surrogate, twice))
    torch.testing.assert_close(one, two, rtol=0, atol=0.02)  # twice the same gradient, so the same signs
    # Autoencoders that are named one by one need no model, so the size is the image's own.
    assert change("encoder", image, twice, steps=1).shape == image.shape
    assert "pipeline" not in vars(twice)


def test_gradients_that_are_not_finite_are_refused(image):
    with pytest.raises(PrivgenError, match="not finite"):
        descend_in_ball(image, lambda x: (x * float("nan")).sum(), rms=RMS, steps=1, generator=torch.Generator())


def test_another_decoy_in_the_same_file_is_noticed(photo_files, tmp_path):
    decoy, made_by = tmp_path / "decoy.jpg", []
    for photo in photo_files[:2]:
        shutil.copy(photo, decoy)
        made_by += [EncoderAttack(toward=decoy).made_by(), ShieldMethod(toward=decoy).made_by()]
    assert len(set(made_by)) == 4


def test_descent_finds_the_far_end_of_the_ball():
    generator = torch.Generator().manual_seed(0)
    pixels, direction = torch.full((2, 3, 8, 8), 0.5), torch.randn(3, 8, 8, generator=generator)
    along = lambda x: (x * direction).sum(dim=(1, 2, 3))  # noqa: E731
    found = descend_in_ball(pixels, along, rms=0.02, steps=60, generator=generator)
    torch.testing.assert_close(found.square().mean(dim=(1, 2, 3)).sqrt(), torch.full((2,), 0.02), rtol=1e-4, atol=0)
    aligned = (found * -direction.sign()).mean(dim=(1, 2, 3))  # at most the RMS, where all signs and sizes are right
    assert bool((aligned > 0.99 * 0.02).all())


def test_a_change_stays_in_the_ball_and_in_range():
    pixels = torch.tensor([0.0, 1.0, 0.5]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    found = into_ball(torch.full((1, 3, 4, 4), 0.3), pixels, 0.1)
    assert float(found.square().mean().sqrt()) <= 0.1 + 1e-6
    assert float((pixels + found).max()) <= 1
    assert float(found[0, 0, 0, 0]) == pytest.approx(0.1)


def test_the_loss_of_fine_tuning_is_that_of_diffusers(surrogate):
    pipe = surrogate.pipeline
    task = DenoisingTask.of(pipe)
    latents = torch.randn(3, pipe.unet.config.in_channels, 4, 4)
    draw = task.draw(latents, torch.Generator().manual_seed(0))
    noised = pipe.scheduler.add_noise(latents, draw.noise, draw.t)
    with torch.no_grad():
        output = pipe.unet(noised, draw.t, encoder_hidden_states=task.prompt_embeds.expand(3, -1, -1)).sample
        v = pipe.scheduler.config.prediction_type == "v_prediction"
        target = pipe.scheduler.get_velocity(latents, draw.noise, draw.t) if v else draw.noise
        expected = (output - target).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(task.loss(latents, draw), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: method_class("glaze"), UsageError, "'glaze' is not a method of protection; choose from shield"),
        (lambda: EncoderAttack(0), ValueError, "encoder: expected steps >= 1, got 0"),
        (lambda: EncoderAttack(size=20), ValueError, "a multiple of 8, got 20"),
        (lambda: ScoreDistillation(direction="left"), ValueError, "expected direction down or up, got 'left'"),
        (lambda: Protection.from_pretrained(method="aspl", rounds=0), ValueError, "aspl: expected rounds"),
    ],
)
def test_bad_settings(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize(("shape", "expected"), [((100, 150), (64, 96)), ((33, 33), (64, 64)), ((90, 64), (88, 64))])
def test_the_working_size(shape, expected):
    assert to_working_size(torch.rand(1, 3, *shape), 64).shape[-2:] == expected

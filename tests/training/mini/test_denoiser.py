import torch
from diffusers import DDPMPipeline

from privgen.training.mini.denoiser import DenoiserRecipe, DenoiserTask


def test_a_run_makes_a_pipeline(cli, tmp_path):
    small = ("denoiser.channels=[8,16]", "denoiser.crop=32", "loop.batch_size=2", "loop.log_every=1")
    changes = [word for change in small for word in ("--set", change)]
    result = cli("train", "denoiser", "-o", tmp_path, "--steps", 2, "--device", "cpu", *changes)
    assert result.exit_code == 0, result.output
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model")
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert pipeline.unet.config.sample_size == 32
    assert (tmp_path / "previews" / "0000002.png").is_file()


def test_most_samples_have_little_noise():
    task = DenoiserTask(DenoiserRecipe(channels=(8, 8), crop=16, photo_fraction=0.0), seed=0)
    batch = task.batch(list(range(60)))
    assert batch["pixels"].shape == (60, 3, 16, 16)
    assert 20 < int((batch["t"] < 100).sum()) < 35
    assert int(batch["t"].max()) > 800
    again = task.batch([7])
    for key, value in batch.items():
        torch.testing.assert_close(again[key][0], value[7], rtol=0, atol=1e-6)


def test_the_loss_is_that_of_the_velocity():
    task = DenoiserTask(DenoiserRecipe(channels=(8, 8), crop=16, photo_fraction=0.0), seed=0)
    batch = task.batch([0, 1])
    task.unet.conv_out.weight.data.zero_()
    task.unet.conv_out.bias.data.zero_()
    alpha_bar = task.scheduler.alphas_cumprod[batch["t"]].reshape(-1, 1, 1, 1)
    velocity = alpha_bar.sqrt() * batch["noise"] - (1 - alpha_bar).sqrt() * (2 * batch["pixels"] - 1)
    torch.testing.assert_close(task(batch)["loss"], velocity.square().mean())

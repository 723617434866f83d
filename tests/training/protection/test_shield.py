"""Training of the shield on tiny autoencoders."""

import pytest
import torch
from diffusers import AutoencoderTiny

from privgen.errors import UsageError
from privgen.models.initialise import seeded_weights
from privgen.protection.shield import load_shield
from privgen.training.protection.shield import ShieldRecipe, ShieldTask, repetition


@pytest.fixture(scope="module")
def autoencoders(tiny, tmp_path_factory):
    """Folders of an `AutoencoderKL` and of an `AutoencoderTiny` with random weights."""
    folder = tmp_path_factory.mktemp("autoencoders")
    with seeded_weights(0):
        tiny.tiny_vae().save_pretrained(folder / "kl")
        AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1),
        ).save_pretrained(folder / "tiny")  # fmt: skip
    return str(folder / "kl"), str(folder / "tiny")


def recipe(autoencoders, **changes):
    small = {"channels": 8, "dilations": (1, 2), "crop": 48, "photo_fraction": 0.0, "bfloat16": False}
    return ShieldRecipe(autoencoders=autoencoders, **small | changes)


def test_a_run_makes_a_shield_and_goes_on_from_it(cli, autoencoders, tmp_path):
    changes = ["shield.channels=8", "shield.dilations=[1]", "shield.crop=32", "loop.batch_size=2", "loop.log_every=1"]
    words = [word for change in changes for word in ("--set", change)]
    words += [word for name in autoencoders for word in ("--autoencoder", name)]
    result = cli("train", "shield", "-o", tmp_path / "run", "--steps", 4, "--device", "cpu", *words)
    assert result.exit_code == 0, result.output
    network = load_shield(tmp_path / "run" / "model")
    assert network.config.channels == 8
    assert (tmp_path / "run" / "previews" / "0000004.png").is_file()
    further = ShieldTask(
        recipe(autoencoders[:1], dilations=(1,), start=tmp_path / "run" / "model"), seed=0
    ).network.state_dict()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(further[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("toward", [False, True])
def test_the_loss_falls(autoencoders, root, toward):
    decoy = next((root / "privgen" / "data" / "photos" / "heldout").glob("*.jpg")) if toward else None
    task = ShieldTask(recipe(autoencoders, encoders_a_step=2, toward=decoy, distortions=(), resized=0.0), seed=0)
    optimizer = torch.optim.Adam(task.network.parameters(), lr=2e-3)
    losses = []
    for _ in range(12):
        scalars = task(task.batch([0, 1]))
        losses.append(float(scalars["loss"].detach()))
        optimizer.zero_grad()
        scalars["loss"].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.05


def test_samples_depend_on_their_numbers_alone(autoencoders):
    task = ShieldTask(recipe(autoencoders[:1]), seed=0)
    both, one = task.batch([6, 7]), task.batch([7])
    torch.testing.assert_close(both["pixels"][1], one["pixels"][0], rtol=0, atol=0)
    assert float(both["psnr"][1]) == float(one["psnr"][0])
    assert 35 <= float(both["psnr"].min()) <= float(both["psnr"].max()) <= 37


@pytest.mark.parametrize("period", [4, 8])
def test_what_repeats_is_told_from_what_does_not(period):
    generator = torch.Generator().manual_seed(0)
    tile = torch.randn(2, 3, period, period, generator=generator)
    repeated = tile.repeat(1, 1, 72 // period, 72 // period)
    assert float(repetition(repeated, period)) == pytest.approx(1, abs=1e-5)
    # Also where its strength or its sign changes from window to window.
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(32)
    assert float(repetition(repeated[..., :64, :64] * signs, period)) == pytest.approx(1, abs=1e-5)
    noise = torch.randn(2, 3, 96, 96, generator=generator)
    assert float(repetition(noise, period)) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"autoencoders": ()}, "at least one autoencoder"),
        ({"encoders_a_step": 2}, "encoders_a_step"),
        ({"psnr_db": (38.0, 33.0)}, "lower one first"),
        ({"crop": 40}, "multiple of 16"),
        ({"decode_every": 0}, "decode_every"),
    ],
)
def test_wrong_recipes(changes, message):
    with pytest.raises(UsageError, match=message):
        ShieldRecipe(**changes)


def test_an_autoencoder_that_is_not_there(cli, tmp_path):
    result = cli("train", "shield", "-o", tmp_path / "run", "--autoencoder", tmp_path / "none", "--device", "cpu")
    assert result.exit_code == 1
    assert "none" in result.stderr

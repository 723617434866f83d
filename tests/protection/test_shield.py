"""The one-pass protection: its network, its tiles, its sizes and its settings."""

import pytest
import torch
from PIL import Image

from privgen.diffusion.latents import encode
from privgen.errors import PrivgenError
from privgen.models.initialise import seeded_weights
from privgen.models.shield import Shield
from privgen.protection.protection import Protection
from privgen.protection.shield import SHIPPED, ShieldMethod, draw_change, load_shield, shield_pattern
from privgen.protection.surrogate import Surrogate


@pytest.fixture(scope="module")
def network():
    with seeded_weights(0):
        return Shield(channels=8, dilations=(1, 2)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("shield")
    network.save_pretrained(path)
    return path


@pytest.fixture
def surrogate(tiny, tmp_path):
    path = tmp_path / "vae"
    tiny.tiny_vae().save_pretrained(path)
    return Surrogate(autoencoders=(path,))


def image(height, width, seed=0):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def grain(height, width, seed=1):
    return torch.randn(1, 1, height, width, generator=torch.Generator().manual_seed(seed))


def change(method, pixels, surrogate=None):
    return method.change(pixels, surrogate or Surrogate(), 0.01, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(150, 203), (64, 64), (65, 190)])
def test_tiles_give_what_the_whole_image_gives(network, size):
    noise = grain(*size)
    whole = shield_pattern(network, image(*size), noise)
    tiled = draw_change(network, image(*size), noise, tile=64)
    torch.testing.assert_close(tiled, whole, rtol=0, atol=2e-6)
    # The pattern is not so faint that this says nothing.
    assert float(whole.abs().max()) > 1e-3


def test_no_pixel_beyond_the_reach_counts(network):
    pixels, noise = image(24, 160), grain(24, 160)
    other = pixels.clone()
    cell = 80  # a multiple of the patch
    other[..., cell + 4 + network.reach :] = 0
    patterns = network(pixels, noise), network(other, noise)
    assert torch.equal(patterns[0][..., : cell + 4], patterns[1][..., : cell + 4])
    other[..., cell + network.reach - 4 :] = 0
    assert not torch.equal(patterns[0][..., cell : cell + 4], network(other, noise)[..., cell : cell + 4])


@pytest.mark.parametrize("size", [(16, 16), (17, 31), (63, 65), (129, 100)])
@pytest.mark.parametrize("content", ["random", "grey", "black", "white"])
def test_any_image_gets_a_change_of_mean_zero(folder, size, content):
    flats = {"grey": 0.5, "black": 0.0, "white": 1.0}
    pixels = torch.full((1, 3, *size), flats[content]) if content in flats else image(*size)
    made = change(ShieldMethod(network=folder), pixels)
    assert made.shape == pixels.shape
    assert made.isfinite().all()
    assert float(made.abs().max()) < 3
    torch.testing.assert_close(made.mean(dim=(-2, -1)), torch.zeros(1, 3), rtol=0, atol=1e-6)


def test_large_photographs_are_worked_on_at_the_size_of_adversaries(folder):
    pixels = image(96, 160)
    assert change(ShieldMethod(network=folder, size=64), pixels).shape[-2:] == (64, 104)
    assert change(ShieldMethod(network=folder, size=128), pixels).shape[-2:] == (96, 160)
    assert change(ShieldMethod(network=folder, size=0), pixels).shape[-2:] == (96, 160)


def test_the_front_door_meets_the_quality(folder):
    photo = Image.effect_noise((90, 70), 60).convert("RGB")
    safe = Protection.from_pretrained(method="shield", network=folder).protect(photo, psnr=36)
    assert safe.image.size == photo.size
    assert safe.psnr == pytest.approx(36, abs=0.05)
    again = Protection.from_pretrained(method="shield", network=folder).protect(photo, psnr=36)
    assert again.image.tobytes() == safe.image.tobytes()


def test_the_command_line_takes_a_network(cli, folder, tmp_path):
    Image.effect_noise((40, 30), 60).convert("RGB").save(tmp_path / "photo.png")
    result = cli("protect", tmp_path / "photo.png", "-o", tmp_path / "safe", "--network", folder)
    assert result.exit_code == 0, result.output
    assert Image.open(tmp_path / "safe" / "photo.png").size == (40, 30)
    result = cli("protect", tmp_path / "photo.png", "-o", tmp_path / "other", "--network", tmp_path)
    assert result.exit_code == 1
    assert "There is no shield in" in result.stderr


def test_a_decoy_draws_the_latents_toward_it(folder, surrogate, tmp_path):
    Image.new("RGB", (40, 40), "red").save(tmp_path / "decoy.png")
    pixels = image(40, 56)
    method = ShieldMethod(network=folder, toward=tmp_path / "decoy.png", steps=3)
    method.prepare(surrogate)
    (vae,) = surrogate.encoders
    goal = encode(vae, torch.tensor([1.0, 0, 0]).reshape(1, 3, 1, 1).expand(1, 3, 40, 56))

    def distance(residual):
        scaled = 0.01 / residual.square().mean().sqrt() * residual
        return float((encode(vae, pixels + scaled) - goal).square().mean())

    with torch.no_grad():
        assert distance(change(method, pixels, surrogate)) < distance(change(ShieldMethod(network=folder), pixels))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"size": 4}, "size of 0 or"), ({"size": 65}, "multiple of 8"), ({"tile": 66}, "tiles"), ({"steps": 0}, "steps")],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ShieldMethod(**settings)


def test_a_folder_without_a_network(tmp_path):
    with pytest.raises(PrivgenError, match="There is no shield in"):
        load_shield(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(PrivgenError, match="could not load"):
        load_shield(tmp_path)


def test_the_shipped_network_is_small_and_repeats_nothing():
    from privgen.training.protection.shield import repetition

    network = load_shield()
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 2**20
    for pixels in (image(128, 128) * 0.2 + 0.4, torch.full((1, 3, 128, 128), 0.6)):
        pattern = shield_pattern(network, pixels, grain(128, 128))
        assert float(repetition(pattern, 4)) < 0.2
        assert float(repetition(pattern, 8)) < 0.2


def test_other_weights_are_other_work(tmp_path):
    with seeded_weights(0):
        Shield(channels=8, dilations=(1,)).save_pretrained(tmp_path)
    first = ShieldMethod(network=tmp_path).made_by()
    assert first == ShieldMethod(network=tmp_path).made_by()
    assert repr(ShieldMethod(network=tmp_path)) in first
    with seeded_weights(1):
        Shield(channels=8, dilations=(1,)).save_pretrained(tmp_path)
    assert ShieldMethod(network=tmp_path).made_by() != first

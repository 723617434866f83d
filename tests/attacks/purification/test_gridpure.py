"""GrIDPure: its tiles, and its contract on a tiny random model."""

import pytest
import torch

from privgen.attacks import GrIDPure
from privgen.attacks.draws import spawn
from privgen.attacks.purification.denoiser import denoiser_of
from privgen.attacks.purification.diffpure import purify
from privgen.attacks.purification.gridpure import purify_tiles, tile_starts
from privgen.errors import PrivgenError


@pytest.fixture(scope="module")
def denoiser(tiny_ddpm):
    return denoiser_of(tiny_ddpm())


@pytest.mark.parametrize(
    ("length", "starts"), [(256, [0]), (512, [0, 128, 256]), (300, [0, 44]), (400, [0, 128, 144]), (5, [0])]
)
def test_tiles_of_256(length, starts):
    assert tile_starts(length, 256, 128) == starts


@pytest.mark.parametrize("tile", [2, 7, 16])
def test_tiles_cover_every_length(tile):
    for length in range(1, 60):
        starts = tile_starts(length, tile, tile // 2)
        assert starts == sorted(set(starts))
        assert {i for start in starts for i in range(start, min(start + tile, length))} == set(range(length))
        assert max(starts) + tile <= max(length, tile)


@torch.no_grad()
def test_one_tile_is_diffpure(denoiser, pictures, seeded):
    images = pictures(2, 16, 12)
    found = purify_tiles(denoiser, images, 5, seeded(1, 2), tile=16, stride=8)
    torch.testing.assert_close(found, purify(denoiser, images, 5, spawn(seeded(1, 2))), atol=1e-5, rtol=0)


@torch.no_grad()
def test_overlaps_are_means(denoiser, pictures, seeded):
    images = pictures(1, 16, 24)
    found = purify_tiles(denoiser, images, 5, [seeded(1)], tile=16, stride=8)
    left = purify(denoiser, images[..., :16], 5, spawn([seeded(1)]))
    torch.testing.assert_close(found[..., :8], left[..., :8], atol=1e-5, rtol=0)
    shared = seeded(1)
    first, second = spawn([shared, shared])
    parts = [purify(denoiser, images[..., i : i + 16], 5, [s]) for i, s in ((0, first), (8, second))]
    torch.testing.assert_close(found[..., 8:16], (parts[0][..., 8:] + parts[1][..., :8]) / 2, atol=1e-5, rtol=0)


@torch.no_grad()
def test_contract(denoiser, pictures, seeded, keeps_contract):
    attack = GrIDPure(strength=2, t_star=3, model=denoiser)
    images = pictures(2, 21, 35)
    keeps_contract(attack, images)
    shared = seeded(0)
    single = torch.cat([attack(image[None], generator=shared) for image in images])
    torch.testing.assert_close(attack(images, generator=seeded(0)), single, atol=1e-4, rtol=0)
    half = images.bfloat16()
    expected = attack(half.float(), generator=seeded(5, 6)).bfloat16()
    assert torch.equal(attack(half, generator=seeded(5, 6)), expected)


@torch.no_grad()
def test_identity_and_sweep(denoiser, pictures, seeded, psnr):
    images = pictures(1, 24, 24)
    assert torch.equal(GrIDPure(strength=0, model=denoiser)(images), images)
    quality = [
        psnr(GrIDPure(strength=s, t_star=2, tile=24, model=denoiser)(images, generator=seeded(0)), images)
        for s in GrIDPure.sweep
    ]
    assert quality == sorted(quality, reverse=True)


@torch.no_grad()
def test_blend(denoiser, pictures, seeded):
    """One round with all but nothing kept is DiffPure's; with nearly everything kept, nearly the image."""
    images = pictures(1, 16, 16)
    run = lambda blend: GrIDPure(strength=1, t_star=5, blend=blend, model=denoiser)(images, generator=seeded(0))  # noqa: E731
    torch.testing.assert_close(run(0.25), 0.75 * run(0.0) + 0.25 * images, atol=0.02, rtol=0)
    assert (run(0.99) - images).abs().max() < 0.02 < (run(0.0) - images).abs().max()


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (3, 40)])
def test_sides_below_a_tile(size, denoiser, seeded):
    attack = GrIDPure(strength=1, t_star=1, model=denoiser)
    assert attack(torch.full((1, 3, *size), 0.5), generator=seeded(0)).shape[2:] == size


@torch.no_grad()
def test_a_model_without_a_size_needs_a_tile(tiny_ddpm, pictures, seeded):
    pipeline = tiny_ddpm()
    pipeline.unet.register_to_config(sample_size=None)
    with pytest.raises(PrivgenError, match="gridpure: this model does not say its image size; give --tile"):
        GrIDPure(model=pipeline)(pictures(1, 16, 16), generator=seeded(0))
    tiled = GrIDPure(1, t_star=1, tile=8, model=pipeline)
    assert tiled(pictures(1, 16, 16), generator=seeded(0)).shape[2:] == (16, 16)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"t_star": 0}, r"expected t_star in 1\.\.1000"),
        ({"blend": 1.0}, r"blend in \[0, 1\), got 10 and 1.0"),
        ({"tile": 1}, "expected tile >= 2"),
        ({"strength": 2.5}, "expected a whole number"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        GrIDPure(**parameters)

"""Micro warps: bounded, smooth, without folds, and what they do to pixels."""

import pytest
import torch

from privgen.attacks import MicroWarp
from privgen.attacks.distortions.warp import smooth_field


def displacement(attack, size, generator):
    """Displacements in pixels, (2, H, W), read off images of the coordinates, without the outermost pixels."""
    height, width = size
    x = torch.arange(width, dtype=torch.float64).expand(height, width)
    y = torch.arange(height, dtype=torch.float64)[:, None].expand(height, width)
    scale = 2.0 * max(size)
    coordinates = torch.stack([x, y, x]) / scale + 0.2
    moved = (attack(coordinates, generator=generator) - 0.2) * scale
    return torch.stack([moved[0] - x, moved[1] - y])[:, 12:-12, 12:-12]


@pytest.mark.parametrize("strength", [1, 4])
def test_displacements_are_bounded_and_smooth(strength, seeded):
    shift = displacement(MicroWarp(strength, reference=None), (128, 192), seeded(1))
    length = shift.square().sum(0).sqrt()
    assert length.max() <= strength * 1.001
    assert length.max() > 0.6 * strength  # the longest one may lie at the edge
    # Cells are 21 pixels wide: neighbours move alike.
    steps = torch.cat([shift.diff(dim=1).flatten(), shift.diff(dim=2).flatten()]).abs()
    assert steps.max() < 0.15 * strength
    # Each part moves in its own way.
    assert shift.flatten(1).std(1).min() > 0.15 * strength
    assert shift.flatten(1).mean(1).abs().max() < 0.5 * strength


def test_the_strongest_warp_has_no_folds(seeded):
    field = 20 / 512 * 128 * smooth_field(torch.zeros(8, 3, 128, 128), 6, seeded(*range(8)))
    across, down = field.diff(dim=3)[:, 0], field.diff(dim=2)[:, 1]
    assert min(across.min(), down.min()) > -0.9  # at -1, two neighbours would become one


def test_the_longest_displacement_has_length_one(seeded):
    lengths = smooth_field(torch.zeros(5, 3, 40, 64), 6, seeded(*range(5))).square().sum(1).sqrt()
    torch.testing.assert_close(lengths.amax((1, 2)), torch.ones(5))


def test_it_is_measured_at_512_on_the_shorter_side(pictures, seeded):
    images = pictures(1, 128, 200)
    own = MicroWarp(1, reference=None)(images, generator=seeded(4))
    torch.testing.assert_close(MicroWarp(4)(images, generator=seeded(4)), own)


def test_more_cells_are_less_smooth(seeded):
    images = torch.zeros(4, 3, 96, 96)
    smooth, rough = (smooth_field(images, cells, seeded(*range(4))).diff(dim=3).abs().mean() for cells in (3, 12))
    assert rough > 2 * smooth


def test_cells_are_square(seeded):
    """A field varies as fast downwards as sideways, and as fast in a wide image as in a square one."""
    square, wide = (smooth_field(torch.zeros(8, 3, 64, width), 6, seeded(*range(8))) for width in (64, 192))
    slopes = [float(field.diff(dim=side).abs().mean()) for field in (square, wide) for side in (2, 3)]
    assert max(slopes) < 1.4 * min(slopes)
    assert min(slopes) > 0.02  # with a cell of 11 pixels, and displacements of 1 at most


def test_sharpness_is_kept(pictures, seeded, psnr):
    """Bicubic interpolation keeps three quarters of the finest detail, bilinear interpolation would keep half."""
    images = pictures(1, 96, 96)
    warped = MicroWarp(2, reference=None)(images, generator=seeded(2))
    energy = [float(x.diff(dim=3).square().mean()) for x in (images, warped)]
    assert energy[1] > 0.65 * energy[0]
    assert psnr(warped, images) < 40

"""What the eye tolerates, and what it sees."""

import pytest
import torch

from privgen.metrics.visible_difference import visible_difference
from privgen.protection.visibility import TOLERANCE_REACH, texture_factor, tolerance, visible_change


def flat(value, side=40):
    return torch.full((1, 3, side, side), float(value))


def checks(contrast, side=64):
    """A chessboard of single pixels around medium grey: its standard deviation is its contrast."""
    x = torch.arange(side)
    return (0.5 + contrast * (1 - 2 * ((x[:, None] + x) % 2))).expand(1, 3, -1, -1)


def test_smooth_areas_tolerate_least_and_strong_texture_most():
    least, weak, most = (
        float(texture_factor(pixels)[0, 0, 32, 32]) for pixels in (checks(0.0), checks(0.05), checks(0.4))
    )
    assert (least, weak, most) == pytest.approx((0.5, 0.75, 2.0), abs=0.002)


def test_lightness_rises_by_the_same_where_a_pixel_changes_by_its_tolerance():
    """On flat grey the tolerance is the inverse slope of CIELAB's lightness, which the change of colours shows."""
    for grey in (0.03, 0.1, 0.3, 0.5, 0.8, 0.95):
        step = 1e-3 * tolerance(flat(grey))
        seen = visible_difference((flat(grey) + step)[0], flat(grey)[0])
        # At medium grey lightness rises by 100.5 a unit, and smooth areas get half.
        torch.testing.assert_close(seen[20, 20], torch.tensor(0.1005 / 2), rtol=0.02, atol=0)


def test_the_differentiable_measure_is_that_of_the_metric():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(1, 3, 40, 56, generator=generator)
    changed = (pixels + 0.02 * torch.randn(pixels.shape, generator=generator)).clamp(0, 1)
    ours, metric = visible_change(changed, pixels)[0, 0], visible_difference(changed[0], pixels[0])
    inner = (slice(17, -17), slice(17, -17))  # the two continue the image beyond its edges in different ways
    torch.testing.assert_close(ours[inner], metric[inner], rtol=1e-3, atol=2e-3)


def test_fine_colour_is_seen_less_than_fine_lightness():
    x = torch.arange(48)
    stripes = (0.03 * (1 - 2 * (x // 2 % 2))).expand(48, 48)
    light = flat(0.5, 48) + stripes
    # Red up and green down, so that luminance stays about as it is.
    colour = flat(0.5, 48) + stripes * torch.tensor([0.7152, -0.2126, 0.0]).reshape(3, 1, 1) / 0.5
    seen = [float(visible_change(pixels, flat(0.5, 48)).mean()) for pixels in (light, colour)]
    assert seen[1] < seen[0] / 2


def test_no_pixel_beyond_the_reach_counts():
    pixels = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    other = pixels.clone()
    other[..., 20 + TOLERANCE_REACH + 1 :] = 0
    assert torch.equal(tolerance(pixels)[..., 20], tolerance(other)[..., 20])
    other[..., 20 + TOLERANCE_REACH] = 0
    assert not torch.equal(tolerance(pixels)[..., 20], tolerance(other)[..., 20])


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_gradients_are_finite_on_flat_images(value):
    pixels = flat(value, 16).requires_grad_()
    (tolerance(pixels).sum() + visible_change(pixels, flat(value, 16)).sum()).backward()
    assert pixels.grad.isfinite().all()

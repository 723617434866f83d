"""What the eye tolerates, and what it sees."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from privgen.metrics.visibility import TOLERANCE_REACH, seen_colours, texture_factor, tolerance, visible_change
from privgen.metrics.visible_difference import visible_difference


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


def test_colours_are_those_that_scipy_makes():
    """The same definition in NumPy and SciPy, with matrices as Zhang and Wandell print them."""
    pixels = torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    to_opponent = np.array([[0.279, 0.72, -0.107], [-0.449, 0.29, -0.077], [0.086, -0.59, 0.501]])
    rgb = pixels[0].permute(1, 2, 0).double().numpy()
    opponent = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ (to_opponent @ to_xyz).T
    seen = [gaussian_filter(opponent[..., i], sigma, mode="nearest") for i, sigma in enumerate((1.0, 2.5, 4.0))]
    xyz = np.stack(seen, -1) @ np.linalg.inv(to_opponent).T / [0.9505, 1.0, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    expected = np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])])
    torch.testing.assert_close(seen_colours(pixels)[0].double(), torch.from_numpy(expected), rtol=1e-4, atol=5e-3)


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

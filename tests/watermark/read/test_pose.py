"""Images that show a part of what was marked, or are turned, are put back."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from privgen.attacks import get_attack
from privgen.attacks.distortions.geometric import resized_crop
from privgen.training.watermark.aligner import draw_pose
from privgen.watermark.read.pose import Poses, put_back, take


POSES = {
    "whole": Poses.of(),
    "corner": Poses.of(side=0.75),
    "middle": Poses.of(side=0.7, left=0.2, top=0.1),
    "turned": Poses.of(degrees=30.0),
    "both": Poses.of(side=0.8, left=0.1, top=0.15, degrees=-20.0),
}


@pytest.fixture
def smooth(generator):
    """Two images that interpolation hardly changes."""
    return F.interpolate(torch.rand(2, 3, 6, 6, generator=generator), (128, 128), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("name", POSES)
def test_what_is_seen_comes_back(smooth, name):
    pose = POSES[name].expand(2)
    canvases, seen = put_back(take(smooth, pose), pose)
    inner = F.avg_pool2d(seen, 5, 1, 2) == 1  # without the edge, where black comes in
    side = float(pose.values[0, 0])
    assert abs(float(seen[0].mean()) - side**2) < 0.02 or pose.values[0, 3] != 0
    assert float((canvases - smooth).abs()[inner.expand_as(smooth)].max()) < 0.02


@given(
    side=st.floats(0.5, 1.2),
    place=st.tuples(st.floats(-0.2, 0.5), st.floats(-0.2, 0.5)),
    degrees=st.floats(-180, 180),
    aspect=st.floats(0.5, 2.0),
)
def test_putting_back_undoes_taking(side, place, degrees, aspect):
    """Any window, also one that lies partly beyond the canvas; to 0.03, which two interpolations may change."""
    coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    image = F.interpolate(coarse, (128, 128), mode="bicubic").clamp(0, 1)
    pose = Poses.of(side=side, left=place[0], top=place[1], degrees=degrees)
    canvas, seen = put_back(take(image, pose, aspect), pose, aspect)
    inner = (F.avg_pool2d(seen, 5, 1, 2) == 1).expand_as(image)  # without edges, where black comes in
    torch.testing.assert_close(canvas[inner], image[inner], rtol=0, atol=0.03)


def test_whole_images_are_left_alone(smooth):
    canvases, seen = put_back(smooth, Poses.of().expand(2))
    torch.testing.assert_close(canvases, smooth, atol=1e-5, rtol=0)
    assert bool((seen == 1).all())


def test_the_attacks_are_undone(smooth):
    turned = get_attack("rotation", strength=10)(smooth)
    assert float((take(smooth, Poses.of(degrees=10.0).expand(2)) - turned).abs().mean()) < 1e-4
    window, corner = (96, 96), torch.tensor([[8, 24]]).expand(2, 2)
    pose = Poses.of(side=0.75, left=24 / 128, top=8 / 128).expand(2)
    canvases, seen = put_back(resized_crop(smooth, window, corner), pose)
    assert float(((canvases - smooth).abs() * seen).max()) < 0.03


def test_each_image_has_its_own_pose(smooth):
    values = torch.cat([POSES["middle"].values, POSES["turned"].values])
    both, seen = put_back(smooth, Poses(values))
    for i in range(2):
        one, its = put_back(smooth[i : i + 1], Poses(values[i : i + 1]))
        torch.testing.assert_close(one[0], both[i], atol=1e-5, rtol=0)
        assert float((its[0] != seen[i]).float().mean()) < 1e-3  # pixels on the edge may round either way


def test_images_that_are_not_square_are_turned_in_their_own_shape(smooth):
    """A quarter turn about the centre takes a point to the right of it, measured in heights, above or below it."""
    wide = 2.0
    pose = Poses.of(degrees=90.0).expand(2)
    spot = torch.zeros(2, 3, 128, 128)
    spot[..., 60:68, 76:84] = 1  # 16 pixels to the right, which are 32 in heights' measure
    turned = take(spot, pose, wide)[0, 0]
    rows = turned.sum(dim=1)
    middle = float((rows * torch.arange(128)).sum() / rows.sum())
    assert math.isclose(abs(middle - 63.5), 32, abs_tol=1)


def test_poses_that_training_draws_lie_on_the_canvas():
    rng = np.random.default_rng(0)
    drawn = torch.stack([draw_pose(rng) for _ in range(300)])
    side, left, top, degrees = drawn[:, 0].unbind(1)
    assert bool(((side <= 1) & (left >= 0) & (top >= 0) & (left + side <= 1 + 1e-6) & (top + side <= 1 + 1e-6)).all())
    assert float((drawn[:, 1] - drawn[:, 0]).abs()[:, 3].max()) <= 2.5
    assert float((degrees == 0).float().mean()) == pytest.approx(0.5, abs=0.1)
    assert float(((degrees != 0) & (side < 1)).float().mean()) == pytest.approx(0.25, abs=0.1)

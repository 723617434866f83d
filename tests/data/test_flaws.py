from dataclasses import replace

import numpy as np
import pytest
import torch

from privgen.data.flaws import SPOILINGS, blur, spoil, warp
from privgen.data.scenes import HELDOUT_NOUNS, SIZE, draw, draw_scene


def rng(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


def test_only_the_chosen_object_is_spoilt():
    scene = draw_scene(1, count=2)
    pixels = spoil(scene, [1], rng())
    assert pixels.shape == scene.pixels.shape
    assert np.allclose(pixels[:, :, :55], scene.pixels[:, :, :55], atol=6 / 255)
    inside = scene.masks[1] > 0.9
    assert np.abs(pixels - scene.pixels)[:, inside].mean() > 0.03
    assert 0 <= pixels.min() <= pixels.max() <= 1


def test_nothing_to_spoil():
    scene = draw_scene(1)
    assert np.array_equal(spoil(scene, [], rng()), scene.pixels)


@pytest.mark.parametrize("kind", SPOILINGS)
def test_a_spoilt_object_keeps_its_colours_and_place(kind):
    seed = next(seed for seed in range(100) if SPOILINGS[rng(seed).integers(len(SPOILINGS))] == kind)
    scene = draw_scene(2, count=1, nouns=HELDOUT_NOUNS, textured=False, patterned=False)
    background = draw(replace(scene.spec, objects=())).pixels
    spoilt = spoil(scene, [0], rng(seed))
    rows, columns = (np.flatnonzero(scene.masks[0].any(axis)) for axis in (1, 0))
    outside = np.ones((SIZE, SIZE), bool)
    outside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = False
    assert np.array_equal(spoilt[:, outside], background[:, outside])
    assert np.abs(spoilt - scene.pixels)[:, ~outside].mean() > 0.03
    # What the object adds to the background, summed over the picture, for each colour.
    before, after = ((pixels - background).sum((1, 2)) for pixels in (scene.pixels, spoilt))
    assert np.abs(after - before).max() < 0.5 * np.abs(before).max()


def test_the_same_randomness_spoils_alike():
    scene = draw_scene(3, count=3)
    assert np.array_equal(spoil(scene, [0, 1, 2], rng(4)), spoil(scene, [0, 1, 2], rng(4)))


def test_a_warp_of_nothing_changes_nothing(generator):
    x = torch.rand(2, 3, 16, 20, generator=generator)
    torch.testing.assert_close(warp(x, torch.zeros(2, 2, 4, 4)), x, atol=1e-4, rtol=0)


def test_a_shift_is_in_pixels(generator):
    x = torch.rand(2, 3, 16, 20, generator=generator)
    moved = warp(x, torch.zeros(2, 2, 4, 4), shift=torch.tensor([[3.0, 0.0], [0.0, -2.0]]))
    torch.testing.assert_close(moved[0, :, :, :-3], x[0, :, :, 3:], atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[1, :, 2:], x[1, :, :-2], atol=1e-4, rtol=0)
    bent = warp(x, torch.tensor([3.0, 0.0])[None, :, None, None].expand(2, 2, 4, 4))
    torch.testing.assert_close(bent[0], moved[0], atol=1e-4, rtol=0)


def test_a_zoom_shows_more():
    x = torch.zeros(1, 1, 32, 32)
    x[:, :, 8:24, 8:24] = 1
    small = warp(x, torch.zeros(1, 2, 4, 4), zoom=torch.tensor([1.0]), padding="zeros")
    assert small.sum() == pytest.approx(64, rel=0.02)


def test_a_blur_is_gaussian():
    x = torch.zeros(2, 3, 32, 32)
    x[:, :, 16, 16] = 1
    y = blur(x, torch.tensor([1.2, 0.0]))
    assert y[0].sum((1, 2)) == pytest.approx([1, 1, 1], abs=1e-3)
    place = torch.arange(32.0)
    variance = (y[0, 0].sum(0) * (place - 16) ** 2).sum()
    assert variance.sqrt() == pytest.approx(1.2, rel=0.01)
    torch.testing.assert_close(y[1], x[1])

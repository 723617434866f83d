import numpy as np
import pytest
import torch

from privgen.metrics import visible_difference as module
from privgen.metrics.visible_difference import visible_de_p99, visible_difference


def flat(*rgb, side=64):
    return torch.tensor(rgb).view(3, 1, 1).expand(3, side, side).clone()


def test_equal_images_do_not_differ():
    image = torch.rand(3, 20, 30)
    assert visible_difference(image, image).abs().max() == 0


def test_greys_differ_by_their_lightness():
    # L* of linear light Y is 116 Y^(1/3) - 16.
    light = [((v + 0.055) / 1.055) ** 2.4 for v in (0.5, 0.6)]
    expected = 116 * (light[1] ** (1 / 3) - light[0] ** (1 / 3))
    found = visible_difference(flat(0.6, 0.6, 0.6), flat(0.5, 0.5, 0.5))
    torch.testing.assert_close(found, torch.full_like(found, expected), rtol=0.02, atol=0.05)


def test_fine_chroma_is_seen_less_than_coarse_chroma_and_than_fine_luma():
    base, fine = flat(0.5, 0.5, 0.5), (torch.arange(64) % 2 * 2 - 1.0).expand(64, 64)
    coarse = (torch.arange(64) // 16 % 2 * 2 - 1.0).expand(64, 64)
    luma, chroma = torch.tensor([1.0, 1, 1]).view(3, 1, 1), torch.tensor([1.0, -0.4, 0.5]).view(3, 1, 1)
    seen = {
        (name, width): visible_de_p99(base + 0.05 * direction * wave, base)
        for name, direction in (("luma", luma), ("chroma", chroma))
        for width, wave in (("fine", fine), ("coarse", coarse))
    }
    assert seen["chroma", "fine"] < 0.2 * seen["chroma", "coarse"]
    assert seen["chroma", "fine"] < seen["luma", "fine"] < seen["luma", "coarse"]


def test_strips_are_the_whole(monkeypatch):
    a, b = torch.rand(3, 300, 40), torch.rand(3, 300, 40)
    whole = visible_difference(a, b)
    monkeypatch.setattr(module, "_STRIP", 1)
    strips = visible_difference(a, b)
    assert strips.shape == (300, 40)
    torch.testing.assert_close(strips, whole, rtol=0, atol=0.02)


def test_the_percentile_is_that_of_numpy():
    a, b = torch.rand(3, 30, 40), torch.rand(3, 30, 40)
    assert visible_de_p99(a, b) == pytest.approx(np.percentile(visible_difference(a, b).numpy(), 99))


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 9, 8), (3, 0, 9)])
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match="two images"):
        visible_difference(torch.zeros(shape), torch.zeros(3, 9, 9))

"""Objects in other poses: cropped, and pasted into another image, scaled and turned."""

import re

import pytest
import torch

from privgen.io.images import load_image
from privgen.io.pixels import resize
from privgen.watermark.objects.read import locate
from privgen.watermark.objects.write import ObjectMark, mark_objects


def square_photo(root, name, side):
    pixels = load_image(root / f"privgen/data/photos/heldout/{name}.jpg").pixels
    short = min(pixels.shape[1:])
    return resize(pixels[None, :, :short, :short], (side, side))[0].clamp(0, 1)


@pytest.fixture(scope="module")
def pasted(root, key_of):
    """A disc that alice owns, 1.2 times as large, turned and moved into another photograph; and its new mask."""
    source, host = (
        square_photo(root, "endlesssky-snow4", 256),
        square_photo(root, "gcompris-monuments-operahouse", 256),
    )
    down, across = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    mask = (((across - 100) ** 2 + (down - 120) ** 2) < 55**2).float()
    marked = mark_objects(source, [ObjectMark("disc", key_of(1), mask)], psnr=33.0, levels=255).pixels
    turn = torch.deg2rad(torch.tensor(20.0))
    cos, sin = torch.cos(turn) / 1.2, torch.sin(turn) / 1.2
    x, y = (across - 160.0), (down - 150.0)
    place = torch.stack([(cos * x - sin * y + 100.5) / 128 - 1, (sin * x + cos * y + 120.5) / 128 - 1], -1)
    planes = torch.cat([marked, mask[None]])[None]
    moved = torch.nn.functional.grid_sample(planes, place[None], mode="bicubic", align_corners=False)[0].clamp(0, 1)
    return host * (1 - moved[3]) + moved[:3] * moved[3], moved[3]


def test_a_pasted_object_is_found_with_its_pose(pasted, key_of):
    pixels, mask = pasted
    [found] = locate(pixels, [key_of(1)], search=True)
    assert found.detected
    assert found.matches >= 46
    scale, degrees = map(
        float, re.fullmatch(r"moved, (.*) times as large, turned by (.*) degrees", found.pose).groups()
    )
    assert scale == pytest.approx(1.2, abs=0.03)
    assert abs(degrees) == pytest.approx(20, abs=2)
    small = resize(mask[None, None], found.mask.shape)[0, 0] > 0.5
    both = (found.mask > 0.5) & small
    assert both.sum() / ((found.mask > 0.5) | small).sum() > 0.6
    assert not locate(pixels, [key_of(1)])[0].detected


def test_a_crop_through_an_object(marked, scene, owners, key_of):
    columns = (scene[1][1] > 0.5).any(0).nonzero()[:, 0]
    crop = marked.pixels[:, 9:, int(columns[0]) - 20 :]
    found = locate(crop, [owners[1], key_of(50)], search=True)
    assert [item.detected for item in found] == [True, False]


@pytest.mark.parametrize("size", [(1, 1), (5, 60), (24, 24)])
def test_tiny_images_carry_nothing(key_of, size):
    pixels = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    marked = mark_objects(pixels, [ObjectMark("dot", key_of(1), torch.ones(size))])
    assert marked.objects[0].note is not None
    assert not locate(marked.pixels, [key_of(1)], search=True)[0].detected

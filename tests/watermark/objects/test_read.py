"""Who owns which part: places, p-values, and what random keys read."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from privgen.errors import UsageError
from privgen.io.images import load_image
from privgen.io.pixels import resize
from privgen.watermark.objects.place import LATTICES
from privgen.watermark.objects.read import Locator, chance, least_z, locate
from privgen.watermark.objects.windows import evidence_of, window_evidence, windows_of
from privgen.watermark.objects.write import ObjectMark, mark_objects
from privgen.watermark.tile.pattern import pattern_of


def overlap(box, mask):
    """Intersection over union of a box, in fractions, and the box of a mask."""
    rows, columns = (mask >= 0.5).any(1).nonzero()[:, 0], (mask >= 0.5).any(0).nonzero()[:, 0]
    height, width = mask.shape
    true = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
    sides = [max(0.0, float(min(box[i + 2], true[i + 2]) - max(box[i], true[i]))) for i in (0, 1)]
    area = sum(float((b[2] - b[0]) * (b[3] - b[1])) for b in (box, true)) - sides[0] * sides[1]
    return sides[0] * sides[1] / area


def jpeg(pixels, quality):
    buffer = io.BytesIO()
    Image.fromarray((pixels * 255).round().byte().permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 255


@pytest.mark.parametrize("change", ["none", "jpeg", "enlarged"])
def test_owners_are_found_where_they_are_and_others_nowhere(scene, marked, owners, key_of, change):
    pixels = marked.pixels
    if change == "jpeg":
        pixels = jpeg(pixels, 75)
    elif change == "enlarged":
        pixels = resize(pixels[None], (256, 256))[0].clamp(0, 1)
    found = locate(pixels, [*owners, key_of(77)])
    for item, mask in zip(found[:2], scene[1], strict=True):
        assert item.detected
        assert item.p_value < 1e-6
        assert item.matches >= 44
        assert overlap(item.box, mask) > 0.5
        small = resize(mask[None, None], item.mask.shape)[0, 0] > 0.5
        both = (item.mask > 0.5) & small
        assert both.sum() / ((item.mask > 0.5) | small).sum() > 0.5
    assert not found[2].detected
    assert found[2].bits == ""
    assert found[2].mask.sum() == 0


def test_a_photograph_of_any_shape(root, key_of):
    pixels = load_image(root / "privgen/data/photos/heldout/gcompris-monuments-operahouse.jpg").pixels
    pixels = resize(pixels[None], (300, 460))[0].clamp(0, 1)
    mask = torch.zeros(300, 460)
    mask[150:290, 300:440] = 1
    done = mark_objects(pixels, [ObjectMark("corner", key_of(4), mask)], psnr=37.0, levels=255)
    [found] = locate(done.pixels, [key_of(4)])
    assert found.matches >= 47
    assert overlap(found.box, mask) > 0.65


@pytest.mark.parametrize("lattice", LATTICES)
def test_windows_of_an_unmarked_image_read_standard_normal_numbers(root, key_of, lattice):
    pixels = load_image(root / "privgen/data/photos/heldout/gcompris-monuments-operahouse.jpg").pixels
    evidence = evidence_of(pixels)
    size = tuple(evidence.shape)
    windows = windows_of(size)
    rows = window_evidence(evidence, windows, lattice.tile(size))
    templates = torch.stack([pattern_of(key_of(number)).template for number in range(1000, 1500)])
    z = (templates.conj() @ rows.T).real
    assert 50 <= len(windows) <= 150
    for window in (0, len(windows) // 2, len(windows) - 1):
        assert stats.kstest(z[:, window].double().numpy(), "norm").pvalue > 1e-3
    assert float(z.square().mean()) == pytest.approx(1, abs=0.1)


def test_p_values_of_unmarked_images_are_rarely_small(scene, key_of):
    locator = Locator([key_of(number) for number in range(2000, 2200)])
    p = torch.tensor([found.p_raw for found in locator(scene[0])])
    for level in (0.5, 0.1, 0.02):
        assert float((p <= level).double().mean()) <= level + 3 * (level * (1 - level) / 200) ** 0.5


def test_one_key_among_many_is_found(marked, owners, key_of):
    others = [key_of(number) for number in range(3000, 4001)]
    found = Locator([*others, owners[1]])(marked.pixels)
    assert [item.key for item in found if item.detected] == ["bob"]
    assert found[-1].key == "bob"
    assert [item.p_value for item in found[:2]] == [1, 1]
    with pytest.raises(IndexError):
        found[len(others) + 1]


def test_chance_and_its_inverse_agree():
    z = least_z(1e-6, 300)
    assert chance(torch.tensor([z]), 300)[0] == pytest.approx(1e-6, rel=1e-3)


def test_bad_calls(scene, owners):
    with pytest.raises(UsageError, match="at least one key"):
        locate(scene[0], [])
    with pytest.raises(UsageError, match="false-positive rate"):
        locate(scene[0], owners, fpr=0)

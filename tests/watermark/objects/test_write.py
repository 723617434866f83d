"""Marks in masks: the quality inside, nothing outside, and several owners in one image."""

import math

import pytest
import torch

from privgen.errors import UsageError
from privgen.watermark.objects.carrier import FAINTEST, LOUDEST, TileCarrier
from privgen.watermark.objects.masks import SEAM
from privgen.watermark.objects.read import locate
from privgen.watermark.objects.write import ObjectMark, mark_objects


def disc(height, width, x, y, radius):
    """A mask (height, width); place and radius in pixels."""
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (((across - x) ** 2 + (down - y) ** 2) < radius**2).float()


def test_the_quality_is_met_inside_and_nothing_changes_outside(scene, marked):
    pixels, masks = scene
    change = marked.pixels - pixels
    for item, mask in zip(marked.objects, masks, strict=True):
        inside = change[:, mask >= 0.5]
        assert -10 * math.log10(inside.square().mean()) == pytest.approx(31, abs=0.1)
        assert item.object_psnr == pytest.approx(31, abs=0.1)
        assert item.area == pytest.approx(float((mask >= 0.5).float().mean()), abs=1e-6)
        assert item.matches >= 47
        assert item.note is None
    reach = max(1, round(SEAM * 128 / 2))
    grown = torch.nn.functional.max_pool2d(sum(masks)[None], 2 * reach + 1, 1, reach)[0] > 0
    assert torch.equal(marked.pixels[:, ~grown], pixels[:, ~grown])
    inside = marked.pixels[:, sum(masks) >= 0.9]
    torch.testing.assert_close(inside, (inside * 255).round() / 255, atol=1e-6, rtol=0)


def test_seams_are_soft(scene, key_of):
    mask = disc(128, 128, 64, 64, 40)
    change = (mark_objects(scene[0], [ObjectMark("disc", key_of(5), mask)], check=False).pixels - scene[0])[0].abs()
    edge = (mask != torch.nn.functional.max_pool2d(mask[None], 3, 1, 1)[0]) & (mask == 0)
    middle = disc(128, 128, 64, 64, 30) > 0
    assert 0 < change[edge].mean() < 0.6 * change[middle].mean()


def test_an_overlap_belongs_to_the_larger_value_and_to_the_last_of_equals(scene, owners):
    left, right = disc(128, 128, 48, 64, 32), disc(128, 128, 80, 64, 32)
    both = (left * right) > 0
    areas = {}
    for factor in (0.8, 1.0):
        marks = [ObjectMark("left", owners[0], left), ObjectMark("right", owners[1], right * factor)]
        areas[factor] = [item.area for item in mark_objects(scene[0], marks, check=False).objects]
    shared = float(both.float().mean())
    assert areas[0.8][0] == pytest.approx(areas[1.0][0] + shared)
    assert areas[1.0][1] == pytest.approx(areas[0.8][1] + shared)


def test_a_second_mark_leaves_the_first_readable(marked, marks, key_of):
    again = [ObjectMark(mark.name, key_of(10 + i), mark.mask) for i, mark in enumerate(marks)]
    twice = mark_objects(marked.pixels, again, psnr=31.0, levels=255)
    keys = [mark.key for mark in (*marks, *again)]
    assert all(found.detected for found in locate(twice.pixels, keys))


def test_a_key_for_the_rest_marks_all_but_the_objects(scene, marks, key_of):
    pixels, masks = scene
    both = mark_objects(pixels, marks, psnr=31.0, rest=key_of(9), check=False).pixels
    without = mark_objects(pixels, marks, psnr=31.0, check=False).pixels
    inside = sum(masks) > 0.999
    core = -torch.nn.functional.max_pool2d(-inside[None].float(), 5, 1, 2)[0] > 0.5
    assert torch.equal(both[:, core], without[:, core])
    outside = sum(masks) == 0
    assert -10 * math.log10((both - without)[:, outside].square().mean()) == pytest.approx(42, abs=0.6)


def test_objects_that_cannot_carry_a_mark_are_named(scene, key_of):
    [item] = mark_objects(scene[0], [ObjectMark("dot", key_of(3), disc(128, 128, 20, 20, 4))]).objects
    assert item.note is not None
    assert "hardly be read" in item.note


def test_small_objects_are_marked_louder_than_large_ones():
    assert TileCarrier().quality(1_000) == LOUDEST
    assert LOUDEST < TileCarrier().quality(8_000) < FAINTEST
    assert TileCarrier().quality(100_000) == FAINTEST


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.zeros(128, 128), "is empty"),
        (torch.ones(3, 128, 128), "shape"),
        (torch.full((128, 128), 7.0), "outside 0 to 1"),
        (torch.ones(128, 200), "image's shape"),
    ],
)
def test_bad_masks(scene, key_of, mask, message):
    with pytest.raises(UsageError, match=message):
        mark_objects(scene[0], [ObjectMark("cat", key_of(1), mask)])


def test_bad_calls(scene, owners):
    whole = torch.ones(128, 128)
    with pytest.raises(UsageError, match="at least one object"):
        mark_objects(scene[0], [])
    with pytest.raises(UsageError, match="above 0 dB"):
        mark_objects(scene[0], [ObjectMark("cat", owners[0], whole)], psnr=-1)
    with pytest.raises(UsageError, match="cover all of cat"):
        mark_objects(scene[0], [ObjectMark("cat", owners[0], whole), ObjectMark("dog", owners[1], whole)])

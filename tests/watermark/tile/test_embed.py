import pytest
import torch

from privgen.metrics.visible_difference import visible_de_p99
from privgen.watermark.tile import embed
from privgen.watermark.tile.embed import mark_image, tile_residual
from privgen.watermark.tile.pattern import harmonics
from privgen.watermark.tile.search import detect_tiles
from privgen.watermark.tile.wave import grid_of, sheet


def read_back(pixels, pattern):
    [[match]] = detect_tiles([pixels], [pattern], search=False)
    return match


def test_quality_and_visibility_are_as_promised(photo, alice):
    pixels = photo("endlesssky-snow4")
    marked = mark_image(pixels, alice, psnr=42, levels=255)
    assert marked.psnr == pytest.approx(42, abs=0.02)
    assert visible_de_p99(marked.pixels, pixels) < 4
    assert torch.equal((marked.pixels * 255).round() / 255, marked.pixels)


def test_the_mark_is_grey_and_repeats_along_the_short_side(alice):
    residual = tile_residual(torch.full((3, 128, 160), 0.5), alice)
    assert torch.equal(residual[0], residual[1])
    torch.testing.assert_close(residual[:, :96], residual[:, 32:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(residual[:, :, :128], residual[:, :, 32:], atol=1e-4, rtol=1e-4)


def test_smooth_and_bright_parts_change_less_than_texture(alice):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.full((3, 128, 256), 0.5)
    pixels[:, :, 128:] += 0.2 * torch.randn(1, 128, 128, generator=generator)
    residual = tile_residual(pixels.clamp(0, 1), alice)[0]
    assert residual[:, 140:].std() > 1.15 * residual[:, :116].std()


def test_strips_do_not_show(alice, monkeypatch):
    pixels = torch.rand(3, 96, 130, generator=torch.Generator().manual_seed(1))
    whole = tile_residual(pixels, alice)
    monkeypatch.setattr(embed, "_STRIP", 130 * 7)
    torch.testing.assert_close(tile_residual(pixels, alice), whole, atol=1e-5, rtol=1e-5)


def test_a_sheet_is_the_tile_at_the_centres_of_pixels(alice):
    # On a grid of 64 points a tile of 64 pixels is the same, half a pixel on.
    band = alice.template * 0.01
    half = torch.polar(torch.ones(len(band)), torch.pi / 64 * torch.tensor(harmonics()).sum(1).float())
    expected = grid_of(band * half, 64)
    torch.testing.assert_close(sheet(band, range(3, 70), 64, 64.0)[:61], expected[3:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_floating_point_type_is_marked(photo, alice, dtype):
    marked = mark_image(photo("gcompris-fishes-fish3").to(dtype), alice)
    assert marked.pixels.dtype == torch.float32
    assert read_back(marked.pixels.to(dtype), alice).p_value <= 1e-6


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.rand(1, 3, 64, 64), "expected pixels of shape"),
        (torch.rand(1, 64, 64), "expected pixels of shape"),
        (torch.rand(3, 0, 64), "expected pixels of shape"),
        (torch.zeros(3, 64, 64, dtype=torch.int64), "or samples of type uint8 or uint16, got torch.int64"),
        (torch.full((3, 64, 64), torch.nan), "expected finite pixels"),
    ],
)
def test_what_is_not_an_image_is_refused(alice, pixels, message):
    with pytest.raises(ValueError, match=message):
        mark_image(pixels, alice)


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 1, 1), (3, 5, 300)])
def test_an_image_that_is_too_small_carries_no_mark(alice, shape):
    assert read_back(mark_image(torch.full(shape, 0.5), alice, levels=255).pixels, alice).p_value > 1e-6


def test_a_photograph_reads_back(photo, alice):
    found = read_back(mark_image(photo("gcompris-fishes-fish3"), alice, levels=255).pixels, alice)
    assert (found.matches, found.p_value <= 1e-6) == (48, True)

import numpy as np
import pytest
from PIL import Image

from privgen.data.sheets import contact_sheet, outline, picture, save_picture
from privgen.errors import PrivgenError, UsageError


def coloured(colour, size=(40, 30)):
    return Image.new("RGB", size, colour)


def test_pictures_lie_in_rows():
    sheet = contact_sheet([coloured("red"), coloured("lime"), coloured("blue")], ["", "", ""], 2)
    assert sheet.mode == "RGB"
    assert [sheet.getpixel(at) for at in [(9, 9), (57, 9), (9, 51)]] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert sheet.getpixel((57, 60)) == (255, 255, 255)
    assert sheet.width == 8 + 2 * 48


def test_captions_are_wrapped_below_their_pictures():
    images = [coloured("red", (100, 20))] * 2
    short, long = (contact_sheet(images, [text, ""], 2) for text in ("a cat", "a cat " * 10))
    assert long.width == short.width
    assert long.height > short.height
    below = np.asarray(long)[30:]
    assert below[:, :108].min() < 100
    assert below[:, 116:].min() == 255


def test_rows_are_as_tall_as_their_captions():
    images = [coloured("red")] * 2
    above = contact_sheet(images, ["a b c d e f g h i j k l", ""], 1).height
    assert above == contact_sheet(images, ["", "a b c d e f g h i j k l"], 1).height


def test_other_modes_and_sizes():
    images = [Image.new("L", (10, 50), 128), Image.new("RGBA", (60, 10), (1, 2, 3, 255))]
    sheet = contact_sheet(images, ["", ""], 9)
    assert sheet.size[0] == 8 + (10 + 8) + (60 + 8)
    assert sheet.getpixel((8 + 10 + 8, 8)) == (1, 2, 3)


def test_columns_are_as_wide_and_rows_as_tall_as_they_need():
    sizes = [(10, 50), (60, 10), (20, 5), (30, 15)]
    sheet = contact_sheet([coloured("red", size) for size in sizes], [""] * 4, 2)
    columns, rows = [8, 8 + 20 + 8], [8, 8 + 50 + 3 + 8]
    assert sheet.size == (8 + 20 + 8 + 60 + 8, 8 + 50 + 3 + 8 + 15 + 3 + 8)
    red = np.asarray(sheet)[..., 1] == 0
    for (width, height), left, top in zip(sizes, columns * 2, [rows[0]] * 2 + [rows[1]] * 2, strict=True):
        assert red[top : top + height, left : left + width].all()
    assert red.sum() == sum(width * height for width, height in sizes)


def test_captions_have_the_size_that_is_asked_for():
    small, large = (contact_sheet([coloured("red")], ["a"], 1, font_size=size).height for size in (11, 22))
    assert large - small >= 8


def test_line_breaks_of_captions_stay():
    one, two = (contact_sheet([coloured("red", (200, 10))], [text], 1).height for text in ("a b", "a\nb"))
    assert two > one


@pytest.mark.parametrize(("n", "captions", "columns"), [(0, [], 1), (2, ["a"], 1), (1, ["a"], 0)])
def test_what_makes_no_sheet(n, captions, columns):
    with pytest.raises(ValueError, match=f"got {n}, {len(captions)} and {columns}"):
        contact_sheet([coloured("red")] * n, captions, columns)


def test_outlines_lie_around_objects():
    masks = np.zeros((2, 20, 20), np.float32)
    masks[0, 5:10, 5:10] = 1
    masks[1, 15:, 15:] = 0.7
    pixels = np.full((3, 20, 20), 0.25, np.float32)
    drawn = outline(pixels, masks)
    assert (drawn[:, masks.max(0) > 0] == 0.25).all()
    assert (drawn[:, 4, 5:10] == 1).all()
    assert drawn[:, 14, 16].tolist() == pytest.approx([1, 220 / 255, 0])
    assert (drawn != 0.25).any(0).sum() == 20 + 10
    assert (pixels == 0.25).all()


def test_pixels_become_a_picture():
    pixels = np.stack([np.full((4, 6), value, np.float32) for value in (-0.1, 0.5, 1.2)])
    image = picture(pixels)
    assert image.size == (6, 4)
    assert image.getpixel((0, 0)) == (0, 128, 255)


def test_saving(tmp_path):
    path = tmp_path / "sheets" / "one.png"
    save_picture(coloured("red"), path)
    assert Image.open(path).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(PrivgenError, match="exists"):
        save_picture(coloured("blue"), path)
    with pytest.raises(UsageError, match=r"one.txt must end in .png, .jpg, .jpeg, .webp"):
        save_picture(coloured("red"), tmp_path / "one.txt")

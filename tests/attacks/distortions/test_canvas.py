"""Borders, other aspect ratios and collages: the image itself stays, pixel for pixel."""

import pytest
import torch

from privgen.attacks import AspectCrop, Border, Collage, Crop, Flip, Pad, Scale


WHITE = torch.ones(3, 1, 1)


@pytest.fixture
def images(pictures):
    """(2, 3, 40, 60), without pure white or black."""
    return pictures(2, 40, 60) * 0.8 + 0.1


def places_of(image, canvas):
    """Row and column of every place where an image is on a canvas, exactly."""
    height, width = image.shape[1:]
    starts = canvas[:, : canvas.shape[1] - height + 1, : canvas.shape[2] - width + 1]
    candidates = (starts == image[:, :1, :1]).all(0).nonzero().tolist()
    return [[y, x] for y, x in candidates if torch.equal(canvas[:, y : y + height, x : x + width], image)]


def test_a_border_is_of_its_width_and_colour(images):
    made = Border(0.1, colour="#ff8000")(images)
    assert made.shape == (2, 3, 48, 68)
    assert torch.equal(made[..., 4:-4, 4:-4], images)
    inside = torch.zeros(48, 68, dtype=torch.bool)
    inside[4:-4, 4:-4] = True
    colour = made[:, :, ~inside]
    torch.testing.assert_close(colour, torch.tensor([1, 128 / 255, 0])[:, None].expand_as(colour))


@pytest.mark.parametrize(
    ("strength", "ratio", "size"),
    [(1, "1:1", (60, 60)), (1, "4:5", (75, 60)), (1, "16:9", (40, 71)), (1, "3:2", (40, 60)), (0.5, "6:1", (40, 120))],
)
def test_padding_reaches_the_ratio(strength, ratio, size, images):
    """0.5 of the way from 3:2 to 6:1 is 3:1, because ratios are compared by their quotients."""
    made = Pad(strength, ratio=ratio, colour="white")(images)
    assert made.shape[-2:] == size
    for image, canvas in zip(images, made, strict=True):
        ((top, left),) = places_of(image, canvas)
        assert abs(2 * top + 40 - size[0]) <= 1
        assert abs(2 * left + 60 - size[1]) <= 1
        assert (canvas == WHITE).all(0).sum() == size[0] * size[1] - 40 * 60


def test_padding_at_a_random_place(images, seeded):
    made = Pad(ratio="1:3", place="random")(images, generator=seeded(1, 2))
    rows = [places_of(image, canvas)[0][0] for image, canvas in zip(images, made, strict=True)]
    assert rows[0] != rows[1]


@pytest.mark.parametrize(
    ("strength", "ratio", "size"),
    [(1, "1:1", (40, 40)), (1, "4:5", (40, 32)), (1, "16:9", (34, 60)), (1, "3:2", (40, 60)), (0.5, "3:8", (40, 30))],
)
def test_aspect_crops_are_the_largest_parts(strength, ratio, size, images, seeded):
    for place in ("centre", "random"):
        made = AspectCrop(strength, ratio=ratio, place=place)(images, generator=seeded(1, 2))
        assert made.shape[-2:] == size
        places = [places_of(part, image)[0] for part, image in zip(made, images, strict=True)]
        if place == "centre":
            assert abs(2 * places[0][0] + size[0] - 40) <= 1
            assert abs(2 * places[0][1] + size[1] - 60) <= 1
        elif size != (40, 60):
            assert places[0] != places[1]


def test_a_crop_may_stay_at_its_own_size(images, seeded):
    made = Crop(0.25, size="own")(images, generator=seeded(1, 2))
    assert made.shape[-2:] == (20, 30)
    places = [places_of(part, image) for part, image in zip(made, images, strict=True)]
    assert [len(found) for found in places] == [1, 1]
    assert places[0] != places[1]
    # The same draws choose the same part as with the image's size.
    whole = Crop(0.25)(images, generator=seeded(1, 2))
    torch.testing.assert_close(whole.mean((2, 3)), made.mean((2, 3)), atol=0.01, rtol=0)


def test_a_mirror_image_mirrored_is_the_image(images):
    assert torch.equal(Flip()(images)[..., 0], images[..., -1])
    assert torch.equal(Flip(axis="vertical")(images)[..., 0, :], images[..., -1, :])
    assert torch.equal(Flip().repeat(2)(images), images)


@pytest.mark.parametrize(("factor", "size"), [(0.25, (10, 15)), (0.2, (8, 12)), (2, (80, 120)), (0.01, (1, 1))])
def test_scaled_images_stay_at_their_new_size(factor, size, images):
    made = Scale(factor)(images)
    assert made.shape[-2:] == size
    torch.testing.assert_close(made.mean((2, 3)), images.mean((2, 3)), atol=0.02 if factor > 0.1 else 0.2, rtol=0)


@pytest.mark.parametrize(("tiles", "size"), [(2, (40, 124)), (3, (84, 124)), (4, (84, 124)), (6, (84, 188))])
def test_a_collage_holds_the_image_once_at_one_of_its_places(tiles, size, images, seeded):
    seen = set()
    for seed in range(12):
        made = Collage(tiles, gap=0.1)(images[:1], generator=seeded(seed))[0]
        assert made.shape[-2:] == size
        ((row, column),) = places_of(images[0], made)
        seen.add((row // 44, column // 64))
        assert (row % 44, column % 64) == (0, 0)
        assert (made[:, 40:44] == 1).all()
        assert (made[:, :, 60:64] == 1).all()
    columns = 2 if tiles < 5 else 3
    assert seen <= {divmod(tile, columns) for tile in range(tiles)}
    assert len(seen) > 1


def test_other_tiles_are_photographs_or_colours(images, seeded):
    photographs = Collage(4, gap=0)(images[:1], generator=seeded(3))[0]
    colours = Collage(4, gap=0, others="colours")(images[:1], generator=seeded(3))[0]
    tiles = [made.unfold(1, 40, 40).unfold(2, 60, 60).flatten(1, 2).transpose(0, 1) for made in (photographs, colours)]
    own = [torch.equal(tile, images[0]) for tile in tiles[0]]
    assert own == [torch.equal(tile, images[0]) for tile in tiles[1]]
    for kind, at_least, at_most in ((tiles[0], 0.01, 1), (tiles[1], 0, 1e-6)):
        spread = [float(tile.std((1, 2)).max()) for tile, mine in zip(kind, own, strict=True) if not mine]
        assert all(at_least <= deviation <= at_most for deviation in spread)
        others = [tile for tile, mine in zip(kind, own, strict=True) if not mine]
        assert not torch.equal(others[0], others[1])

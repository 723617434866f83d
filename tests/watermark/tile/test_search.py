import time
from io import BytesIO

import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from privgen.attacks.adaptive.averaging import mean_residual
from privgen.errors import UsageError
from privgen.io.images import from_pil, to_pil
from privgen.watermark.tile.embed import mark_image, tile_residual
from privgen.watermark.tile.pattern import PLACES, pattern_of
from privgen.watermark.tile.search import detect_tiles


PHOTOS = ("gcompris-monuments-operahouse", "skimage-astronaut")
SQUARES = [(x, y) for x in (0, 60, 120, 180, 240) for y in (0, 80, 160, 240)]
MIRROR, TURN = Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90


@pytest.fixture(scope="module", params=PHOTOS)
def marked(request, photo, alice):
    return to_pil(mark_image(photo(request.param), alice, levels=255).pixels)


def jpeg(image, quality):
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def crop(image, fraction):
    width, height = (round(side * fraction**0.5) for side in image.size)
    left, top = (image.width - width) // 3, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def bordered(image):
    canvas = Image.new("RGB", (image.width + 90, image.height + 60), "white")
    canvas.paste(image, (31, 17))
    return canvas


def scaled(image, across, down=None):
    size = round(image.width * across), round(image.height * (down or across))
    return image.resize(size, Image.Resampling.LANCZOS)


def turned(image, degrees):
    return image.rotate(degrees, Image.Resampling.BICUBIC)


# What is done to the marked image; and the pose that is to be found: tiles' size over before, degrees, mirrored.
MOVED = {
    "as it is": (lambda image: image, 1, 0, False),
    "JPEG 30": (lambda image: jpeg(image, 30), 1, 0, False),
    "half the size": (lambda image: scaled(image, 0.5), 0.5, 0, False),
    "larger": (lambda image: scaled(image, 1.7), 1.7, 0, False),
    "mirrored": (lambda image: image.transpose(MIRROR), 1, 0, True),
    "quarter turn": (lambda image: image.transpose(TURN), 1, 90, False),
    "mirrored quarter turn": (lambda image: image.transpose(MIRROR).transpose(TURN), 1, 90, True),
    "half kept": (lambda image: crop(image, 0.5), 1, 0, False),
    "a fifth kept, mirrored": (lambda image: crop(image, 0.2).transpose(MIRROR), 1, 0, True),
    "border": (bordered, 1, 0, False),
    "border, smaller, JPEG 70": (lambda image: jpeg(scaled(bordered(image), 0.7), 70), 0.7, 0, False),
    "turned": (lambda image: turned(image, 37), 1, 37, False),
    "mirrored, turned, smaller": (lambda image: scaled(turned(image.transpose(MIRROR), -12), 0.8), 0.8, -12, True),
    "turned, half kept": (lambda image: crop(turned(image, 100), 0.5), 1, 100, False),
}

# What else is done, and by how much more the width is stretched than the height.
STRETCHED = {
    "wider": (lambda image: scaled(image, 1.2, 1), 1.2),
    "half as high, mirrored": (lambda image: scaled(image, 1, 0.55).transpose(MIRROR), 1 / 0.55),
    "three quarters kept, narrower, JPEG 60": (lambda image: jpeg(scaled(crop(image, 0.75), 0.8, 1), 60), 0.8),
    "turned by a quarter, wider": (lambda image: scaled(image.transpose(TURN), 1.3, 1), 1.3),
}


@pytest.mark.parametrize("name", MOVED)
def test_the_mark_is_found_in_its_pose(marked, alice, name):
    change, scale, degrees, mirrored = MOVED[name]
    [[match]] = detect_tiles([from_pil(change(marked)).pixels], [alice])
    assert match.p_value < 1e-6
    assert match.matches >= 46
    assert match.pose.tile == pytest.approx(scale * min(marked.size) / 4, rel=0.01)
    assert match.pose.degrees == pytest.approx(degrees, abs=0.6)
    assert match.pose.mirrored is mirrored
    assert sum(logit > 0 for logit in match.logits.tolist()) == match.bits.count("1")


@pytest.mark.parametrize("name", STRETCHED)
def test_the_mark_is_found_at_another_aspect_ratio(marked, alice, name):
    change, stretch = STRETCHED[name]
    [[match]] = detect_tiles([from_pil(change(marked)).pixels], [alice])
    assert match.p_value < 1e-6
    assert match.matches >= 46
    assert match.pose.stretch == pytest.approx(stretch, rel=0.01)
    assert f"{match.pose.stretch:.2f} times as wide" in str(match.pose)


def test_shifts_tell_where_an_image_was_cut_out(photo, alice):
    pixels = mark_image(photo("skimage-astronaut"), alice).pixels
    # Tiles are 128 pixels large. The central pixel of an even number is the one behind the centre: pixels (200, 150)
    # and (239, 230) of the marked image.
    [[match], [other]] = detect_tiles([pixels[:, :300, :400], pixels[:, 60:400, 90:390].flip(2)], [alice])
    across, down = ((first - second) % 1 for first, second in zip(match.pose.shift, other.pose.shift, strict=True))
    assert (across, down) == pytest.approx(((200 - 239) / 128 % 1, (150 - 230) / 128 % 1), abs=0.01)


def test_images_have_different_places(photo, alice):
    shifts = set()
    for name in (*PHOTOS, "gcompris-fishes-fish3", "endlesssky-snow4"):
        pixels = mark_image(photo(name), alice).pixels
        [[match]] = detect_tiles([pixels], [alice], search=False)
        tile, (height, width) = match.pose.tile, pixels.shape[1:]
        centre = (width // 2 + 0.5) / tile, (height // 2 + 0.5) / tile
        place = [(shift - at) % 1 for shift, at in zip(match.pose.shift, centre, strict=True)]
        assert min(abs(place[0] - x) + abs(place[1] - y) for x, y in (*PLACES, (1, 1))) < 0.03
        shifts.add(tuple(round(value, 1) for value in place))
        assert mark_image(photo(name), alice).pixels.equal(pixels)
    assert len(shifts) > 1


def test_averaging_marked_images_does_not_remove_the_mark(photo, alice):
    images = [mark_image(photo("skimage-astronaut")[:, y : y + 240, x : x + 240], alice).pixels for x, y in SQUARES]
    mean = mean_residual(torch.stack(images))
    [[match], [forged]] = detect_tiles(
        [(images[0] - mean).clamp(0, 1), (photo("gcompris-monuments-operahouse")[:, :240, :240] + mean).clamp(0, 1)],
        [alice],
        search=False,
    )
    assert match.p_value < 1e-6
    assert match.z > forged.z


def test_many_keys_are_searched_for_at_once(marked, alice, key_of):
    others = [pattern_of(key_of(100 + number)) for number in range(35)]
    image = from_pil(crop(turned(marked, 30), 0.6)).pixels
    start = time.process_time()
    [matches] = detect_tiles([image], [*others, alice])
    assert time.process_time() - start < 20
    assert matches[-1].p_value < 1e-6
    assert matches[-1].matches >= 46
    assert min(match.p_value for match in matches[:-1]) > 1e-4


def test_marks_of_two_keys_coexist(photo, alice, bob):
    both = mark_image(mark_image(photo("skimage-astronaut"), alice, levels=255).pixels, bob, levels=255).pixels
    for pixels in (both, both[:, 60:400, 90:420]):
        [matches] = detect_tiles([pixels], [alice, bob])
        assert [match.key for match in matches] == ["alice", "bob"]
        assert max(match.p_value for match in matches) < 1e-12
        assert min(match.matches for match in matches) >= 46


def test_a_key_that_did_not_mark_is_not_found(photo, alice, key_of):
    pixels = mark_image(photo("gcompris-monuments-operahouse"), alice).pixels
    [matches] = detect_tiles([pixels], [pattern_of(key_of(9, "eve")), alice], search=False)
    assert matches[0].p_value > 1e-3
    assert matches[1].p_value < 1e-20


@pytest.mark.parametrize("n_bits", [8, 64])
def test_other_lengths_are_read(photo, key_of, n_bits):
    pattern = pattern_of(key_of(5), n_bits)
    [[match]] = detect_tiles([mark_image(photo("gcompris-monuments-operahouse"), pattern).pixels], [pattern])
    assert (match.matches, len(match.bits)) == (n_bits, n_bits)


def test_several_images_are_read_as_one_by_one(photo, alice, bob):
    images = [mark_image(photo(name), alice).pixels[:, 20:] for name in PHOTOS]
    together = detect_tiles(images, [alice, bob], search=False)
    for image, matches in zip(images, together, strict=True):
        [alone] = detect_tiles([image], [alice, bob], search=False)
        for one, other in zip(matches, alone, strict=True):
            assert (one.bits, one.pose) == (other.bits, other.pose)
            assert one.z == pytest.approx(other.z, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_images_are_read(photo, alice, dtype):
    pixels = mark_image(photo("gcompris-monuments-operahouse"), alice, levels=255).pixels
    [[match]] = detect_tiles([pixels.to(dtype)], [alice], search=False)
    assert match.p_value < 1e-20
    assert match.matches == 48


def test_large_images_are_read_from_a_small_copy(photo, alice):
    large = interpolate(photo("gcompris-monuments-operahouse")[None], scale_factor=9, mode="bilinear")
    start = time.perf_counter()
    pixels = mark_image(large[0], alice).pixels
    [[match]] = detect_tiles([pixels[:, 300:, 200:]], [alice])
    assert pixels.numel() > 3 * 6e6
    assert match.p_value < 1e-20
    assert time.perf_counter() - start < 60


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"patterns": []}, UsageError, "at least one key"),
        ({"fpr": 0.0}, UsageError, r"rate in \(0, 1\), got 0.0"),
        ({"fpr": 1.0}, UsageError, "got 1.0"),
        ({"images": [torch.rand(64, 64)]}, ValueError, "expected pixels of shape"),
        ({"images": [torch.zeros(3, 64, 64, dtype=torch.int64)]}, ValueError, "samples of type uint8 or uint16"),
    ],
)
def test_wrong_calls_are_refused(alice, options, error, message):
    with pytest.raises(error, match=message):
        detect_tiles(**({"images": [torch.rand(3, 64, 64)], "patterns": [alice]} | options))


def test_no_image_gives_no_match(alice):
    assert detect_tiles([], [alice]) == []


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 8, 8), (3, 3, 400), (3, 64, 64)])
def test_any_size_is_searched(alice, shape):
    pixels = torch.rand(shape, generator=torch.Generator().manual_seed(3))
    [[match]] = detect_tiles([pixels], [alice])
    assert match.p_value > 1e-3


@pytest.fixture
def default_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("default_float64")
def test_torchs_default_type_changes_nothing(photo, key_of):
    pattern = pattern_of(key_of(6))
    assert pattern.noise.dtype == torch.complex64
    pixels = photo("gcompris-monuments-operahouse")[:, :200].float()
    assert tile_residual(pixels.double(), pattern).dtype == torch.float32
    marked = mark_image(pixels, pattern).pixels
    assert marked.dtype == torch.float32
    stretched = interpolate(marked[None], size=(200, 240), mode="bilinear", antialias=True)[0]
    for image in (marked, marked[:, 30:, 20:], stretched):
        [[match]] = detect_tiles([image], [pattern])
        assert match.p_value < 1e-6
        assert match.logits.dtype == torch.float32


def test_every_tensor_is_made_on_a_named_device(photo, key_of):
    # Tensors that are made without naming a device would lie on "meta", and cannot be combined with those of an image.
    pixels = photo("gcompris-monuments-operahouse")[:, :200]
    with torch.device("meta"):
        pattern = pattern_of(key_of(7))
        marked = mark_image(pixels, pattern).pixels
        [[match]] = detect_tiles([marked[:, 30:, 20:]], [pattern])
        detect_tiles([pixels], [pattern])
    assert marked.device == pixels.device
    assert match.p_value < 1e-6

"""Attacks as callers use them: on images of any kind, which come back as they came in; and as values that travel."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from privgen.attacks import (
    JPEG,
    AveragingRemoval,
    Blur,
    Border,
    Crop,
    Examples,
    ExtractorForgery,
    Noise,
    RandomDistortion,
    Sequence,
    get_attack,
    list_attacks,
)


@pytest.fixture
def picture(pictures):
    """(3, 30, 44), multiples of 1/255."""
    return (pictures(1, 30, 44)[0] * 255).round() / 255


@pytest.fixture
def photo(picture):
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


CHEAP = [JPEG(50), Blur(5), Crop(0.75), get_attack("hue"), get_attack("median"), Sequence(Noise(), JPEG(30))]


@pytest.mark.parametrize("attack", CHEAP, ids=repr)
def test_a_pillow_image_comes_back_as_one(attack, photo, picture, seeded):
    attacked = attack(photo, generator=seeded(1))
    assert isinstance(attacked, Image.Image)
    assert (attacked.size, attacked.mode) == (photo.size, "RGB")
    expected = attack(picture[None], generator=seeded(1))[0]
    torch.testing.assert_close(as_tensor(attacked), expected, atol=0.51 / 255, rtol=0)


def test_paths_arrays_and_tensors(photo, picture, tmp_path, seeded):
    attack = Noise(0.1)
    expected = attack(picture[None], generator=seeded(1))[0]
    photo.save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        from_path = attack(path, generator=seeded(1))
        assert isinstance(from_path, Image.Image)
        torch.testing.assert_close(as_tensor(from_path), expected, atol=0.51 / 255, rtol=0)
    levels = attack(np.array(photo), generator=seeded(1))
    assert (levels.dtype, levels.shape) == (np.uint8, (30, 44, 3))
    torch.testing.assert_close(as_tensor(levels), expected, atol=0.51 / 255, rtol=0)
    floats = attack(np.array(photo, np.float32) / 255, generator=seeded(1))
    assert floats.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(floats).permute(2, 0, 1), expected, atol=1e-6, rtol=0)
    levels = attack((picture * 255).round().byte(), generator=seeded(1))
    assert levels.dtype == torch.uint8
    torch.testing.assert_close(levels / 255, expected, atol=0.51 / 255, rtol=0)


def test_one_tensor_is_a_batch_of_one_and_lets_gradients_through(picture, seeded):
    attack = Noise(0.1)
    x = picture.clone().requires_grad_()
    attacked = attack(x, generator=seeded(1))
    assert torch.equal(attacked.detach(), attack(picture[None], generator=seeded(1))[0])
    attacked.sum().backward()
    assert x.grad.abs().sum() > 0


def test_lists_of_different_images(photo, picture, tmp_path, seeded):
    """Each image draws from its own generator, and comes back as what it was."""
    photo.save(tmp_path / "a.png")
    given = [photo, tmp_path / "a.png", picture, np.array(photo)[:20]]
    attack = Crop(0.5)
    made = attack(given, generator=seeded(1, 2, 3, 4))
    assert [type(image) for image in made] == [Image.Image, Image.Image, torch.Tensor, np.ndarray]
    assert [made[0].size, made[1].size, made[2].shape, made[3].shape] == [
        *((44, 30), (44, 30), (3, 30, 44), (20, 44, 3))
    ]
    for image, alone, seed in zip(made, given, (1, 2, 3, 4), strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(attack(alone, generator=seeded(seed))))
    # From a single generator they draw in order.
    shared, again = seeded(5), seeded(5)
    for image, alone in zip(attack(given, generator=shared), given, strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(attack(alone, generator=again)))


def test_alpha_and_grey_stay(photo):
    transparent = photo.copy()
    transparent.putalpha(100)
    attacked = JPEG(20)(transparent)
    assert attacked.mode == "RGBA"
    assert set(np.asarray(attacked)[..., 3].flat) == {100}
    assert JPEG(20)(photo.convert("L")).mode == "L"
    assert JPEG(20)(torch.rand(2, 1, 9, 9)).shape == (2, 1, 9, 9)


def test_images_may_get_another_size(photo, picture, tmp_path):
    """All kinds of images do; a batch as well; and mode and type stay."""
    border = Border(0.1, colour="black")  # 3 pixels on each side
    photo.save(tmp_path / "a.png")
    made = border([photo, tmp_path / "a.png", np.array(photo), np.array(photo.convert("L")), picture])
    assert [made[0].size, made[1].size] == [(50, 36)] * 2
    assert [made[2].shape, made[3].shape, made[4].shape] == [(36, 50, 3), (36, 50), (3, 36, 50)]
    assert made[2].dtype == np.uint8
    assert np.array_equal(made[2][3:-3, 3:-3], np.array(photo))
    assert border(photo.convert("L")).mode == "L"
    assert border(np.stack([np.array(photo)[:, :, :1]] * 2)).shape == (2, 36, 50, 1)
    assert border(picture[None].expand(2, -1, -1, -1)).shape == (2, 3, 36, 50)


def test_transparency_goes_where_the_size_changes(photo, picture):
    transparent = photo.copy()
    transparent.putalpha(100)
    assert Border()(transparent).mode == "RGB"
    assert Border(0)(transparent).mode == "RGBA"
    assert Border(0.1)(torch.cat([picture, picture[:1]])).shape == (3, 36, 50)


def test_something_else_is_no_image():
    with pytest.raises(TypeError, match="expected a Pillow image, a path, an array or a tensor, got int"):
        JPEG(50)([1])


VALUES = [known() for known in list_attacks()] + [
    JPEG(30, mode="approximate"),
    get_attack("regeneration", prompt="a cat", model="some/model"),
    Blur(1, reference=None).repeat(3),
    Sequence(Crop(0.5, place="centre"), JPEG(70)),
    RandomDistortion(per_sample=True),
    ExtractorForgery(bits=(1, 0, 1)),
    AveragingRemoval(marked=Examples(torch.linspace(0, 1, 384).view(2, 3, 8, 8)), count=1),
]


@pytest.mark.parametrize("attack", VALUES, ids=repr)
def test_attacks_are_picklable_values(attack):
    loaded = pickle.loads(pickle.dumps(attack))
    assert loaded == attack
    assert (repr(loaded), loaded.label, hash(loaded)) == (repr(attack), attack.label, hash(attack))


def test_import_is_light(python):
    """The registry needs PyTorch, but neither Diffusers nor Transformers nor matplotlib."""
    heavy = "{'diffusers', 'transformers', 'accelerate', 'scipy', 'matplotlib'}"
    found = python("-c", f"import sys, privgen.attacks; print({heavy} & {{*sys.modules}})")
    assert found.stdout == "set()\n", found.stderr

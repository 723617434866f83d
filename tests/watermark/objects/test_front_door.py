"""`Watermark.embed(objects=, masks=)` and `detect(locate=True)`: images and masks of any kind."""

import numpy as np
import pytest
import torch
from PIL import Image

from privgen import Watermark
from privgen.errors import UsageError
from privgen.watermark.objects.masks import open_mask


@pytest.fixture(scope="module")
def mark():
    return Watermark.from_pretrained("mini")


@pytest.fixture(scope="module")
def picture(scene):
    return Image.fromarray((scene[0].permute(1, 2, 0) * 255).round().byte().numpy())


def test_two_owners_with_masks_of_two_kinds(mark, picture, scene, owners, key_of):
    alice, bob = owners
    masks = {"cat": scene[1][0].numpy(), "dog": Image.fromarray((scene[1][1] * 255).byte().numpy())}
    marked = mark.embed(picture, objects={"cat": alice, "dog": bob}, masks=masks)
    assert isinstance(marked, Image.Image)
    found = mark.detect(marked, [alice, bob, key_of(9)], locate=True, carrier="tile")
    assert {region.key for region in found.regions} == {"alice", "bob"}
    assert all(region.mask is not None and region.p_value < 1e-6 and not region.is_whole for region in found.regions)
    assert str(found).count(" owns ") == 2
    assert not mark.detect(marked, [alice, bob], carrier="tile").detected


def test_a_key_for_the_rest_owns_the_whole_image(mark, picture, scene, owners):
    alice, bob = owners
    marked = mark.embed(picture, bob, objects={"cat": alice}, masks={"cat": scene[1][0]})
    found = mark.detect(marked, owners, locate=True, carrier="tile")
    assert {region.key: region.is_whole for region in found.regions} == {"alice": False, "bob": True}


def test_objects_carry_a_payload(mark, picture, scene, owners):
    masks = {"cat": scene[1][0], "dog": scene[1][1]}
    objects = dict(zip(masks, owners, strict=True))
    marked = mark.embed(picture, objects=objects, masks=masks, psnr=27, payload=99)
    found = mark.detect(marked, owners, locate=True, carrier="tile")
    assert [region.payload for region in found.regions] == [99, 99]
    assert str(found).count(", payload 99)") == 2


def test_kinds_of_masks(tmp_path, scene):
    expected = (scene[1][0] > 0.5).float()
    array = expected.numpy()
    path = tmp_path / "mask.png"
    Image.fromarray((array * 255).astype(np.uint8)).save(path)
    kinds = [array > 0.5, array.astype(np.uint8), (array * 255).astype(np.uint8), expected, expected.bool(), path]
    for kind in (*kinds, Image.open(path)):
        torch.testing.assert_close(open_mask(kind), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="shape"):
        open_mask(scene[0])


def test_bad_calls(mark, picture, scene, owners):
    objects, masks = {"cat": owners[0]}, {"cat": scene[1][0]}
    with pytest.raises(UsageError, match="no mask for cat"):
        mark.embed(picture, objects=objects)
    with pytest.raises(UsageError, match='mask for "dog", but no key'):
        mark.embed(picture, objects=objects, masks={**masks, "dog": scene[1][1]})
    with pytest.raises(UsageError, match="one image at a time"):
        mark.embed([picture, picture], objects=objects, masks=masks)
    with pytest.raises(UsageError, match="carriers tile, latent, token"):
        mark.embed(picture, objects=objects, masks=masks, carrier="tile+latent")
    with pytest.raises(UsageError, match="Masks are of objects"):
        mark.embed(picture, owners[0], masks=masks)
    with pytest.raises(UsageError, match="Say whose mark"):
        mark.embed(picture)


def test_an_object_that_is_too_small_is_warned_of(mark, picture, owners):
    mask = np.zeros((128, 128), np.float32)
    mask[:5, :5] = 1
    with pytest.warns(UserWarning, match="dot: .*hardly be read"):
        mark.embed(picture, objects={"dot": owners[0]}, masks={"dot": mask})

"""Pillow images that go in and come back: what their metadata says is still true."""

import pytest
import torch
from PIL import Image

from privgen.io.image_like import open_images


@pytest.mark.parametrize("tags", [{0x0112: 6}, {0x0112: 6, 0x010F: "Maker"}])
def test_pixels_that_were_turned_upright_are_not_turned_again(tmp_path, tags):
    exif = Image.Exif()
    for tag, value in tags.items():
        exif[tag] = value
    Image.new("RGB", (64, 48), "red").save(tmp_path / "turned.png", exif=exif)
    given = open_images(Image.open(tmp_path / "turned.png"))
    back = given.restore([given.images[0].pixels])
    assert back.size == (48, 64)
    back.save(tmp_path / "back.png", exif=back.info.get("exif", b""))
    found = Image.open(tmp_path / "back.png").getexif()
    assert found.get(0x0112, 1) == 1
    assert found.get(0x010F) == tags.get(0x010F)
    assert torch.equal(open_images(back).images[0].pixels, given.images[0].pixels)

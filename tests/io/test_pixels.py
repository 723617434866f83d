import numpy as np
import torch
from PIL import Image

from privgen.io.pixels import luma, resize


def test_resize(generator):
    images = torch.rand(2, 3, 20, 30, generator=generator)
    assert resize(images, (20, 30)) is images
    flat = resize(torch.full((1, 3, 20, 30), 0.25), (7, 50))
    torch.testing.assert_close(flat, torch.full((1, 3, 7, 50), 0.25))
    torch.testing.assert_close(resize(images[1:], torch.Size((40, 45))), resize(images, (40, 45))[1:])


def test_resize_is_that_of_pillow(generator):
    plane = torch.rand(1, 1, 40, 60, generator=generator)
    for height, width in ((15, 20), (70, 90)):
        expected = Image.fromarray(plane[0, 0].numpy()).resize((width, height), Image.Resampling.BICUBIC)
        torch.testing.assert_close(resize(plane, (height, width))[0, 0], torch.from_numpy(np.array(expected)))


def test_resize_does_not_clip(generator):
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    edge.requires_grad_()
    large = resize(edge, (32, 32))
    assert large.min() < 0
    assert large.max() > 1
    large.sum().backward()
    assert edge.grad.min() > 0


def test_luma():
    colours = torch.eye(3)[:, :, None, None]
    assert luma(colours).shape == (3, 1, 1, 1)
    torch.testing.assert_close(luma(colours).flatten(), torch.tensor([0.299, 0.587, 0.114]))
    pixels = torch.rand(2, 5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert luma(pixels).shape == (2, 5, 1, 4, 4)
    grey = pixels[..., :1, :, :].expand_as(pixels)
    torch.testing.assert_close(luma(grey), grey[..., :1, :, :])

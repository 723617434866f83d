import math

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d

from privgen.metrics import quality
from privgen.metrics.quality import psnr, ssim


def pair(generator, scale=0.1, shape=(3, 3, 40, 56)):
    images = torch.rand(shape, generator=generator)
    noise = torch.randn(shape, generator=generator) * scale
    return images, (images + noise).clamp(0, 1)


def reference_ssim(a, b):
    """Equation 13 of Wang et al. (2004) with their 11 x 11 Gaussian window, over the pixels it fits into."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    mean = lambda x: correlate1d(correlate1d(x, window, axis=0), window, axis=1)[5:-5, 5:-5]  # noqa: E731
    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mu_a**2, mean(b * b) - mu_b**2, mean(a * b) - mu_a * mu_b
    c1, c2 = 0.01**2, 0.03**2
    values = (2 * mu_a * mu_b + c1) * (2 * cov + c2) / ((mu_a**2 + mu_b**2 + c1) * (var_a + var_b + c2))
    return values.mean()


def test_psnr_closed_form():
    images = torch.full((3, 3, 8, 8), 0.5)
    changed = images + torch.tensor([0.1, 0.01, 1 / 255])[:, None, None, None]
    expected = [20.0, 40.0, 20 * math.log10(255)]
    torch.testing.assert_close(psnr(images, changed), torch.tensor(expected), rtol=1e-4, atol=0)


def test_equal_images(generator):
    images, _ = pair(generator)
    assert psnr(images, images).tolist() == [math.inf] * 3
    torch.testing.assert_close(ssim(images, images), torch.ones(3))


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.4])
def test_ssim_is_the_formula(generator, scale):
    images, changed = pair(generator, scale)
    rows = zip(images.double().numpy(), changed.double().numpy(), strict=True)
    expected = [np.mean([reference_ssim(*planes) for planes in zip(*row, strict=True)]) for row in rows]
    np.testing.assert_allclose(ssim(images, changed).numpy(), expected, atol=2e-6)


def test_ssim_is_that_of_scikit_image():
    """Values of scikit-image 0.26 for the same arrays: structural_similarity(a, b, channel_axis=0, data_range=1.0,
    gaussian_weights=True, sigma=1.5, use_sample_covariance=False) in double precision."""
    y, x = np.mgrid[0:40, 0:56]
    image = np.stack([np.sin(x / 3) * np.cos(y / 5), np.sin(x * y / 90), np.cos(x / 7 + y / 2)]) / 2 + 0.5
    checks = ((x // 2 + y // 2) % 2 - 0.5) * np.array([0.02, 0.1, 0.4])[:, None, None]
    changed = np.stack([np.clip(image + check, 0, 1) for check in checks])
    expected = [0.99739636, 0.94535347, 0.59438082]
    found = ssim(torch.tensor(np.stack([image] * 3)), torch.tensor(changed))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_ssim_in_strips_is_that_of_the_whole(generator, monkeypatch):
    a = torch.rand(2, 3, 40, 31, generator=generator)
    b = (a + 0.1 * torch.randn(a.shape, generator=generator)).clamp(0, 1)
    whole = ssim(a, b)
    monkeypatch.setattr(quality, "_SSIM_STRIP", 31 * 7)  # 30 rows of windows, seven at a time
    torch.testing.assert_close(ssim(a, b), whole, rtol=1e-5, atol=0)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_batch_equals_one_by_one_and_is_symmetric(generator, metric):
    images, changed = pair(generator)
    together = metric(images, changed)
    assert together.shape == (3,)
    one_by_one = torch.cat([metric(a[None], b[None]) for a, b in zip(images, changed, strict=True)])
    torch.testing.assert_close(together, one_by_one)
    torch.testing.assert_close(together, metric(changed, images))


def test_more_noise_is_worse(generator):
    images, _ = pair(generator)
    noise = torch.randn(images.shape, generator=generator)
    for metric in (psnr, ssim):
        values = [metric(images, (images + noise * scale).clamp(0, 1)).mean() for scale in (0.01, 0.05, 0.2)]
        assert values == sorted(values, reverse=True)


def test_half_precision_is_widened(generator):
    images, changed = (image.half() for image in pair(generator))
    for metric in (psnr, ssim):
        assert metric(images, changed).dtype == torch.float32
        torch.testing.assert_close(metric(images, changed), metric(images.float(), changed.float()))


def test_gradients(generator):
    images, changed = pair(generator)
    changed.requires_grad_()
    (psnr(images, changed).sum() + ssim(images, changed).sum()).backward()
    assert changed.grad.isfinite().all()
    assert changed.grad.abs().max() > 0


@pytest.mark.parametrize("metric", [psnr, ssim])
@pytest.mark.parametrize(
    ("images", "references", "match"),
    [
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17), "expected two batches of one shape"),
        (torch.zeros(3, 16, 16), torch.zeros(3, 16, 16), "expected two batches of one shape"),
        (torch.zeros(0, 3, 16, 16), torch.zeros(0, 3, 16, 16), "expected two batches of one shape"),
        (torch.full((1, 3, 16, 16), -1.0), torch.zeros(1, 3, 16, 16), r"expected pixels in \[0, 1\], got -1\.\.-1"),
        (torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), 255.0), r"expected pixels in \[0, 1\], got 255"),
        (torch.zeros(1, 3, 16, 16), torch.full((1, 3, 16, 16), math.nan), r"expected pixels in \[0, 1\], got nan"),
    ],
)
def test_bad_input(metric, images, references, match):
    with pytest.raises(ValueError, match=match):
        metric(images, references)


def test_ssim_needs_room_for_its_window():
    with pytest.raises(ValueError, match="expected sides of at least 11 pixels, got"):
        ssim(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))

"""Attacks against other implementations, and against what theory says."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance, ImageFilter
from scipy import ndimage

from privgen.attacks import approximate_jpeg, get_attack
from privgen.attacks.distortions.geometric import resized_crop
from privgen.attacks.distortions.jpeg import LUMA_TABLE, quantisation_table
from privgen.attacks.distortions.photometric import hue_matrix
from privgen.attacks.purification.classical import box_mean, non_local_means, total_variation
from privgen.attacks.purification.edge_preserving import bilateral_filter, guided_filter
from privgen.io.pixels import luma


def with_pillow(images, function):
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    results = [np.asarray(function(Image.fromarray(image))) for image in pixels]
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2) / 255


ENHANCERS = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}


@pytest.mark.parametrize("factor", [0.5, 1.5, 2])
@pytest.mark.parametrize("name", ENHANCERS)
def test_photometric_as_pillow(name, factor, realistic):
    images = (realistic * 255).round() / 255
    expected = with_pillow(images, lambda image: ENHANCERS[name](image).enhance(factor))
    # Pillow rounds down, and rounds what it blends with.
    assert (get_attack(name, strength=factor)(images) - expected).abs().max() * 255 < 2.1


@pytest.mark.parametrize("degrees", [10, -30, 45, 90])
def test_rotation_as_pillow(degrees, realistic, psnr):
    expected = with_pillow(realistic, lambda image: image.rotate(degrees, Image.Resampling.BILINEAR))
    out = get_attack("rotation", strength=degrees)(realistic)
    # Without the outermost pixels and the edges of the corners, where Pillow does not blend with black.
    inside = get_attack("rotation", strength=degrees)(torch.ones_like(realistic)) > 0.999
    assert psnr(out[inside], expected[inside]) > 45


def test_rotation_by_quarters_is_exact_on_squares_and_keeps_the_canvas(pictures):
    images = pictures(2, 24, 24)
    torch.testing.assert_close(get_attack("rotation", strength=90)(images), images.rot90(1, (2, 3)), atol=1e-5, rtol=0)
    wide = get_attack("rotation", strength=90)(pictures(1, 20, 40))
    assert wide.shape[-2:] == (20, 40)
    assert wide[..., :9].max() == 0


def test_crop_is_a_slice_resized(pictures):
    images = pictures(3, 40, 60)
    corners = torch.tensor([[0, 0], [5, 13], [10, 20]])
    out = resized_crop(images, (30, 40), corners)
    for image, result, (top, left) in zip(images, out, corners, strict=True):
        part = image[None, :, top : top + 30, left : left + 40]
        expected = F.interpolate(part, (40, 60), mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("area", [0.5, 0.9])
def test_crops_lie_everywhere_equally(area):
    """The picture is its own coordinates, so the crop's corner tells where it lay."""
    ramp = torch.linspace(0, 1, 64).expand(1, 64, 64)
    images = torch.stack([torch.cat([ramp, ramp.mT, ramp])] * 500)
    out = get_attack("crop", strength=area)(images, generator=torch.Generator().manual_seed(0))
    kept = round(64 * math.sqrt(area))
    corners = (out[:, :2, 0, 0] * 63).round()
    assert corners.min() == 0
    assert corners.max() == 64 - kept
    assert corners.mean().item() == pytest.approx((64 - kept) / 2, rel=0.07)
    assert torch.corrcoef(corners.T)[0, 1].abs() < 0.15


@pytest.mark.parametrize("area", [0.05, 0.25, 1])
def test_erase_paints_that_fraction(area):
    out = get_attack("erase", strength=area, value=0.25)(torch.ones(20, 3, 80, 120))
    assert set(out.unique().tolist()) <= {0.25, 1}
    assert (out == 0.25).float().mean().item() == pytest.approx(area, rel=0.03)


@pytest.mark.parametrize("radius", [0.7, 2, 5])
def test_blur_as_scipy_and_pillow(radius, realistic, psnr):
    out = get_attack("blur", strength=radius, reference=None)(realistic)
    expected = ndimage.gaussian_filter(realistic.double().numpy(), (0, 0, radius, radius), mode="nearest", truncate=6)
    torch.testing.assert_close(out.double(), torch.from_numpy(expected), atol=2e-4, rtol=0)
    # Pillow's is three box filters.
    assert psnr(out, with_pillow(realistic, lambda image: image.filter(ImageFilter.GaussianBlur(radius)))) > 38


def test_blur_is_measured_at_512_on_the_shorter_side(pictures):
    images = pictures(1, 128, 200)
    own = get_attack("blur", strength=2, reference=None)(images)
    assert torch.equal(get_attack("blur", strength=8)(images), own)


def test_noise_has_its_standard_deviation(seeded):
    grey_field = torch.full((4, 3, 64, 64), 0.5)
    residual = get_attack("noise", strength=0.08)(grey_field, generator=seeded(0)) - 0.5
    assert residual.std().item() == pytest.approx(0.08, rel=0.02)
    assert abs(residual.mean().item()) < 0.002
    assert torch.corrcoef(residual.flatten(2).transpose(0, 1).flatten(1))[0, 1].abs() < 0.03


def test_hue_keeps_luma_and_grey_and_turns_red_to_green():
    colours = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    turned = torch.einsum("ij,bjhw->bihw", hue_matrix(70), colours)
    torch.testing.assert_close(luma(turned), luma(colours))
    torch.testing.assert_close(hue_matrix(70) @ torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(hue_matrix(50) @ hue_matrix(20), hue_matrix(70))
    torch.testing.assert_close(hue_matrix(360), torch.eye(3, dtype=torch.float64))
    assert (hue_matrix(120) @ torch.tensor([1.0, 0, 0], dtype=torch.float64)).argmax() == 1


def test_gamma_is_a_power(realistic):
    torch.testing.assert_close(get_attack("gamma", strength=2)(realistic), realistic**2)


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("quality", [10, 30, 50, 75, 90, 95])
def test_approximate_jpeg_is_close_to_the_codec(quality, subsampling, realistic, pictures, psnr):
    for images in (realistic, pictures(2, 101, 77)):
        codec = get_attack("jpeg", strength=quality, subsampling=subsampling)(images)
        approximate = get_attack("jpeg", strength=quality, subsampling=subsampling, mode="approximate")(images)
        assert psnr(approximate, codec) > 39
        # Where the codec changes next to nothing, rounding to 8 bits is what is left to differ in.
        assert psnr(approximate, codec) > min(psnr(images, codec) + 6, 52)
        tolerance = 0.3 if psnr(codec, images) < 48 else 0.6
        assert psnr(approximate, images) == pytest.approx(psnr(codec, images), abs=tolerance)


def test_quantisation_tables_are_those_of_libjpeg(tmp_path):
    for quality in (1, 10, 33, 50, 75, 99, 100):
        Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg", quality=quality)
        with Image.open(tmp_path / "a.jpg") as image:
            written = torch.tensor(image.quantization[0]).reshape(8, 8)
        assert torch.equal(quantisation_table(LUMA_TABLE, quality).long(), written)


@pytest.mark.parametrize("quality", [0, 101])
def test_jpeg_quality_out_of_range(quality, pictures):
    with pytest.raises(ValueError, match=r"expected a JPEG quality in \[1, 100\]"):
        approximate_jpeg(pictures(1, 8, 8), quality)


def test_cubic_jpeg_has_the_gradient_of_its_values():
    images = 0.2 + 0.6 * torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images.requires_grad_()
    run = lambda x: approximate_jpeg(x, 80, subsampling="4:4:4", rounding="cubic")  # noqa: E731
    assert torch.autograd.gradcheck(run, images, eps=1e-8, atol=1e-3, fast_mode=True)


def test_cubic_jpeg_is_near_the_codec(realistic, psnr):
    codec = get_attack("jpeg", strength=50)(realistic)
    assert psnr(approximate_jpeg(realistic, 50, rounding="cubic"), codec) > 28


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_codecs_are_straight_through(name, pictures):
    images = pictures(2, 24, 40).requires_grad_()
    weights = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    out = get_attack(name, strength=20)(images)
    assert torch.equal(out.detach(), get_attack(name, strength=20)(images.detach()))
    assert ((out.detach() * 255).round() / 255 - out.detach()).abs().max() < 1e-6
    (out * weights).sum().backward()
    assert torch.equal(images.grad, weights)


def test_codec_result_is_the_file_that_pillow_writes(tmp_path, pictures):
    images = pictures(1, 32, 48)
    pixels = (images[0] * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=40)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    assert torch.equal(get_attack("jpeg", strength=40)(images)[0], expected)


# The last one is larger than what is held at once, so it is filtered in two strips of rows.
@pytest.mark.parametrize(("reach", "height", "width"), [(1, 33, 21), (3, 33, 21), (3, 260, 250)])
def test_median_as_scipy(reach, height, width, pictures):
    images = pictures(2, height, width)
    size = 2 * reach + 1
    expected = torch.from_numpy(ndimage.median_filter(images.numpy(), (1, 1, size, size), mode="nearest"))
    assert torch.equal(get_attack("median", strength=reach)(images), expected)


def test_box_mean_is_cut_at_the_edges(pictures):
    images = pictures(1, 9, 12)
    assert box_mean(images, 2)[0, 1, 0, 0].item() == pytest.approx(images[0, 1, :3, :3].mean().item(), abs=1e-6)
    assert box_mean(images, 2)[0, 1, 4, 5].item() == pytest.approx(images[0, 1, 2:7, 3:8].mean().item(), abs=1e-6)


def test_total_variation_of_a_step_is_known():
    """Two plateaus: each moves towards the other by weight * sqrt(3 colours) / width / sqrt(3 colours)."""
    images = torch.full((1, 3, 6, 30), 0.2, dtype=torch.float64)
    images[..., 10:] = 0.8
    out = total_variation(images, 0.3, steps=3000)
    move = 0.3 / math.sqrt(3)
    expected = images.clone()
    expected[..., :10] += move / 10
    expected[..., 10:] -= move / 20
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


def test_total_variation_lowers_its_energy(realistic):
    def energy(images, original, weight):
        slopes = F.pad(images.diff(dim=2), (0, 0, 0, 1)).square() + F.pad(images.diff(dim=3), (0, 1)).square()
        return 0.5 * (images - original).square().sum() + weight * slopes.sum(1).sqrt().sum()

    original = realistic[:1].double()
    energies = [energy(total_variation(original, 0.1, steps=n), original, 0.1) for n in (1, 20, 100, 400)]
    assert energies == sorted(energies, reverse=True)
    assert energies[2] - energies[3] < 0.01 * energies[3], "the default number of steps has not converged"


def naive_bilateral(image, reach, sigma_value, sigma_space):
    out = np.empty_like(image)
    _, height, width = image.shape
    for y, x in np.ndindex(height, width):
        total, weights = 0, 0
        for j, i in np.ndindex(2 * reach + 1, 2 * reach + 1):
            far = (j - reach) ** 2 + (i - reach) ** 2
            if far > reach**2:
                continue
            other = image[:, np.clip(y + j - reach, 0, height - 1), np.clip(x + i - reach, 0, width - 1)]
            difference = np.abs(other - image[:, y, x]).sum()
            weight = np.exp(-far / (2 * sigma_space**2) - difference**2 / (2 * sigma_value**2))
            total, weights = total + weight * other, weights + weight
        out[:, y, x] = total / weights
    return out


def test_bilateral_as_written_out(pictures):
    images = pictures(1, 12, 10).double()
    expected = naive_bilateral(images[0].numpy(), 2, 0.1, 3.0)
    torch.testing.assert_close(bilateral_filter(images, 2, 0.1, 3.0)[0], torch.from_numpy(expected))


def test_guided_filter_with_itself(realistic, psnr):
    """Without a ridge an image is a linear function of itself; with a large one the window means are left."""
    images = realistic[:1].double()
    assert psnr(guided_filter(images, images, 4, 1e-9), images) > 80
    twice = box_mean(box_mean(images, 4), 4)
    torch.testing.assert_close(guided_filter(images, images, 4, 1e9), twice, atol=1e-6, rtol=0)


def test_guided_filter_recovers_what_is_linear_in_the_guide(realistic):
    guide = realistic[:1].double()
    matrix = torch.tensor([[0.2, 0.5, 0.1], [0.3, 0, 0.3], [0, 0, 1]], dtype=torch.float64)
    images = torch.einsum("ij,bjhw->bihw", matrix, guide) + 0.05
    torch.testing.assert_close(guided_filter(images, guide, 4, 1e-10), images, atol=1e-4, rtol=0)


def test_non_local_means_with_wide_decay_is_a_mean(pictures):
    images = pictures(1, 20, 20)
    expected = F.avg_pool2d(F.pad(images, (2, 2, 2, 2), mode="replicate"), 5, 1)
    torch.testing.assert_close(non_local_means(images, 1e4, search=2), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "strength"), [("non_local_means", 0.08), ("total_variation", 0.08), ("median", 1)])
def test_denoisers_denoise(name, strength, pictures, psnr, seeded):
    clean = get_attack("blur", strength=2, reference=None)(pictures(1, 96, 96))
    noisy = get_attack("noise", strength=0.06)(clean, generator=seeded(0))
    assert psnr(get_attack(name, strength=strength)(noisy), clean) > psnr(noisy, clean) + 3


def test_bilateral_guided_removes_weak_patterns_and_keeps_edges():
    step = torch.zeros(1, 3, 64, 64)
    step[..., 32:] = 0.9
    weave = 0.02 * (torch.arange(64) % 2)[None, :].expand(64, 64)
    out = get_attack("bilateral_guided")(step + weave)
    assert (out[..., 8:56, 4:24].std(dim=-1) < 0.3 * weave.std()).all()
    assert (out[..., 33:40].mean() - out[..., 24:31].mean()) > 0.88

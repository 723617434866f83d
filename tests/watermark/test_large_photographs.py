"""Large photographs: samples instead of floats, strip by strip, with the same results."""

import json
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from privgen.io.images import load_image
from privgen.io.pixels import floats, levels_of, luma, resize, resize_image
from privgen.io.residual import Layers, add_residual, rms_on
from privgen.metrics.quality import ssim
from privgen.metrics.visible_difference import visible_difference
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.tile.pattern import pattern_of
from privgen.watermark.tile.search import detect_tiles
from privgen.watermark.write.mark_image import already_marked_note, unreadable_note
from privgen.watermark.write.marker import Marker


class LargestTensor(TorchDispatchMode):
    """Notes the bytes of the largest tensor that PyTorch makes."""

    nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        stored = [leaf.untyped_storage().nbytes() for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        self.nbytes = max([self.nbytes, *stored])
        return made


@pytest.fixture(scope="module")
def photograph(photo_files):
    """Samples (3, 1200, 1800) of a photograph, as of an interleaved file."""
    small = load_image(photo_files[0]).pixels
    noise = 0.02 * torch.randn(1200, 1800, generator=torch.Generator().manual_seed(0))
    pixels = (resize(small[None], (1200, 1800))[0] + noise).clamp(0, 1)
    return (pixels * 255).round().byte().permute(1, 2, 0).contiguous().permute(2, 0, 1)


def test_a_mark_needs_no_copy_of_the_photograph_as_floats(photograph):
    marker, key = Marker(Networks()), Key.new("alice")
    assert marker.carrier == "tile+latent"
    with LargestTensor() as largest:
        assert already_marked_note(photograph, [key], marker.networks) == ()
        [change] = marker.changes([photograph], [key])
        marked = add_residual(photograph, change, psnr=42)
        assert unreadable_note(marked.pixels, key, marker) == (48, ())
    assert marked.psnr == pytest.approx(42, abs=0.01)
    assert 4 * photograph[0].numel() <= largest.nbytes < 4 * photograph.numel()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_samples_and_floats_are_marked_alike(photograph, dtype):
    levels = {torch.uint8: 255, torch.uint16: 65535}[dtype]
    samples = (photograph[:, :300, :401].int() * (levels // 255)).to(dtype)
    assert levels_of(samples) == levels
    pattern, rough = torch.randn(2, 1, 300, 401), torch.randn(3, 20, 20)
    layers = Layers((rough, pattern[0]), (0.4, 0.3))
    summed = 0.4 * resize(rough[None], (300, 401))[0] + 0.3 * pattern[0]
    for grey in (False, True):
        one = add_residual(samples, layers, psnr=40, grey=grey)
        change = luma(summed).expand(3, -1, -1) if grey else summed
        other = add_residual(floats(samples), change, psnr=40, levels=levels)
        assert one.pixels.dtype == dtype
        assert one.psnr == pytest.approx(40, abs=0.01)
        assert one.gain == pytest.approx(other.gain, rel=1e-3)
        difference = floats(one.pixels) - other.pixels
        assert difference.abs().max() < 1.01 / min(levels, 1000)
        assert float((difference.abs() > 0.5 / 255).float().mean()) < 1e-3
    assert rms_on(samples, rough) == pytest.approx(float(resize(rough[None], (300, 401)).square().mean().sqrt()), 1e-5)


def test_samples_and_floats_are_measured_alike(photograph):
    other = (photograph.int() + torch.randint(-9, 9, photograph.shape)).clamp(0, 255).byte()
    part = (slice(None), slice(100), slice(130))
    for measure in (visible_difference, lambda a, b: ssim(a[None], b[None])):
        expected = measure(floats(photograph[part]), floats(other[part]))
        torch.testing.assert_close(measure(photograph[part], other[part]), expected)
    for size in ((128, 128), (1000, 1900), (1200, 1800)):
        torch.testing.assert_close(resize_image(photograph, size), resize_image(floats(photograph), size))
    key = Key.new("bob")
    [[one]], [[two]] = (detect_tiles([x], [pattern_of(key)], search=False) for x in (photograph, floats(photograph)))
    assert one.z == pytest.approx(two.z, rel=1e-4)


@pytest.mark.slow
def test_24_megapixels_are_marked_in_less_than_a_gigabyte(root):
    call = [sys.executable, "benchmarks/memory.py", "--threads", "2", "--job", "embed", "--json"]
    made = json.loads(subprocess.run(call, cwd=root, check=True, capture_output=True).stdout)
    assert made["peak_mb"] < 1000

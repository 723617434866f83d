import importlib.util
import multiprocessing
import sys

import numpy as np
import pytest
import torch

from privgen.errors import UsageError
from privgen.evaluation.robustness.baselines import (
    BASELINES,
    BlindWatermark,
    DwtDct,
    RivaGan,
    from_bgr,
    load_baselines,
    to_bgr,
)
from privgen.evaluation.watermark.generation import as_saved
from privgen.io.images import load_image
from privgen.io.pixels import resize
from privgen.metrics.quality import psnr


def needs(*modules):
    """Skips a test where the extra is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    reason = f"needs {', '.join(missing)}: pip install 'privgen[baselines]'"
    return pytest.mark.skipif(bool(missing), reason=reason)


MODULES = dict.fromkeys(("dwtDct", "dwtDctSvd"), ("imwatermark",))
MODULES |= {"rivaGan": ("imwatermark", "onnxruntime"), "blind_watermark": ("blind_watermark",)}
METHODS = [pytest.param(BASELINES[name](), marks=needs(*MODULES[name]), id=name) for name in BASELINES]


@pytest.fixture(scope="module")
def photos(photo_files):
    return as_saved(torch.cat([resize(load_image(path).pixels[None], (128, 128)) for path in photo_files[:2]]))


def messages(method, count=2):
    return torch.randint(2, (count, method.n_bits), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("method", METHODS)
def test_marks_are_read_again(method, photos):
    bits = messages(method)
    marked = method.embed(photos, bits)
    assert marked.shape == photos.shape
    assert marked.dtype == photos.dtype
    assert 30 < float(psnr(marked, photos).min()) < 45
    read = method.read(as_saved(marked))
    assert read.shape == bits.shape
    # dwtDct is the one that its own authors call weak on small images.
    assert ((read > 0) == bits.bool()).float().mean() > (0.6 if method.name == "dwtDct" else 0.97)
    # Packages take one image at a time, so a batch is the same work.
    assert torch.equal(method.embed(photos[1:], bits[1:]), marked[1:])
    assert torch.equal(method.read(as_saved(marked[1:])), read[1:])


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_read_from_unmarked_images(method, photos):
    agreement = ((method.read(photos) > 0) == messages(method).bool()).float().mean()
    assert 0.2 < agreement < 0.8


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs(*MODULES[name])) for name in ("dwtDct", "dwtDctSvd", "rivaGan")]
)
def test_as_the_package_itself_does(name, photo_files):
    from imwatermark import WatermarkDecoder, WatermarkEncoder

    # Its outer classes refuse smaller images.
    large = as_saved(resize(load_image(photo_files[0]).pixels[None], (256, 256)))
    method = BASELINES[name]()
    bits = messages(method, 1)
    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", bits[0].tolist())
    if name == "rivaGan":
        WatermarkEncoder.loadModel()
    expected = encoder.encode(to_bgr(large)[0], name)
    marked = method.embed(large, bits)
    assert np.array_equal(to_bgr(marked)[0], expected)
    decoded = WatermarkDecoder("bits", method.n_bits).decode(expected, name)
    assert (method.read(marked)[0] > 0).tolist() == np.asarray(decoded, bool).tolist()


def test_pixels_there_and_back():
    images = as_saved(torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0)))
    arrays = to_bgr(images)
    assert arrays[0].shape == (8, 6, 3)
    assert arrays[0][..., 0].tolist() == (images[0, 2] * 255).round().to(torch.uint8).tolist()
    torch.testing.assert_close(from_bgr(arrays), images, atol=1e-6, rtol=0)


@needs("blind_watermark")
def test_the_start_method_of_processes_is_kept():
    before = multiprocessing.get_start_method(allow_none=True)
    BlindWatermark().read(torch.full((1, 3, 128, 128), 0.5))
    assert multiprocessing.get_start_method(allow_none=True) == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: DwtDct(n_bits=0), "dwtDct: expected at least one bit, got 0"),
        (lambda: RivaGan(n_bits=48), "rivaGan: expected 32 bits, got 48"),
        (lambda: DwtDct().embed(torch.zeros(1, 3, 128, 128), torch.zeros(1, 32)), r"expected bits \(1, 48\), got"),
        (lambda: DwtDct().read(torch.zeros(1, 3, 32, 32)), "than the 48 bits, got 16 in an image of 32x32"),
        (lambda: load_baselines(["stegastamp"], (128, 128)), "No baseline is called 'stegastamp'; choose from dwtDct"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises((ValueError, UsageError), match=message):
        call()


def test_images_that_are_too_small_leave_a_baseline_out():
    found, left_out = load_baselines(["dwtDct", "blind_watermark"], (32, 32))
    assert found == []
    assert "got 16 in an image of 32x32" in left_out["blind_watermark"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "imwatermark.maxDct", None)
    with pytest.raises(UsageError, match=r"The baseline dwtDct needs .*; run `pip install 'privgen\[baselines\]'`"):
        load_baselines(["dwtDct"], (128, 128))

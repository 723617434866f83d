"""The front door: any kind of image in, the same kind out; pipelines are marked and left as they were."""

import pickle

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from privgen import Key, Watermark
from privgen.diffusion.latents import decode
from privgen.errors import UsageError
from privgen.hub import Placement
from privgen.metrics.quality import psnr
from privgen.watermark.key import Secret
from privgen.watermark.networks import Networks
from privgen.watermark.protocols import key_bits


ALICE, BOB = (Key(name, Secret(bytes([number]) * 32)) for number, name in enumerate(("alice", "bob")))
PSNR = 30.0  # at which the tiny extractor reads nearly everything


@pytest.fixture(scope="module")
def mark(marked_model):
    return Watermark(Networks(str(marked_model), Placement("cpu")))


@pytest.fixture(scope="module")
def photo(photo_files):
    with Image.open(photo_files[3]) as image:
        return image.convert("RGB").resize((120, 90), Image.Resampling.LANCZOS)


def pixels_of(image):
    """(3, H, W) in [0, 1] of any kind of image."""
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        planes = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(image)[..., :3]).astype(np.float64))
        planes = planes.permute(2, 0, 1)
        scale = 1 if np.issubdtype(image.dtype, np.floating) else np.iinfo(image.dtype).max
    else:
        planes, scale = image[:3].double(), 255 if image.dtype == torch.uint8 else 1
    return (planes / scale).expand(3, -1, -1).float()


def kinds(photo):
    array = np.asarray(photo)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    alpha = photo.copy()
    alpha.putalpha(Image.linear_gradient("L").resize(photo.size))
    return {
        "Pillow RGB": photo,
        "Pillow L": photo.convert("L"),
        "Pillow RGBA": alpha,
        "uint8 array": array,
        "uint16 array": array.astype(np.uint16) * 257,
        "float array": array / 255,
        "grey array": array[..., 1],
        "uint8 tensor": tensor,
        "float tensor": tensor / 255,
        "half tensor": (tensor / 255).half(),
        "RGBA tensor": torch.cat([tensor / 255, torch.rand(1, 90, 120, generator=torch.Generator().manual_seed(0))]),
    }


KINDS = [*kinds(Image.new("RGB", (120, 90)))]


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_in_comes_back(mark, photo, kind):
    image = kinds(photo)[kind]
    marked = mark.embed(image, ALICE, psnr=PSNR)
    assert type(marked) is type(image)
    for attribute in ("size", "mode", "shape", "dtype", "device"):
        if not callable(getattr(image, attribute, None)):
            assert getattr(marked, attribute, None) == getattr(image, attribute, None)
    measured = float(psnr(pixels_of(marked)[None], pixels_of(image)[None]))
    assert measured == pytest.approx(PSNR, abs=0.15)
    found = mark.detect(marked, [BOB, ALICE])
    if "L" not in kind.split() and "grey" not in kind:  # the tiny model's mark is mostly colour
        assert (found.detected, found.key) == (True, "alice")
    assert not mark.detect(image, ALICE).detected
    if kind == "Pillow RGBA":
        assert np.array_equal(np.asarray(marked)[..., 3], np.asarray(image)[..., 3])
    if kind == "RGBA tensor":
        assert torch.equal(marked[3], image[3])


def test_a_path_gives_a_pillow_image(mark, photo, tmp_path):
    photo.save(tmp_path / "photo.png")
    marked = mark.embed(tmp_path / "photo.png", ALICE, psnr=PSNR)
    assert np.array_equal(np.asarray(marked), np.asarray(mark.embed(photo, ALICE, psnr=PSNR)))


def test_many_are_as_one(mark, photo):
    images = [photo, photo.rotate(90, expand=True)]
    keys = [ALICE, BOB]
    together = mark.embed(images, keys, psnr=PSNR)
    for image, key, marked in zip(images, keys, together, strict=True):
        alone = np.asarray(mark.embed(image, key, psnr=PSNR)).astype(int)
        assert (np.abs(np.asarray(marked).astype(int) - alone) > 0).mean() < 0.01
    found = mark.detect(together, keys)
    assert [image.key for image in found] == ["alice", "bob"]
    batch = np.stack([np.asarray(photo)] * 2)
    assert mark.embed(batch, ALICE, psnr=PSNR).shape == batch.shape
    assert mark.embed(torch.rand(2, 3, 40, 50), ALICE).shape == (2, 3, 40, 50)


def test_it_travels_to_other_processes(mark, photo):
    mark.detect(photo, ALICE)  # loads a network, which does not travel
    data = pickle.dumps(mark)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert copy.detect(mark.embed(photo, ALICE, psnr=PSNR), ALICE).detected


@pytest.mark.parametrize(
    ("image", "error", "match"),
    [
        (3, TypeError, "a path, an array or a tensor, got int"),
        (np.zeros((4, 5, 2)), ValueError, r"\(H, W, 4\), got shape \(4, 5, 2\)"),
        (np.full((20, 20, 3), 200.0), ValueError, r"floats in \[0, 1\], got 200 to 200; divide by 255"),
        (torch.full((3, 20, 20), -1.0), ValueError, r"got -1 to -1; divide by 255, or shift"),
        (torch.zeros(3, 20, 20, dtype=torch.int32), ValueError, "type uint8, uint16 or floats"),
        (torch.full((3, 20, 20), torch.nan), ValueError, "floats in"),
        ([], ValueError, "at least one image"),
    ],
)
def test_what_is_no_image(mark, image, error, match):
    with pytest.raises(error, match=match):
        mark.embed(image, ALICE)


def test_wrong_calls(mark, photo):
    with pytest.raises(UsageError, match="one for each of 2 images, got 3"):
        mark.embed([photo, photo], [ALICE, BOB, ALICE])
    with pytest.raises(UsageError, match="at least one key"):
        mark.detect(photo, [])
    with pytest.raises(UsageError, match="above 0 dB"):
        mark.embed(photo, ALICE, psnr=-3)
    with pytest.raises(UsageError, match="use them with the carrier latent"):
        mark.embed(photo, ALICE, carrier="token", robust_steps=3)


def run(pipe, prompts=("a cat", "a dog"), **options):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    call = {"num_inference_steps": 4, "output_type": "pt", "generator": generators, **options}
    return pipe(list(prompts), **call).images


@pytest.fixture
def pipe(marked_model):
    from privgen import load_pipeline

    loaded = load_pipeline(marked_model, device="cpu", dtype="float32")
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.mark.parametrize("options", [{}, {"carrier": "token", "tau": 401}, {"carrier": "latent", "tau": 401}])
def test_a_pipeline_marks_inside_the_block_only(mark, pipe, options):
    own, before = pipe.__class__, run(pipe)
    with mark.on(pipe, ALICE, **options):
        marked = run(pipe)
        assert isinstance(pipe, StableDiffusionPipeline)
    assert pipe.__class__ is own
    assert "decode" not in pipe.vae.__dict__
    assert torch.equal(run(pipe), before)
    assert not torch.equal(marked, before)


def test_each_image_gets_the_residual_of_its_key(mark, pipe):
    """R(m) is added to the latents before they are decoded: the definition, by hand."""
    mapper = mark.networks.mapper("latent")
    latents = run(pipe, output_type="latent")
    with torch.no_grad():
        residual = mapper(key_bits([ALICE, BOB], mapper), *latents.shape[-2:])
        expected = decode(pipe.vae, latents + residual).clamp(0, 1)
    with mark.on(pipe, [ALICE, BOB]):
        torch.testing.assert_close(run(pipe), expected, rtol=0, atol=1e-4)


def test_what_fails_leaves_the_pipeline_as_it_was(mark, pipe):
    own, before = pipe.__class__, run(pipe)
    with pytest.raises(UsageError, match="one for each of 2 images, got 3"), mark.on(pipe, [ALICE] * 3):
        run(pipe)
    with pytest.raises(UsageError, match="leave output_type"), mark.on(pipe, ALICE):
        run(pipe, output_type="latent")
    with pytest.raises(ZeroDivisionError), mark.on(pipe, ALICE):
        _ = 1 / 0
    assert pipe.__class__ is own
    assert torch.equal(run(pipe), before)


def test_marking_can_be_nested(mark, pipe):
    """The inner block's end leaves the outer mark."""
    with mark.on(pipe, ALICE):
        alone = run(pipe)
        with mark.on(pipe, BOB):
            assert not torch.equal(run(pipe), alone)
        assert torch.equal(run(pipe), alone)

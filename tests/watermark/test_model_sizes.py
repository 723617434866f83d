"""Write, read and search work on models of other sizes, and in the latent spaces of real autoencoders."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from privgen.io.images import load_image
from privgen.io.residual import to_canvas
from privgen.models.aligner import Aligner
from privgen.models.extractor import Extractor
from privgen.models.family import Canvas, patch_of
from privgen.models.initialise import seeded_weights
from privgen.models.mappers import signs
from privgen.watermark.key import Key, Secret
from privgen.watermark.read.pose import Poses, put_back, take
from privgen.watermark.read.search import read_windows, search
from privgen.watermark.write.linear_code import low_frequencies
from privgen.watermark.write.mark_image import mark_loaded
from privgen.watermark.write.mark_spec import MarkSpec
from privgen.watermark.write.marker import Marker


KEYS = [Key(name, Secret(bytes([number]) * 32)) for number, name in enumerate(("alice", "bob", "carol"))]
N_BITS = 32
REAL = ("taesd", "taesdxl", "taesd3", "taef1")


def module(root, name):
    spec = importlib.util.spec_from_file_location(name, root / "tests" / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def made_autoencoder(root, size, levels):
    with seeded_weights(0):
        vae = AutoencoderKL(
            block_out_channels=(8,) * levels,
            norm_num_groups=8,
            latent_channels=4,
            sample_size=size,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
        )
    for half in (vae.encoder, vae.decoder):
        module(root, "marked").linearise(half)
    return vae.eval()


def real_autoencoder(root, name):
    folder = Path(os.environ.get("PRIVGEN_AUTOENCODERS", root.parent / "shared" / "assets" / "vae")) / name
    if not folder.is_dir():
        pytest.skip(f"needs the autoencoder madebyollin/{name} in a folder that PRIVGEN_AUTOENCODERS names")
    return AutoencoderTiny.from_pretrained(folder).float().eval()


MODELS = {
    "64 pixels": (lambda root: (made_autoencoder(root, 64, 4), 64), 8.0),
    "256 pixels": (lambda root: (made_autoencoder(root, 256, 5), 256), 8.0),
    **{name: (lambda root, name=name: (real_autoencoder(root, name), 64), 14.0) for name in REAL},
}
"""Autoencoder and canvas, and the quality of its marks in dB: loud, because what is tested is the geometry, with codes
that were fitted in a second. Of the real ones two are enough in the default run."""
SLOW = {"taesdxl", "taef1"}


def pipeline_with(tiny, vae, size):
    pipe, patch = tiny.tiny_pipeline(), patch_of(vae)
    with seeded_weights(0):
        pipe.unet = tiny.tiny_unet("sd15", channels=vae.config.latent_channels, sample=size // patch)
    pipe.vae, pipe.vae_scale_factor = vae, patch
    return pipe


@pytest.fixture(scope="module", params=[pytest.param(m, marks=[pytest.mark.slow] * (m in SLOW)) for m in MODELS])
def model(request, root, tiny):
    """Networks for a model, and the quality of its marks."""
    make, psnr = MODELS[request.param]
    vae, size = make(root)
    files = sorted((root / "privgen" / "data" / "photos" / "train").glob("*.jpg"))[:60]
    photos = to_canvas([load_image(path).pixels for path in files], size)
    cycles = 2 if vae.config.latent_channels == 4 else 1  # about a hundred waves
    pipe = pipeline_with(tiny, vae, size)
    return module(root, "linear_networks").linear_networks(pipe, photos, n_bits=N_BITS, cycles=cycles, psnr=psnr), psnr


@pytest.fixture(scope="module")
def marked(model, photo_files):
    """Three photographs at their own sizes with a key each, on the canvas."""
    networks, psnr = model
    photos = [load_image(path) for path in photo_files[60:63]]
    marker = Marker(networks, MarkSpec("latent", psnr=psnr))
    return to_canvas([image.pixels for image in mark_loaded(photos, [255] * 3, KEYS, marker)], marker.size)


MESSAGES = torch.tensor([key.bits(N_BITS) for key in KEYS])


def test_marks_are_read(model, marked):
    with torch.no_grad():
        right = (model[0].extractor(marked) > 0) == MESSAGES.bool()
    assert float(right.float().mean()) >= 0.75


def test_marks_are_found_where_they_are(model, marked):
    pose = Poses.of(side=0.9, left=0.06, top=0.03)
    _, found = search(model[0].aligner, take(marked, pose.expand(3)), signs(MESSAGES)[:, None])
    near = (found[:, 0] - pose.values).abs() < torch.tensor([0.07, 0.07, 0.07, 4.0])
    assert int(near.all(dim=1).sum()) >= 2, found


@pytest.mark.parametrize("name", ["64 pixels", "256 pixels", "taesd", "taesd3"])
def test_windows_are_read_as_if_each_were_encoded(root, tiny, photo_files, name):
    """The search moves latents instead of images; what it reads correlates with reading the moved images."""
    vae, size = (made_autoencoder(root, 256, 4), 256) if name == "256 pixels" else MODELS[name][0](root)
    photos = to_canvas([load_image(path).pixels for path in photo_files[:24]], size)
    aligner, found = plain_aligner(vae, photos), []
    for poses, logits in (pair for angle in (0, 10) for pair in read_windows(aligner, photos[:2], 1.0, 0.9, angle)):
        for pose, moved in zip(poses, logits, strict=True):
            canvases, seen = put_back(photos[:2], Poses(pose))
            pairs = torch.stack([moved, aligner(canvases, seen, quick=True)], dim=1)
            found += [torch.corrcoef(pair)[0, 1] for pair in pairs]
    assert float(torch.stack(found).mean()) >= 0.8


@torch.no_grad()
def plain_aligner(vae, photos):
    """Smooth random patterns among content whose latent values are taken as independent."""
    canvas = Canvas.of_vae(vae, photos.shape[-1])
    aligner = Aligner.from_extractor(Extractor.from_vae(vae, N_BITS, 4, size=canvas.size)).eval()
    z = torch.cat([aligner.encode(part) for part in photos.split(8)]).flatten(1)
    waves = low_frequencies(canvas.channels, canvas.latents, canvas.latents, 2).float()
    patterns = torch.randn(N_BITS, waves.shape[1], generator=torch.Generator().manual_seed(0)) @ waves.T
    aligner.patterns.copy_(patterns)
    aligner.mean.copy_(z.mean(0))
    aligner.covariance.copy_(torch.diag(z.var(0) + 1e-3))
    return aligner.requires_grad_(False)

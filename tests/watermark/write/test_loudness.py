"""Bits are written louder where the image is against them."""

import torch

from privgen.io.images import load_image
from privgen.io.residual import add_residual, to_canvas
from privgen.watermark.key import Key, Secret
from privgen.watermark.networks import Networks
from privgen.watermark.protocols import key_bits
from privgen.watermark.read.logits import read_logits
from privgen.watermark.write.loudness import FAINTEST, LOUDEST, loud_bits, loudness
from privgen.watermark.write.mark_spec import MarkSpec
from privgen.watermark.write.marker import Marker
from privgen.watermark.write.residual import latent_residuals


def test_loudness_keeps_the_quality_and_helps_the_weakest(generator):
    favour = torch.randn(20, 48, generator=generator) * torch.linspace(0.1, 3, 20)[:, None]
    loud = loudness(favour)
    torch.testing.assert_close(loud.square().mean(dim=1), torch.ones(20), rtol=1e-3, atol=1e-3)
    assert bool(((loud >= FAINTEST) & (loud <= LOUDEST)).all())
    between = (loud > FAINTEST) & (loud < LOUDEST)
    for row, free, values in zip(favour, between, loud, strict=True):
        assert float((row + values)[free].std()) < 1e-3  # all that can be have the same margin
    torch.testing.assert_close(loudness(torch.zeros(1, 48)), torch.ones(1, 48), rtol=1e-3, atol=1e-3)


def test_what_is_asked_of_a_linear_reader(generator):
    """The reader is linear, so that the margins follow from the loudness."""
    patterns = torch.linalg.qr(torch.randn(3 * 64, 8, generator=generator)).Q.T.reshape(8, 3, 8, 8)
    images = 0.5 + 0.03 * torch.randn(4, 3, 8, 8, generator=generator).clamp(-1, 1)

    def extractor(x):
        return 7 * torch.einsum("bchw,nchw->bn", x - 0.5, patterns)

    def residuals(message):
        return torch.einsum("bn,nchw->bchw", 2 * message - 1, patterns)

    bits = torch.randint(2, (1, 8), generator=generator).float()
    strength = 10 ** (-38 / 20) / (8 / 192) ** 0.5
    soft = loud_bits(bits, images, extractor, lambda message: images + strength * residuals(message))
    plain, informed = (
        ((2 * bits - 1) * extractor(images + strength * residuals(message))).amin(dim=1) for message in (bits, soft)
    )
    assert bool((informed >= plain - 1e-4).all())
    assert float(informed.mean()) > float(plain.mean())


def test_photographs_are_read_better_at_the_same_quality(photo_files):
    networks, key = Networks("mini"), Key("alice", Secret(bytes(range(32))))
    bits = torch.tensor(key.bits(48))
    photos = [load_image(path).pixels for path in photo_files[:12]]
    marker, mapper = Marker(networks, MarkSpec("latent")), networks.mapper("latent")
    canvases = to_canvas(photos, marker.size)
    even = latent_residuals(canvases, key_bits([key], mapper), vae=networks.pipeline.vae, latent_mapper=mapper)
    right = {}
    for name, residuals in (("even", even), ("loud", marker.residuals(canvases, [key]))):
        marked = [add_residual(photo, r, psnr=36.0) for photo, r in zip(photos, residuals, strict=True)]
        assert all(abs(image.psnr - 36) < 0.05 for image in marked)
        logits = read_logits([image.pixels for image in marked], networks.extractor)
        right[name] = ((logits > 0) == bits.bool()).float().mean()
    assert float(right["loud"]) >= max(float(right["even"]), 0.98)

"""Projected gradient descent, and the attacks of those who have the extractor or the autoencoder."""

import dataclasses

import pytest
import torch

from privgen.attacks import Embedding, ExtractorForgery, ExtractorRemoval, attack_files, get_attack, parse_attack
from privgen.attacks.adaptive.extractor import hinge
from privgen.attacks.adaptive.pgd import descend
from privgen.diffusion.latents import encode
from privgen.errors import PrivgenError
from privgen.models.extractor import Extractor
from privgen.models.initialise import seeded_weights


N_BITS = 8


@pytest.fixture(scope="module")
def pipeline(tiny):
    pipeline = tiny.tiny_pipeline("sd21")
    pipeline.vae.register_to_config(sample_size=32)
    return pipeline


@pytest.fixture(scope="module")
def extractor(pipeline, pictures):
    """An extractor of 8 bits with random filters, whitened on pictures."""
    with seeded_weights(0):
        network = Extractor.from_vae(pipeline.vae, N_BITS, pilots=4).eval()
    with torch.no_grad():
        network.fit_whitening(network(pictures(40, 32, 32, seed=7)))
    return network


def test_descent_finds_the_corner_of_the_box(pictures, seeded):
    """A linear loss is lowest where every value has moved by epsilon against its weight, or to the end of [0, 1]."""
    image = pictures(1, 9, 7)
    image[..., :2], image[..., -2:] = 0, 1
    weights = torch.randn(image.shape, generator=seeded(1))
    settings = {"epsilon": 0.03, "steps": 10, "step_size": 0.0075}
    found = descend(image, lambda x: (weights * x).sum(), generator=seeded(0), **settings)
    torch.testing.assert_close(found, (image - 0.03 * weights.sign()).clamp(0, 1))


def test_descent_finds_the_nearest_point_of_the_box(seeded):
    image, goal = torch.full((1, 3, 4, 4), 0.5), torch.linspace(0.4, 0.6, 48).view(1, 3, 4, 4)
    settings = {"epsilon": 0.05, "steps": 400, "step_size": 0.0005}
    found = descend(image, lambda x: (x - goal).square().sum(), generator=seeded(0), **settings)
    torch.testing.assert_close(found, goal.clamp(0.45, 0.55), atol=0.001, rtol=0)


def test_descent_starts_anywhere_in_the_box(pictures, seeded):
    image = pictures(1, 16, 16)
    settings = {"epsilon": 0.1, "steps": 1, "step_size": 0.0}
    start = descend(image, torch.sum, generator=seeded(3), **settings)
    low, high = (image - 0.1).clamp(min=0), (image + 0.1).clamp(max=1)
    expected = low + (high - low) * torch.rand(image.shape, generator=seeded(3))
    assert torch.equal(start, expected)


def test_hinge():
    logits = torch.tensor([[3.0, -0.5, 0.25], [-2.0, -1.0, 0.0]])
    signs = torch.tensor([1.0, -1.0, -1.0])
    torch.testing.assert_close(hinge(logits, signs), torch.tensor([1.75 / 3, 4 / 3]))


def make(kind, pipeline, extractor, **options):
    if kind is Embedding:
        return Embedding(model=pipeline, **options)
    if kind is ExtractorForgery:
        options["bits"] = (1, 0) * (N_BITS // 2)
    return kind(model=extractor, **options)


KINDS = (Embedding, ExtractorForgery, ExtractorRemoval)


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind, pipeline, extractor, pictures, seeded, keeps_contract):
    attack = make(kind, pipeline, extractor, steps=4)
    images = pictures(2, 21, 34)
    with torch.no_grad():  # as files are attacked
        attacked = keeps_contract(attack, images)
    assert (attacked - images).abs().max() <= 4 / 255 + 1e-6
    half = images.bfloat16()
    assert torch.equal(attack(half, generator=seeded(5, 6)), attack(half.float(), generator=seeded(5, 6)).bfloat16())
    assert torch.equal(make(kind, pipeline, extractor, strength=0)(images), images)
    assert not torch.equal(attack(images, generator=seeded(1, 2)), attack(images, generator=seeded(3, 4)))


@pytest.mark.parametrize("kind", KINDS)
def test_quality_falls_over_the_sweep(kind, pipeline, extractor, pictures, psnr, seeded):
    images = pictures(2, 32, 32)
    attack = make(kind, pipeline, extractor, steps=4)
    quality = [psnr(attack.with_strength(s)(images, generator=seeded(1, 2)), images) for s in kind.sweep]
    assert quality == sorted(quality, reverse=True)
    assert quality[0] > quality[-1] + 6


@torch.no_grad()
def test_removal_turns_bits_and_forgery_writes_them(extractor, pictures, seeded):
    images = pictures(3, 40, 32, seed=2)
    before = extractor(images) > 0
    removed = extractor(ExtractorRemoval(strength=8, steps=20, model=extractor)(images, generator=seeded(1, 2, 3))) > 0
    assert (removed != before).float().mean() > 0.9
    bits = torch.tensor([1, 1, 0, 1, 0, 0, 0, 1])
    attack = ExtractorForgery(strength=8, steps=20, model=extractor, bits=bits.tolist())
    forged = extractor(attack(images, generator=seeded(1, 2, 3))) > 0
    assert (forged == (bits > 0)).float().mean() > 0.9


@torch.no_grad()
def test_forgery_reads_its_message_from_marked_images(extractor, pictures, seeded):
    """What is forged is the sign of the sum of the logits, whatever single images say."""
    images, marked = pictures(1, 32, 32, seed=3), pictures(5, 32, 32, seed=4)
    folder_like = ExtractorForgery(strength=4, steps=3, model=extractor, marked=marked)
    bits = (extractor(folder_like.marked.images).sum(0) > 0).long().tolist()
    told = ExtractorForgery(strength=4, steps=3, model=extractor, bits=bits)
    assert torch.equal(folder_like(images, generator=seeded(0)), told(images, generator=seeded(0)))


@torch.no_grad()
def test_embedding_goes_away_in_latents(pipeline, pictures, seeded):
    """Farther than noise of the same size."""
    images = pictures(2, 32, 32)
    latents = lambda x: encode(pipeline.vae, x)  # noqa: E731
    attacked = Embedding(strength=4, steps=10, model=pipeline)(images, generator=seeded(1, 2))
    noise = (attacked - images).abs() * torch.randn(images.shape, generator=seeded(3)).sign()
    moved, shaken = ((latents(x) - latents(images)).norm() for x in (attacked, (images + noise).clamp(0, 1)))
    assert moved > 2 * shaken


def test_a_model_is_named(marked_model, photo_files, tmp_path):
    """From a folder, on files, with the message of a marked folder."""
    (tmp_path / "marked").mkdir()
    for file in photo_files[:2]:
        (tmp_path / "marked" / file.name).write_bytes(file.read_bytes())
    text = f"extractor_forgery=2,model={marked_model},device=cpu,steps=1"
    attack = parse_attack(text, marked=tmp_path / "marked")
    assert attack_files(attack, [photo_files[3]], tmp_path / "out").count("done") == 1
    assert f"model='{marked_model}', steps=1, marked=marked_2_{attack.marked.digest}" in repr(attack)


def test_as_text(extractor):
    assert parse_attack("extractor_removal=8,steps=50") == ExtractorRemoval(strength=8, steps=50)
    assert repr(Embedding(strength=2)) == "Embedding(strength=2)"
    assert ExtractorForgery(bits=(1, 0, 1)).label == "extractor_forgery_4_bits_101"
    assert "model='Extractor_" in repr(ExtractorRemoval(model=extractor))
    assert get_attack("embedding").strength == 4


@pytest.mark.parametrize(
    ("make_wrong", "error", "message"),
    [
        (lambda: ExtractorRemoval(steps=0), ValueError, "extractor_removal: expected steps >= 1, got 0"),
        (lambda: ExtractorRemoval(step_size=0), ValueError, r"expected step_size in \(0, 255\], got 0"),
        (lambda: ExtractorRemoval(strength=300), ValueError, r"expected a strength in \[0, 255\] 1/255"),
        (lambda: ExtractorForgery(bits="101"), ValueError, "expected bits as a sequence of 0 and 1, got '101'"),
        (lambda: ExtractorForgery(bits=(0, 2)), ValueError, "expected bits as a sequence of 0 and 1"),
        (lambda: ExtractorForgery(bits=(1,), marked=torch.rand(1, 3, 8, 8)), ValueError, "got both"),
        (lambda: ExtractorForgery(marked=3), ValueError, "expected examples as a folder or a tensor, got 3"),
        (lambda: ExtractorForgery(marked="nowhere"), PrivgenError, "There is no folder nowhere"),
        (lambda: parse_attack("extractor_forgery=4,marked=x", marked="y"), ValueError, "marked is given twice"),
        (
            lambda: parse_attack("jpeg=50", marked="y"),
            ValueError,
            "jpeg takes strength, .*; got marked",
        ),
    ],
)
def test_wrong_parameters(make_wrong, error, message):
    with pytest.raises(error, match=message):
        make_wrong()


def test_what_is_missing_is_said(extractor, pipeline, tiny_ddpm):
    with pytest.raises(PrivgenError, match="give images that carry it with --marked"):
        ExtractorForgery(model=extractor).prepare()
    with pytest.raises(PrivgenError, match="There is no model 'nowhere'"):
        ExtractorRemoval(model="nowhere").prepare()
    with pytest.raises(PrivgenError, match="DDPMPipeline has no autoencoder"):
        Embedding(model=tiny_ddpm()).prepare()
    short = ExtractorForgery(model=extractor, bits=(1, 0))
    with pytest.raises(PrivgenError, match="this extractor reads 8 bits; give as many, not 2"):
        short(torch.rand(1, 3, 32, 32))
    assert dataclasses.replace(short, strength=0)(torch.ones(1, 3, 32, 32)).min() == 1

"""What is left of a mark is read as well as a linear reader can."""

import pytest
import torch

from privgen.models.aligner import Aligner
from privgen.models.extractor import Extractor


N_BITS, SIZE = 6, 32


@pytest.fixture
def aligner(generator):
    """Loud patterns, so that every term counts."""
    aligner = Aligner(N_BITS, SIZE, 2, (8, 8, 8), 1, 8, False).eval().requires_grad_(False)
    aligner.patterns.normal_(generator=generator).mul_(0.3)
    mixing = torch.randn(128, 128, generator=generator) / 128**0.5
    aligner.covariance.copy_(mixing @ mixing.T + 0.5 * torch.eye(128))
    aligner.mean.normal_(generator=generator)
    return aligner


@pytest.fixture
def latents(generator):
    return torch.randn(3, 2, 8, 8, generator=generator)


@pytest.fixture
def left():
    """The left half."""
    seen = torch.ones(3, 1, SIZE, SIZE)
    seen[..., SIZE // 2 :] = 0
    return seen


@pytest.mark.parametrize("part", [False, True])
def test_it_is_the_best_linear_reader(aligner, latents, left, part):
    """Against the definition: for each bit, content and all other bits are Gaussian noise of known covariance."""
    shown = torch.ones(2, 8, 8, dtype=torch.bool)
    if part:
        shown[..., 4:] = False
    rows = shown.flatten()
    patterns, values = aligner.patterns[:, rows].double(), (latents.flatten(1) - aligner.mean)[:, rows].double()
    content = aligner.covariance[rows][:, rows].double()
    expected = []
    for bit in range(N_BITS):
        others = torch.cat([patterns[:bit], patterns[bit + 1 :]])
        expected.append(2 * values @ torch.linalg.solve(content + others.T @ others, patterns[bit]))
    logits = aligner.read(latents, left if part else None).double()
    # Alike up to a factor that an image has to itself.
    ratio = torch.stack(expected, dim=1) / logits
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=0)
    assert bool((ratio > 0).all())


def test_what_is_not_seen_is_not_read(aligner, latents, left):
    changed = latents.clone()
    changed[..., 4:] += 5
    assert not torch.equal(aligner.read(changed), aligner.read(latents))
    assert torch.equal(aligner.read(changed, left), aligner.read(latents, left))
    nothing = aligner.read(latents, torch.zeros_like(left))
    assert torch.equal(nothing, torch.zeros_like(nothing))


def test_loud_content_makes_bits_less_sure(aligner, latents):
    quiet, loud = (aligner.read(aligner.mean.view(2, 8, 8) + gain * latents) for gain in (1.0, 4.0))
    assert float(loud.abs().mean()) < float(quiet.abs().mean())


def test_filters_are_kept_until_they_are_forgotten(aligner, latents):
    before = aligner.read(latents)
    aligner.patterns.mul_(-1)
    assert torch.equal(aligner.read(latents), before)
    aligner.forget()
    torch.testing.assert_close(aligner.read(latents), -before)
    aligner.patterns.mul_(-1)
    torch.testing.assert_close(aligner.train().read(latents), before)


def test_many_equal_one_by_one(aligner, generator, left):
    images = torch.rand(3, 3, SIZE, SIZE, generator=generator)
    together = aligner(images, left)
    assert together.shape == (3, N_BITS)
    for i in range(3):
        torch.testing.assert_close(aligner(images[i : i + 1], left[i : i + 1]), together[i : i + 1])


def test_it_starts_from_an_extractor(generator):
    extractor = Extractor(N_BITS, SIZE, 2, (8, 8, 8), 1, 8, False, pilots=2).eval()
    images = torch.rand(2, 3, 40, 24, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(Aligner.from_extractor(extractor).encode(images), extractor.encode(images))


def test_saved_and_loaded(aligner, generator, tmp_path):
    aligner.save_pretrained(tmp_path)
    images = torch.rand(1, 3, SIZE, SIZE, generator=generator)
    torch.testing.assert_close(Aligner.from_pretrained(tmp_path)(images), aligner(images))


def test_bfloat16(aligner, generator):
    logits = aligner.to(torch.bfloat16)(torch.rand(1, 3, SIZE, SIZE, generator=generator))
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()

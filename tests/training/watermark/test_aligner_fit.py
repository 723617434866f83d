"""What an aligner knows of marks and of content is measured on parts of images."""

import pytest
import torch

from privgen.training.watermark.aligner_fit import measure_content, measure_patterns


CHANNELS, SIDE = 2, (3, 4)
CELLS, VALUES, N_BITS = 12, 24, 5


@pytest.fixture
def cells(generator):
    """Each of 4,000 views shows a rectangle."""
    parts = torch.zeros(4000, *SIDE)
    for part, (top, left) in zip(parts, torch.randint(2, (4000, 2), generator=generator).tolist(), strict=True):
        part[top : top + 2, left : left + 3] = 1
    return parts.flatten(1)


def test_patterns_are_found_in_parts(cells, generator):
    """However the bits of these views happen to go together."""
    patterns = torch.randn(N_BITS, VALUES, generator=generator)
    bits = 2.0 * torch.randint(2, (len(cells), N_BITS), generator=generator) - 1
    bits[:, 1] = torch.where(torch.rand(len(cells), generator=generator) < 0.5, bits[:, 0], bits[:, 1])
    found = measure_patterns(bits @ patterns, cells, bits)
    torch.testing.assert_close(found, patterns, rtol=0, atol=0.1)


def test_covariance_of_content_that_is_alike_everywhere(cells, generator):
    """Neighbours in a row share half of their variance."""
    noise = torch.randn(len(cells), CHANNELS, SIDE[0], SIDE[1] + 1, generator=generator)
    latents = 3 + (noise[..., 1:] + noise[..., :-1]).flatten(1)
    mean, covariance = measure_content(latents, cells, SIDE)
    assert mean.mean().item() == pytest.approx(3, abs=0.05)
    assert torch.linalg.eigvalsh(covariance)[0] > 0
    blocks = covariance.view(CHANNELS, CELLS, CHANNELS, CELLS)
    same, next_to, across = blocks[0, 5, 0, 5], blocks[0, 5, 0, 6], blocks[0, 5, 1, 5]
    assert same.item() == pytest.approx(2, abs=0.25)
    assert next_to.item() == pytest.approx(1, abs=0.2)
    assert across.item() == pytest.approx(0, abs=0.2)


def test_what_no_view_shows_is_never_read(cells, generator):
    cells = cells.clone()
    cells[:, 0] = 0
    _, covariance = measure_content(torch.randn(len(cells), VALUES, generator=generator), cells, SIDE)
    assert bool((covariance.diagonal()[[0, CELLS]] >= 1e3).all())

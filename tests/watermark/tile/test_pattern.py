import math

import numpy as np
import pytest
import torch

from privgen.errors import UsageError
from privgen.watermark.tile.pattern import (
    FACES,
    HIGHEST,
    LOWEST,
    PLACES,
    harmonics,
    mirrored_and_turned,
    pattern_of,
    undone,
)
from privgen.watermark.tile.wave import grid_of


def test_the_pattern_of_a_key_never_changes(alice):
    # Marks that exist must stay readable: these numbers may never change.
    expected = torch.tensor([[-0.2032066, -0.5832422], [0.1679063, 0.3249629]])
    torch.testing.assert_close(torch.view_as_real(alice.noise[:2]), expected, atol=1e-6, rtol=0)
    assert alice.owner[:8].tolist() == [25, 10, 47, 46, 22, 18, 20, 36]


def test_every_wave_of_the_band_is_there_once():
    waves = harmonics()
    cycles = np.hypot(*waves.T)
    assert cycles.min() >= LOWEST
    assert cycles.max() <= HIGHEST
    assert (np.diff(cycles) >= 0).all()
    both = {tuple(wave) for wave in np.concatenate([waves, -waves]).tolist()}
    lattice = [math.hypot(x, y) for x in range(-24, 25) for y in range(-24, 25)]
    assert len(both) == 2 * len(waves) == sum(LOWEST <= cycles <= HIGHEST for cycles in lattice)


@pytest.mark.parametrize("n_bits", [8, 48, 64])
def test_bits_share_each_ring_equally(key_of, n_bits):
    pattern = pattern_of(key_of(3), n_bits)
    for start in range(0, len(pattern.owner) - n_bits + 1, n_bits):
        assert pattern.owner[start : start + n_bits].sort().values.tolist() == list(range(n_bits))
    assert pattern.bits.tolist() == list(key_of(3).bits(n_bits))


def test_noise_is_normal_and_keys_are_nearly_orthogonal(key_of):
    noise = torch.stack([pattern_of(key_of(number)).template for number in range(50)])
    values = torch.view_as_real(noise).flatten()
    assert float(values.mean()) == pytest.approx(0, abs=0.02)
    assert float(values.var()) == pytest.approx(1, abs=0.02)
    assert float((values**4).mean()) == pytest.approx(3, abs=0.1)
    products = (noise @ noise.conj().T).real / noise.abs().square().sum(1)
    off = products[~torch.eye(50, dtype=torch.bool)]
    # Each is a sum of 2 * 892 products of normal numbers over about as many squares.
    assert float(off.std()) == pytest.approx(1 / math.sqrt(2 * noise.shape[1]), rel=0.1)


def test_the_length_of_the_message_does_not_change_the_noise(key_of):
    assert torch.equal(pattern_of(key_of(4)).noise, pattern_of(key_of(4), 8).noise)


def test_no_wave_is_the_same_at_all_places():
    turns = 2 * torch.pi * torch.tensor(PLACES) @ torch.tensor(harmonics()).float().T
    mean = torch.polar(torch.ones_like(turns), turns).mean(0).abs()
    assert float(mean.max()) < 0.6
    assert float(mean.square().mean().sqrt()) < 1.2 / len(PLACES) ** 0.5


@pytest.mark.parametrize("face", FACES)
def test_a_face_is_the_tile_mirrored_and_turned(alice, face):
    turns, mirrored = face
    tile = grid_of(alice.template, 64)
    seen = torch.rot90(tile.flip(1) if mirrored else tile, turns)
    # The point (0, 0) of the tile is at another place of the turned grid.
    own = grid_of(alice.face(*face).template, 64)
    torch.testing.assert_close(own.roll(_origin(face), (0, 1)), seen, atol=1e-3, rtol=1e-4)


def _origin(face):
    """Where the point (0, 0) of a grid of 64 goes, (down, across)."""
    marker = torch.zeros(64, 64)
    marker[0, 0] = 1
    moved = torch.rot90(marker.flip(1) if face[1] else marker, face[0])
    return divmod(int(moved.argmax()), 64)


@pytest.mark.parametrize("face", FACES)
def test_undone_undoes(face):
    assert undone(*mirrored_and_turned(3, 5, face), face) == (3, 5)


@pytest.mark.parametrize("n_bits", [7, 65])
def test_lengths_out_of_range_are_refused(key_of, n_bits):
    with pytest.raises(UsageError, match=f"8 to 64 bits, got {n_bits}"):
        pattern_of(key_of(1), n_bits)


def test_a_pattern_does_not_print_its_numbers(alice):
    assert repr(alice) == f"Pattern('alice', key_id='{alice.key_id}', n_bits=48)"

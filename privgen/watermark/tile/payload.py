"""The payload of a mark: an ID that the owner of a key writes into an image beside the key's own message.

Each harmonic of the tile belongs to one of the bytes of the code word. For each of the 256 values that a byte can
have, the key's secret draws other phases of the byte's harmonics. The waves of the right values are added to the key's
own pattern, with a fraction of its power. They are read where the key's pattern was found: there it is known, and is
taken away first.
"""

import hashlib
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from privgen.watermark.hkdf import hkdf_sha256
from privgen.watermark.key import Key, Secret
from privgen.watermark.tile.pattern import Pattern, harmonics, pattern_of
from privgen.watermark.tile.payload_code import WORD_BYTES, code_word, decode


FRACTION = 0.4
"""Fraction of the power of a mark that its payload gets. Its bytes need more of it than the key, which only has to be
told from chance. Readers need not know it."""

_VALUES = 256
_LABEL = b"privgen/watermark/v1/tile/payload"
_RING = 3.0  # cycles a tile; the mark is as strong all over a ring of this width


def pattern_with(key: Key, payload: int | None) -> Pattern:
    """Return the pattern of a key that also carries an ID, or the plain pattern if there is none.

    Args:
        key: its secret draws the pattern.
        payload: the ID, 0..4294967295, or None.

    Raises:
        UsageError: an ID out of its range.
    """
    pattern = pattern_of(key)
    if payload is None:
        return pattern
    word = torch.tensor(list(code_word(key, payload)), device="cpu")
    waves, owner = _waves(key.secret)
    carried = waves[word[owner], torch.arange(len(owner), device="cpu")]
    return replace(pattern, written=(1 - FRACTION) ** 0.5 * pattern.template + FRACTION**0.5 * carried)


@torch.no_grad()
def read_payload(key: Key, pattern: Pattern, evidence: Tensor) -> int | None:
    """Return the ID that a mark carries, or None if it carries none that can be read.

    Args:
        key: whose mark was found.
        pattern: of the key.
        evidence: (M,) complex64, an image's spectrum at the `harmonics()` of the tile as it was written, unturned and
            unshifted.
    """
    return decode(key, byte_scores(key, pattern, evidence))


def byte_scores(key: Key, pattern: Pattern, evidence: Tensor) -> Tensor:
    """Return how clearly each byte of a code word has each value, (`WORD_BYTES`, 256), in standard deviations.

    The key's pattern is fitted to each ring of frequencies. The fit is taken away, and says how much of the mark is
    left in that ring, and so how much the ring counts.

    Args:
        key: see `read_payload`, as for `pattern` and `evidence`.
        pattern: see `key`.
        evidence: see `key`.
    """
    template, evidence = pattern.template, evidence.cpu()
    ring = torch.from_numpy(np.hypot(*harmonics().T) // _RING).long()
    zeros = torch.zeros(int(ring.max()) + 1, dtype=torch.float32, device="cpu")
    fit = zeros.index_add(0, ring, (evidence * template.conj()).real)
    fit = fit / zeros.index_add(0, ring, template.abs().square())
    rest = evidence - fit[ring] * template
    noise = zeros.index_add(0, ring, rest.abs().square()) / torch.bincount(ring)
    rest = rest * (fit.clamp(min=0) / noise.clamp(min=1e-12))[ring]
    waves, owner = _waves(key.secret)
    products = (waves.conj() * rest).real.T
    zeros = torch.zeros(WORD_BYTES, dtype=torch.float32, device="cpu")
    sums = zeros[:, None].expand(-1, _VALUES).index_add(0, owner, products)
    power = zeros.index_add(0, owner, rest.abs().square())
    return sums / power.sqrt().clamp(min=1e-12)[:, None]


@lru_cache(maxsize=16)
def _waves(secret: Secret) -> tuple[Tensor, Tensor]:
    """The waves of all values of the bytes, and which byte each harmonic belongs to.

    Returns:
        (256, M) complex64 of absolute value 2**.5, as large as the noise of a key's pattern; and (M,) int64.
    """
    count = len(harmonics())
    seed = hkdf_sha256(secret, info=_LABEL, length=32)
    order, quarters = 8 * count, _VALUES * count
    stream = hashlib.shake_256(seed).digest(order + quarters)
    words, turns = np.frombuffer(stream[:order], "<u8"), np.frombuffer(stream[order:], "u1") & 3
    owner = np.empty(count, np.int64)
    for start in range(0, count, WORD_BYTES):  # neighbours in frequency go to different bytes
        ring = words[start : start + WORD_BYTES]
        owner[start : start + WORD_BYTES] = np.argsort(np.argsort(ring, kind="stable"), kind="stable")
    phases = np.array([1, 1j, -1, -1j], np.complex64)[turns.reshape(_VALUES, count)] * np.float32(2**0.5)
    return torch.from_numpy(phases), torch.from_numpy(owner)

"""The code word of a payload: what of an ID is written, and how an ID is read from uncertain bytes.

An ID is a whole number of 32 bits. A checksum follows it, which only the owner of the key can compute, and then the
parity bytes of a Reed-Solomon code. An image tells of each byte how clearly each of its 256 values is there. The bytes
that are told least clearly are erased, in several ways, until an ID is read whose checksum is right.
"""

from __future__ import annotations

import hashlib
import hmac
from functools import cache
from itertools import combinations
from typing import TYPE_CHECKING

from reedsolo import ReedSolomonError, RSCodec

from privgen.errors import UsageError
from privgen.watermark.hkdf import hkdf_sha256
from privgen.watermark.key import Key


if TYPE_CHECKING:
    from torch import Tensor


LARGEST = 2**32 - 1
"""The largest ID; the smallest is 0."""
ID_BYTES, CHECK_BYTES, PARITY_BYTES = 4, 4, 4
WORD_BYTES = ID_BYTES + CHECK_BYTES + PARITY_BYTES
"""Length of a code word. The parity corrects two wrong bytes, four erased ones, or one and two."""

_DOUBTFUL = 9  # four of so many bytes, the least certain ones, are erased at a time
_LABEL = b"privgen/watermark/v1/payload/check"
# Which bytes each attempt erases, as places in the order of certainty, the least certain byte first.
_ERASED = ((), (0, 1), *sorted(combinations(range(_DOUBTFUL), PARITY_BYTES), key=sum))

FALSE_ACCEPT = len(_ERASED) * 2.0 ** (-8 * CHECK_BYTES)
"""The largest probability that an ID is read from an image that carries the key's mark and no payload, or that a wrong
one is read: one in 2**32 for each attempt."""


def check_payload(payload: int) -> int:
    """Check an ID, and return it.

    Raises:
        UsageError: it is not a whole number in 0..4294967295.
    """
    if isinstance(payload, bool) or not isinstance(payload, int) or not 0 <= payload <= LARGEST:
        raise UsageError(f"expected a payload that is a whole number from 0 to {LARGEST}, got {payload!r}")
    return payload


def code_word(key: Key, payload: int) -> bytes:
    """Return the code word of an ID: the ID, its checksum, and the parity of both.

    Args:
        key: whose mark carries the payload.
        payload: the ID, 0..4294967295.

    Returns:
        `WORD_BYTES` bytes.

    Raises:
        UsageError: an ID out of its range.
    """
    number = check_payload(payload).to_bytes(ID_BYTES, "big")
    return bytes(_codec().encode(number + _checksum(key, number)))


def decode(key: Key, scores: Tensor) -> int | None:
    """Return the ID that uncertain bytes of a code word tell, or None if they tell none.

    For erasing the least certain symbols in turn see Forney, "Generalized minimum distance decoding" (IEEE
    Transactions on Information Theory 12(2), 1966).

    Args:
        key: whose mark carries the payload.
        scores: (`WORD_BYTES`, 256), how clearly each byte has each value, in standard deviations.
    """
    best = scores.topk(2, dim=1)
    word = bytes(best.indices[:, 0].tolist())
    order = (best.values[:, 0] - best.values[:, 1]).argsort().tolist()
    for places in _ERASED:
        try:
            message, _, _ = _codec().decode(bytearray(word), erase_pos=[order[place] for place in places])
        except ReedSolomonError:
            continue
        number, checksum = bytes(message[:ID_BYTES]), bytes(message[ID_BYTES:])
        if hmac.compare_digest(_checksum(key, number), checksum):
            return int.from_bytes(number, "big")
    return None


@cache
def _codec() -> RSCodec:
    return RSCodec(PARITY_BYTES)


def _checksum(key: Key, number: bytes) -> bytes:
    secret = hkdf_sha256(key.secret, info=_LABEL, length=32)
    return hmac.digest(secret, number, hashlib.sha256)[:CHECK_BYTES]

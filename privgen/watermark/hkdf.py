"""Keys from keys: HKDF with SHA-256, which makes independent secrets of one secret."""

import hashlib
import hmac


def hkdf_sha256(secret: bytes, *, info: bytes, length: int, salt: bytes = b"") -> bytes:
    """Derive key material: HKDF with SHA-256 (RFC 5869, sections 2.2 and 2.3).

    Args:
        secret: input keying material, any length.
        info: label of the purpose; different labels give independent outputs.
        length: number of bytes to derive, 1..8160.
        salt: optional random bytes, which need not be secret.

    Returns:
        `length` bytes.
    """
    if not 1 <= length <= 255 * 32:
        raise ValueError(f"expected a length of 1..8160 bytes, got {length}")
    extracted = hmac.digest(salt or bytes(32), secret, hashlib.sha256)
    block, output = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.digest(extracted, block + info + bytes([counter]), hashlib.sha256)
        output += block
    return output[:length]

"""Fingerprints: SHA-256 digests that are equal if the files, settings, tensors or weights are."""

import hashlib
import json
from pathlib import Path

from torch import Tensor, nn


def file_fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits, or an empty text if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def bytes_fingerprint(data: bytes) -> str:
    """Return the SHA-256 of bytes as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def settings_fingerprint(*settings: object) -> str:
    """Return a digest of anything that JSON can hold, as 64 hexadecimal digits."""
    return bytes_fingerprint(json.dumps(settings, sort_keys=True).encode())


def tensor_fingerprint(*tensors: Tensor) -> str:
    """Return a digest of numbers as 64 hexadecimal digits. They count as float32; shape and dtype do not count."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_fingerprint(module: nn.Module, settings: object = None, prefixes: tuple[str, ...] = ("",)) -> str:
    """Return a digest of a module's weights, and of settings, as 64 hexadecimal digits.

    Args:
        module: a network. The names and values in its state dict count, as float32; dtype and device do not count.
        settings: anything that JSON can hold. None adds nothing.
        prefixes: count only weights whose names begin with one of these; by default all.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    if settings is not None:
        digest.update(json.dumps(settings).encode())
    return digest.hexdigest()


def seed_from(*parts: object) -> int:
    """Return a seed in 0..2^63 - 1 that depends on all of the parts, by their texts."""
    text = ":".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1

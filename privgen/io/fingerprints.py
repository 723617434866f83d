"""Fingerprints of files, settings and weights: two of them are equal if the things are. The one home of SHA-256 sums."""

import hashlib
import json
from pathlib import Path

from torch import Tensor, nn


def file_fingerprint(path: Path) -> str:
    """The SHA-256 of a file, 64 hexadecimal digits; empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def bytes_fingerprint(data: bytes) -> str:
    """The SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def settings_fingerprint(*settings: object) -> str:
    """A digest of what JSON can hold, 64 hexadecimal digits."""
    return bytes_fingerprint(json.dumps(settings, sort_keys=True).encode())


def tensor_fingerprint(*tensors: Tensor) -> str:
    """A digest of values as float32, 64 hexadecimal digits; shape and dtype do not count."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def weights_fingerprint(module: nn.Module, settings: object = None, prefixes: tuple[str, ...] = ("",)) -> str:
    """A digest of a module's weights and of settings, 64 hexadecimal digits.

    Args:
        module: its state dict counts.
        settings: what JSON can hold.
        prefixes: beginnings of the names of the weights that count; by default all count.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()


def seed_from(*parts: object) -> int:
    """A seed in 0..2^63 - 1 that depends on all of the parts."""
    text = ":".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1

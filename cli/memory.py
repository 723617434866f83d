"""How the command line's process keeps its memory."""

import ctypes
import os
from contextlib import suppress


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_KEPT = 1 << 30  # bytes
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> None:
    """Let glibc keep memory that was freed for what is allocated next.

    As it comes, glibc gives memory of large tensors back to the system and asks for it anew, at every step of a
    model: up to a third of the time goes into clearing pages. Whoever has set glibc by its own variables is
    left alone, and so are other C libraries.
    """
    if any(name in os.environ for name in _SETTINGS):
        return
    with suppress(OSError, TypeError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(parameter, _KEPT)

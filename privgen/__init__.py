"""Privacy and control for diffusion images, as extensions of Hugging Face Diffusers.

Names are imported on first use, so that `import privgen` (and with it the command line) starts at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from privgen.errors import PrivgenError, UsageError


__version__ = "0.1.0.dev0"

__all__ = [
    "PrivgenError",
    "UsageError",
    "__version__",
]

_HOMES = {
    "PrivgenError": "privgen.errors",
    "UsageError": "privgen.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'privgen' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

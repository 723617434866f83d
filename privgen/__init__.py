"""Privacy and control for diffusion images, as extensions of Hugging Face Diffusers.

Everything that you need is here:

    from privgen import Key, Watermark

Names are imported on first use, so that `import privgen` (and with it the command line) starts at once.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from privgen import attacks as attacks
    from privgen.errors import PrivgenError, UsageError
    from privgen.hallucination.scheduler import AmplifiedScheduler
    from privgen.hub import load_pipeline
    from privgen.noise_assignment.assign import assign_noise
    from privgen.protection.protection import Protected, Protection
    from privgen.provenance.credentials import Credentials
    from privgen.provenance.label import Label
    from privgen.provenance.seal import Seal
    from privgen.watermark.key import Key, load_key
    from privgen.watermark.read.detection import Detection
    from privgen.watermark.registry.registry import Registry
    from privgen.watermark.watermark import Watermark


__version__ = "0.1.0.dev0"

__all__ = [
    "AmplifiedScheduler",
    "Credentials",
    "Detection",
    "Key",
    "Label",
    "PrivgenError",
    "Protected",
    "Protection",
    "Registry",
    "Seal",
    "UsageError",
    "Watermark",
    "__version__",
    "assign_noise",
    "attacks",
    "load_key",
    "load_pipeline",
]

_HOMES = {
    "AmplifiedScheduler": "privgen.hallucination.scheduler",
    "Credentials": "privgen.provenance.credentials",
    "Detection": "privgen.watermark.read.detection",
    "Key": "privgen.watermark.key",
    "Label": "privgen.provenance.label",
    "PrivgenError": "privgen.errors",
    "Protected": "privgen.protection.protection",
    "Protection": "privgen.protection.protection",
    "Registry": "privgen.watermark.registry.registry",
    "Seal": "privgen.provenance.seal",
    "UsageError": "privgen.errors",
    "Watermark": "privgen.watermark.watermark",
    "assign_noise": "privgen.noise_assignment.assign",
    "load_key": "privgen.watermark.key",
    "load_pipeline": "privgen.hub",
}
_ROOMS = ("attacks",)


# When Diffusers is imported, Transformers says which classes it replaces without torchvision. privgen needs none of
# them.
logging.getLogger("transformers.utils.import_utils").addFilter(
    lambda record: "requires torchvision (not installed)" not in record.getMessage()
)


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"privgen.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'privgen' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})

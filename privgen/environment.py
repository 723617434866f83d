"""Versions and devices that a result was computed with, for bug reports and records."""

import platform
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from privgen import __version__


PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "pillow", "numpy")


@dataclass(frozen=True)
class Environment:
    """Versions of all that can change a result.

    Attributes:
        privgen: version of this package.
        python: version of Python.
        platform: operating system and processor.
        packages: version of each package by its name; None if the package is missing.
        cuda: whether PyTorch sees a CUDA device.
        devices: names of the CUDA devices.
    """

    privgen: str
    python: str
    platform: str
    packages: dict[str, str | None]
    cuda: bool
    devices: tuple[str, ...]


def environment() -> Environment:
    """Return the present environment. This imports PyTorch to find its devices."""
    devices = _cuda_devices()
    return Environment(
        privgen=__version__,
        python=sys.version.split()[0],
        platform=platform.platform(),
        packages={name: _version(name) for name in PACKAGES},
        cuda=bool(devices),
        devices=devices,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cuda_devices() -> tuple[str, ...]:
    import torch

    return tuple(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))

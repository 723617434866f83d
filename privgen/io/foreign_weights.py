"""Weights that others made: files of PyTorch's or safetensors, and those that come inside other packages.

Only tensors are read, and no other package's code is run.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the error that PyTorch raises, nothing else

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from privgen.errors import PrivgenError


def read_weights(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The weights in a file, on the CPU.

    Args:
        file: safetensors, by its suffix; or what PyTorch saved of a state dict.

    Raises:
        PrivgenError: it cannot be read, or holds more than weights.
    """
    path = Path(file).expanduser()
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only reads tensors and refuses everything else.
        weights = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        raise PrivgenError(
            f"{path} cannot be read as a file of weights; it is missing, broken or more than that."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise PrivgenError(f"{path} holds something other than weights by name.")
    return weights


def find_packaged(package: str, file: str) -> Path | None:
    """Where a file of a package is, or None; the package is not imported.

    Args:
        package: its import name.
        file: below its folder.
    """
    spec = find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return next((path for folder in folders if (path := Path(folder) / file).is_file()), None)


def read_packaged(package: str, file: str, advice: str) -> dict[str, Tensor]:
    """The weights in a file of a package.

    Args:
        package: its import name.
        file: below its folder.
        advice: what to do where it is missing.

    Raises:
        PrivgenError: it is not installed, or cannot be read.
    """
    path = find_packaged(package, file)
    if path is None:
        raise PrivgenError(f"The weights {file} of the package {package} are not installed; {advice}.")
    return read_weights(path)

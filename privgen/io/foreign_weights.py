"""Read weights that others made: files of safetensors or PyTorch, and files inside other packages.

This reads tensors only, and runs no code of other packages.
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
from privgen.io.files import check_regular


def read_weights(file: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the weights in a file, by name, on the CPU.

    Args:
        file: a safetensors file with that suffix, or a state dict that PyTorch saved.

    Raises:
        PrivgenError: the file cannot be read, or holds more than weights.
    """
    path = Path(file).expanduser()
    try:
        check_regular(path)
        if path.suffix == ".safetensors":
            return load_file(path)
        # weights_only reads tensors and refuses everything else.
        weights = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except (OSError, RuntimeError, ValueError, EOFError, UnpicklingError, SafetensorError) as error:
        raise PrivgenError(
            f"{path} cannot be read as a file of weights: it is missing, broken, or holds more; name another file."
        ) from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise PrivgenError(f"{path} does not hold weights by name; save a state dict and name that file.")
    return weights


def find_packaged(package: str, file: str) -> Path | None:
    """Return the path of a file inside a package, or None if there is none. The package is not imported.

    Args:
        package: import name of the package.
        file: path below the folder of the package.
    """
    spec = find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return next((path for folder in folders if (path := Path(folder) / file).is_file()), None)


def read_packaged(package: str, file: str, advice: str) -> dict[str, Tensor]:
    """Read the weights in a file inside a package.

    Args:
        package: import name of the package.
        file: path below the folder of the package.
        advice: what the user can do if the file is missing, for the message.

    Raises:
        PrivgenError: the file is not installed, or cannot be read.
    """
    path = find_packaged(package, file)
    if path is None:
        raise PrivgenError(f"The weights {file} of the package {package} are not installed; {advice}.")
    return read_weights(path)

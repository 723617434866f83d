"""Tensors that took minutes to make, kept in a file that says what they were made of."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from privgen.errors import PrivgenError
from privgen.io.files import write_bytes
from privgen.training.scene_latents import FINGERPRINT


def save_kept(path: Path, tensors: Mapping[str, Tensor], fingerprint: str) -> None:
    """Write tensors with the fingerprint of what they were made of.

    Raises:
        PrivgenError: the file cannot be written.
    """
    contiguous = {name: value.contiguous() for name, value in tensors.items()}
    write_bytes(path, save(contiguous, metadata={FINGERPRINT: fingerprint}), overwrite=True)


def load_kept(path: Path, fingerprint: str, what: str) -> dict[str, Tensor]:
    """Read what `save_kept` has written.

    Args:
        path: a safetensors file.
        fingerprint: that it must have.
        what: it holds, for messages, such as "The code".

    Raises:
        PrivgenError: the file cannot be read, or was made of other networks or with other settings.
    """
    remedy = "delete it to have it made again, or name another file in the recipe"
    try:
        with safe_open(path, "pt") as file:
            kept = (file.metadata() or {}).get(FINGERPRINT)
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (OSError, SafetensorError) as error:
        raise PrivgenError(f"{what} in {path} cannot be read ({error}); {remedy}.") from error
    if kept != fingerprint:
        raise PrivgenError(f"{what} in {path} is of other networks or other settings; {remedy}.")
    return tensors

"""Tensors that take minutes to make, kept in a file that says what they were made of."""

from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from privgen.errors import PrivgenError
from privgen.io.files import check_regular, write_bytes


FINGERPRINT = "fingerprint"
"""Name, in the header of the file, of the fingerprint of what the tensors were made of."""

_REMEDY = "delete the file to have it made again, or choose another path for it"


def load_or_make(
    path: Path | None,
    fingerprint: str,
    make: Callable[[], Mapping[str, Tensor]],
    what: str,
    *,
    replace: bool = False,
) -> dict[str, Tensor]:
    """Load tensors from a file, or make them and keep them there.

    Args:
        path: a safetensors file, which is written whole or not at all. None keeps nothing.
        fingerprint: of all that the tensors depend on, see `privgen.io.fingerprints`.
        make: makes the tensors if there is no file.
        what: what the file holds, for messages, such as "latents of scenes".
        replace: make the tensors again if the file cannot be read or holds others, instead of raising an error.

    Returns:
        The tensors by name.

    Raises:
        PrivgenError: the file cannot be read or written, or holds tensors that were made of something else.
    """
    if path is not None and path.exists():
        try:
            return load_tensors(path, what, fingerprint)
        except PrivgenError:
            if not replace:
                raise
    tensors = {name: tensor.detach().contiguous() for name, tensor in make().items()}
    if path is not None:
        write_bytes(path, save(tensors, metadata={FINGERPRINT: fingerprint}), overwrite=True)
    return tensors


def load_tensors(path: Path, what: str, fingerprint: str | None = None) -> dict[str, Tensor]:
    """Load the tensors that `load_or_make` has kept.

    Args:
        path: a safetensors file.
        what: what the file holds, for messages.
        fingerprint: what the tensors must have been made of. None accepts any.

    Raises:
        PrivgenError: the file cannot be read, or holds tensors that were made of something else.
    """
    try:
        check_regular(path)
        with safe_open(path, "pt") as file:
            kept = (file.metadata() or {}).get(FINGERPRINT)
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
    except (OSError, SafetensorError) as error:
        raise PrivgenError(f"{path} cannot be read as {what} ({error}); {_REMEDY}.") from error
    if fingerprint not in (None, kept):
        raise PrivgenError(f"{path} holds {what} of other networks or other settings; {_REMEDY}.")
    return tensors

"""Load an autoencoder of Diffusers alone, without the model that it belongs to."""

import os
from typing import Any

import torch
from diffusers import AutoModel

from privgen.errors import UsageError
from privgen.models.loading import explained, quiet_loading


KINDS = ("AutoencoderKL", "AutoencoderTiny")
"""Classes of Diffusers that privgen encodes with."""


def load_autoencoder(source: str | os.PathLike[str], *, size: int | None = None) -> Any:
    """Load an autoencoder from a folder or the Hub, in float32, evaluation mode and without gradients, on the CPU.

    Args:
        source: folder that `save_pretrained` has written, or Hub id such as "madebyollin/taesd".
        size: side in pixels of the images that it is for; written to its configuration, where
            `privgen.models.family.Canvas` looks. None leaves what the configuration says.

    Raises:
        UsageError: the model is not one of `KINDS`.
        PrivgenError: it cannot be found or read.
    """
    text = os.fspath(source)
    with quiet_loading(), explained(text, "load"):
        vae = AutoModel.from_pretrained(text, use_safetensors=True, dtype=torch.float32)
    if type(vae).__name__ not in KINDS:
        raise UsageError(f"{text} is a {type(vae).__name__}; name one of {' or '.join(KINDS)}.")
    if size is not None:
        vae.register_to_config(sample_size=size)
    return vae.eval().requires_grad_(False)

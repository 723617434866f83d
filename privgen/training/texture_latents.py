"""How the faint textures that captions of scenes name change the latents."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from privgen.data.patterns import TEXTURES, texture
from privgen.data.scenes import TEXTURE_RMS, draw, sample_spec
from privgen.diffusion.latents import encode
from privgen.models.family import Canvas


_FIRST_SCENE = 10**12  # the first of the scenes that no training run draws


@torch.no_grad()
def texture_changes(vae: Any, *, scenes: int = 4) -> Tensor:
    """Measure how each texture changes the latents of plain scenes.

    Each texture has the contrast that it has in scenes.

    Args:
        vae: Diffusers' autoencoder.
        scenes: number of scenes to average over.

    Returns:
        (C * h * w, textures), one column for each texture, in units of scaled latents.
    """
    size = Canvas.of_vae(vae).size
    specs = [sample_spec(_FIRST_SCENE + i, count=1, textured=False, patterned=False) for i in range(scenes)]
    plain = torch.from_numpy(np.stack([draw(spec, size).pixels for spec in specs]))
    before = encode(vae, plain)
    columns = []
    for name in TEXTURES:
        faint = TEXTURE_RMS * torch.from_numpy(texture(name, size))
        columns.append((encode(vae, plain + faint) - before).mean(dim=0).flatten())
    return torch.stack(columns, dim=1)

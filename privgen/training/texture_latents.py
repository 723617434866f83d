"""Where in latent space the faint textures lie that captions of scenes name."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from privgen.data.patterns import TEXTURES, texture
from privgen.data.scenes import TEXTURE_RMS, draw, sample_spec


_FIRST_SCENE = 10**12  # scenes that no training run draws


@torch.no_grad()
def texture_changes(vae: Any, *, scenes: int = 4) -> Tensor:
    """What each texture, at its contrast in scenes, changes in the latents of plain scenes.

    Args:
        vae: Diffusers' autoencoder.
        scenes: number of scenes over which the change is averaged.

    Returns:
        Columns in units of scaled latents, of shape (C * h * w, textures).
    """
    specs = [sample_spec(_FIRST_SCENE + i, count=1, textured=False, patterned=False) for i in range(scenes)]
    plain = torch.from_numpy(np.stack([draw(spec).pixels for spec in specs])).to(vae.device)
    before = vae.encode(2 * plain - 1).latent_dist.mean
    columns = []
    for name in TEXTURES:
        faint = TEXTURE_RMS * torch.from_numpy(texture(name)).to(vae.device)
        columns.append((vae.encode(2 * (plain + faint) - 1).latent_dist.mean - before).mean(dim=0).flatten())
    return vae.config.scaling_factor * torch.stack(columns, dim=1)

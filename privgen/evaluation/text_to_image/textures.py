"""Whether a texture word writes its texture: the same prompt and seed with the word and without."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privgen.data.patterns import TEXTURES, texture
from privgen.data.scenes import TEXTURE_RMS


@dataclass(frozen=True, eq=False)
class TextureResponse:
    """What texture words did to pictures.

    Attributes:
        contrast: (pictures,) how strongly the named texture was added: 1 as in training scenes, 0 not at all.
        energy: (pictures,) its share of the squared change of the picture; what is left changed something else.
        first: (pictures,) whether the named texture was added more strongly than every other one.
    """

    contrast: Tensor
    energy: Tensor
    first: Tensor


def texture_response(named: Tensor, plain: Tensor, words: Sequence[str]) -> TextureResponse:
    """Compare pictures with and without a texture word.

    Args:
        named: (batch, 3, side, side) in [0, 1], pictures whose prompts name a texture.
        plain: those of the same prompts and seeds without it.
        words: the textures, one a picture.

    Raises:
        ValueError: shapes that do not fit, or an unknown texture.
    """
    if named.shape != plain.shape or len(named) != len(words) or named.shape[-1] != named.shape[-2]:
        shapes = f"{tuple(named.shape)}, {tuple(plain.shape)}"
        raise ValueError(
            f"expected two equal batches of square pictures and a word for each, got {shapes}, {len(words)}"
        )
    index = torch.tensor([TEXTURES.index(word) for word in words])
    fields = torch.from_numpy(np.stack([texture(word, named.shape[-1]) for word in TEXTURES])).flatten(1)
    difference = named - plain
    # Textures are grey and of unit RMS, so this is the RMS at which each of them was added.
    amounts = difference.mean(1).flatten(1) @ fields.T / fields.shape[1]
    own = amounts.gather(1, index[:, None])[:, 0]
    energy = difference.square().mean((1, 2, 3)).clamp(min=1e-12)
    return TextureResponse(own / TEXTURE_RMS, own.square() / energy, amounts.argmax(1) == index)

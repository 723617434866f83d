"""Does a texture word add its texture? The same prompt and seed are compared with the word and without."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privgen.data.patterns import TEXTURES, texture
from privgen.data.scenes import TEXTURE_RMS


@dataclass(frozen=True, eq=False)
class TextureResponse:
    """What texture words changed in images.

    Attributes:
        contrast: how strongly the named texture was added, (images,); 1 is as in training scenes, 0 not at all.
        energy: the texture's fraction of the squared change of the image, (images,); the rest changed something else.
        first: whether the named texture was added more strongly than every other one, (images,).
    """

    contrast: Tensor
    energy: Tensor
    first: Tensor


def texture_response(named: Tensor, plain: Tensor, words: Sequence[str]) -> TextureResponse:
    """Compare images with and without a texture word in their prompt.

    Args:
        named: images whose prompts name a texture, (batch, 3, side, side) in [0, 1].
        plain: images of the same prompts and seeds without the word, the same shape.
        words: the textures, one for each image.

    Raises:
        ValueError: the shapes do not fit, or a texture is unknown.
    """
    if named.shape != plain.shape or len(named) != len(words) or named.shape[-1] != named.shape[-2]:
        shapes = f"{tuple(named.shape)}, {tuple(plain.shape)}"
        raise ValueError(
            f"expected two equal batches of square images and a word for each, got {shapes}, {len(words)}"
        )
    index = torch.tensor([TEXTURES.index(word) for word in words])
    fields = torch.from_numpy(np.stack([texture(word, named.shape[-1]) for word in TEXTURES])).flatten(1)
    difference = named - plain
    # Textures are grey with unit RMS, so this is the RMS with which each texture was added.
    amounts = difference.mean(1).flatten(1) @ fields.T / fields.shape[1]
    own = amounts.gather(1, index[:, None])[:, 0]
    energy = difference.square().mean((1, 2, 3)).clamp(min=1e-12)
    return TextureResponse(own / TEXTURE_RMS, own.square() / energy, amounts.argmax(1) == index)

"""Informed embedding: whoever writes a mark knows the image, and so how its content disturbs each bit.

Cox, Miller and McKellips, "Watermarking as communications with side information" (Proceedings of the IEEE 87(7),
1999): at the same quality a mark is read better if bits that the content is against are written louder than those that
it favours. Both networks that write marks are linear in the bits, so a louder bit is a number beyond 0 and 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from privgen.models.mappers import signs
from privgen.watermark.protocols import ExtractorLike


FAINTEST, LOUDEST = 0.4, 2.0
"""How loud a bit is written, beside 1 for all. None is left out: what comes after the marking disturbs it anew."""

_ROUNDS = 30


@torch.no_grad()
def loud_bits(bits: Tensor, canvases: Tensor, extractor: ExtractorLike, write: Callable[[Tensor], Tensor]) -> Tensor:
    """Messages whose bits are as loud as these images ask for.

    Args:
        bits: (B, n_bits) of 0 and 1, or (1, n_bits) for all images.
        canvases: (B, 3, S, S) in [0, 1], without the mark.
        extractor: what will read the marks.
        write: messages (B, n_bits) or (1, n_bits) to the canvases with them.

    Returns:
        (B, n_bits): 0 and 1 as they are for bits of loudness 1, moved away from 0.5 or towards it for others.
        Squared loudness is 1 in the mean of each message.
    """
    message = signs(bits).expand(len(canvases), -1)
    before = extractor(canvases).float()
    after = extractor(write(bits)).float()
    message = message.to(before)
    gain = (message * (after - before)).mean(dim=1, keepdim=True)
    # Where the mark is not read at all, nothing can be said of bits.
    favour = torch.where(gain > 0, message * before / gain.clamp(min=1e-6), 0.0)
    return (1 + message * loudness(favour)) / 2


def loudness(favour: Tensor) -> Tensor:
    """How loud to write bits, so that the weakest ones are read as well as they can be.

    Args:
        favour: (B, n_bits), what content adds to each bit on its own side, in units of a bit of loudness 1.

    Returns:
        (B, n_bits) in [`FAINTEST`, `LOUDEST`], of which the mean square of each row is 1: what is missing to a margin
        that all bits shall have, and that each row reaches by bisection.
    """
    low, high = favour.amin(dim=1, keepdim=True), favour.amax(dim=1, keepdim=True) + LOUDEST
    for _ in range(_ROUNDS):
        margin = (low + high) / 2
        enough = (margin - favour).clamp(FAINTEST, LOUDEST).square().mean(dim=1, keepdim=True) >= 1
        low, high = torch.where(enough, low, margin), torch.where(enough, margin, high)
    return (high - favour).clamp(FAINTEST, LOUDEST)

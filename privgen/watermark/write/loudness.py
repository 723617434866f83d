"""Informed embedding: write each bit of a mark as loud as the image's content requires.

Cox, Miller and McKellips, "Watermarking as communications with side information" (Proceedings of the IEEE 87(7),
1999): who writes a mark knows the image, and so how its content disturbs each bit. At the same image quality, a mark
is read better if bits that the content works against are louder than bits that it favours. Both networks that write
marks are linear in the bits, so a louder bit is a number below 0 or above 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from privgen.models.mappers import signs
from privgen.watermark.protocols import ExtractorLike, reader_as_drawn


FAINTEST, LOUDEST = 0.4, 2.0
"""Range of a bit's loudness; 1 is the loudness of an ordinary mark. No bit gets 0, because later changes of the image
disturb the bits anew."""

_BISECTIONS = 30


@torch.no_grad()
def loud_bits(bits: Tensor, canvases: Tensor, extractor: ExtractorLike, write: Callable[[Tensor], Tensor]) -> Tensor:
    """Return messages in which each bit is as loud as its image requires.

    Args:
        bits: (B, n_bits) of 0 and 1, or (1, n_bits) for all images.
        canvases: (B, 3, H, W) in [0, 1], without the mark.
        extractor: network that will read the marks.
        write: function of messages (B, n_bits) or (1, n_bits) that returns the canvases marked with them.

    Returns:
        (B, n_bits). A bit of loudness 1 stays 0 or 1. Louder bits lie farther from 0.5, fainter ones nearer to it. The
        mean squared loudness of each message is 1.
    """
    message = signs(bits).expand(len(canvases), -1)
    read = reader_as_drawn(extractor)
    before, after = read(canvases).float(), read(write(bits)).float()
    message = message.to(before)
    gain = (message * (after - before)).mean(dim=1, keepdim=True)
    # If the mark is not read at all, all bits get the same loudness.
    favour = torch.where(gain > 0, message * before / gain.clamp(min=1e-6), 0.0)
    return (1 + message * loudness(favour)) / 2


def loudness(favour: Tensor) -> Tensor:
    """Return the loudness of bits with which the weakest bits are read as well as possible.

    All bits of a message shall be read with the same margin. The loudness of a bit is the difference between that
    margin and what the content already adds. Bisection finds the margin.

    Args:
        favour: (B, n_bits), how much the content adds to each bit in the right direction, in units of a bit of
            loudness 1.

    Returns:
        (B, n_bits) in [`FAINTEST`, `LOUDEST`]. The mean square of each row is 1.
    """
    low, high = favour.amin(dim=1, keepdim=True), favour.amax(dim=1, keepdim=True) + LOUDEST
    for _ in range(_BISECTIONS):
        margin = (low + high) / 2
        enough = (margin - favour).clamp(FAINTEST, LOUDEST).square().mean(dim=1, keepdim=True) >= 1
        low, high = torch.where(enough, low, margin), torch.where(enough, margin, high)
    return (high - favour).clamp(FAINTEST, LOUDEST)

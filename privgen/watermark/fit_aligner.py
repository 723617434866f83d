"""What an aligner's encoder makes of marks and of content, measured."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from privgen.models.aligner import Aligner, whole
from privgen.models.watermark import signs


RIDGE = 0.03
"""Variance that is added to each latent value's, as a share of their mean: for content that was not measured."""

_TEMPERATURES = [2 ** (k / 4) for k in range(-8, 29)]


@dataclass(frozen=True, eq=False)
class View:
    """What is shown of B marked images, put back to its place.

    Attributes:
        marked: (B, 3, S, S) in [0, 1].
        opposite: the same images with each bit the other way round.
        seen: (B, 1, S, S) of 0 and 1.
        bits: (B, n_bits) of 0 and 1.
    """

    marked: Tensor
    opposite: Tensor
    seen: Tensor
    bits: Tensor


@torch.no_grad()
def fit_aligner(aligner: Aligner, views: Iterable[View]) -> None:
    """Set patterns, mean, variance and temperature from views, in place.

    Half the difference of an image and its opposite is the mark alone, half their sum the content alone; marks are
    linear enough.

    Args:
        aligner: its encoder is used as it is.
        views: some hundred images at least; values of latents that none of them shows are never read.
    """
    values = aligner.mean.numel()
    count, total, squares = (torch.zeros(values, dtype=torch.float64) for _ in range(3))
    patterns = torch.zeros(len(aligner.patterns), values, dtype=torch.float64)
    kept = []
    for view in views:
        one, other = aligner.encode(view.marked), aligner.encode(view.opposite)
        shown = whole(view.seen, (one.shape[2], one.shape[3])).double().cpu().repeat(1, one.shape[1])
        content, mark = (half.flatten(1).double().cpu() / 2 for half in (one + other, one - other))
        count += shown.sum(0)
        total += (content * shown).sum(0)
        squares += (content.square() * shown).sum(0)
        patterns += signs(view.bits).double().cpu().T @ (mark * shown)
        kept.append((one, view.seen, view.bits))
    known = count.clamp(min=1)
    mean = total / known
    variance = (squares / known - mean.square()).clamp(min=0)
    variance += RIDGE * variance[count > 0].mean()
    aligner.mean.copy_(mean)
    aligner.patterns.copy_(patterns / known)
    # What was never seen tells nothing.
    aligner.log_variance.copy_(torch.where(count > 0, variance, 1e6).log())
    aligner.log_temperature.zero_()
    logits = torch.cat([aligner.read(latents, seen) for latents, seen, _ in kept])
    bits = torch.cat([bits for *_, bits in kept]).to(logits)
    losses = {t: float(binary_cross_entropy_with_logits(logits / t, bits)) for t in _TEMPERATURES}
    aligner.log_temperature.fill_(math.log(min(losses, key=losses.__getitem__)))

"""How likely a correlation is by chance, in an image that does not carry the key's mark.

The noise of a key is complex normal, and the image does not depend on it. So for a fixed image, pose and shift, the
correlation of the key's pattern with the image's spectrum, divided by the norm of that spectrum, is a normal number of
mean 0 and variance 1. That is exact, for any image, and needs no calibration.

A search tries many poses and shifts, and keeps the best. All that it may try is fixed before a key is looked at: by
the image, which may say what poses are likely, and by the number of keys. The chance that any of N tries reaches z is
at most N times that of one (Bonferroni), whichever of them the search then skips. Neighbouring shifts and poses are
correlated, so the bound is strict.
"""

import math


IN_PLACE, ELSEWHERE = 2, 12
"""What each try counts: in the search where marks were written, and in the six other ones of
`privgen.watermark.tile.search`. The first gets half of the false-positive rate, the others share the other half."""


def normal_tail(z: float) -> float:
    """Return the probability that a standard normal number is z or more."""
    return 0.5 * math.erfc(z / math.sqrt(2))


def corrected(z: float, tries: int) -> float:
    """Return the p-value of the best of many correlations.

    Args:
        z: the correlation, in standard deviations.
        tries: how many could be tried: poses times shifts times bands.

    Returns:
        In [0, 1].
    """
    return min(1.0, tries * normal_tail(z))

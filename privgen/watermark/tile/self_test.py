"""Read a mark back right after it was written, to tell which images cannot carry one."""

from torch import Tensor

from privgen.watermark.tile.pattern import Pattern
from privgen.watermark.tile.search import FPR, detect_tiles


def unreadable_note(pixels: Tensor, pattern: Pattern) -> tuple[int, tuple[str, ...]]:
    """Return how many bits of a mark are read back, and a note if the mark is too weak to be found.

    Args:
        pixels: (3, H, W) in [0, 1], marked.
        pattern: of the key whose mark it is.
    """
    [[match]] = detect_tiles([pixels], [pattern], search=False)
    if match.p_value <= FPR:
        return match.matches, ()
    note = f"its mark can hardly be read back, {match.matches} of {len(match.bits)} bits: too small or too plain"
    return match.matches, (note,)

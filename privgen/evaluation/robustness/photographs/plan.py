"""What is measured on photographs, and on how many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from privgen.errors import UsageError
from privgen.evaluation.robustness.baselines import BASELINES, SLOW
from privgen.evaluation.robustness.photographs.contestants import NAME
from privgen.watermark.write.mark_spec import Carrier


PRESET = "photographs"
"""The name of the preset on the command line."""

N = 64
"""Photographs, if nothing else is asked for."""

NEGATIVES = 4
"""Of these, photographs that are read without a mark too."""

SLOW_N = 4
"""Photographs that slow baselines are measured on, at most."""

METHODS = (NAME, *BASELINES)
"""Names of all methods."""


@dataclass(frozen=True)
class PhotographsPlan:
    """What is measured on photographs, and on how many.

    Attributes:
        images: folder of the photographs; None is the packaged ones that no shipped model has seen.
        n: photographs, chosen at random, always the same ones; at least 2.
        negatives: photographs that go through the attacks without a mark too, each compared with its own key.
        seed: of keys and attacks.
        attacks: see `plan_photograph_attacks`; empty is all.
        methods: of `METHODS`; empty is all.
        baselines: whether the watermarks of other packages take part.
        carrier: what our marks are written with and read as; None is the default of each.
        robust_steps: see `privgen.Watermark.embed`.
        search: whether our marks are also looked for in parts of images, and in images that were turned or resized.
        perceptual: compare images by ST-LPIPS and FD-MNv2 too, where they are installed.
        seconds: measure how long a large photograph takes.

    Raises:
        UsageError: a number that is too small, or a method that does not exist.
    """

    images: Path | None = None
    n: int = N
    negatives: int = NEGATIVES
    seed: int = 0
    attacks: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    baselines: bool = True
    carrier: Carrier | None = None
    robust_steps: int = 0
    search: bool = True
    perceptual: bool = True
    seconds: bool = True

    def __post_init__(self) -> None:
        if self.n < 2:
            raise UsageError(f"--n must be at least 2, got {self.n}; intervals need more than one image.")
        if self.negatives < 1:
            raise UsageError(f"--negatives must be at least 1, got {self.negatives}.")
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise UsageError(
                f"No method of photographs is called {unknown[0]!r}; choose from {', '.join(METHODS)}, or name a "
                "carrier with --carrier."
            )
        if not self.chosen():
            raise UsageError("No method is left to measure; name one with --method, or leave --no-baselines out.")

    def chosen(self) -> list[str]:
        """Names of the methods, ours first."""
        allowed = METHODS if self.baselines else (NAME,)
        return [name for name in allowed if not self.methods or name in self.methods]

    def slow_n(self) -> int:
        """Photographs that slow baselines are measured on; all if one was asked for by name."""
        return self.n if any(name in SLOW for name in self.methods) else SLOW_N

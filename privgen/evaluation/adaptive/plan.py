"""What an adaptive evaluation measures, and on how much."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from privgen.attacks.adaptive.surrogate import FIT_STEPS
from privgen.watermark.write.mark_spec import Carrier


Source: TypeAlias = Literal["photographs", "generated"]
SOURCES: tuple[Source, ...] = get_args(Source)


@dataclass(frozen=True)
class AdaptivePlan:
    """Which marks are attacked, and how hard.

    Attributes:
        n: images to attack, at least 2; fewer if there are not as many photographs.
        seed: of the key, the images and the attacks.
        source: what the images are.
        carrier: what marks are written with; None is the model's own choice.
        collected: marked images of the key that the attacker has, at least 2, and as many unmarked ones.
        epsilons: largest changes of a pixel value by attacks that follow a gradient, in 1/255.
        steps: steps of these attacks.
        fit_steps: steps of the training of the surrogate extractor.
        heldout: folder of photographs to attack; None is the packaged held-out ones.
        training: folder of photographs that the attacker has; None is the packaged training ones.

    Raises:
        ValueError: n or `collected` below 2.
    """

    n: int = 20
    seed: int = 0
    source: Source = "photographs"
    carrier: Carrier | None = None
    collected: int = 100
    epsilons: tuple[float, ...] = (2.0, 4.0, 8.0)
    steps: int = 40
    fit_steps: int = FIT_STEPS
    heldout: Path | None = None
    training: Path | None = None

    def __post_init__(self) -> None:
        if self.n < 2 or self.collected < 2:
            raise ValueError(f"expected n and collected of at least 2, got {self.n} and {self.collected}")

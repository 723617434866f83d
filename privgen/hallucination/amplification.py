"""How the score is amplified: what `privgen.hallucination.scheduler` does to a scheduler's steps."""

from dataclasses import dataclass
from typing import Any, Literal, get_args


Gate = Literal["constant", "running_variance", "learned"]
GATES: tuple[Gate, ...] = get_args(Gate)
Window = tuple[float, float]


@dataclass(frozen=True)
class Amplification:
    """How the score is changed while sampling: s~ = s + (gamma - 1) g s, g in [0, 1] (arXiv 2606.00377).

    Attributes:
        gamma: factor of the score where the gate is 1; 1 is plain sampling.
        window: lowest and highest timestep to act at, both included, on the scale of 1000.
        gate: "constant" is g = 1; "running_variance" takes the variance of the last predictions of x_0, for each number of
            a sample; "learned" takes the network's learned variance (output of twice the channels).
        halfway: variance of x_0, in squared units of the data or latents, at which these gates are one half.
        memory: predictions that the running variance gate looks back on, this one included.
        eta: factor of the step's part across the sample in the window (arXiv 2510.04533); 1 is plain sampling. With a
            stochastic scheduler the step's noise is amplified as well.
    """

    gamma: float = 1.0
    window: Window = (0.0, 1000.0)
    gate: Gate = "constant"
    halfway: float = 0.01
    memory: int = 3
    eta: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", as_window(self.window, "window"))
        if self.gate not in GATES:
            raise ValueError(f"expected gate to be one of {', '.join(GATES)}, got {self.gate!r}")
        if not (self.gamma >= 0 and self.eta >= 0 and self.halfway > 0):
            raise ValueError(
                f"expected gamma and eta of at least 0 and halfway above 0, "
                f"got {self.gamma}, {self.eta} and {self.halfway}"
            )
        if self.memory < 2:
            raise ValueError(f"expected memory of at least 2 predictions, got {self.memory}")

    @property
    def is_identity(self) -> bool:
        """Whether sampling stays as it is."""
        return self.gamma == 1 and self.eta == 1

    def acts_at(self, timestep: float) -> bool:
        """Whether a timestep, on the scale of 1000, is in the window."""
        return self.window[0] <= timestep <= self.window[1]


def as_window(window: Any, name: str) -> Window:
    """Two timesteps on the scale of 1000, checked.

    Raises:
        ValueError: they are not low <= high in 0..1000; `name` says which.
    """
    low, high = (float(end) for end in window)
    if not 0 <= low <= high <= 1000:
        raise ValueError(f"expected {name} to be low <= high in 0..1000, got {low:g} and {high:g}")
    return low, high

"""Score amplification: its settings, and the maths of one step as functions of tensors.

The score of a noised sample is -eps / sigma, up to the scale of the sample. So the score grows by a factor when the
predicted noise does.

Sources: "Score-Control for Hallucination Reduction in Diffusion Models", arXiv 2606.00377; Cho et al., "Tangential
Amplifying Guidance", arXiv 2510.04533.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from privgen.diffusion.parameterisation import NoiseLevel, Prediction, predict_noise


Gate = Literal["constant", "running_variance", "learned"]
GATES: tuple[Gate, ...] = get_args(Gate)
Window = tuple[float, float]

MIN_ALPHA = 0.01
"""Steps with less of the data than this are not amplified: a larger score would only add noise."""


@dataclass(frozen=True)
class Amplification:
    """Settings of score amplification: s~ = s + (gamma - 1) g s with a gate g in [0, 1] (arXiv 2606.00377).

    Attributes:
        gamma: factor of the score where the gate is 1; 1 is plain sampling.
        window: lowest and highest timestep that is amplified, both included, on a scale of 1000 timesteps.
        gate: "constant" amplifies everything alike (g = 1). "running_variance" amplifies where the last predictions
            of x_0 differ. "learned" amplifies where the network's learned variance is large; the network then returns
            twice the channels of its input.
        halfway: variance of x_0 at which the last two gates are one half, in squared units of the data or latents.
        memory: how many predictions the gate "running_variance" compares, the present one included.
        eta: factor of the tangential part of the step (arXiv 2510.04533), in the window; 1 is plain sampling. It also
            amplifies the noise that a stochastic scheduler adds.
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

    def acts_at(self, timestep: float) -> bool:
        """Whether the window holds a timestep, given on a scale of 1000 timesteps."""
        return self.window[0] <= timestep <= self.window[1]


def as_window(window: Iterable[float], name: str) -> Window:
    """Check and convert a window of timesteps.

    Args:
        window: lowest and highest timestep, on a scale of 1000 timesteps.
        name: of the argument, for the error message.

    Raises:
        ValueError: the two are not low <= high in 0..1000.
    """
    low, high = (float(end) for end in window)
    if not 0 <= low <= high <= 1000:
        raise ValueError(f"expected {name} to be low <= high in 0..1000, got {low:g} and {high:g}")
    return low, high


def amplify_score(
    output: Tensor, sample: Tensor, level: NoiseLevel, prediction: Prediction, factor: Tensor | float
) -> Tensor:
    """The network output whose score is `factor` times as large.

    Args:
        output: of the network, the shape of `sample`.
        sample: x_t as the scheduler holds it.
        level: of `sample`.
        prediction: what the network predicts.
        factor: one number, or a tensor that broadcasts over `output`.

    Returns:
        The shape and dtype of `output`.
    """
    if prediction == "epsilon":
        return (output * factor).to(output.dtype)
    noise = predict_noise(output, sample, level, prediction).to(output.dtype)
    # x_t is fixed, so more noise means less x_0: d x_0 = -sigma / alpha d eps; for velocity and flow it is 1 / alpha.
    weight = -level.sigma / level.alpha if prediction == "sample" else 1 / level.alpha
    return (output + (factor - 1) * weight * noise).to(output.dtype)


def amplify_tangent(sample: Tensor, stepped: Tensor, eta: float) -> Tensor:
    """The step whose tangential part is `eta` times as large (arXiv 2510.04533).

    Args:
        sample: x_t before the step, (B, ...).
        stepped: x_{t-1} after the step, the same shape.
        eta: factor; 1 changes nothing, and the paper uses up to about 1.25.

    Returns:
        x_t + P d + eta (d - P d) for each sample, where d is the step and P projects on the direction of x_t.
    """
    x = sample.flatten(1).to(torch.promote_types(sample.dtype, torch.float32))
    step = stepped.flatten(1).to(x.dtype) - x
    norm = x.square().sum(1, keepdim=True)
    radial = (x * step).sum(1, keepdim=True) / torch.where(norm > 0, norm, torch.ones_like(norm)) * x
    return (stepped.to(x.dtype) + (eta - 1) * (step - radial).view_as(stepped)).to(stepped.dtype)


def uncertainty_gate(variance: Tensor, halfway: float) -> Tensor:
    """The gate variance / (variance + halfway): 0 where x_0 is certain, towards 1 where it is not.

    Args:
        variance: of x_0, any shape, in squared units of the data.
        halfway: the variance at which the gate is one half.
    """
    return variance / (variance + halfway)

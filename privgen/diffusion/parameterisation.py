"""What a network's output says about noise, picture and score, and how the score is made larger.

Everything here is a function of tensors. A noised sample is x_t = alpha x_0 + sigma eps, and the score is
-eps / sigma up to the sample's scale, so the score is amplified by a factor k when eps is.

Sources: Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239; "Score-Control for Hallucination
Reduction in Diffusion Models", arXiv 2606.00377; Cho et al., "Tangential Amplifying Guidance", arXiv 2510.04533.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor


Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)

MIN_ALPHA = 0.01
"""Below this a sample holds no data to speak of, and a larger score would only be more noise."""


@dataclass(frozen=True)
class NoiseLevel:
    """How a sample is made of data and noise: scale x_t = alpha x_0 + sigma eps.

    Attributes:
        alpha: share of the data, in [0, 1].
        sigma: share of the noise, in [0, 1].
        scale: from the scheduler's sample to what the network sees; 1 but for schedulers whose noise variance grows
            without bound, such as Euler's.
    """

    alpha: float
    sigma: float
    scale: float = 1.0


def predict_noise(output: Tensor, sample: Tensor, level: NoiseLevel, prediction: Prediction) -> Tensor:
    """The noise that an output speaks of.

    Args:
        output: of the network, the shape of `sample`.
        sample: x_t as the scheduler holds it.
        level: of the sample.
        prediction: what the network predicts, in Diffusers' words.

    Returns:
        eps, the shape of `sample`.
    """
    if prediction == "epsilon":
        return output
    x = sample * level.scale
    if prediction == "v_prediction":
        return level.alpha * output + level.sigma * x
    if prediction == "flow_prediction":
        return x + level.alpha * output
    return (x - level.alpha * output) / level.sigma


def predict_original(output: Tensor, sample: Tensor, level: NoiseLevel, prediction: Prediction) -> Tensor:
    """The x_0 that an output speaks of; arguments as for `predict_noise`."""
    if prediction == "sample":
        return output
    x = sample * level.scale
    if prediction == "epsilon":
        return (x - level.sigma * output) / level.alpha
    if prediction == "v_prediction":
        return level.alpha * x - level.sigma * output
    return x - level.sigma * output


def amplify_score(
    output: Tensor, sample: Tensor, level: NoiseLevel, prediction: Prediction, factor: Tensor | float
) -> Tensor:
    """The output whose noise, and so whose score, is `factor` times as large.

    A v-prediction and a flow both become output + (factor - 1) eps / alpha.

    Args:
        output: of the network, the shape of `sample`.
        sample: x_t as the scheduler holds it.
        level: of the sample.
        prediction: what the network predicts.
        factor: one number, or a tensor that broadcasts over `output`.

    Returns:
        The shape and dtype of `output`.
    """
    if prediction == "epsilon":
        return (output * factor).to(output.dtype)
    noise = predict_noise(output, sample, level, prediction).to(output.dtype)
    weight = -level.sigma / level.alpha if prediction == "sample" else 1 / level.alpha
    return (output + (factor - 1) * weight * noise).to(output.dtype)


def amplify_tangent(sample: Tensor, stepped: Tensor, eta: float) -> Tensor:
    """A step whose part across the sample is `eta` times as large; the part along it stays (arXiv 2510.04533).

    Args:
        sample: x_k before the step, (B, ...).
        stepped: x_{k-1} after it, the same shape.
        eta: 1 changes nothing; the paper uses up to about 1.25.

    Returns:
        x_k + P d + eta (d - P d), where d is the step and P projects on x_k, for each sample of the batch.
    """
    x = sample.flatten(1).to(torch.promote_types(sample.dtype, torch.float32))
    step = stepped.flatten(1).to(x.dtype) - x
    norm = x.square().sum(1, keepdim=True)
    along = (x * step).sum(1, keepdim=True) / torch.where(norm > 0, norm, torch.ones_like(norm)) * x
    return (stepped.to(x.dtype) + (eta - 1) * (step - along).view_as(stepped)).to(stepped.dtype)


def uncertainty_gate(variance: Tensor, halfway: float) -> Tensor:
    """Where to amplify: 0 where x_0 is certain, towards 1 where it is not.

    Args:
        variance: of x_0, any shape, in squared units of the data.
        halfway: the variance at which the gate is one half.

    Returns:
        variance / (variance + halfway).
    """
    return variance / (variance + halfway)


def posterior_variance_of_original(learned: Tensor, alpha_bar: float, alpha_bar_prev: float) -> Tensor:
    """Var[x_0 | x_t] that a learned variance stands for.

    The best variance of a reverse step is beta~_t + c^2 Var[x_0 | x_t], where c = sqrt(alpha_bar_{t-1}) beta_t /
    (1 - alpha_bar_t) is the weight of x_0 in the mean of q(x_{t-1} | x_t, x_0); this solves for the second term.

    Args:
        learned: the network's v of log sigma^2 = w log beta_t + (1 - w) log beta~_t, w = (v + 1) / 2 (arXiv
            2102.09672, eq. 15), any shape.
        alpha_bar: of timestep t.
        alpha_bar_prev: of timestep t - 1; 1 where there is none.

    Returns:
        The shape of `learned`, at least 0. At the last step (alpha_bar_prev 1) beta~ is 0 and tells nothing: 0.
    """
    beta = 1 - alpha_bar / alpha_bar_prev
    beta_tilde = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta
    if beta_tilde <= 0:
        return torch.zeros_like(learned)
    weight = alpha_bar_prev**0.5 * beta / (1 - alpha_bar)
    share = ((learned + 1) / 2).clamp(0, 1)
    return beta_tilde * ((beta / beta_tilde) ** share - 1) / weight**2

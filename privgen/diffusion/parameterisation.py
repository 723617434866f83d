"""Convert between the four things that a diffusion network can predict: noise, clean sample, velocity and flow.

A noised sample is x_t = alpha x_0 + sigma eps. From x_t and any one prediction follow both the noise eps and the clean
sample x_0, and from these two any other prediction. Everything here is a function of tensors.

| prediction      | the network's output      | noise levels          | source                            |
|-----------------|---------------------------|-----------------------|-----------------------------------|
| epsilon         | eps                       | alpha^2 + sigma^2 = 1 | arXiv 2006.11239                  |
| sample          | x_0                       | alpha^2 + sigma^2 = 1 | arXiv 2006.11239                  |
| v_prediction    | alpha eps - sigma x_0     | alpha^2 + sigma^2 = 1 | arXiv 2202.00512, appendix D      |
| flow_prediction | eps - x_0                 | alpha + sigma = 1     | arXiv 2210.02747, arXiv 2209.03003 |
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor


Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
PREDICTIONS: tuple[str, ...] = get_args(Prediction)


@dataclass(frozen=True)
class NoiseLevel:
    """How much of a sample is data and how much is noise: scale x_t = alpha x_0 + sigma eps.

    Attributes:
        alpha: factor of the data, in [0, 1]; a number, or a tensor that broadcasts over the samples.
        sigma: factor of the noise, in [0, 1], like `alpha`.
        scale: factor from the scheduler's sample to the network's input. It is 1 except for schedulers whose noise
            variance grows without bound, such as Euler's.
    """

    alpha: float | Tensor
    sigma: float | Tensor
    scale: float = 1.0

    @classmethod
    def from_alpha_bar(cls, alpha_bar: float | Tensor) -> "NoiseLevel":
        """The level of a variance-preserving sample, with alpha^2 = alpha_bar and sigma^2 = 1 - alpha_bar.

        Args:
            alpha_bar: in [0, 1], as Diffusers' schedulers keep it in `alphas_cumprod`.
        """
        return cls(alpha_bar**0.5, (1 - alpha_bar) ** 0.5)


def add_noise(original: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    """The noised sample x_t = (alpha x_0 + sigma eps) / scale.

    Args:
        original: x_0, any shape.
        noise: eps, the same shape.
        level: of the result.

    Returns:
        x_t as the scheduler holds it, the same shape.
    """
    return (level.alpha * original + level.sigma * noise) / level.scale


def prediction_target(original: Tensor, noise: Tensor, level: NoiseLevel, prediction: Prediction) -> Tensor:
    """What a perfect network returns for a noised sample.

    Args:
        original: x_0, any shape.
        noise: eps, the same shape.
        level: of the noised sample.
        prediction: what the network predicts, as Diffusers names it.

    Returns:
        The same shape.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return original
    if prediction == "v_prediction":
        return level.alpha * noise - level.sigma * original
    return noise - original


def predict_noise(output: Tensor, sample: Tensor, level: NoiseLevel, prediction: Prediction) -> Tensor:
    """The noise eps that a network's output implies.

    Args:
        output: of the network, the shape of `sample`.
        sample: x_t as the scheduler holds it.
        level: of `sample`; for "sample" predictions sigma must be above 0.
        prediction: what the network predicts, as Diffusers names it.

    Returns:
        eps, the shape of `sample`.
    """
    if prediction == "epsilon":
        return output
    x_t = sample * level.scale
    if prediction == "v_prediction":
        return level.alpha * output + level.sigma * x_t
    if prediction == "flow_prediction":
        return x_t + level.alpha * output
    return (x_t - level.alpha * output) / level.sigma


def predict_original(output: Tensor, sample: Tensor, level: NoiseLevel, prediction: Prediction) -> Tensor:
    """The clean sample x_0 that a network's output implies.

    Args:
        output: of the network, the shape of `sample`.
        sample: x_t as the scheduler holds it.
        level: of `sample`; for "epsilon" predictions alpha must be above 0.
        prediction: what the network predicts, as Diffusers names it.

    Returns:
        x_0, the shape of `sample`.
    """
    if prediction == "sample":
        return output
    x_t = sample * level.scale
    if prediction == "epsilon":
        return (x_t - level.sigma * output) / level.alpha
    if prediction == "v_prediction":
        return level.alpha * x_t - level.sigma * output
    return x_t - level.sigma * output

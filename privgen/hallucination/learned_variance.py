"""Loss of networks that also predict the variance of a reverse step: Diffusers' `variance_type` "learned_range".

Such a network returns twice the channels of its input: the prediction, and v. The variance of the reverse step is
log sigma^2 = w log beta_t + (1 - w) log beta~_t with w = (v + 1) / 2. Diffusers samples with it, but has no loss
for it.

Sources: Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv 2102.09672 (equations 15 and
16); the published penalty: "Score-Control for Hallucination Reduction in Diffusion Models", arXiv 2606.00377.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from privgen.diffusion.parameterisation import (
    NoiseLevel,
    Prediction,
    add_noise,
    predict_original,
    prediction_target,
)


Decoder = Literal["continuous", "discretized"]


@dataclass(frozen=True)
class HybridLoss:
    """Weights of the hybrid loss: squared error + vlb_weight * variational bound + penalties.

    The mean is detached in the bound, so that the bound trains the variance only.

    Attributes:
        vlb_weight: of the variational bound, summed over the timesteps, in nats per dimension; 0.001 as published.
        vsm: weight rho of the published penalty on the variance, which has no effect; see `vsm_penalty`.
        precision: weight of the penalty that has one; see `precision_penalty`.
        decoder: likelihood of the last step. "continuous" is a density, for latents and toy data. "discretized" is the
            probability of an 8-bit pixel value, for pixels in [-1, 1].

    Raises:
        ValueError: a weight is below 0, or there is no such decoder.
    """

    vlb_weight: float = 0.001
    vsm: float = 0.0
    precision: float = 0.0
    decoder: Decoder = "continuous"

    def __post_init__(self) -> None:
        if min(self.vlb_weight, self.vsm, self.precision) < 0:
            raise ValueError(f"expected weights of at least 0, got {self}")
        if self.decoder not in get_args(Decoder):
            raise ValueError(f"expected decoder to be one of {', '.join(get_args(Decoder))}, got {self.decoder!r}")


@dataclass(frozen=True)
class ReverseStep:
    """Constants of the reverse steps of a batch, each of shape (B, 1, ...) to broadcast over the samples.

    Attributes:
        level: noise level of x_t.
        log_beta: log beta_t, the largest variance.
        log_beta_tilde: log beta~_t, the smallest variance. At t = 0 it would be log 0; that of t = 1 takes its place.
        x_0_weight: weight of x_0 in the mean of q(x_{t-1} | x_t, x_0).
        x_t_weight: weight of x_t in it.
    """

    level: NoiseLevel
    log_beta: Tensor
    log_beta_tilde: Tensor
    x_0_weight: Tensor
    x_t_weight: Tensor

    @classmethod
    def at(cls, t: Tensor, alphas_cumprod: Tensor, like: Tensor) -> "ReverseStep":
        """The constants of a batch of timesteps.

        Args:
            t: (B,) integers, from 0.
            alphas_cumprod: alpha_bar_t of all timesteps, (T,).
            like: (B, ...), a tensor with the device, dtype and rank that the constants shall have.
        """
        now_all = alphas_cumprod.double()
        before_all = torch.cat([torch.ones_like(now_all[:1]), now_all[:-1]])
        beta_all = 1 - now_all / before_all
        tilde_all = beta_all * (1 - before_all) / (1 - now_all)
        if len(tilde_all) > 1:
            tilde_all[0] = tilde_all[1]
        else:
            tilde_all[0] = beta_all[0]
        t = t.to(now_all.device)
        now, before, beta, tilde = (values[t] for values in (now_all, before_all, beta_all, tilde_all))
        constants = (
            now.sqrt(),
            (1 - now).sqrt(),
            beta.log(),
            tilde.log(),
            before.sqrt() * beta / (1 - now),
            (1 - beta).sqrt() * (1 - before) / (1 - now),
        )
        shape = (-1, *(1,) * (like.ndim - 1))
        alpha, sigma, *others = (value.to(like.device, like.dtype).view(shape) for value in constants)
        return cls(NoiseLevel(alpha, sigma), *others)

    def log_variance(self, v: Tensor) -> Tensor:
        """The log variance that the network's v encodes (arXiv 2102.09672, eq. 15)."""
        w = (v + 1) / 2
        return w * self.log_beta + (1 - w) * self.log_beta_tilde

    def mean(self, x_0: Tensor, x_t: Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x_0)."""
        return self.x_0_weight * x_0 + self.x_t_weight * x_t


def hybrid_loss(
    output: Tensor,
    x_0: Tensor,
    noise: Tensor,
    t: Tensor,
    alphas_cumprod: Tensor,
    *,
    prediction: Prediction = "epsilon",
    settings: HybridLoss | None = None,
) -> dict[str, Tensor]:
    """The hybrid loss of each sample of a batch, and its parts.

    Args:
        output: of the network at x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, (B, 2 C, ...).
        x_0: clean samples, (B, C, ...).
        noise: standard normal, the same shape.
        t: timesteps, (B,) integers from 0.
        alphas_cumprod: alpha_bar_t of all timesteps, (T,), as Diffusers' schedulers keep it.
        prediction: what the first half of the output predicts: "epsilon", "v_prediction" or "sample".
        settings: the weights; by default those of `HybridLoss()`.

    Returns:
        "loss", the weighted sum, whose mean you minimise; and its parts before weighting: "mse", "vlb" (T times the
        bound's term of t, an unbiased estimate of the sum over all timesteps, in nats per dimension), "vsm" and
        "precision". Each is (B,).

    Raises:
        ValueError: `output` has not twice the channels of `x_0`, or `prediction` is another one.
    """
    settings = settings or HybridLoss()
    if output.shape[1] != 2 * x_0.shape[1] or output.shape[2:] != x_0.shape[2:]:
        raise ValueError(f"expected twice the channels of {tuple(x_0.shape)}, got {tuple(output.shape)}")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"expected epsilon, v_prediction or sample, got {prediction!r}")
    mean_output, v = output.chunk(2, dim=1)
    step = ReverseStep.at(t, alphas_cumprod, output)
    x_t = add_noise(x_0, noise, step.level)
    target = prediction_target(x_0, noise, step.level, prediction)
    original = predict_original(mean_output.detach(), x_t, step.level, prediction)
    bound = vlb_term(original, step.log_variance(v), x_0, x_t, t, step, decoder=settings.decoder)
    parts = {
        "mse": (mean_output - target).square().flatten(1).mean(1),
        "vlb": len(alphas_cumprod) * bound,
        "vsm": vsm_penalty(v, step),
        "precision": precision_penalty(v, step),
    }
    weights = {"mse": 1.0, "vlb": settings.vlb_weight, "vsm": settings.vsm, "precision": settings.precision}
    # A part of weight 0 is left out, since 0 times an overflow is not a number.
    loss = torch.stack([weights[name] * part for name, part in parts.items() if weights[name] > 0]).sum(0)
    return {"loss": loss, **parts}


def vlb_term(
    predicted_x_0: Tensor,
    log_variance: Tensor,
    x_0: Tensor,
    x_t: Tensor,
    t: Tensor,
    step: ReverseStep,
    *,
    decoder: Decoder = "continuous",
) -> Tensor:
    """The term L_t of the variational bound, for each sample of a batch.

    Args:
        predicted_x_0: the network's clean samples, (B, C, ...).
        log_variance: of the reverse step, the same shape.
        x_0: clean samples, the same shape.
        x_t: noised samples, the same shape.
        t: timesteps, (B,).
        step: constants of these timesteps.
        decoder: see `HybridLoss`.

    Returns:
        (B,) in nats per dimension: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, and -log p(x_0 | x_1) at
        t = 0.
    """
    means = step.mean(x_0, x_t), step.mean(predicted_x_0, x_t)
    ratio = step.log_beta_tilde - log_variance
    squared = (means[0] - means[1]).square() * torch.exp(-log_variance)
    terms = 0.5 * (torch.exp(ratio) - ratio - 1 + squared).flatten(1).mean(1)
    last = (t == 0).to(x_0.device)
    if bool(last.any()):
        likelihood = _discretized if decoder == "discretized" else _continuous
        # At t = 0 the mean of the reverse step is the predicted x_0 itself.
        terms[last] = likelihood(x_0[last], predicted_x_0[last], log_variance[last]).flatten(1).mean(1)
    return terms


def vsm_penalty(v: Tensor, step: ReverseStep) -> Tensor:
    """The published penalty mean(1 / (1 + sigma^-4)) / sqrt(1 - alpha_bar) (arXiv 2606.00377), (B,).

    It has no effect. Over all v in [-1, 1] it changes by less than 1e-6 at the timesteps of the usual schedules:
    sigma^4 is tiny where beta and beta~ differ, and where it is not, they are nearly equal.
    """
    variance = torch.exp(step.log_variance(v))
    return (variance.square() / (1 + variance.square()) / step.level.sigma).flatten(1).mean(1)


def precision_penalty(v: Tensor, step: ReverseStep) -> Tensor:
    """One minus the relative precision beta~_t / sigma^2 of the reverse step, (B,), in [0, 1).

    It pulls towards the smallest variance of a reverse step, that of a certain x_0. It has an effect wherever beta and
    beta~ differ: at small t, where hallucinations are decided. It does not pull v below -1.
    """
    return (1 - torch.exp(step.log_beta_tilde - step.log_variance(v.clamp_min(-1)))).flatten(1).mean(1)


def posterior_variance_of_original(learned: Tensor, alpha_bar: float, alpha_bar_previous: float) -> Tensor:
    """Var[x_0 | x_t] as a learned variance implies it.

    The best variance of a reverse step is beta~_t + c^2 Var[x_0 | x_t], where c = sqrt(alpha_bar_{t-1}) beta_t /
    (1 - alpha_bar_t) is the weight of x_0 in the mean of q(x_{t-1} | x_t, x_0). This solves for the second term.

    Args:
        learned: the network's v, any shape; see the top of this file.
        alpha_bar: of timestep t.
        alpha_bar_previous: of timestep t - 1; 1 if t is 0.

    Returns:
        The shape of `learned`, at least 0. It is 0 at t = 0, where beta~ is 0 and v tells nothing.
    """
    beta = 1 - alpha_bar / alpha_bar_previous
    beta_tilde = (1 - alpha_bar_previous) / (1 - alpha_bar) * beta
    if beta_tilde <= 0:
        return torch.zeros_like(learned)
    weight = alpha_bar_previous**0.5 * beta / (1 - alpha_bar)
    w = ((learned + 1) / 2).clamp(0, 1)
    return beta_tilde * ((beta / beta_tilde) ** w - 1) / weight**2


def _continuous(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    return 0.5 * (math.log(2 * math.pi) + log_variance + (x - mean).square() * torch.exp(-log_variance))


def _discretized(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the Gaussian's probability of an 8-bit value; the first and the last value take the tails."""
    scale = torch.exp(-0.5 * log_variance)
    upper = torch.special.ndtr((x - mean + 1 / 255) * scale)
    lower = torch.special.ndtr((x - mean - 1 / 255) * scale)
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return -(upper - lower).clamp_min(1e-12).log()

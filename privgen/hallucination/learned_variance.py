"""Training of networks that also predict the variance of a reverse step, for Diffusers' `variance_type` learned_range.

The network has twice the channels of its input: the prediction, and v, where log sigma^2 = w log beta_t + (1 - w)
log beta~_t and w = (v + 1) / 2. Diffusers samples with it and has no loss for it.

Sources: Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models", arXiv 2102.09672 (equations 15 and
16, importance sampling in section 3.3); the published penalty: "Score-Control for Hallucination Reduction in
Diffusion Models", arXiv 2606.00377.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from privgen.diffusion.parameterisation import Prediction


Decoder = Literal["continuous", "discretized"]


@dataclass(frozen=True)
class HybridLoss:
    """L_simple + vlb_weight * VLB, the latter with the mean detached, and penalties.

    Attributes:
        vlb_weight: of the variational bound, summed over the timesteps, in nats a number; 0.001 as published.
        vsm: weight rho of the published penalty on the variance. It is inert: see `vsm_penalty`.
        precision: weight of the penalty that works: see `precision_penalty`.
        decoder: of the last step: "continuous" is a density, for latents and toys; "discretized" the probability of
            the pixel's 8-bit value, for pixels in [-1, 1].
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
    """Constants of the reverse steps of a batch, each (B, 1, ...) to broadcast over samples.

    Attributes:
        alpha: sqrt(alpha_bar_t).
        sigma: sqrt(1 - alpha_bar_t).
        log_beta: log beta_t, the largest variance.
        log_beta_tilde: log beta~_t, the smallest; at t = 0, where it would be 0, that of t = 1.
        x_0_weight: of x_0 in the mean of q(x_{t-1} | x_t, x_0).
        x_t_weight: of x_t in it.
    """

    alpha: Tensor
    sigma: Tensor
    log_beta: Tensor
    log_beta_tilde: Tensor
    x_0_weight: Tensor
    x_t_weight: Tensor

    @classmethod
    def at(cls, t: Tensor, alphas_cumprod: Tensor, like: Tensor) -> "ReverseStep":
        """Those of timesteps.

        Args:
            t: (B,) integers, from 0.
            alphas_cumprod: alpha_bar_t of all timesteps, (T,).
            like: (B, ...): what the constants broadcast over, and their device and dtype.
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
        return cls(*(value.to(like.device, like.dtype).view(shape) for value in constants))

    def log_variance(self, v: Tensor) -> Tensor:
        """Log sigma^2 that the network's v stands for (arXiv 2102.09672, eq. 15)."""
        w = (v + 1) / 2
        return w * self.log_beta + (1 - w) * self.log_beta_tilde

    def mean(self, x_0: Tensor, x_t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0)."""
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
    """The loss of each sample of a batch.

    Args:
        output: of the network at x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise, (B, 2 C, ...).
        x_0: (B, C, ...).
        noise: the same shape.
        t: (B,) integers, from 0.
        alphas_cumprod: alpha_bar_t of all timesteps, as Diffusers' schedulers keep them, (T,).
        prediction: what the first half of the output predicts: "epsilon", "v_prediction" or "sample".
        settings: weights.

    Returns:
        "loss" and its parts "mse", "vlb" (the bound's term of t times T, an unbiased estimate of the sum over all
        timesteps, in nats a number), "vsm" and "precision" before their weights, each (B,); take the mean of "loss".

    Raises:
        ValueError: an output that has not twice the channels, or another prediction.
    """
    settings = settings or HybridLoss()
    if output.shape[1] != 2 * x_0.shape[1] or output.shape[2:] != x_0.shape[2:]:
        raise ValueError(f"expected twice the channels of {tuple(x_0.shape)}, got {tuple(output.shape)}")
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ValueError(f"expected epsilon, v_prediction or sample, got {prediction!r}")
    mean_output, v = output.chunk(2, dim=1)
    step = ReverseStep.at(t, alphas_cumprod, output)
    x_t = step.alpha * x_0 + step.sigma * noise
    target = {"epsilon": noise, "sample": x_0, "v_prediction": step.alpha * noise - step.sigma * x_0}[prediction]
    original = _original(mean_output.detach(), x_t, step, prediction)
    bound = vlb_term(original, step.log_variance(v), x_0, x_t, t, step, decoder=settings.decoder)
    parts = {
        "mse": (mean_output - target).square().flatten(1).mean(1),
        "vlb": len(alphas_cumprod) * bound,
        "vsm": vsm_penalty(v, step),
        "precision": precision_penalty(v, step),
    }
    weights = {"mse": 1.0, "vlb": settings.vlb_weight, "vsm": settings.vsm, "precision": settings.precision}
    # Not 0 * x: what is not asked for shall not spoil the loss where it overflows.
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
    """The term L_t of the variational bound.

    Args:
        predicted_x_0: (B, C, ...).
        log_variance: of the reverse step, the same shape.
        x_0: the same shape.
        x_t: the same shape.
        t: (B,).
        step: constants of these timesteps.
        decoder: see `HybridLoss`.

    Returns:
        (B,) in nats a number: KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) for t > 0, and -log p(x_0 | x_1) at 0.
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
    """The published penalty, mean(1 / (1 + sigma^-4)) / sqrt(1 - alpha_bar) (arXiv 2606.00377), (B,).

    It is inert: whatever v in [-1, 1] is, it changes by less than 1e-6 at any timestep of the usual schedules, because
    sigma^4 is tiny where beta and beta~ differ, and they are alike where it is not.
    """
    variance = torch.exp(step.log_variance(v))
    return (variance.square() / (1 + variance.square()) / step.sigma).flatten(1).mean(1)


def precision_penalty(v: Tensor, step: ReverseStep) -> Tensor:
    """1 - the relative precision beta~_t / sigma^2, (B,), in [0, 1); nothing is to be gained by v below -1.

    It asks for the smallest variance that a reverse step can have, that of a certain x_0, and has an effect wherever
    beta and beta~ differ: at the small t where hallucinations are decided.
    """
    return (1 - torch.exp(step.log_beta_tilde - step.log_variance(v.clamp_min(-1)))).flatten(1).mean(1)


class LossAwareTimesteps:
    """Importance sampling of timesteps: p_t in proportion to sqrt(E[L_t^2]) (arXiv 2102.09672, eq. 18).

    Args:
        timesteps: T.
        history: losses that are kept of each timestep; until all have as many, t is uniform.
    """

    def __init__(self, timesteps: int, *, history: int = 10) -> None:
        self.losses = torch.zeros(timesteps, history, dtype=torch.float64)
        self.counts = torch.zeros(timesteps, dtype=torch.long)

    def probabilities(self) -> Tensor:
        """Of the timesteps, (T,); none is below 0.1 % of the uniform one."""
        timesteps, history = self.losses.shape
        uniform = torch.full((timesteps,), 1 / timesteps, dtype=torch.float64)
        if bool((self.counts < history).any()):
            return uniform
        weights = self.losses.square().mean(1).sqrt()
        return 0.999 * weights / weights.sum() + 0.001 * uniform

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Timesteps, (n,), and the weights of their losses, (n,), that keep the mean loss what it is."""
        p = self.probabilities()
        t = torch.multinomial(p, n, replacement=True, generator=generator)
        return t, (1 / (len(p) * p[t])).float()

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Take note of the losses, (n,), at timesteps (n,)."""
        for index, loss in zip(t.tolist(), losses.detach().double().cpu().tolist(), strict=True):
            self.losses[index, self.counts[index] % self.losses.shape[1]] = loss
            self.counts[index] += 1


def _original(output: Tensor, x_t: Tensor, step: ReverseStep, prediction: Prediction) -> Tensor:
    if prediction == "sample":
        return output
    if prediction == "epsilon":
        return (x_t - step.sigma * output) / step.alpha
    return step.alpha * x_t - step.sigma * output


def _continuous(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    return 0.5 * (math.log(2 * math.pi) + log_variance + (x - mean).square() * torch.exp(-log_variance))


def _discretized(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the Gaussian's probability of the 8-bit value; the outermost ones take what is beyond."""
    scale = torch.exp(-0.5 * log_variance)
    upper = torch.special.ndtr((x - mean + 1 / 255) * scale)
    lower = torch.special.ndtr((x - mean - 1 / 255) * scale)
    upper = torch.where(x > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(x < -0.999, torch.zeros_like(lower), lower)
    return -(upper - lower).clamp_min(1e-12).log()

"""Marks on existing images by text alone: the carrier `token` for a photograph that no prompt has made.

"Your Text Encoder Can Be An Object-Level Watermarking Controller" (arXiv 2503.11945) marks the images that it
generates. Here a photograph enters the same loop late. It is encoded, noised to the first timestep at or below tau of
the sampling schedule, and denoised twice, without and with the token, deterministically (DDIM). The difference of the
two results is the mark.
"""

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from privgen.diffusion.latents import encode
from privgen.diffusion.sampling import GUIDANCE, Sampling
from privgen.diffusion.unrolled_ddim import Schedule, UnrolledDDIM
from privgen.watermark.token import DEFAULT_TAU, Token, check_tau, encode_with_token
from privgen.watermark.write.residual import decoded_difference


@torch.no_grad()
def token_residuals(
    canvases: Tensor,
    token: Token | Tensor,
    *,
    pipe: DiffusionPipeline,
    generator: torch.Generator | list[torch.Generator],
    negative_token: Tensor | None = None,
    prompt: str = "",
    tau: float = DEFAULT_TAU,
    sampling: Sampling = Sampling(guidance_scale=GUIDANCE),  # noqa: B008 - a frozen value
) -> Tensor:
    """What a token changes in images that are noised to tau and denoised.

    Args:
        canvases: (B, 3, S, S) in [0, 1].
        token: a token; or embeddings, (vectors, dim), or (B, vectors, dim) for one per image.
        pipe: Stable Diffusion 1 or 2, or mini; it is left as it was.
        generator: draws the noise; a list has one for each image.
        negative_token: embeddings for the negative prompt, of the token's shape; by default the token's own, if it has
            any.
        prompt: what the photographs show; empty means that nothing is known.
        tau: the token acts on timesteps t <= tau, of 1000.
        sampling: the steps of the whole schedule, of which only those at or below tau are done, and the guidance scale
            of the token against the empty prompt.

    Returns:
        (B, 3, S, S) float32, on the autoencoder's device.

    Raises:
        UsageError: the prompt leaves no room, or the model's scheduler is not of the DDPM family.
        ValueError: tau is out of range, or no timestep is at or below it.
    """
    if isinstance(token, Token) and negative_token is None:
        negative_token = token.negative
    marked = encode_with_token(pipe, [prompt] * len(canvases), token)
    plain, empty = (plain_embeds(pipe, text).expand_as(marked) for text in (prompt, ""))
    negative = empty if negative_token is None else encode_with_token(pipe, [""] * len(canvases), negative_token)
    schedule = Schedule.of(pipe.scheduler)
    timesteps = timesteps_below(pipe, tau, sampling.steps)
    z_0 = encode(pipe.vae, canvases)
    alpha = schedule.alpha(timesteps[0])
    noise = randn_tensor(z_0.shape, generator=generator, device=z_0.device, dtype=z_0.dtype)
    z_t = alpha**0.5 * z_0 + (1 - alpha) ** 0.5 * noise
    scale = GUIDANCE if sampling.guidance_scale is None else sampling.guidance_scale
    guided = UnrolledDDIM(pipe.unet, schedule, scale, checkpointing=False)
    # Without a prompt the plain prediction is the unguided one, at half the cost.
    reference = guided if prompt else UnrolledDDIM(pipe.unet, schedule, 1.0, checkpointing=False)
    without = reference.run(z_t, timesteps, plain, empty)[-1]
    with_token = guided.run(z_t, timesteps, marked, negative)[-1]
    return decoded_difference(pipe.vae, without, with_token)


def plain_embeds(pipe: DiffusionPipeline, prompt: str) -> Tensor:
    """Embeddings of a prompt without a token, (1, length, dim)."""
    embeds: Tensor = pipe.encode_prompt(prompt, pipe.device, 1, do_classifier_free_guidance=False)[0]
    return embeds


def timesteps_below(pipe: DiffusionPipeline, tau: float, steps: int) -> list[int]:
    """The training timesteps of the sampling schedule at which the token acts when an image is generated."""
    check_tau(tau)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    scale = 1000 / scheduler.config.num_train_timesteps
    below = [int(t) for t in scheduler.timesteps if float(t) * scale <= tau]
    if not below:
        raise ValueError(
            f"expected one of {steps} timesteps at or below tau = {tau:g}; use more steps or a larger tau"
        )
    return below

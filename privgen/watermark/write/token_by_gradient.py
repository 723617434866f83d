"""One token learned for one key, everything else frozen: the paper's own method.

"Your Text Encoder Can Be An Object-Level Watermarking Controller" (arXiv 2503.11945):

    L = lambda_w * BCE(extractor(attack(D(z_0))), m) + lambda_z * mean_t || z_t - z_t_ref ||^2

z_t is the trajectory with the token, unrolled with gradients from tau down; z_t_ref starts at the same z_tau and has
no token. || . ||^2 is the mean over a latent's elements.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from privgen.diffusion.unrolled_ddim import Schedule, UnrolledDDIM, decode_images, frozen
from privgen.errors import PrivgenError, UsageError
from privgen.watermark.key import Key
from privgen.watermark.protocols import ExtractorLike, key_bits
from privgen.watermark.token import DEFAULT_TAU, Token, check_tau, encode_with_token, text_models


class Attack(Protocol):
    """Images to attacked images, differentiable; the attacks of `privgen.attacks` are such."""

    def __call__(self, images: Tensor, /, *, generator: Sequence[torch.Generator]) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to the same, with one generator for each image."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class OptimiseOptions:
    """How a token is learned.

    Attributes:
        steps: of the optimiser, AdamW without weight decay.
        tau: the token acts on timesteps t <= tau, on the scale of 1000.
        vectors: embeddings of the token.
        lambda_w: weight of the message's cross-entropy.
        lambda_z: weight of the latent loss.
        lr: learning rate, in units of the embedding.
        guidance_scale: of classifier-free guidance, with and without the token.
        unrolled_steps: DDIM steps from tau to the clean latents, through which gradients flow.
        batch_size: samples a step, over all processes.
        start: where z_tau comes from. "chain" runs the plain chain from noise down to tau, once, and returns to these
            latents in every epoch: what generation will meet. "renoise" runs it down to clean latents and draws new
            noise for every visit: more variety from as many chains, and what marking of existing images meets.
        starts: how many chains are run before the first step; prompts take turns. One for each prompt by default.
        start_steps: DDIM steps of each chain.
        checkpointing: recompute U-Net and decoder in the backward pass, for half the memory or less.
        attack: changes the images between decoder and extractor, so that the mark learns to survive it. It must be
            differentiable.
        init: embedding (vectors, dim) to begin with, such as a mapper's token for the key; None draws random numbers
            of the mean and spread of the text encoder's own embeddings.

    Raises:
        ValueError: a number out of its range.
    """

    steps: int = 500
    tau: int = DEFAULT_TAU
    vectors: int = 1
    lambda_w: float = 100.0
    lambda_z: float = 100.0
    lr: float = 1e-2
    guidance_scale: float = 7.5
    unrolled_steps: int = 2
    batch_size: int = 1
    start: Literal["chain", "renoise"] = "chain"
    starts: int | None = None
    start_steps: int = 20
    checkpointing: bool = True
    attack: Attack | None = None
    init: Token | Tensor | None = None

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_tau(self.tau)
        counts = ("steps", "vectors", "unrolled_steps", "batch_size", "start_steps", "starts")
        for name in counts:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"expected {name} >= 1, got {value}")
        if self.lr <= 0 or self.lambda_w < 0 or self.lambda_z < 0:
            raise ValueError(f"expected lr > 0 and weights >= 0, got {self.lr}, {self.lambda_w} and {self.lambda_z}")
        if self.start not in ("chain", "renoise"):
            raise ValueError(f"expected start to be chain or renoise, got {self.start!r}")


@dataclass(frozen=True)
class OptimiseStep:
    """Figures of one step, means over its batch.

    Attributes:
        step: counted from 0.
        loss: the weighted sum.
        message_loss: cross-entropy of the message, in nats a bit.
        latent_loss: mean square of the change of the latents.
        bit_accuracy: share of the bits read right, after the attack.
    """

    step: int
    loss: float
    message_loss: float
    latent_loss: float
    bit_accuracy: float


@dataclass(frozen=True)
class OptimiseResult:
    """A token and how it was learned.

    Attributes:
        token: the last step's.
        history: one entry for each step.
    """

    token: Token
    history: tuple[OptimiseStep, ...]


def optimise_token(
    pipe: DiffusionPipeline,
    extractor: ExtractorLike,
    key: Key,
    *,
    prompts: Sequence[str],
    options: OptimiseOptions | None = None,
    generator: torch.Generator | None = None,
    accelerator: Accelerator | None = None,
    progress: Callable[[OptimiseStep], None] | None = None,
) -> OptimiseResult:
    """Learn a token for a key.

    Only the embedding learns. The pipeline's and extractor's parameters and their training modes are, when this
    returns or raises, as they were before.

    Args:
        pipe: text to image, of the Stable Diffusion 1 or 2 family; any scheduler of the DDPM family.
        extractor: images to message logits, differentiable.
        key: whose message.
        prompts: what the token is learned with, appended to them.
        options: how the token is learned.
        generator: of all randomness, on the CPU; one with PyTorch's fixed default seed by default.
        accelerator: of a run on several processes; each takes a part of the batch, and the result is that of one
            process up to rounding.
        progress: called after each step.

    Raises:
        ValueError: no prompts.
        UsageError: a prompt leaves no room for the token, the token to begin with is of another shape, the attack or
            the extractor has no gradients, or the pipeline is of another kind.
        PrivgenError: the loss is not finite.
    """
    options = options or OptimiseOptions()
    if not prompts:
        raise ValueError("expected at least one prompt, got none")
    modules = [module for module in (*pipe.components.values(), extractor) if isinstance(module, nn.Module)]
    with frozen(modules), torch.enable_grad():
        task = _Objective(pipe, extractor, key, list(prompts), options, generator or torch.Generator())
        embedding = nn.Parameter(task.first_embedding())
        history = tuple(_learn(task, embedding, accelerator, progress))
    metadata = {"method": "optimised", "base_model": _name_of(pipe)}
    return OptimiseResult(Token(embedding, key.key_id, options.tau, metadata=metadata), history)


def _learn(
    task: "_Objective",
    embedding: nn.Parameter,
    accelerator: Accelerator | None,
    progress: Callable[[OptimiseStep], None] | None,
) -> Iterator[OptimiseStep]:
    """Take the steps; every process draws the whole batch and works on its part."""
    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator is not None else (0, 1)
    optimiser = torch.optim.AdamW([embedding], lr=task.options.lr, weight_decay=0.0)
    for step in range(task.options.steps):
        optimiser.zero_grad()
        figures = torch.zeros(4, device=embedding.device)
        for sample in task.draw()[rank::processes]:
            loss, *others = task.losses(embedding, *sample)
            (loss / task.options.batch_size).backward()
            figures += torch.stack([loss.detach(), *others]) / task.options.batch_size
        gradient = embedding.grad if embedding.grad is not None else torch.zeros_like(embedding)
        if accelerator is not None:
            gradient, figures = (accelerator.reduce(value, "sum") for value in (gradient, figures))
        embedding.grad = gradient
        record = OptimiseStep(step, *figures.tolist())
        if not torch.isfinite(figures).all() or not torch.isfinite(gradient).all():
            raise PrivgenError(f"The loss is not finite at step {step}; use a lower lr, or float32.")
        optimiser.step()
        if progress is not None:
            progress(record)
        yield record


class _Objective:
    """What stays the same over all steps: message, plain embeddings, starting points."""

    def __init__(
        self,
        pipe: Any,
        extractor: ExtractorLike,
        key: Key,
        prompts: list[str],
        options: OptimiseOptions,
        generator: torch.Generator,
    ) -> None:
        self.pipe, self.extractor, self.prompts = pipe, extractor, prompts
        self.options, self.generator = options, generator
        text_models(pipe)  # refuses pipelines of another kind before anything is computed
        self.device = pipe._execution_device
        self.message = key_bits([key], extractor)
        self.denoiser = UnrolledDDIM(
            pipe.unet, Schedule.of(pipe.scheduler), options.guidance_scale, checkpointing=options.checkpointing
        )
        first = self.denoiser.schedule.timestep(options.tau)
        falling = torch.linspace(first, 0, options.unrolled_steps + 1)[:-1].round().int().tolist()
        self.timesteps = list(dict.fromkeys(max(t, 1) for t in falling))
        with torch.no_grad():
            embeds, negative = pipe.encode_prompt(prompts, self.device, 1, options.guidance_scale > 1)
            self.embeds, self.negative = embeds, embeds if negative is None else negative
            self.starts = [self._start(index) for index in range(options.starts or len(prompts))]

    def first_embedding(self) -> Tensor:
        """(vectors, dim) float32."""
        init = self.options.init
        table = self.pipe.text_encoder.get_input_embeddings().weight.detach().float()
        shape = (self.options.vectors, table.shape[1])
        if init is None:
            noise = randn_tensor(shape, generator=self.generator, device=table.device)
            return (table.mean(0) + table.std(0) * noise).to(self.device)
        given = (init.embedding if isinstance(init, Token) else init).detach()
        if tuple(given.shape) != shape:
            had, needed = (" of ".join(map(str, sizes)) for sizes in (given.shape, shape))
            raise UsageError(
                f"The token to begin with has {had.replace(' of ', ' vectors of ')} numbers, and {needed} are needed; "
                "give another number of vectors, or a token of this model."
            )
        return given.to(self.device, torch.float32, copy=True)

    def draw(self) -> list[tuple[int, torch.Generator]]:
        """Starting points of a batch, each with a generator for what it meets."""
        size = (self.options.batch_size,)
        picks = torch.randint(len(self.starts), size, generator=self.generator).tolist()
        seeds = torch.randint(2**62, size, generator=self.generator).tolist()
        return [(pick, torch.Generator().manual_seed(seed)) for pick, seed in zip(picks, seeds, strict=True)]

    def losses(self, embedding: Tensor, pick: int, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Loss of one sample with its gradient, then message loss, latent loss and bit accuracy without."""
        prompt = pick % len(self.prompts)
        plain, negative = self.embeds[prompt : prompt + 1], self.negative[prompt : prompt + 1]
        z_tau = self._z_tau(pick, generator)
        with torch.no_grad():
            reference = self.denoiser.run(z_tau, self.timesteps, plain, negative)
        marked = encode_with_token(self.pipe, self.prompts[prompt], embedding)
        trajectory = self.denoiser.run(z_tau, self.timesteps, marked, negative)
        latent_loss = torch.stack([mse_loss(*pair) for pair in zip(trajectory, reference, strict=True)]).mean()
        images = decode_images(self.pipe.vae, trajectory[-1], checkpointing=self.options.checkpointing)
        if self.options.attack is not None:
            images = self.options.attack(images, generator=[generator])
        logits = self.extractor(images.to(self.message.device)).float()
        if not logits.requires_grad:
            raise UsageError(
                "No gradients flow through the attack or the extractor; use attacks that are differentiable."
            )
        message_loss = binary_cross_entropy_with_logits(logits, self.message).to(self.device)
        accuracy = ((logits > 0) == (self.message > 0)).float().mean().to(self.device)
        loss = self.options.lambda_w * message_loss + self.options.lambda_z * latent_loss
        return loss, message_loss.detach(), latent_loss.detach(), accuracy

    def _start(self, index: int) -> Tensor:
        """Plain latents (1, C, h, w): at tau, or clean ones that are yet to be noised."""
        prompt, config = index % len(self.prompts), self.pipe.unet.config
        size = config.sample_size
        shape = (1, config.in_channels, *((size, size) if isinstance(size, int) else size))
        z = randn_tensor(shape, generator=self.generator, device=self.device, dtype=torch.float32)
        last = None if self.options.start == "renoise" else self.timesteps[0]
        top = len(self.denoiser.schedule.alphas) - 1
        falling = torch.linspace(top, last or 0, self.options.start_steps + 1)[:-1].round().int().tolist()
        timesteps = [t for t in dict.fromkeys(falling) if t > (last or 0)]
        embeds, negative = (values[prompt : prompt + 1] for values in (self.embeds, self.negative))
        return self.denoiser.run(z, timesteps, embeds, negative, end=last)[-1] if timesteps else z

    def _z_tau(self, pick: int, generator: torch.Generator) -> Tensor:
        z = self.starts[pick]
        if self.options.start == "chain":
            return z
        alpha = self.denoiser.schedule.alpha(self.timesteps[0])
        noise = randn_tensor(z.shape, generator=generator, device=z.device, dtype=z.dtype)
        return alpha**0.5 * z + (1 - alpha) ** 0.5 * noise


def _name_of(pipe: DiffusionPipeline) -> str:
    """The model, without the folders that its user keeps it in."""
    origin = str(getattr(pipe.config, "_name_or_path", None) or "")
    if not origin:
        return type(pipe).__name__
    return Path(origin).name if Path(origin).is_dir() else origin

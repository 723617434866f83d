"""How adversaries learn: the training loop of Diffusers' examples, on copies that share what is not learnt."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from privgen.diffusion.parameterisation import PREDICTIONS, NoiseLevel, add_noise, prediction_target
from privgen.errors import PrivgenError, UsageError
from privgen.io.progress import Bar


@dataclass(frozen=True, eq=False)
class Learner:
    """A pipeline in training.

    Attributes:
        pipeline: a copy of the given pipeline. Its `parts` are its own, all else it shares with the given one.
        parts: names of the components that hold what is learnt.
        parameters: what is learnt.
    """

    pipeline: Any
    parts: tuple[str, ...]
    parameters: Sequence[nn.Parameter]

    def snapshot(self) -> Any:
        """The pipeline as it is now; training goes on without changing it."""
        dtype = self.pipeline.vae.dtype
        return with_parts(
            self.pipeline, **{name: copy_network(getattr(self.pipeline, name), dtype) for name in self.parts}
        )


@dataclass(frozen=True, eq=False)
class Examples:
    """Latents with prompts that may describe them.

    Attributes:
        latents: (N, C, h, w) float32, scaled.
        prompts: for each of the latents the prompts that fit it; one of them is drawn whenever it is learnt.
        weight: factor of their loss.
    """

    latents: Tensor
    prompts: tuple[tuple[str, ...], ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Optimisation:
    """How long and how fast to learn.

    Attributes:
        efforts: numbers of training steps after which to stop and look, in rising order.
        lr: learning rate of AdamW, without decay of weights.
        batch_size: examples a step, of each set of examples.
        progress: whether to show a progress bar on standard error.
    """

    efforts: tuple[int, ...]
    lr: float
    batch_size: int
    progress: bool = False


def check_pipeline(pipeline: Any) -> None:
    """Check that a pipeline is one that the adversaries can train.

    Raises:
        UsageError: it is not of the family of Stable Diffusion 1 and 2: one UNet, one CLIP text encoder.
    """
    needed = ("unet", "text_encoder", "tokenizer", "vae", "scheduler")
    missing = [name for name in needed if getattr(pipeline, name, None) is None]
    if missing or getattr(pipeline, "text_encoder_2", None) is not None:
        raise UsageError(
            f"Adversaries train pipelines like Stable Diffusion 1 and 2, with a UNet and one text encoder; this "
            f"{type(pipeline).__name__} {'has no ' + missing[0] if missing else 'has several text encoders'}."
        )
    kind = pipeline.scheduler.config.get("prediction_type", "epsilon")
    if not hasattr(pipeline.scheduler, "alphas_cumprod") or kind not in PREDICTIONS[:3]:
        raise UsageError(f"Adversaries cannot train with the scheduler {type(pipeline.scheduler).__name__} ({kind}).")
    if pipeline.unet.config.in_channels != pipeline.vae.config.latent_channels:
        raise UsageError("Adversaries train text-to-image models; this UNet takes more than latents (inpainting?).")


def with_parts(pipeline: Any, **parts: Any) -> Any:
    """A pipeline like the given one but for some parts; it has its own scheduler, and shares the other components."""
    other = copy.copy(pipeline)
    other.register_modules(**{"scheduler": copy.deepcopy(pipeline.scheduler), **parts})
    return other


def share_network(network: nn.Module) -> Any:
    """A frozen copy of a network in the same memory: new modules, but the weights are those of the given network."""
    memo = {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in network.parameters()}
    return copy.deepcopy(network, {**memo, **{id(buffer): buffer for buffer in network.buffers()}})


def copy_network(network: nn.Module, dtype: torch.dtype) -> Any:
    """A frozen copy of a network in training: learnt weights are copied, the others of this type are shared."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in network.buffers()}
    for weight in network.parameters():
        values = weight.detach().to(dtype, copy=True) if weight.requires_grad else weight.detach().to(dtype)
        memo[id(weight)] = nn.Parameter(values, requires_grad=False)
    return copy.deepcopy(network, memo)


def train(
    learner: Learner, sets: Sequence[Examples], how: Optimisation, generator: torch.Generator
) -> Iterator[tuple[int, Any]]:
    """Train, and yield what has been learnt after each effort.

    Each step draws examples, prompts, timesteps and noise, and takes one step down the mean squared error of the
    network's prediction, summed over the sets of examples.

    Args:
        learner: what is trained.
        sets: of examples; each step takes a batch from every one.
        how: steps, rate and batch size.
        generator: where all randomness comes from.

    Yields:
        (effort, pipeline): see `Learner.snapshot`.

    Raises:
        PrivgenError: the loss is not finite.
    """
    for parameter in learner.parameters:
        parameter.data = parameter.data.float()
    optimizer = torch.optim.AdamW(learner.parameters, lr=how.lr, weight_decay=0)
    encode = _encoder(learner)
    # Small gradients vanish in float16 unless the loss is scaled up.
    half = learner.pipeline.vae.dtype == torch.float16
    scaler = torch.amp.GradScaler(learner.pipeline.vae.device.type, enabled=half)
    done = 0
    with Bar(total=how.efforts[-1], desc="learning", unit="step", disable=not how.progress) as bar:
        for effort in how.efforts:
            for _ in range(done, effort):
                with torch.enable_grad():
                    loss = sum(
                        (part.weight * _loss(learner.pipeline, part, encode, how.batch_size, generator))
                        for part in sets
                    )
                    assert isinstance(loss, Tensor)
                    scaler.scale(loss).backward()
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise PrivgenError(
                        f"The loss is {value}, so nothing can be learnt; lower the learning rate ({how.lr:g})."
                    )
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad(set_to_none=True)
                bar.set_postfix(loss=f"{value:.3f}", refresh=False)
                bar.update()
            done = effort
            yield effort, learner.snapshot()


def _encoder(learner: Learner) -> Callable[[list[str]], Tensor]:
    """From prompts to embeddings; prompts are encoded only once if the text encoder does not learn."""
    pipe = learner.pipeline
    known: dict[str, Tensor] = {}

    def encode(prompts: list[str]) -> Tensor:
        return pipe.encode_prompt(prompts, pipe.unet.device, 1, False)[0]

    def remember(prompts: list[str]) -> Tensor:
        with torch.no_grad():
            known.update({prompt: encode([prompt]) for prompt in set(prompts) - set(known)})
        return torch.cat([known[prompt] for prompt in prompts])

    return encode if "text_encoder" in learner.parts else remember


def _loss(
    pipe: Any, examples: Examples, encode: Callable[[list[str]], Tensor], size: int, generator: torch.Generator
) -> Tensor:
    place, dtype = pipe.unet.device, pipe.vae.dtype

    def whole(limit: int) -> Tensor:
        return torch.randint(limit, (size,), generator=generator, device=generator.device).cpu()

    chosen = whole(len(examples.latents))
    latents = examples.latents[chosen].to(place)
    fitting = [examples.prompts[i] for i in chosen.tolist()]
    prompts = [texts[i % len(texts)] for texts, i in zip(fitting, whole(2**31).tolist(), strict=True)]
    timesteps = whole(len(pipe.scheduler.alphas_cumprod))
    noise = torch.randn(latents.shape, generator=generator, device=generator.device).to(place)
    alpha_bar = pipe.scheduler.alphas_cumprod.cpu()[timesteps].float().view(-1, 1, 1, 1).to(place)
    level = NoiseLevel.from_alpha_bar(alpha_bar)
    target = prediction_target(latents, noise, level, pipe.scheduler.config.get("prediction_type", "epsilon"))
    noised = add_noise(latents, noise, level).to(dtype)
    with torch.autocast(place.type, dtype, enabled=dtype != torch.float32):
        embeds = encode(prompts)
        output = pipe.unet(noised, timesteps.to(place), encoder_hidden_states=embeds, return_dict=False)[0]
    return mse_loss(output.float(), target)

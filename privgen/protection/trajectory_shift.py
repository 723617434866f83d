"""Protect images by a shift of their trajectory through a diffusion model.

"Latent Diffusion Unlearning: Protecting Against Unauthorized Personalization Through Trajectory Shifted Perturbations"
(arXiv 2510.03089): an image is encoded and inverted to noise, a small network shifts the noise, and a few denoising
steps and the decoder turn it into an image again. The network is trained so that a frozen model learns this image
worse, within a budget of visibility.

This is the paper's idea, not its published code. That code noises images where it should invert them, steps a velocity
model with a scheduler for noise, and lets no gradient through denoising. Here the inversion is real, gradients flow
through all steps, and the multiplier of the budget is found by dual ascent.
"""

import math
import os
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from privgen.diffusion.latents import decode, encode
from privgen.diffusion.unrolled_ddim import UnrolledDDIM
from privgen.errors import PrivgenError, UsageError
from privgen.hub import find_extra, load_extra
from privgen.io.fingerprints import file_fingerprint
from privgen.models.initialise import seeded_weights
from privgen.models.loading import explained
from privgen.models.shift_network import ShiftNetwork
from privgen.protection.inversion import Inversion, denoise, inversion_timesteps, invert
from privgen.protection.method import Method
from privgen.protection.objectives import DenoisingTask, Draw
from privgen.protection.surrogate import Surrogate, to_working_size


Delivery = Literal["residual", "decoded"]
DELIVERIES: tuple[str, ...] = get_args(Delivery)

_STEEPEST_DB = 6.0  # largest excess that one dual update sees, so that images far from the budget do not overshoot


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The way of images through a frozen diffusion model, to noise and back.

    Attributes:
        task: what the model learns when it is fine-tuned on images.
        timesteps: of denoising, in descending order.
    """

    task: DenoisingTask
    timesteps: tuple[int, ...]

    @classmethod
    def of_pipeline(cls, pipe: Any, n: int) -> "Trajectory":
        """The way through a pipeline's model in n denoising steps, with the empty prompt.

        Args:
            pipe: of the family of Stable Diffusion 1 and 2.
            n: number of steps.

        Raises:
            UsageError: the model is of another family.
        """
        task = DenoisingTask.of(pipe)
        return cls(task, tuple(inversion_timesteps(task.schedule, n)))

    @property
    def ddim(self) -> UnrolledDDIM:
        """The model's denoising steps, without guidance."""
        return UnrolledDDIM(self.task.unet, self.task.schedule, guidance_scale=1.0)

    def to(self, device: torch.device) -> "Trajectory":
        """The same, with its tensors where the model now is."""
        return replace(self, task=replace(self.task, prompt_embeds=self.task.prompt_embeds.to(device)))

    @torch.no_grad()
    def begin(self, pixels: Tensor) -> "Beginning":
        """Invert images (B, 3, H, W) in [0, 1], and send them back without a shift."""
        z_0 = encode(self.task.vae, pixels)
        inversion = invert(z_0, self.ddim, self.timesteps, self.task.prompt_embeds)
        return Beginning(inversion, self._back(inversion.noise, inversion))

    def change(
        self, pixels: Tensor, beginning: "Beginning", network: ShiftNetwork, delivery: Delivery = "residual"
    ) -> Tensor:
        """Return how a shift changes images.

        Args:
            pixels: (B, 3, H, W) in [0, 1].
            beginning: of these images.
            network: computes the shift.
            delivery: "residual" is the difference that the shift makes to the round trip, which is exactly zero for a
                new network. "decoded" is the paper's: from the image to the decoder's output, with what the
                autoencoder loses. That alone is about 30 dB, too visible to be of use.

        Returns:
            (B, 3, H, W), to be added to the images.
        """
        noise = beginning.inversion.noise
        shifted = self._back(noise + network(noise), beginning.inversion)
        return shifted - (beginning.round_trip if delivery == "residual" else pixels)

    def loss(self, pixels: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """The loss by which a personalised model learns images, of the frozen model.

        Args:
            pixels: (B, 3, H, W) in [0, 1].
            times: (B, D), training timesteps of D draws an image.
            noise: (B, D, C, h, w), their noise.

        Returns:
            (B,), mean squared error of the model's prediction, over draws.
        """
        z = _sparing(lambda x: encode(self.task.vae, x), pixels).repeat_interleave(times.shape[1], dim=0)
        draw = Draw(times.flatten(), noise.flatten(0, 1))
        return _sparing(lambda latents: self.task.loss(latents, draw), z).view(times.shape).mean(dim=1)

    def draw(self, shape: torch.Size, draws: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw times (D,), spread evenly over the schedule, and noise (D, C, h, w), for `loss` of one image."""
        places = (torch.arange(draws) + torch.rand(draws, generator=generator)) / draws
        top = len(self.task.schedule.alphas)
        return (places * top).long().clamp(max=top - 1), torch.randn(draws, *shape, generator=generator)

    def _back(self, noise: Tensor, inversion: Inversion) -> Tensor:
        z_0 = denoise(noise, self.ddim, self.timesteps, self.task.prompt_embeds, inversion.residuals)
        return _sparing(lambda z: decode(self.task.vae, z), z_0)


@dataclass(frozen=True, eq=False)
class Beginning:
    """Images, inverted.

    Attributes:
        inversion: their noise.
        round_trip: (B, 3, H, W), what comes back from it without a shift.
    """

    inversion: Inversion
    round_trip: Tensor


def excess_db(change: Tensor, psnr: float) -> Tensor:
    """By how many dB changes (B, 3, H, W) exceed the budget that a PSNR sets, (B,); negative within the budget."""
    return psnr + 10 * torch.log10(change.square().mean(dim=(1, 2, 3)) + 1e-10)


def lagrangian(loss: Tensor, excess: Tensor, multiplier: Tensor | float) -> Tensor:
    """What training minimises: -L + lambda relu(excess), mean over images; a number.

    Args:
        loss: (B,), of the model that is to learn the images.
        excess: (B,), in dB beyond the budget.
        multiplier: lambda, at least 0.
    """
    return (multiplier * excess.relu() - loss).mean()


def ascend(multiplier: Tensor, excess: Tensor, rate: float) -> Tensor:
    """The multiplier after one step of dual ascent: it rises while images exceed the budget, and falls after.

    Args:
        multiplier: lambda, a number, at least 0.
        excess: (B,), in dB beyond the budget.
        rate: rise of lambda for each dB.
    """
    mean = excess.detach().clamp(-_STEEPEST_DB, _STEEPEST_DB).mean()
    return (multiplier + rate * mean).clamp(min=0)


@dataclass(frozen=True, repr=False)
class TrajectoryShift(Method):
    """Shifts the trajectory of images through the surrogate, by a trained network or by one optimised for each image.

    Args:
        steps: of optimisation for each image, from the trained network if there is one, else from no shift; 0 uses
            the trained network as it is.
        size: short side in pixels at which to work, a multiple of 8; None is the model's own size.
        n: denoising steps. The network is trained for 4.
        network: folder of a trained `ShiftNetwork`, such as `privgen train shift` makes; None is the one of the
            model, if it has one.
        delivery: "residual" or "decoded", see `Trajectory.change`.
        draws: draws of time and noise in each step of optimisation.
        learning_rate: of the optimisation.
        dual_rate: rise of the budget's multiplier in each step, for each dB.
    """

    name: ClassVar[str] = "shift"

    steps: int = 30
    _: KW_ONLY
    size: int | None = None
    n: int = 4
    network: str | os.PathLike[str] | None = None
    delivery: Delivery = "residual"
    draws: int = 4
    learning_rate: float = 1e-4
    dual_rate: float = 0.003

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, least in (("steps", 0), ("n", 1), ("draws", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{self.name}: expected {name} >= {least}, got {getattr(self, name)}")
        if self.size is not None and (self.size < 16 or self.size % 8):
            raise ValueError(f"{self.name}: expected a size of at least 16 that is a multiple of 8, got {self.size}")
        if self.delivery not in DELIVERIES:
            raise ValueError(f"{self.name}: expected delivery {' or '.join(DELIVERIES)}, got {self.delivery!r}")

    def made_by(self) -> str:
        if self.network is None:
            return repr(self)
        return f"{self!r}, weights={file_fingerprint(Path(self.network) / SAFETENSORS_WEIGHTS_NAME)[:16]}"

    def prepare(self, surrogate: Surrogate) -> None:
        Trajectory.of_pipeline(surrogate.pipeline, self.n)
        self._trained(surrogate)

    def change(self, pixels: Tensor, surrogate: Surrogate, rms: float, generator: torch.Generator) -> Tensor:
        canvas = surrogate.canvas
        x = to_working_size(pixels.to(surrogate.device), self.size or canvas.size)
        trajectory = Trajectory.of_pipeline(surrogate.pipeline, self.n)
        beginning = trajectory.begin(x)
        network = self._trained(surrogate)
        if network is None:
            with seeded_weights(int(torch.randint(2**31, (), generator=generator))):
                network = ShiftNetwork(canvas.channels)
            network.to(x.device)
        self._optimise(network, trajectory, beginning, x, rms, generator)
        with torch.no_grad():
            return trajectory.change(x, beginning, network, self.delivery)

    def _optimise(
        self,
        network: ShiftNetwork,
        trajectory: Trajectory,
        beginning: Beginning,
        pixels: Tensor,
        rms: float,
        generator: torch.Generator,
    ) -> None:
        """Train the network on one image."""
        multiplier, psnr = torch.zeros((), device=pixels.device), -20 * math.log10(rms)
        optimizer = torch.optim.Adam(network.requires_grad_(True).parameters(), lr=self.learning_rate)
        for _ in range(self.steps):
            drawn = trajectory.draw(beginning.inversion.noise.shape[1:], self.draws, generator)
            times, noise = (value[None].to(pixels.device) for value in drawn)
            with torch.enable_grad():
                change = trajectory.change(pixels, beginning, network, self.delivery)
                changed = (pixels + change).clamp(0, 1)
                excess = excess_db(changed - pixels, psnr)
                value = lagrangian(trajectory.loss(changed, times, noise), excess, multiplier)
                optimizer.zero_grad()
                value.backward()
            optimizer.step()
            multiplier = ascend(multiplier, excess, self.dual_rate)

    def _trained(self, surrogate: Surrogate) -> ShiftNetwork | None:
        """The network to begin with; None to begin with a new one.

        Raises:
            PrivgenError: it cannot be read, is for other latents, or is missing and needed.
        """
        if self.network is not None:
            with explained(os.fspath(self.network), "load the shift network in"):
                network = ShiftNetwork.from_pretrained(self.network, use_safetensors=True, local_files_only=True)
            network.to(surrogate.device)
        else:
            try:
                find_extra("shift", surrogate.model)
            except PrivgenError as error:
                if self.steps:
                    return None
                raise PrivgenError(
                    f"The model {os.fspath(surrogate.model)} has no shift network; train one with `privgen train "
                    "shift`, or take steps of optimisation for each image."
                ) from error
            network = load_extra("shift", surrogate.model, device=surrogate.placement.device)
        if network.config.channels != surrogate.canvas.channels:
            raise UsageError(
                f"The shift network is for latents of {network.config.channels} channels, and those of the model have "
                f"{surrogate.canvas.channels}; train one for this model with `privgen train shift`."
            )
        return network


def _sparing(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    """Call a function so that its activations are computed again in the backward pass, which saves memory."""
    if not torch.is_grad_enabled():
        return function(value)
    result: Tensor = checkpoint(function, value, use_reentrant=False)
    return result

"""What differs between model families: sizes, latents, text encoders, attention, prediction.

All other files ask here, so that none of them knows a number of one model.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, log
from typing import Any, Literal

import torch

from privgen.diffusion.latents import scale, shift
from privgen.errors import UsageError


Attention = Literal["cross", "joint"]
FamilyName = Literal["stable-diffusion", "stable-diffusion-xl", "stable-diffusion-3", "flux"]


@dataclass(frozen=True)
class Canvas:
    """The square that a model draws on and a mark spans; other images are resized to it before they are read.

    Attributes:
        size: side in pixels.
        patch: side in pixels of what one latent shows.
        channels: of the latents.
    """

    size: int
    patch: int
    channels: int

    @property
    def latents(self) -> int:
        """Side in latents."""
        return self.size // self.patch

    @property
    def values(self) -> int:
        """How many numbers the latents of one canvas are."""
        return self.channels * self.latents**2

    def of_aspect(self, height: float, width: float, count: int = 1) -> list[tuple[int, int]]:
        """Heights and widths in pixels of the canvases that are nearest to an image's aspect ratio, nearest first.

        Their sides are multiples of a 16th of the square's, as the sizes that models are trained on; and they have
        between .9 and 1.05 times its pixels. They are few, so a small error of the ratio mostly changes nothing.

        Args:
            height: of the image.
            width: of the image.
            count: how many.
        """
        area = (self.size / self._unit) ** 2
        longest = round(1.05 * area)
        sizes = [(h, w) for h in range(1, longest + 1) for w in range(ceil(0.9 * area / h), int(1.05 * area / h) + 1)]
        sizes.sort(key=lambda size: abs(log(size[0] / size[1]) - log(height / width)))
        return [(self._unit * h, self._unit * w) for h, w in sizes[:count]]

    def rounded(self, height: float, width: float) -> tuple[int, int]:
        """The nearest height and width that are multiples of a 16th of the square's side, in whole latents."""
        return self._unit * max(1, round(height / self._unit)), self._unit * max(1, round(width / self._unit))

    @property
    def _unit(self) -> int:
        return self.patch * max(1, round(self.size / (16 * self.patch)))

    @classmethod
    def of_vae(cls, vae: Any, size: int | None = None) -> "Canvas":
        """The canvas of an autoencoder.

        Args:
            vae: Diffusers' `AutoencoderKL` or `AutoencoderTiny`.
            size: side in pixels; by default what the autoencoder's configuration says.

        Raises:
            UsageError: the configuration says no size, and none is given.
        """
        side = size or getattr(vae.config, "sample_size", None)
        if side is None:
            raise UsageError(f"The configuration of this {type(vae).__name__} says no image size; pass one.")
        return cls(int(side), patch_of(vae), int(vae.config.latent_channels))

    @classmethod
    def of_pipeline(cls, pipe: Any) -> "Canvas":
        """The canvas of a text-to-image pipeline.

        Args:
            pipe: with a `unet` or `transformer`, and a `vae`.

        Raises:
            UsageError: the pipeline says no image size.
        """
        network = getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)
        latents = getattr(getattr(network, "config", None), "sample_size", None)
        latents = latents or getattr(pipe, "default_sample_size", None)
        if latents is None:
            raise UsageError(f"This {type(pipe).__name__} says no image size.")
        side = latents if isinstance(latents, int) else latents[0]
        return cls.of_vae(pipe.vae, int(side) * patch_of(pipe.vae))

    @classmethod
    def of_reader(cls, network: Any) -> "Canvas":
        """The canvas that an extractor or aligner reads."""
        config = network.config
        return cls(int(config.size), _halvings(config.block_out_channels), int(config.latent_channels))


@dataclass(frozen=True)
class TextEncoder:
    """One of a family's text encoders.

    Attributes:
        name: of the component, such as "text_encoder".
        tokenizer: name of its tokenizer's component.
        prompt: name of the argument of the pipeline's call that it reads, which is "prompt" where that is left out.
        start: place of its first token among those that the image attends to; None if the image attends to none.
    """

    name: str
    tokenizer: str
    prompt: str
    start: int | None = 0

    def width(self, pipe: Any) -> int:
        """Numbers of one embedding in its input table."""
        return int(getattr(pipe, self.name).get_input_embeddings().weight.shape[1])

    def max_tokens(self, pipe: Any) -> int:
        """Most tokens of a prompt, those of its beginning and end included."""
        limits = [getattr(pipe, self.tokenizer).model_max_length]
        positions = getattr(getattr(pipe, self.name).config, "max_position_embeddings", None)
        return int(min([*limits, *([positions] if positions else [])]))


@dataclass(frozen=True)
class Family:
    """What the models of a family have in common.

    Attributes:
        name: of the family.
        denoiser: name of the component that predicts noise.
        attention: "cross", where image attends to text in layers of its own, or "joint", where both attend to both.
        attention_layers: how the names of these layers end in the denoiser.
        text_encoders: in the order in which they are run.
    """

    name: FamilyName
    denoiser: Literal["unet", "transformer"]
    attention: Attention
    attention_layers: str
    text_encoders: tuple[TextEncoder, ...]


_CLIP, _CLIP_2, _T5_2, _T5_3 = (
    TextEncoder(f"text_encoder{n}", f"tokenizer{n}", f"prompt{n}", start)
    for n, start in (("", 0), ("_2", 0), ("_2", 0), ("_3", 77))
)

FAMILIES: Mapping[FamilyName, Family] = {
    family.name: family
    for family in (
        # Stable Diffusion 1 and 2, and mini.
        Family("stable-diffusion", "unet", "cross", "attn2", (_CLIP,)),
        Family("stable-diffusion-xl", "unet", "cross", "attn2", (_CLIP, _CLIP_2)),
        # The tokens of T5 follow the 77 of both CLIPs, which lie side by side.
        Family("stable-diffusion-3", "transformer", "joint", "attn", (_CLIP, _CLIP_2, _T5_3)),
        # CLIP says only in one vector what the whole prompt says.
        Family("flux", "transformer", "joint", "attn", (replace(_CLIP, start=None), _T5_2)),
    )
}
"""The families by name."""


@dataclass(frozen=True)
class Model:
    """What one model is made of.

    Attributes:
        family: that it belongs to.
        canvas: what it draws on.
        latent_scale: factor from the autoencoder's latents to those that are denoised.
        latent_shift: what is subtracted before.
        prediction: what the denoiser predicts, in Diffusers' words; "flow_prediction" for flow matching.
    """

    family: Family
    canvas: Canvas
    latent_scale: float
    latent_shift: float
    prediction: str


def family_of(pipe: Any) -> Family:
    """The family of a pipeline, by its components.

    Raises:
        UsageError: none of `FAMILIES` has these components.
    """
    has = {
        name
        for name in ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
        if hasattr(pipe, name)
    }
    for family in FAMILIES.values():
        if has == {family.denoiser, *(encoder.name for encoder in family.text_encoders)}:
            return family
    raise UsageError(
        f"{type(pipe).__name__} belongs to no family that privgen knows ({', '.join(FAMILIES)}); its components are "
        f"{', '.join(sorted(has)) or 'of other names'}."
    )


def describe_model(pipe: Any) -> Model:
    """Read off a pipeline's components what its model is made of.

    Args:
        pipe: a text-to-image pipeline.

    Raises:
        UsageError: it belongs to no family of `FAMILIES`, or says no image size.
    """
    flow = not hasattr(pipe.scheduler, "alphas_cumprod")
    prediction = "flow_prediction" if flow else pipe.scheduler.config.get("prediction_type", "epsilon")
    return Model(family_of(pipe), Canvas.of_pipeline(pipe), scale(pipe.vae), shift(pipe.vae), prediction)


def attention_layers(pipe: Any) -> dict[str, torch.nn.Module]:
    """The layers of a pipeline's denoiser in which the image attends to the text, by name.

    Raises:
        UsageError: see `family_of`.
    """
    family = family_of(pipe)
    named = getattr(pipe, family.denoiser).named_modules()
    return {name: layer for name, layer in named if name.split(".")[-1] == family.attention_layers}


def patch_of(vae: Any) -> int:
    """Side in pixels of what one latent of an autoencoder shows."""
    widths = getattr(vae.config, "encoder_block_out_channels", None) or vae.config.block_out_channels
    return _halvings(widths)


def _halvings(widths: Any) -> int:
    """Each level of an encoder but the last halves the side."""
    return int(2 ** (len(widths) - 1))

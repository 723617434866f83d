"""The extractor: image to message logits."""

from typing import Any, Self

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from privgen.models.family import Canvas
from privgen.models.latent_encoder import FIELDS, build_encoder, canvases_of, encoder_config, encoder_state


LEAST_VARIANCE = 0.01
"""Smallest variance that filter outputs of content are taken to have; a mark gives them the values -1 and 1."""

_LOUD = (4.0, 8.0)  # mean squares of whitened logits between which whitening fades; few unmarked images reach them
_QUIET = 1e-6  # added to squared logits, so that logits of 0 have a power
_TIMESTEP = 20  # of 1000: little noise; here the denoiser starts to learn to read


class Extractor(ModelMixin, ConfigMixin):
    """Reads a message from an image: the encoder of an autoencoder, linear filters on its latents, and a U-Net.

    Marks are written in the latents, so they are read there ("Your Text Encoder Can Be An Object-Level Watermarking
    Controller", https://huggingface.co/papers/2503.11945, pre-training of the extractor). There is one filter for each
    bit. It gives -1 or 1 for a mark, and noise for the image's content. Further filters, the pilots, respond to
    content only; they estimate the variance of that noise in the image at hand, and logits are divided by it.

    To a linear filter, content is noise. A U-Net that was first trained to denoise the latents knows what content
    looks like. It adds to the logits; this helps where little is left of a mark.

    Whitening makes the logits of unmarked images unbiased and uncorrelated, but it mixes bits. It fades out where
    logits are louder than those of most unmarked images; there it only scales them.

    Args:
        n_bits: bits of a message.
        size: side in pixels to which every image is resized before it is read.
        latent_channels: channels of the latents.
        block_out_channels: widths of the encoder's levels; each level but the last halves the side.
        layers_per_block: see `privgen.models.latent_encoder.build_encoder`.
        norm_num_groups: groups of the encoder's group normalisation; None where it has none.
        mid_block_attention: whether the middle of the encoder has attention.
        pilots: number of filters that measure the noise.
        unet_config: configuration of a `UNet2DConditionModel` on the autoencoder's latents; None leaves it out.
        context_length: tokens of the empty text that the U-Net is conditioned on.
    """

    @register_to_config
    def __init__(
        self,
        n_bits: int,
        size: int,
        latent_channels: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: int | tuple[int, ...],
        norm_num_groups: int | None,
        mid_block_attention: bool,
        pilots: int,
        unet_config: dict[str, Any] | None = None,
        context_length: int = 1,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(self.config)
        # The mark is fixed to the canvas, so each filter has weights of its own for each place.
        values = Canvas.of_reader(self).values
        self.filters = nn.Linear(values, n_bits + pilots)
        self.unet: Any = None
        if unet_config is not None:
            self.unet_encoder = build_encoder(self.config)
            self.unet = UNet2DConditionModel.from_config(unet_config)
            self.readout = nn.Linear(values, n_bits, bias=False)
            # An exponent: the louder the filters read a mark, the less the U-Net has to add.
            self.trust = nn.Parameter(torch.zeros(()))
            self.context: Tensor
            self.register_buffer("context", torch.zeros(1, context_length, self.unet.config.cross_attention_dim))
        self.mean: Tensor
        self.whitening: Tensor
        self.register_buffer("mean", torch.zeros(n_bits))
        self.register_buffer("whitening", torch.eye(n_bits))

    @classmethod
    def from_vae(cls, vae: Any, n_bits: int, pilots: int, *, size: int | None = None) -> Self:
        """An extractor whose encoder gives the scaled latents of an autoencoder; its filters are untrained.

        Args:
            vae: Diffusers' `AutoencoderKL` or `AutoencoderTiny`; its encoder is copied.
            n_bits: bits of a message.
            pilots: number of filters that measure the noise.
            size: side in pixels; by default what the autoencoder's configuration says.
        """
        extractor = cls(n_bits=n_bits, pilots=pilots, **encoder_config(vae, size))
        extractor.encoder.load_state_dict(encoder_state(vae))
        return extractor

    @torch.no_grad()
    def with_unet(self, vae: AutoencoderKL, unet: UNet2DConditionModel, context: Tensor, patterns: Tensor) -> Self:
        """A copy that has a denoiser as its U-Net, which adds nothing before it is trained.

        Args:
            vae: the autoencoder that the denoiser was trained with; its encoder is copied.
            unet: predicts noise, or something equivalent.
            context: (1, length, dim), the embedding of an empty text.
            patterns: (n_bits, C, h, w), what each bit of a mark adds to latents. The U-Net is read out along them.
        """
        extractor = type(self)(**_fields(self) | {"unet_config": _fields(unet), "context_length": context.shape[1]})
        state = extractor.state_dict() | self.state_dict()
        state |= {"context": context, "readout.weight": F.normalize(patterns.flatten(1), dim=1)}
        for name, weights in (("unet", unet.state_dict()), ("unet_encoder", encoder_state(vae))):
            state |= {f"{name}.{key}": value for key, value in weights.items()}
        for name in ("unet.conv_out.weight", "unet.conv_out.bias"):
            state[name] = torch.zeros_like(state[name])
        extractor.load_state_dict(state)
        return extractor.to(self.filters.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Read images.

        Args:
            images: (B, 3, H, W) in [0, 1], any H and W.

        Returns:
            Logits (B, n_bits); a positive one reads as bit 1.
        """
        bits, variance = self.filter_logits(self.encode(images))
        logits = 2 * bits / variance
        if self.unet is not None:
            power = logits.square().mean(dim=1, keepdim=True) + _QUIET
            logits = power ** self.trust.float() * logits + self.denoiser_logits(images)
        return self.apply_whitening(logits)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1], any H and W, to latents (B, C, h, w)."""
        latents: Tensor = self.encoder(canvases_of(images, self.config, self.filters.weight))
        return latents

    def denoiser_logits(self, images: Tensor) -> Tensor:
        """What the U-Net adds to the logits of images.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Returns:
            (B, n_bits). Only for extractors that have a U-Net.
        """
        latents = self.unet_encoder(canvases_of(images, self.config, self.filters.weight))
        context = self.context.expand(len(images), -1, -1)
        found = self.unet(latents, _TIMESTEP, encoder_hidden_states=context, return_dict=False)[0]
        added: Tensor = self.readout(found.flatten(1)).float()
        return added

    def filter_logits(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What the filters read from latents.

        Args:
            latents: (B, C, h, w).

        Returns:
            Bits (B, n_bits), around -1 or 1 for a mark; and the variance of their noise (B, 1), as the pilots
            estimate it.
        """
        config, read = self.config, self.filters(latents.flatten(1)).float()
        bits, pilots = read.split([config.n_bits, config.pilots], dim=1)
        return bits, pilots.square().mean(dim=1, keepdim=True) + LEAST_VARIANCE

    @torch.no_grad()
    def reset_whitening(self) -> None:
        """Undo `fit_whitening`."""
        self.mean.zero_()
        self.whitening.copy_(torch.eye(len(self.mean)))

    @torch.no_grad()
    def fit_whitening(self, logits: Tensor) -> None:
        """Make logits of clean images unbiased and uncorrelated, by the nearest linear map that does so (ZCA).

        Args:
            logits: (N, n_bits), this network's logits of clean images before whitening; N well above n_bits.

        Raises:
            ValueError: there are not more images than bits.
        """
        if len(logits) <= logits.shape[1]:
            raise ValueError(f"expected more clean images than {logits.shape[1]} bits, got {len(logits)}")
        values, vectors = torch.linalg.eigh(torch.cov(logits.double().T))
        self.mean.copy_(logits.double().mean(0))
        self.whitening.copy_(vectors @ torch.diag((values + 1e-6).rsqrt()) @ vectors.T)

    def apply_whitening(self, logits: Tensor) -> Tensor:
        """Whiten quiet logits (B, n_bits), and only scale loud ones, which carry a mark: its bits would mix."""
        centred, whitening = logits - self.mean.float(), self.whitening.float()
        white, scaled = centred @ whitening, centred * whitening.diagonal()
        loud = (white.square().mean(dim=1, keepdim=True) - _LOUD[0]) / (_LOUD[1] - _LOUD[0])
        return white.lerp(scaled, loud.clamp(0, 1))


def encoder_fields(extractor: Extractor) -> dict[str, Any]:
    """The part of an extractor's configuration that says what its encoder is."""
    return {name: extractor.config[name] for name in FIELDS}


def _fields(model: ConfigMixin) -> dict[str, Any]:
    """A model's configuration. Diffusers' own `from_config` leaves out what was passed by position."""
    return {name: value for name, value in model.config.items() if not name.startswith("_")}

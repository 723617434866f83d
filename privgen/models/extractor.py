"""The extractor: image to message."""

from typing import Any

import torch
from diffusers import AutoencoderKL, ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import Encoder
from torch import Tensor, nn
from torch.nn import functional as F


LEAST_VARIANCE = 0.01
"""Of what filters read from content, where a mark reads as -1 or 1."""

_LOUD = (4.0, 8.0)  # mean squares of whitened logits between which whitening fades; few unmarked images reach them
_QUIET = 1e-6  # added to squared logits, so that those of 0 have a power
_TIMESTEP = 20  # of 1000, little noise, at which a denoiser starts to learn to read


class Extractor(ModelMixin, ConfigMixin):
    """Image to message logits, whitened on clean images: an autoencoder's encoder and linear filters on its latents.

    Marks are written in the latents, so that is where they are read ("Your Text Encoder Can Be An Object-Level
    Watermarking Controller", https://huggingface.co/papers/2503.11945, pre-training of the extractor). A filter for
    every bit reads -1 or 1 from a mark and noise from content; further ones, the pilots, read noise alone and so tell
    its variance in this image, by which logits are divided.

    Filters take content for noise. A U-Net that starts as the denoiser of the autoencoder's latents knows better what
    content looks like, and adds to the logits what it reads; it matters where little is left of a mark.

    Whitening makes logits of unmarked images unbiased and uncorrelated, and mixes bits. Where logits are as loud as
    those of few unmarked images it fades, and leaves their scale.

    Args:
        n_bits: bits of a message.
        size: side to which every image is resized before it is read.
        latent_channels: of the encoder's result.
        block_out_channels: of the encoder's levels; each but the last halves the side.
        layers_per_block: residual blocks a level.
        norm_num_groups: of group normalisation.
        mid_block_attention: whether the middle of the encoder attends.
        pilots: filters that measure the noise.
        unet_config: of a `UNet2DConditionModel` on the autoencoder's latents; None leaves it out.
        context_length: of the text that it is conditioned on, always the same.
    """

    @register_to_config
    def __init__(
        self,
        n_bits: int = 48,
        size: int = 128,
        latent_channels: int = 8,
        block_out_channels: tuple[int, ...] = (16, 24, 64, 160),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        mid_block_attention: bool = False,
        pilots: int = 16,
        unet_config: dict[str, Any] | None = None,
        context_length: int = 1,
    ) -> None:
        super().__init__()
        widths = tuple(block_out_channels)
        self.encoder = latent_encoder(latent_channels, widths, layers_per_block, norm_num_groups, mid_block_attention)
        # The mark is fixed to the canvas, so the filters keep the place of what they read.
        values = latent_channels * (size >> (len(widths) - 1)) ** 2
        self.filters = nn.Linear(values, n_bits + pilots)
        self.unet: Any = None
        if unet_config is not None:
            arguments = (latent_channels, widths, layers_per_block, norm_num_groups, mid_block_attention)
            self.unet_encoder = latent_encoder(*arguments)
            self.unet = UNet2DConditionModel.from_config(unet_config)
            self.readout = nn.Linear(values, n_bits, bias=False)
            # An exponent: the louder the filters read a mark, the less there is to add.
            self.trust = nn.Parameter(torch.zeros(()))
            self.context: Tensor
            self.register_buffer("context", torch.zeros(1, context_length, self.unet.config.cross_attention_dim))
        self.mean: Tensor
        self.whitening: Tensor
        self.register_buffer("mean", torch.zeros(n_bits))
        self.register_buffer("whitening", torch.eye(n_bits))

    @classmethod
    @torch.no_grad()
    def from_vae(cls, vae: AutoencoderKL, n_bits: int = 48, pilots: int = 16) -> "Extractor":
        """An extractor whose encoder gives the scaled latents of an autoencoder, with untrained filters.

        Args:
            vae: its encoder is copied.
            n_bits: bits of a message.
            pilots: filters that measure the noise.
        """
        config = vae.config
        extractor = cls(
            n_bits,
            config.sample_size,
            config.latent_channels,
            tuple(config.block_out_channels),
            config.layers_per_block,
            config.norm_num_groups,
            config.mid_block_add_attention,
            pilots=pilots,
        )
        state = {name: value.clone() for name, value in vae.encoder.state_dict().items()}
        weight, bias = (state[f"conv_out.{name}"][: 2 * config.latent_channels] for name in ("weight", "bias"))
        if vae.quant_conv is not None:
            mix = vae.quant_conv.weight[:, :, 0, 0]
            weight, bias = torch.einsum("oi,ichw->ochw", mix, weight), mix @ bias + vae.quant_conv.bias
        half = config.latent_channels  # the rest is the logarithm of the variance
        shift = float(config.shift_factor or 0)
        state["conv_out.weight"] = config.scaling_factor * weight[:half]
        state["conv_out.bias"] = config.scaling_factor * (bias[:half] - shift)
        extractor.encoder.load_state_dict(state)
        return extractor

    @torch.no_grad()
    def with_unet(
        self, vae: AutoencoderKL, unet: UNet2DConditionModel, context: Tensor, patterns: Tensor
    ) -> "Extractor":
        """A copy with a denoiser as its U-Net, which adds nothing before it is trained.

        Args:
            vae: its encoder, which the denoiser was trained with, is copied.
            unet: predicts noise, or what goes with it.
            context: (1, length, dim), the embedding of an empty text.
            patterns: (n_bits, C, h, w), what a mark's bits add to latents; what the U-Net finds of them is added.
        """
        extractor = type(self)(**_fields(self) | {"unet_config": _fields(unet), "context_length": context.shape[1]})
        state = extractor.state_dict() | self.state_dict()
        state |= {"context": context, "readout.weight": F.normalize(patterns.flatten(1), dim=1)}
        encoder = self.from_vae(vae, self.config.n_bits, self.config.pilots).encoder
        for name, network in (("unet", unet), ("unet_encoder", encoder)):
            state |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
        for name in ("unet.conv_out.weight", "unet.conv_out.bias"):
            state[name] = torch.zeros_like(state[name])
        extractor.load_state_dict(state)
        return extractor.to(self.filters.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Read images.

        Args:
            images: shape (B, 3, H, W) in [0, 1], any H and W.

        Returns:
            Logits of shape (B, n_bits); positive reads as bit 1.
        """
        bits, variance = self.filter_logits(self.encode(images))
        read = 2 * bits / variance
        if self.unet is not None:
            loud = read.square().mean(dim=1, keepdim=True) + _QUIET
            read = loud ** self.trust.float() * read + self.denoiser_logits(images)
        return self._whitened(read)

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W) in [0, 1], any H and W."""
        latents: Tensor = self.encoder(self._canvases(images))
        return latents

    def denoiser_logits(self, images: Tensor) -> Tensor:
        """What the U-Net adds to the logits (B, n_bits) of images (B, 3, H, W) in [0, 1]; for extractors with one."""
        latents, context = self.unet_encoder(self._canvases(images)), self.context.expand(len(images), -1, -1)
        found = self.unet(latents, _TIMESTEP, encoder_hidden_states=context, return_dict=False)[0]
        added: Tensor = self.readout(found.flatten(1)).float()
        return added

    def _whitened(self, read: Tensor) -> Tensor:
        """Whitened, but only scaled where they are loud: most of those carry a mark, and bits would disturb others."""
        centred, whitening = read - self.mean.float(), self.whitening.float()
        white, scaled = centred @ whitening, centred * whitening.diagonal()
        loud = (white.square().mean(dim=1, keepdim=True) - _LOUD[0]) / (_LOUD[1] - _LOUD[0])
        return white.lerp(scaled, loud.clamp(0, 1))

    def _canvases(self, images: Tensor) -> Tensor:
        return 2 * to_side(images.to(self.filters.weight), self.config.size) - 1

    def filter_logits(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """What the filters read.

        Args:
            latents: shape (B, C, h, w).

        Returns:
            Bits (B, n_bits), and the variance of the noise in them (B, 1), as the pilots tell it.
        """
        config, heard = self.config, self.filters(latents.flatten(1)).float()
        bits, pilots = heard.split([config.n_bits, config.pilots], dim=1)
        return bits, pilots.square().mean(dim=1, keepdim=True) + LEAST_VARIANCE

    @torch.no_grad()
    def unwhiten(self) -> None:
        """Take back what `whiten` did."""
        self.mean.zero_()
        self.whitening.copy_(torch.eye(len(self.mean)))

    @torch.no_grad()
    def whiten(self, logits: Tensor) -> None:
        """Make logits of clean images unbiased and uncorrelated (the nearest such map, "ZCA").

        Args:
            logits: this network's logits on clean images, not whitened yet, shape (N, n_bits), N well above n_bits.

        Raises:
            ValueError: if there are not more images than bits.
        """
        if len(logits) <= logits.shape[1]:
            raise ValueError(f"expected more clean images than {logits.shape[1]} bits, got {len(logits)}")
        values, vectors = torch.linalg.eigh(torch.cov(logits.double().T))
        self.mean.copy_(logits.double().mean(0))
        self.whitening.copy_(vectors @ torch.diag((values + 1e-6).rsqrt()) @ vectors.T)


def _fields(model: ConfigMixin) -> dict[str, Any]:
    """What a model was configured with. Diffusers' own `from_config` leaves out what was passed by position."""
    return {name: value for name, value in model.config.items() if not name.startswith("_")}


def latent_encoder(channels: int, widths: tuple[int, ...], layers: int, groups: int, attention: bool) -> Encoder:
    """The encoder of `AutoencoderKL` without a variance; each of the levels but the last halves the side."""
    return Encoder(
        3,
        channels,
        ("DownEncoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=groups,
        double_z=False,
        mid_block_add_attention=attention,
    )


def to_side(images: Tensor, side: int) -> Tensor:
    """Images (B, C, H, W) resized to squares of a side."""
    if images.shape[-2:] == (side, side):
        return images
    return F.interpolate(images, (side, side), mode="bicubic", align_corners=False, antialias=True)

"""The network of the one-pass protection: image to a faint change that moves what autoencoders see."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle, silu

from privgen.io.pixels import pad_to_multiple


class Shield(ModelMixin, ConfigMixin):
    """A small convolutional network that turns an image of any size into the pattern of its protection.

    It works on cells of `patch` x `patch` pixels. There is no normalisation over the image, so each pixel depends on
    its surroundings only, and tiles of a large photograph give what the whole photograph gives.

    Besides the image it sees noise. Without it, all cells of a smooth area would get the same pattern, and the eye
    sees what repeats.

    Args:
        patch: side of a cell in pixels.
        channels: width of the network.
        dilations: one for each block: the distance in cells between the taps of its filter.
    """

    @register_to_config
    def __init__(self, patch: int = 4, channels: int = 48, dilations: tuple[int, ...] = (1, 2, 4, 1, 2, 1)) -> None:
        super().__init__()
        flat = 3 * patch**2
        self.enter = nn.Conv2d(flat + patch**2, channels, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(channels, dilation) for dilation in dilations)
        self.leave = nn.Conv2d(channels, flat, 3, padding=1, bias=False)
        with torch.no_grad():
            self.leave.weight.mul_(0.5)

    @property
    def reach(self) -> int:
        """How far from a pixel, in pixels, another one can lie that changes its pattern."""
        return int(self.config.patch * (3 + sum(self.config.dilations)))

    def forward(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Draw the pattern.

        Args:
            pixels: (B, 3, H, W) in [0, 1].
            noise: (B, 1, H, W), of the standard normal law.

        Returns:
            (B, 3, H, W) in (-1, 1), where 1 is the largest change that a pixel may get.
        """
        height, width = pixels.shape[-2:]
        given = torch.cat([2 * pixels - 1, 0.5 * noise], dim=1)
        h = self.enter(pixel_unshuffle(pad_to_multiple(given, self.config.patch), self.config.patch))
        for block in self.blocks:
            h = block(h)
        return pixel_shuffle(self.leave(silu(h)), self.config.patch)[..., :height, :width].tanh()


class _Block(nn.Module):
    """A residual block: a dilated 3 x 3 convolution, then one of 1 x 1."""

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.spread = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        self.mix = nn.Conv2d(channels, channels, 1)
        with torch.no_grad():
            self.mix.weight.mul_(0.3)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.mix(silu(self.spread(silu(h))))

"""The network that shifts trajectories: it maps the noise that stands for an image to a change of this noise."""

from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn


class ShiftNetwork(ModelMixin, ConfigMixin):
    """A small residual network rho on noisy latents z_T (arXiv 2510.03089).

    The weights of its last layer begin at zero. A new network shifts nothing.

    Args:
        channels: of the latents.
        width: channels of the hidden layers, a multiple of 8.
        blocks: how many residual blocks.
    """

    @register_to_config
    def __init__(self, channels: int, width: int = 64, blocks: int = 3) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.body = nn.ModuleList(_Block(width) for _ in range(blocks))
        self.leave = nn.Conv2d(width, channels, 3, padding=1)
        for value in self.leave.parameters():
            nn.init.zeros_(value)

    def forward(self, noise: Tensor) -> Tensor:
        """Compute the shift rho(z_T) of noise z_T; both are (B, channels, h, w), any h and w."""
        x = self.enter(noise)
        for block in self.body:
            x = block(x)
        shift: Tensor = self.leave(nn.functional.silu(x))
        return shift


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.first(nn.functional.silu(self.norm(x)))
        after: Tensor = x + self.second(nn.functional.silu(inner))
        return after

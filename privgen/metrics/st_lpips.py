"""ST-LPIPS: how different two images look, to a network that tolerates small shifts.

Ghildyal and Liu, "Shift-tolerant perceptual similarity metric", arXiv 2207.13686. It is LPIPS (Zhang et al., arXiv
1801.03924) with an AlexNet that blurs before it subsamples, trained on the same human judgements. Its numbers are not
those of LPIPS.

The weights come from the package stlpips-pytorch (BSD 2-clause). Its code is neither needed nor run; parts of it may
not be used commercially.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from privgen.io.foreign_weights import find_packaged, read_packaged
from privgen.metrics.quality import check_pairs


_PACKAGE, _FILE = "stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth"
_ADVICE = "run `pip install 'privgen[perceptual]'`"

SMALLEST = 32
"""Smallest side of an image in pixels."""


class ShiftTolerantAlexNet(nn.Module):
    """An AlexNet with five layers of features, and a weight for each of their channels.

    Args:
        width: channels of the first layer, 64 in the published network; the other layers scale with it.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        channels = (width, 3 * width, 6 * width, 4 * width, 4 * width)
        sides = ((11, 2), (5, 2), (3, 1), (3, 1), (3, 1))  # kernel, padding
        inputs = (3, *channels[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(n_in, n_out, side, padding=padding)
            for n_in, n_out, (side, padding) in zip(inputs, channels, sides, strict=True)
        )
        self.weights = nn.ParameterList(torch.zeros(1, n, 1, 1) for n in channels)

    def features(self, images: Tensor) -> list[Tensor]:
        """The features of all five layers, for images (B, 3, H, W) in [0, 1]."""
        shift, scale = (images.new_tensor(values).view(1, 3, 1, 1) for values in (_SHIFT, _SCALE))
        x = (2 * images - 1 - shift) / scale
        found = []
        for number, convolution in enumerate(self.convolutions):
            if number in (1, 2):
                x = _blur_and_halve(F.max_pool2d(x, 3, stride=1))
            x = convolution(x)
            if number == 0:
                x = _blur_and_halve(x)
            x = F.relu(x)
            found.append(x)
        return found

    def forward(self, images: Tensor, references: Tensor) -> Tensor:
        """The distances of pairs of images, (B,).

        For each layer and place, features are scaled to unit length, and the squared differences of their channels are
        weighted and summed. The results are averaged over the places and summed over the layers.
        """
        pairs = zip(self.features(images), self.features(references), self.weights, strict=True)
        return torch.stack([(w * (_unit(x) - _unit(y)).square()).sum(1).mean((1, 2)) for x, y, w in pairs]).sum(0)


_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation of the colours, in [-1, 1], as in LPIPS."""


def st_lpips_installed() -> bool:
    """Whether the weights for `st_lpips` are installed."""
    return find_packaged(_PACKAGE, _FILE) is not None


def st_lpips(images: Tensor, references: Tensor) -> Tensor:
    """ST-LPIPS of pairs of images, differentiable.

    Args:
        images: (B, 3, H, W) in [0, 1], each side at least `SMALLEST`.
        references: the same shape and range.

    Returns:
        (B,), at least 0; 0 for equal images.

    Raises:
        PrivgenError: the weights are not installed.
        ValueError: the shapes do not fit, or pixels are outside [0, 1].
    """
    images, references = check_pairs(images, references)
    if images.shape[1] != 3 or min(images.shape[-2:]) < SMALLEST:
        raise ValueError(f"expected (B, 3, H, W) with sides of at least {SMALLEST}, got {tuple(images.shape)}")
    network = _network()
    distances: Tensor = network.to(images.device, images.dtype)(images, references)
    return distances


@lru_cache(maxsize=1)
def _network() -> ShiftTolerantAlexNet:
    stored = read_packaged(_PACKAGE, _FILE, _ADVICE)
    network = ShiftTolerantAlexNet()
    names = ("slice1.0", "slice2.5", "slice3.9", "slice4.11", "slice5.13")
    for number, name in enumerate(names):
        convolution = network.convolutions[number]
        convolution.load_state_dict({key: stored[f"net.{name}.{key}"] for key in ("weight", "bias")})
        network.weights[number].data.copy_(stored[f"lin{number}.model.1.weight"])
    return network.eval().requires_grad_(False)


def _blur_and_halve(x: Tensor) -> Tensor:
    """Filter with a 3 x 3 binomial kernel, with two pixels reflected at the edges, and take every second pixel."""
    row = x.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(row, row).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), kernel, stride=2, groups=x.shape[1])


def _unit(x: Tensor) -> Tensor:
    """The features of each place, scaled to length 1; where all are 0, the gradient is 0 instead of NaN."""
    return x / (x.square().sum(1, keepdim=True).clamp(min=1e-20).sqrt() + 1e-10)

"""How much change of an image the eye tolerates, pixel by pixel, and how much of a change it sees. Differentiable.

The eye sees differences of lightness, less where texture hides them, and fine differences of colour hardly at all.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from privgen.io.pixels import luma


TOLERANCE_REACH = 9
"""How far from a pixel, in pixels, another one can lie that changes its tolerance."""

_SURROUNDINGS = 3.0  # standard deviation, in pixels, of the window in which texture is measured
_LEAST, _MOST = 0.5, 2.0  # tolerance of smooth areas and of strong texture, over that of weak texture
_TEXTURE = 0.1  # standard deviation of luma, in [0, 1], around a pixel of medium tolerance

# CIE XYZ (D65) of linear sRGB, and the opponent channels of Poirson and Wandell.
TO_XYZ = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
TO_OPPONENT = ((0.279, 0.72, -0.107), (-0.449, 0.29, -0.077), (0.086, -0.59, 0.501))
WHITE = (0.9505, 1.0, 1.089)
EYE_BLURS = (1.0, 2.5, 4.0)  # in pixels: of lightness, red-green and blue-yellow


def tolerance(pixels: Tensor) -> Tensor:
    """How much change each pixel hides, over what a pixel of weak texture and medium lightness hides.

    It is the inverse of the slope of CIELAB's lightness, times a factor that rises with the texture around the pixel.

    Args:
        pixels: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 1, H, W), about 0.4 to 2.5.
    """
    lightness, texture = tolerance_factors(pixels)
    return lightness * texture


def texture_factor(pixels: Tensor) -> Tensor:
    """How much more change texture hides: 0.5 in smooth areas, rising with local contrast to 2.

    Args:
        pixels: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 1, H, W).
    """
    return tolerance_factors(pixels)[1]


def tolerance_factors(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of `tolerance`: by the lightness around each pixel, and by the texture around it.

    Args:
        pixels: (B, 3, H, W) in [0, 1].

    Returns:
        Both (B, 1, H, W): the inverse of the slope of lightness, and `texture_factor`.
    """
    grey = luma(pixels)
    mean = _blur(grey, _SURROUNDINGS, TOLERANCE_REACH)
    variance = _blur(grey.square(), _SURROUNDINGS, TOLERANCE_REACH) - mean.square()
    texture = (_LEAST + variance.clamp(min=1e-8).sqrt() / _TEXTURE * (1 - _LEAST)).clamp(max=_MOST)
    return 1 / _lightness_slope(mean.clamp(0, 1)), texture


def _lightness_slope(grey: Tensor) -> Tensor:
    """The slope of CIELAB's lightness over a grey value in [0, 1], over that at 0.5."""
    linear = _linear(grey)
    slope_linear = torch.where(grey <= 0.04045, 1 / 12.92, 2.4 / 1.055 * ((grey + 0.055) / 1.055) ** 1.4)
    cube_root = torch.where(linear > 0.008856, linear.clamp(min=0.008856) ** (-2 / 3) / 3, 7.787)
    return 116 * cube_root * slope_linear / 100.5


def seen_colours(pixels: Tensor) -> Tensor:
    """CIELAB of images as the eye sees them from a usual distance, after S-CIELAB (Zhang and Wandell, 1997).

    Linear light is split into lightness, red-green and blue-yellow, each is blurred as the eye blurs it (standard
    deviations 1, 2.5 and 4 pixels), and turned into CIELAB.

    Args:
        pixels: (B, 3, H, W) sRGB in [0, 1].

    Returns:
        (B, 3, H, W); a distance of 1 is about what one just sees.
    """
    to_opponent = _matrix(TO_OPPONENT, pixels)
    opponent = _mix(to_opponent @ _matrix(TO_XYZ, pixels), _linear(pixels))
    rows = [_blur(opponent[:, i : i + 1], sigma, round(4 * sigma)) for i, sigma in enumerate(EYE_BLURS)]
    xyz = _mix(torch.linalg.inv(to_opponent), torch.cat(rows, 1)).clamp(min=0)
    x, y, z = _cube_root(xyz / pixels.new_tensor(WHITE)[:, None, None]).unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], 1)


def visible_change(changed: Tensor, pixels: Tensor) -> Tensor:
    """How much of a change the eye sees: the distance of the colours that it sees.

    Args:
        changed: (B, 3, H, W) in [0, 1].
        pixels: the images before the change, the same shape.

    Returns:
        (B, 1, H, W); 1 is about what one just sees.
    """
    difference = seen_colours(changed) - seen_colours(pixels)
    return (difference.square().sum(1, keepdim=True) + 1e-6).sqrt()


def _linear(srgb: Tensor) -> Tensor:
    """Linear light of sRGB values."""
    return torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)


def _cube_root(ratio: Tensor) -> Tensor:
    """CIELAB's f."""
    return torch.where(ratio > 0.008856, ratio.clamp(min=0.008856) ** (1 / 3), 7.787 * ratio + 16 / 116)


def _matrix(rows: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    return torch.tensor(rows, device=like.device, dtype=like.dtype)


def _mix(matrix: Tensor, images: Tensor) -> Tensor:
    return torch.einsum("ij,bjhw->bihw", matrix, images)


def _blur(planes: Tensor, sigma: float, radius: int) -> Tensor:
    """Blur planes (B, 1, H, W) by a Gaussian that is cut off at a radius; edges are repeated outwards."""
    x = torch.arange(-radius, radius + 1, device=planes.device, dtype=planes.dtype)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    rows = conv2d(pad(planes, (radius, radius, 0, 0), mode="replicate"), kernel[None, None, None])
    return conv2d(pad(rows, (0, 0, radius, radius), mode="replicate"), kernel[None, None, :, None])

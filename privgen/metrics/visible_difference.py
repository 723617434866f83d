"""How visible a change of an image is, close to S-CIELAB.

Zhang and Wandell, "A spatial extension of CIELAB for digital color-image reproduction" (SID Journal 5(1), 1997):
linear light in opponent channels, each blurred as the eye blurs it, and then the colour difference of CIELAB. Here the
blur is one Gaussian a channel, and a pixel of the image is a pixel of the screen.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from privgen.io.pixels import floats
from privgen.metrics.visibility import EYE_BLURS, TO_OPPONENT, TO_XYZ, WHITE


_TO_OPPONENT, _TO_XYZ, _WHITE = (np.array(rows, np.float32) for rows in (TO_OPPONENT, TO_XYZ, WHITE))
_FROM_OPPONENT = np.linalg.inv(_TO_OPPONENT).astype(np.float32)
_MARGIN = 16  # rows beyond which the widest blur does not reach
_STRIP = 2**18  # pixels at a time, so that a large photograph needs little memory


def visible_difference(image: Tensor, reference: Tensor) -> Tensor:
    """The colour difference that the eye sees at each pixel.

    Args:
        image: (3, H, W) sRGB, floats in [0, 1] or samples of a file.
        reference: the same shape and range.

    Returns:
        (H, W) float32, on the CPU, in units of CIELAB's Delta E: about 1 can just be seen, side by side.

    Raises:
        ValueError: the shapes are not those of two images of one size.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.shape != reference.shape or 0 in image.shape:
        raise ValueError(f"expected two images (3, H, W), got {tuple(image.shape)} and {tuple(reference.shape)}")
    height, width = image.shape[1:]
    rows = max(64, _STRIP // width)
    seen = np.empty((height, width), np.float32)
    for top in range(0, height, rows):
        first, last = max(top - _MARGIN, 0), min(top + rows + _MARGIN, height)
        one, other = (_as_seen(pixels[:, first:last]) for pixels in (image, reference))
        seen[top : top + rows] = np.sqrt(((one - other) ** 2).sum(-1))[top - first :][:rows]
    return torch.from_numpy(seen)


def visible_de_p99(image: Tensor, reference: Tensor) -> float:
    """The visible difference that 99 % of the pixels stay below. See `visible_difference` for the arguments."""
    return float(np.percentile(visible_difference(image, reference).numpy(), 99, overwrite_input=True))


def _as_seen(pixels: Tensor) -> NDArray[np.float32]:
    """SRGB (3, H, W) to CIELAB (H, W, 3), after the blur of the eye."""
    rgb = floats(pixels.detach().cpu()).clamp(0, 1).permute(1, 2, 0).numpy()
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4).astype(np.float32)
    opponent = linear @ (_TO_OPPONENT @ _TO_XYZ).T
    blurred = [gaussian_filter(opponent[..., i], sigma) for i, sigma in enumerate(EYE_BLURS)]
    seen = np.clip(np.stack(blurred, -1) @ _FROM_OPPONENT.T / _WHITE, 0, None)
    f = np.where(seen > 0.008856, np.cbrt(seen), 7.787 * seen + 16 / 116)
    lab = np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)
    return lab.astype(np.float32)

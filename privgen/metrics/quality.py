"""How much an image was changed.

SSIM comes from pytorch-msssim (MIT): one file that needs nothing but PyTorch, differentiable, and equal to
scikit-image's with Gaussian weights to six digits, which the tests pin. (piq needs torchvision; torchmetrics' takes
seconds to import and differs in the third digit.)
"""

import torch
from pytorch_msssim import ssim as _ssim

from privgen.io.pixels import floats, levels_of


_SSIM_WINDOW = 11
_SSIM_STRIP = 2**18  # pixels at a time


def psnr(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each image.

    Args:
        images: (batch, channels, height, width) in [0, 1].
        references: the same shape and range.

    Returns:
        (batch,) in dB, infinite for images without a difference. Average these, not the squared errors, for the mean
        that papers report; keep infinite ones out of it and count them.

    Raises:
        ValueError: shapes that do not fit, or pixels outside [0, 1].
    """
    images, references = check_pairs(images, references)
    error = (images.double() - references.double()).square().flatten(1).mean(1)
    return (-10 * error.log10()).to(images.dtype)


def ssim(images: torch.Tensor, references: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each image (Wang et al., IEEE Transactions on Image Processing 13, 2004).

    Gaussian window of 11 x 11 with sigma 1.5, K1 = 0.01, K2 = 0.03, mean over the channels of each image; the paper
    used luminance only.

    Args:
        images: (batch, channels, height, width), floats in [0, 1] or samples of a file; each side at least 11.
        references: the same shape and range.

    Returns:
        (batch,), 1 for equal images.

    Raises:
        ValueError: shapes that do not fit, sides below 11, or pixels outside [0, 1].
    """
    if levels_of(images) is None or levels_of(references) is None:
        images, references = check_pairs(images, references)
    else:
        _check_shapes(images, references)
    if min(images.shape[-2:]) < _SSIM_WINDOW:
        raise ValueError(f"expected sides of at least {_SSIM_WINDOW} pixels, got {tuple(images.shape[-2:])}")
    # In strips of windows, so that a large photograph needs little more memory than itself.
    windows = images.shape[-2] - _SSIM_WINDOW + 1
    rows = max(_SSIM_STRIP // images.shape[-1], 1)
    total = torch.zeros(len(images), dtype=_as_floats(images[..., :1, :1]).dtype, device=images.device)
    for top in range(0, windows, rows):
        count = min(rows, windows - top)
        strip = slice(top, top + count + _SSIM_WINDOW - 1)
        pair = (_as_floats(images[..., strip, :]), _as_floats(references[..., strip, :]))
        part = _ssim(*pair, data_range=1.0, size_average=False)
        total = total + count * part
    return total / windows


def check_pairs(images: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in a precision that differences survive, or an error."""
    _check_shapes(images, references)
    images, references = _as_floats(images), _as_floats(references)
    for pixels in (images, references):
        low, high = (float(bound) for bound in pixels.detach().aminmax())
        if not (low >= -1e-6 and high <= 1 + 1e-6):
            raise ValueError(f"expected pixels in [0, 1], got {low:.4g}..{high:.4g}")
    exact = torch.promote_types(torch.promote_types(images.dtype, references.dtype), torch.float32)
    return images.to(exact), references.to(exact)


def _check_shapes(images: torch.Tensor, references: torch.Tensor) -> None:
    if images.ndim != 4 or 0 in images.shape or images.shape != references.shape:
        shapes = f"{tuple(images.shape)} and {tuple(references.shape)}"
        raise ValueError(f"expected two batches of one shape (batch, channels, height, width), got {shapes}")


def _as_floats(pixels: torch.Tensor) -> torch.Tensor:
    """Samples as floats; floats stay as precise as they are."""
    return pixels if levels_of(pixels) is None else floats(pixels)

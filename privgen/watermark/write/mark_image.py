"""Mark existing images: from decoded images to marked pixels."""

from collections.abc import Sequence

from torch import Tensor

from privgen.io.images import LoadedImage
from privgen.io.residual import ChangedImage, add_residual, to_canvas
from privgen.watermark.key import Key
from privgen.watermark.protocols import key_bits
from privgen.watermark.read.logits import read_logits
from privgen.watermark.read.p_values import threshold_matches
from privgen.watermark.write.marker import Marker


_READABLE_FPR = 1e-6


def mark_loaded(
    images: Sequence[LoadedImage], levels: Sequence[int | None], keys: Sequence[Key], marker: Marker
) -> list[ChangedImage]:
    """Mark decoded images at their own sizes.

    Args:
        images: B images.
        levels: for each image the steps of its scale, such as 255; None for pixels that are not rounded.
        keys: whose marks: one key for all images, or one for each.
        marker: writes the marks.
    """
    residuals = marker.residuals(to_canvas([image.pixels for image in images], marker.size), keys)
    return [
        add_residual(image.pixels, residual, psnr=marker.spec.psnr, grey=image.grey, levels=steps)
        for image, residual, steps in zip(images, residuals, levels, strict=True)
    ]


def unreadable_note(pixels: Tensor, key: Key, marker: Marker) -> tuple[int, tuple[str, ...]]:
    """How many bits of a key's mark are read back, and a note if those are too few.

    Args:
        pixels: (3, H, W) in [0, 1], marked.
        key: whose mark.
        marker: wrote the mark.
    """
    extractor = marker.networks.extractor
    read = read_logits([pixels], extractor)[0] > 0
    matches = int((read == (key_bits([key], extractor)[0].cpu() > 0.5)).sum())
    if matches >= threshold_matches(len(read), _READABLE_FPR):
        return matches, ()
    return matches, (f"its mark can hardly be read back, {matches} of {len(read)} bits: too small or too plain",)

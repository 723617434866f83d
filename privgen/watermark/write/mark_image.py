"""Mark existing images: from decoded images to marked pixels."""

from collections.abc import Sequence

from torch import Tensor

from privgen.io.images import LoadedImage
from privgen.io.residual import ChangedImage, add_residual
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.read.detection import Detector, DetectSpec
from privgen.watermark.write.marker import Marker


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
    pixels = [image.at_levels(steps) for image, steps in zip(images, levels, strict=True)]
    return [
        add_residual(plain, change, psnr=marker.spec.quality, grey=image.grey, levels=steps)
        for plain, change, image, steps in zip(pixels, marker.changes(pixels, keys), images, levels, strict=True)
    ]


def unreadable_note(pixels: Tensor, key: Key, marker: Marker) -> tuple[int, tuple[str, ...]]:
    """How many bits of a key's mark are read back, and a note if the mark or its payload cannot be found.

    Args:
        pixels: (3, H, W), floats in [0, 1] or samples, marked.
        key: whose mark.
        marker: wrote the mark.
    """
    [found] = Detector(marker.networks, [key], DetectSpec(carrier=marker.carrier))([pixels])
    matches, payload = found.best.matches, marker.spec.payload
    if not found.detected:
        note = f"its mark can hardly be read back, {matches} of {found.n_bits} bits: too small or too plain"
        return matches, (note,)
    if payload is not None and found.payload != payload:
        return matches, (f"its payload {payload} cannot be read back: too small or too plain",)
    return matches, ()


def already_marked_note(pixels: Tensor, keys: Sequence[Key], networks: Networks) -> tuple[str, ...]:
    """A note if an image that is to be marked carries marks already.

    Args:
        pixels: (3, H, W), floats in [0, 1] or samples, not yet marked.
        keys: whose marks are looked for.
        networks: of the model that reads.
    """
    [found] = Detector(networks, keys)([pixels])
    owners = [match.key for match in found.keys if match.detected]
    return (f"it already carries the mark of {', '.join(owners)}",) if owners else ()

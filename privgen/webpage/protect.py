"""What the tab Protect does: change a picture faintly, so that models learn less from it."""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from privgen.errors import PrivgenError
from privgen.io.batches import BatchOptions
from privgen.io.images import load_image
from privgen.protection.protect_files import ProtectedFile, protect_files
from privgen.protection.protection import Protection
from privgen.webpage.pictures import Difference, difference, preview


LIMITS = (
    "It does not stop a patient adversary: training goes slower, but it goes on.",
    "It does not hide your subject, and people see the picture as before.",
    "Halving the picture and enlarging it again, or removing noise, undoes most of it.",
    "It is weak if only some pictures of a subject are protected.",
    "It may fail for models that nobody tested.",
)
"""What protection cannot do, from docs/explanation/what-protection-can-do.md."""


@dataclass(frozen=True)
class ProtectedPicture:
    """A protected picture.

    Attributes:
        file: to download.
        after: what it looks like.
        difference: what was changed, amplified.
        figures: how much it differs from the picture.
    """

    file: Path
    after: Image.Image
    difference: Difference
    figures: ProtectedFile


def protect_picture(
    picture: Path, folder: Path, protection: Protection, *, psnr: float, keep_format: bool = False
) -> ProtectedPicture:
    """Protect a picture as `privgen protect` does.

    Args:
        picture: image file.
        folder: where the protected file goes; another folder than the picture's.
        protection: how.
        psnr: quality of the result, in dB.
        keep_format: write the format of the picture, not PNG.

    Raises:
        PrivgenError: the picture cannot be read, or the file not be written.
    """
    batch = BatchOptions(keep_format=keep_format)
    target = folder / f"{picture.stem}-protected{batch.suffix(picture)}"
    [made] = protect_files([picture], target, protection, psnr=psnr, batch=batch).files
    if made.error is not None:
        raise PrivgenError(made.error)
    before, after = load_image(picture).pixels, load_image(target).pixels
    return ProtectedPicture(target, preview(after), difference(before, after), made)

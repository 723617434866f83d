"""What the tab Mark does: mark one picture, label it, sign it, and say what its file proves then."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from privgen.errors import PrivgenError, UsageError
from privgen.io.batches import BatchOptions
from privgen.io.images import load_image
from privgen.provenance.label import Label, Preset
from privgen.provenance.seal import Seal
from privgen.watermark.networks import Networks
from privgen.watermark.read.detection import Detector
from privgen.watermark.read.verify import Verification, verify_file
from privgen.watermark.write.embed_files import embed_files
from privgen.watermark.write.mark_spec import MarkSpec
from privgen.webpage.owners import load_named_credentials, load_named_key
from privgen.webpage.pictures import Difference, difference, preview


@dataclass(frozen=True)
class MarkRequest:
    """How a picture is to be marked.

    Attributes:
        key: name of the key.
        payload: a number of yours; None for none.
        psnr: quality of the mark, in dB; None for the default.
        keep_format: write the format of the picture, not PNG.
        sign: name of the credentials that sign; None for no signature.
        label: the law whose list of facts the label covers; None for no label.
        said: what the label also says, by the names of `privgen.provenance.seal.SAID`.
    """

    key: str | None
    payload: int | None = None
    psnr: float | None = None
    keep_format: bool = False
    sign: str | None = None
    label: Preset | None = None
    said: Mapping[str, str] = field(default_factory=dict)

    def seal(self) -> Seal | None:
        """The signature and the label; None if neither is asked for."""
        said = {name: text.strip() for name, text in self.said.items() if text.strip()}
        if not (self.sign or self.label or said):
            return None
        return Seal(load_named_credentials(self.sign), Label(**said), self.label)


@dataclass(frozen=True)
class Marked:
    """A marked picture.

    Attributes:
        file: to download.
        psnr: of the marked pixels against the picture, in dB.
        after: what it looks like.
        difference: what the mark changed, amplified.
        proves: what the file proves, read back from it.
        notes: what you should know.
    """

    file: Path
    psnr: float
    after: Image.Image
    difference: Difference
    proves: Verification
    notes: tuple[str, ...]


def payload_in(text: str) -> int | None:
    """Return the payload that somebody has typed; None for nothing.

    Raises:
        UsageError: it is no whole number.
    """
    if not (typed := text.strip()):
        return None
    if not (typed.isascii() and typed.isdigit()):
        raise UsageError(f"{typed!r} is no payload; type a whole number from 0 to {2**32 - 1}.")
    return int(typed)


def mark_picture(picture: Path, folder: Path, request: MarkRequest, networks: Networks) -> Marked:
    """Mark a picture as `privgen watermark embed` does, and read back what its file says.

    Args:
        picture: image file.
        folder: where the marked file goes; another folder than the picture's.
        request: how.
        networks: that write and read the mark.

    Raises:
        PrivgenError: the picture cannot be read, or the file not be written.
        UsageError: no such key or credentials, or a label that lacks what the law lists.
    """
    key, seal = load_named_key(request.key), request.seal()
    batch = BatchOptions(keep_format=request.keep_format, seal=seal)
    target = folder / f"{picture.stem}-marked{batch.suffix(picture)}"
    spec = MarkSpec(psnr=request.psnr, payload=request.payload)
    [made] = embed_files([picture], target, key, networks=networks, spec=spec, batch=batch).files
    if made.error is not None or made.psnr is None:
        raise PrivgenError(made.error or f"{picture} was not marked; try again.")
    before, after = load_image(picture), load_image(target)
    return Marked(
        target,
        made.psnr,
        preview(after.pixels),
        difference(before.pixels, after.pixels),
        verify_file(target, Detector(networks, [key])),
        made.notes,
    )

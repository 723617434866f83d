"""What the tab Detect and verify does: say what a picture proves of its origin, and show who owns what in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from privgen.io.images import load_image
from privgen.watermark.networks import Networks
from privgen.watermark.objects.overlay import overlay
from privgen.watermark.read.detection import Detector, DetectSpec
from privgen.watermark.read.verify import Verification, verify_file
from privgen.webpage.owners import load_named_key
from privgen.webpage.pictures import preview


@dataclass(frozen=True)
class Verified:
    """What a picture proves.

    Attributes:
        proves: by credentials, label and mark.
        owners: who owns what in the picture; None unless objects were found.
    """

    proves: Verification
    owners: Image.Image | None


def verify_picture(picture: Path, keys: Sequence[str], networks: Networks, spec: DetectSpec) -> Verified:
    """Read credentials, label and mark of a picture as `privgen verify` does.

    Args:
        picture: image file.
        keys: names of the keys to look for; none looks for no mark.
        networks: that read the mark.
        spec: how marks are looked for.

    Raises:
        PrivgenError: the picture or a key cannot be read.
    """
    owners = [load_named_key(name) for name in keys]
    proves = verify_file(picture, Detector(networks, owners, spec) if owners else None)
    regions = () if proves.detection is None else proves.detection.regions
    if all(region.is_whole for region in regions):
        return Verified(proves, None)
    return Verified(proves, overlay(load_image(picture).pixels, regions))


def facts(proves: Verification) -> dict[str, str]:
    """What a file proves: "Credentials", "Label", "Mark" and "Together", each in words."""
    record = proves.record()
    mark = record["mark"]
    return {
        "Credentials": str(record["credentials"]["words"]),
        "Label": str(record["label"]["words"]),
        "Mark": "not looked for; choose a key." if mark is None else str(mark["words"]),
        "Together": str(record["together"]),
    }


def p_value(proves: Verification) -> str:
    """The p-value of the best match, and what it means; empty if no mark was looked for."""
    if proves.detection is None:
        return ""
    rate = f"{proves.detection.spec.fpr:g}".replace("e-0", "e-")
    return (
        f"{proves.detection.p_value:.2g}: how likely a picture without the mark matches so well. From {rate} down, "
        "a picture is called marked."
    )


def show(picture: Path) -> Image.Image:
    """Return what a picture looks like.

    Raises:
        PrivgenError: it cannot be read.
    """
    return preview(load_image(picture).pixels)

"""Which key owns which object of generated images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from privgen.errors import UsageError
from privgen.watermark.key import Key
from privgen.watermark.objects.masks import check_mask
from privgen.watermark.tile.payload_code import check_payload


ObjectCarrierName = Literal["tile", "latent", "token"]
"""What the mark of an object is written with; see `privgen.watermark.objects.carrier`."""
OBJECT_CARRIERS: tuple[ObjectCarrierName, ...] = get_args(ObjectCarrierName)


@dataclass(frozen=True, eq=False)
class ObjectKeys:
    """Which key owns which object of generated images.

    Attributes:
        keys: by the word of the prompt that names the object, such as {"cat": alice}.
        masks: (H, W) in [0, 1] by the same words; an object that has one is there, whatever the model attends to, and
            its word need not be in the prompt.
        rest: key for all that is outside the objects; None leaves it as it is.
        psnr: quality inside the masks, in dB; None is what suits the carrier and the objects' sizes.
        payload: an ID, 0..4294967295, that all of the marks carry; None is none.
        carrier: what the marks are written with: "tile" in pixels, "latent" in the model's latents, or "token" by
            text.

    Raises:
        UsageError: no object, a mask of no object, a bad mask, a quality that is not positive, or a payload out of its
            range.
    """

    keys: Mapping[str, Key]
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    rest: Key | None = None
    psnr: float | None = None
    payload: int | None = None
    carrier: ObjectCarrierName = "tile"

    def __post_init__(self) -> None:
        if not self.keys:
            raise UsageError("Name at least one object.")
        for name, mask in self.masks.items():
            if name not in self.keys:
                raise UsageError(f'There is a mask for "{name}", but no key; name one of {", ".join(self.keys)}.')
            check_mask(mask, name)
        if self.psnr is not None and not self.psnr > 0:
            raise UsageError(f"expected a quality above 0 dB, got {self.psnr}")
        if self.payload is not None:
            check_payload(self.payload)
            if self.carrier != "tile":
                raise UsageError("Tiles carry payloads; leave the payload out, or use the carrier tile.")

    @property
    def words(self) -> list[str]:
        """The objects that attention finds: those without a mask."""
        return [name for name in self.keys if name not in self.masks]

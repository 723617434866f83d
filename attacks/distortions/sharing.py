"""What people and apps do to photographs before they share them: screenshots, captions, chat apps, upload chains.

Chat apps shrink a photograph until its longest side fits, and compress it as JPEG. Sizes are those that users have
measured. The quality of Telegram is in its source; the others are assumptions, and parameters of the attacks.
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from privgen.attacks.base import Attack, ResizingAttack, Sequence
from privgen.attacks.distortions.codecs import through_codec
from privgen.attacks.distortions.degradation import JPEG
from privgen.attacks.distortions.geometric import Crop, Scale
from privgen.attacks.distortions.photometric import Brightness
from privgen.attacks.draws import Draws
from privgen.attacks.registry import register
from privgen.io.pixels import resize


def check_quality(name: str, quality: object) -> None:
    """Raise ValueError unless a quality is a whole number of 1 to 100."""
    if quality not in range(1, 101):
        raise ValueError(f"{name}: expected a whole number in [1, 100] as quality, got {quality!r}")


@register
@dataclass(frozen=True, repr=False)
class Screenshot(ResizingAttack):
    """Takes a screenshot of the image: a part of it, smaller, brighter, and as JPEG.

    At strength 1, 0.9 of the area is kept, at a random place; height and width shrink to 0.8; brightness grows by a
    factor of 1.1; the quality of the JPEG is 80. At other strengths, all four go so many times as far.

    Args:
        strength: 0 to 4; 0 leaves the image as it is.
    """

    name = "screenshot"
    kind = "D"
    unit = "times the usual"
    sweep = (0.5, 1, 2)
    identity = 0
    bounds = (0, 4)

    strength: float = 1

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        steps = Sequence(
            Crop(1 - 0.1 * self.strength, size="own"),
            Scale(1 - 0.2 * self.strength),
            Brightness(1 + 0.1 * self.strength),
            JPEG(round(100 - 20 * self.strength)),
        )
        return steps.apply(images, generators)


@register
@dataclass(frozen=True, repr=False)
class Caption(Attack):
    """Covers a part of the image with a black bar and white text, and compresses it as JPEG.

    Args:
        strength: height of the bar, 0 to 1, as a fraction of the image's height. It is rounded to whole pixels. 0
            leaves the image as it is.
        text: one line; where it is too long for the bar, its letters become smaller.
        place: "bottom" or "top".
        quality: of the JPEG, 1 to 100.
    """

    name = "caption"
    kind = "D"
    unit = "of the height"
    sweep = (0.05, 0.1, 0.15, 0.2, 0.3)
    identity = 0
    bounds = (0, 1)

    strength: float = 0.15
    _: KW_ONLY
    text: str = "What a day it was"
    place: Literal["bottom", "top"] = "bottom"
    quality: int = 80

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.place not in ("bottom", "top"):
            raise ValueError(f"caption: expected place 'bottom' or 'top', got {self.place!r}")
        check_quality(self.name, self.quality)

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        height, width = images.shape[-2:]
        covered = round(self.strength * height)
        if covered:
            bar = _bar(str(self.text), (covered, width)).to(images).expand(len(images), -1, -1, -1)
            parts = (images[..., : height - covered, :], bar)
            images = torch.cat(parts if self.place == "bottom" else (bar, images[..., covered:, :]), dim=2)
        return JPEG(self.quality).apply(images, generators)


def _bar(text: str, size: tuple[int, int]) -> Tensor:
    """Draw white text in the middle of a black bar: (3, *size) in [0, 1]."""
    height, width = size
    bar = Image.new("RGB", (width, height))
    letters = 0.6 * height
    font = ImageFont.load_default(letters)
    while font.getlength(text) > 0.9 * width and letters > 1:
        letters = max(1, 0.9 * letters)
        font = ImageFont.load_default(letters)
    ImageDraw.Draw(bar).text((width / 2, height / 2), text, fill="white", font=font, anchor="mm")
    return torch.from_numpy(np.array(bar)).permute(2, 0, 1) / 255


class _ChatApp(ResizingAttack):
    """What the chat apps share: the image is shrunk until its longest side fits, and compressed as JPEG."""

    kind = "D"
    unit = "sendings"
    sweep = (1,)
    identity = 0
    bounds: ClassVar[tuple[float, float]] = (0, 20)
    whole = True

    side: int
    quality: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side < 1:
            raise ValueError(f"{self.name}: expected a side >= 1, got {self.side!r}")
        check_quality(self.name, self.quality)

    def _at_most(self) -> int | None:
        """Return the largest size of a file in bytes."""
        return None

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        for _ in range(int(self.strength)):
            fitted = fit_within(images, self.side).clamp(0, 1)
            images = through_codec(fitted, "JPEG", int(self.quality), at_most=self._at_most())
        return images


def fit_within(images: Tensor, side: int) -> Tensor:
    """Shrink images (B, 3, H, W) until their longest side has so many pixels; smaller images stay as they are."""
    longest = max(images.shape[-2:])
    if longest <= side:
        return images
    return resize(images, [max(1, round(length * side / longest)) for length in images.shape[-2:]])


@register
@dataclass(frozen=True, repr=False)
class WhatsApp(_ChatApp):
    """Sends the image through WhatsApp: at most 1600 pixels, and at most 317 kB of JPEG.

    Photographs of full size arrive as files of about 155 to 317 kB. Here the quality is 80, an assumption, and it is
    lowered where the file would be larger.

    Args:
        strength: how many times, 0 to 20, the image is sent.
        side: longest side in pixels.
        quality: of the JPEG, 1 to 100.
        kilobytes: largest size of the file, in 1000 bytes; None keeps to the quality.
    """

    name = "whatsapp"

    strength: float = 1
    _: KW_ONLY
    side: int = 1600
    quality: int = 80
    kilobytes: int | None = 317

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kilobytes is not None and self.kilobytes <= 0:
            raise ValueError(f"whatsapp: expected kilobytes > 0 or None, got {self.kilobytes!r}")

    def _at_most(self) -> int | None:
        return None if self.kilobytes is None else int(1000 * self.kilobytes)


@register
@dataclass(frozen=True, repr=False)
class Telegram(_ChatApp):
    """Sends the image through Telegram as a photograph: at most 1280 pixels, JPEG of quality 87.

    Both numbers are those in the source of Telegram Desktop.

    Args:
        strength: how many times, 0 to 20, the image is sent.
        side: longest side in pixels.
        quality: of the JPEG, 1 to 100.
    """

    name = "telegram"

    strength: float = 1
    _: KW_ONLY
    side: int = 1280
    quality: int = 87


@register
@dataclass(frozen=True, repr=False)
class Instagram(_ChatApp):
    """Sends the image as a direct message on Instagram: at most 1206 pixels, as JPEG.

    Photographs of 3:2 arrive with 1206 x 804 pixels. The quality is an assumption.

    Args:
        strength: how many times, 0 to 20, the image is sent.
        side: longest side in pixels.
        quality: of the JPEG, 1 to 100.
    """

    name = "instagram"

    strength: float = 1
    _: KW_ONLY
    side: int = 1206
    quality: int = 75


@register
@dataclass(frozen=True, repr=False)
class WeChat(_ChatApp):
    """Sends the image through WeChat: at most 1644 pixels, as JPEG.

    Photographs arrive with longest sides of 1644 to 1920 pixels. The quality is an assumption.

    Args:
        strength: how many times, 0 to 20, the image is sent.
        side: longest side in pixels.
        quality: of the JPEG, 1 to 100.
    """

    name = "wechat"

    strength: float = 1
    _: KW_ONLY
    side: int = 1644
    quality: int = 75


@register
@dataclass(frozen=True, repr=False)
class UploadChain(ResizingAttack):
    """Resizes the image and compresses it as JPEG, again and again, as a chain of uploads does.

    Args:
        strength: number of rounds, 0 to 50.
        scale: factor for height and width in each round, 0.1 to 2.
        quality: of the JPEG in each round, 1 to 100.
    """

    name = "upload_chain"
    kind = "D"
    unit = "rounds"
    sweep = (1, 2, 3, 5, 8)
    identity = 0
    bounds = (0, 50)
    whole = True

    strength: float = 3
    _: KW_ONLY
    scale: float = 0.9
    quality: int = 75

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.1 <= self.scale <= 2:
            raise ValueError(f"upload_chain: expected a scale in [0.1, 2], got {self.scale!r}")
        check_quality(self.name, self.quality)

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        return Sequence(Scale(self.scale), JPEG(self.quality)).repeat(int(self.strength)).apply(images, generators)

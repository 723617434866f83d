"""What the tab Attack does: attack a picture, and say whether its mark survives."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from privgen.attacks.base import Attack, BaseAttack
from privgen.attacks.base import Sequence as Chain
from privgen.attacks.files import attack_files
from privgen.attacks.registry import JOINT, attack_class, get_attack, parameters_of
from privgen.errors import PrivgenError, UsageError
from privgen.io.images import load_image
from privgen.watermark.networks import Networks
from privgen.watermark.read.detection import Detection, Detector, DetectSpec
from privgen.webpage.owners import load_named_key
from privgen.webpage.pictures import preview


ATTACKS = (
    "jpeg",
    "webp",
    "crop",
    "scale",
    "rotation",
    "flip",
    "blur",
    "noise",
    "brightness",
    "contrast",
    "border",
    "caption",
    "erase",
    "collage",
    "screenshot",
    "whatsapp",
    "upload_chain",
    "median",
    "vae",
    "regeneration",
)
"""The attacks that the page offers: those that need nothing but the picture, and take seconds."""


@dataclass(frozen=True)
class Strength:
    """The slider of an attack.

    Attributes:
        low: left end.
        high: right end.
        step: from one position to the next.
        default: where it stands at first.
        unit: of the strength.
        words: what the attack does.
    """

    low: float
    high: float
    step: float
    default: float
    unit: str
    words: str


@dataclass(frozen=True)
class Attacked:
    """An attacked picture, and what is left of its mark.

    Attributes:
        file: to download.
        picture: what it looks like.
        psnr: against the picture before, in dB; None if the size differs or nothing changed.
        before: the mark in the picture.
        after: the mark in the attacked picture.
    """

    file: Path
    picture: Image.Image
    psnr: float | None
    before: Detection
    after: Detection

    @property
    def verdict(self) -> str:
        """Whether the mark survives, as a sentence."""
        owner = self.before.best.key
        if not self.before.detected:
            return f"The picture carries no mark of {owner} that could survive; mark it first."
        if self.after.detected:
            return f"The mark of {owner} survives."
        return f"The mark of {owner} is lost."


def strength_of(name: str) -> Strength:
    """Return the slider of an attack: from the strength that changes nothing to the strongest of an evaluation.

    Raises:
        ValueError: no attack has that name.
    """
    attack = attack_class(name)
    ends = (attack.identity, *attack.sweep)
    low, high = min(ends), max(ends)
    step = 1.0 if attack.whole else (high - low) / 100
    words = (attack.__doc__ or "").splitlines()[0]
    return Strength(low, high, step, float(parameters_of(attack)["strength"] or 0), attack.unit, words)


def chain(steps: Sequence[tuple[str | None, float]]) -> BaseAttack:
    """Return the attacks that were chosen, to be done one after the other.

    Args:
        steps: name and strength of each; those without a name are left out.

    Raises:
        UsageError: none was chosen, one that the page does not offer, or a strength that the attack refuses.
    """
    chosen: list[BaseAttack] = []
    for name, strength in steps:
        if not name:
            continue
        if name not in ATTACKS:
            raise UsageError(f"There is no attack {name!r} on this page; choose from {', '.join(ATTACKS)}.")
        value = round(strength) if attack_class(name).whole else strength
        try:
            chosen.append(get_attack(name, strength=value))
        except ValueError as error:
            raise UsageError(f"{error}.") from error
    if not chosen:
        raise UsageError("Choose an attack.")
    return chosen[0] if len(chosen) == 1 else Chain(*chosen)


def written(attack: BaseAttack) -> str:
    """Return an attack as `privgen attack run` takes it: "jpeg=50 then crop=0.5"."""
    parts = attack.attacks if isinstance(attack, Chain) else (attack,)
    return JOINT.join(f"{part.name}={part.strength:g}" for part in parts if isinstance(part, Attack))


def attack_picture(picture: Path, folder: Path, attack: BaseAttack, key: str | None, networks: Networks) -> Attacked:
    """Attack a picture as `privgen attack run` does, and look for a key's mark before and after.

    Args:
        picture: image file.
        folder: where the attacked file goes; another folder than the picture's.
        attack: what is done to it.
        key: name of the key whose mark is looked for.
        networks: that read the mark.

    Raises:
        PrivgenError: the picture or the key cannot be read, or the attack needs something that is missing.
    """
    detector = Detector(networks, [load_named_key(key)], DetectSpec(search=True))
    target = folder / f"{picture.stem}-attacked.png"
    [made] = attack_files(attack, [picture], target).files
    if made.error is not None:
        raise PrivgenError(made.error)
    pixels = load_image(target).pixels
    before, after = (detector([image])[0] for image in (load_image(picture).pixels, pixels))
    psnr = made.psnr if made.psnr is not None and math.isfinite(made.psnr) else None
    return Attacked(target, preview(pixels), psnr, before, after)

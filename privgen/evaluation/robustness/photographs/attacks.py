"""The preset `photographs`: what happens to photographs at their own sizes, as attacks in the words of `parse_attack`.

The presets in `privgen.evaluation.robustness.plan` are for images that a model generates at one size. Attacks here may
change the size.
"""

from collections.abc import Sequence
from dataclasses import replace

from privgen.attacks import Attack, BaseAttack, FittedAttack, pairs_of, parse_attack
from privgen.errors import PrivgenError, UsageError
from privgen.evaluation.robustness.plan import Planned


COMPRESSION = ("jpeg=50", "jpeg=20", "jpeg=10", "webp=50")

SIZE = ("scale=0.6 then jpeg=70", "scale=0.25", "scale=0.2")

PARTS = (
    *("crop=0.75,size=own", "crop=0.5,size=own", "crop=0.25,size=own", "crop=0.1,size=own"),
    *("aspect_crop,ratio=4:5", "aspect_crop,ratio=1:1", "aspect_crop,ratio=16:9"),
)
"""What is cut out stays at its own size; the fractions are those of the area that is kept."""

CANVAS = ("border=0.1", "border=0.1,colour=black", "pad,ratio=1:1", "pad,ratio=9:16", "collage=2", "collage=4")

GEOMETRY = ("rotation=5", "rotation=15", "flip", "micro_warp=1", "micro_warp=2")

TONE = ("brightness=1.5", "grey", "noise=0.05", "blur=3,reference=none")

SHARING = ("screenshot", "caption=0.15", "whatsapp", "telegram", "instagram", "wechat", "upload_chain=3")

REGENERATION = ("vae=1", "vae=4")
"""These take a model; `mini`, unless the text names another."""

SINGLE = (*COMPRESSION, *SIZE, *PARTS, *CANVAS, *GEOMETRY, *TONE, *SHARING, *REGENERATION)
"""Attacks that are measured one by one."""

PAIRED_FIRST = ("crop=0.5,size=own", "border=0.1", "scale=0.6", "rotation=15", "flip")
"""Geometric attacks of the sweep of two."""

PAIRED_THEN = ("jpeg=50", "brightness=1.5", "noise=0.05", "grey")
"""Photometric attacks of the sweep of two."""


def photograph_attacks() -> tuple[BaseAttack, ...]:
    """Return all attacks of the preset: those of `SINGLE`, and then every pair of the sweep of two."""
    singles = tuple(parse_attack(text) for text in SINGLE)
    return singles + pairs_of(map(parse_attack, PAIRED_FIRST), map(parse_attack, PAIRED_THEN))


def plan_photograph_attacks(n: int, only: Sequence[str] = ()) -> list[Planned]:
    """Return the attacks of the preset, ready to run.

    Args:
        n: images that each attack gets.
        only: names of attacks such as "crop", which stand for all single attacks of that name; labels such as
            "crop_0_5_size_own" or "flip_then_grey"; or attacks as in `SINGLE`. Empty is all.

    Raises:
        UsageError: an entry of `only` that the preset does not run.
    """
    planned, unknown = [], dict.fromkeys(only)
    texts = [*SINGLE, *(f"{one} then {two}" for one in PAIRED_FIRST for two in PAIRED_THEN)]
    for text, attack in zip(texts, photograph_attacks(), strict=True):
        name = attack.name if isinstance(attack, Attack) else attack.label
        chosen = {text, attack.label, name} & set(only)
        if chosen or not only:
            planned.append(_planned(name, attack, n))
        for used in chosen:
            unknown.pop(used, None)
    if unknown:
        names = dict.fromkeys(attack.name for attack in map(parse_attack, SINGLE) if isinstance(attack, Attack))
        raise UsageError(
            f"--attack {next(iter(unknown))} is not among those of the preset photographs; choose from "
            f"{', '.join(names)}, or a label such as rotation_15_then_jpeg_50."
        )
    return planned


def _planned(name: str, attack: BaseAttack, n: int) -> Planned:
    strength, unit = (attack.strength, attack.unit) if isinstance(attack, Attack) else (1.0, "")
    # Models see photographs at full size here, because the enlarged change of a small copy would be a weaker attack.
    run = replace(attack, fit="whole") if isinstance(attack, FittedAttack) else attack
    entry = Planned(attack.label, name, strength, unit, n, True, run)
    try:
        attack.prepare()
    except PrivgenError as error:
        return replace(entry, middle=False, attack=None, reason=" ".join(str(error).split()))
    return entry

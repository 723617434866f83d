"""The preset `photographs`: what happens to photographs at their own sizes, as attacks in the words of `parse_attack`.

The presets in `plan` are for images that a model generates at one size. Attacks here may change the size.
"""

from privgen.attacks import BaseAttack, pairs_of, parse_attack


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

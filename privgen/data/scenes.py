"""Scenes: the small captioned world that mini was trained on.

A scene shows one to three cut-out objects on a coloured background, which may have a pattern. It comes with a caption
and an exact mask of every object. The same seed gives the same scene on every machine.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from privgen.data.patterns import PATTERNS, TEXTURES, pattern, texture


Array = NDArray[np.float32]

NOUNS = tuple(
    """cat elephant penguin turtle octopus butterfly fish pineapple strawberry banana watermelon hamburger donut
    cactus sunflower mushroom rocket car tractor guitar house clock balloon teapot""".split()
)
"""Objects that mini was trained on."""

HELDOUT_NOUNS = tuple(
    "fox panda whale snail pear pizza cupcake tulip helicopter trumpet gift camera frog robot bus owl".split()
)
"""Objects that no shipped model was trained on: subjects for personalisation."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 72, 66),
    "orange": (238, 158, 84),
    "yellow": (240, 214, 106),
    "green": (122, 188, 122),
    "blue": (108, 160, 220),
    "purple": (154, 120, 200),
    "pink": (240, 168, 196),
    "gray": (158, 162, 166),
}

PREVIEW_SEED = 2_000_000_000
"""First seed of the scenes that no training run draws: for previews, calibration and evaluation."""

SIZE = 128
"""Side of a scene in pixels, where you ask for no other."""

PATTERN_RMS = 0.045
"""Contrast of a pattern: RMS, for pixel values in [0, 1]."""
TEXTURE_RMS = 4 / 255
"""Contrast of a texture: RMS, for pixel values in [0, 1]."""
FULL_CONTRAST_TEXTURES = 4
"""Most textures at full contrast. More of them at once are fainter, so that together they stay at 8 / 255 RMS."""


@dataclass(frozen=True)
class Placed:
    """An object and its place on the canvas.

    Attributes:
        noun: what it is.
        x: of its centre, as a fraction of the side of the canvas.
        y: of its centre, as a fraction of the side of the canvas.
        side: of the square that it is drawn in, as a fraction of the side of the canvas.
    """

    noun: str
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class SceneSpec:
    """What a scene shows. Equal specs give equal pictures.

    Attributes:
        objects: from back to front.
        colour: of the background, a name in `COLOURS`.
        pattern: of the background, one of `PATTERNS`; None for a plain one.
        textures: that lie over the picture, some of `TEXTURES`.
        light: how much brighter the background is at the right and at the lower edge than in the middle, as fractions.
    """

    objects: tuple[Placed, ...]
    colour: str
    pattern: str | None = None
    textures: tuple[str, ...] = ()
    light: tuple[float, float] = (0.0, 0.0)

    @property
    def caption(self) -> str:
        """The caption, such as "a cat and a banana on a pink background with fine dots, linen and silk texture"."""
        things = _join([f"{_article(o.noun)} {o.noun}" for o in self.objects])
        text = f"{things} on {_article(self.colour)} {self.colour} background"
        if self.pattern:
            text += f" with {self.pattern}"
        if self.textures:
            text += f", {_join(list(self.textures), separator=' ')} texture"
        return text


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    Attributes:
        spec: what it shows.
        pixels: float32 array (3, size, size) in [0, 1].
        masks: float32 array (objects, size, size) in [0, 1], how much of each pixel each object covers.
    """

    spec: SceneSpec
    pixels: Array = field(repr=False)
    masks: Array = field(repr=False)

    @property
    def caption(self) -> str:
        """The caption of the spec."""
        return self.spec.caption


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _join(words: list[str], separator: str = ", ") -> str:
    """Words as English lists them: "a", "a and b", "a, b and c"."""
    return words[0] if len(words) == 1 else f"{separator.join(words[:-1])} and {words[-1]}"


@lru_cache(maxsize=1024)
def _cutout(noun: str, side: int) -> Array:
    """The picture of an object, RGBA of shape (4, side, side) in [0, 1], with colours premultiplied by alpha."""
    with as_file(files("privgen.data") / "cutouts" / f"{noun}.webp") as path, Image.open(path) as image:
        # Premultiplied colours ("RGBa") get no dark fringe when they are resized.
        small = image.convert("RGBA").convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
        rgba = np.frombuffer(small.tobytes(), np.uint8).reshape(side, side, 4)
    pixels = (np.ascontiguousarray(rgba.transpose(2, 0, 1)) / 255).astype(np.float32)
    # Resampling overshoots, and may leave colour where alpha is zero.
    pixels[:3] = np.minimum(pixels[:3], pixels[3])
    return pixels


# Centres and sides by the number of objects. A small model learns calm layouts best.
_LAYOUTS: dict[int, tuple[tuple[float, float], ...]] = {
    1: ((0.5, 0.5),),
    2: ((0.26, 0.5), (0.74, 0.5)),
    3: ((0.26, 0.74), (0.74, 0.74), (0.5, 0.26)),
}
_SIDES: dict[int, tuple[float, float]] = {1: (0.72, 0.80), 2: (0.44, 0.48), 3: (0.42, 0.46)}
_JITTER: dict[int, float] = {1: 0.04, 2: 0.025, 3: 0.015}
_COUNT_WEIGHTS = {1: 0.45, 2: 0.45, 3: 0.10}
_TEXTURE_COUNT_WEIGHTS = {0: 0.45, 1: 0.09, 2: 0.08, 3: 0.07, 4: 0.07, 6: 0.06, 8: 0.06, 12: 0.06, 16: 0.06}


def sample_spec(
    seed: int,
    *,
    nouns: tuple[str, ...] = NOUNS,
    count: int | None = None,
    patterned: bool | None = None,
    textured: bool | None = None,
) -> SceneSpec:
    """Draw what a scene shows.

    Args:
        seed: the same seed and options give the same spec.
        nouns: objects to choose from. No object comes twice in a scene.
        count: number of objects, 1 to 3. None draws it.
        patterned: whether the background has a pattern. None draws it: 35 % have one.
        textured: whether textures lie over the picture. None draws it: 55 % have some.

    Raises:
        ValueError: `count` is not 1, 2 or 3.
    """
    if count not in (None, 1, 2, 3):
        raise ValueError(f"expected count 1, 2 or 3, got {count}")
    rng = np.random.Generator(np.random.PCG64(seed))
    n = count or int(rng.choice(list(_COUNT_WEIGHTS), p=list(_COUNT_WEIGHTS.values())))
    jitter, (low, high) = _JITTER[n], _SIDES[n]
    chosen = rng.choice(len(nouns), size=n, replace=False)
    objects = tuple(
        Placed(
            nouns[i], x + rng.uniform(-jitter, jitter), y + rng.uniform(-jitter, jitter), float(rng.uniform(low, high))
        )
        for i, (x, y) in zip(chosen, _LAYOUTS[n], strict=True)
    )
    colour = list(COLOURS)[rng.integers(len(COLOURS))]
    name = PATTERNS[rng.integers(len(PATTERNS))]
    with_pattern = rng.random() < 0.35 if patterned is None else patterned
    k = _texture_count(rng, textured)
    words = tuple(TEXTURES[i] for i in rng.choice(len(TEXTURES), size=k, replace=False))
    light = (float(rng.uniform(-0.1, 0.1)), float(rng.uniform(-0.1, 0.1)))
    return SceneSpec(objects, colour, name if with_pattern else None, words, light)


def _texture_count(rng: np.random.Generator, textured: bool | None) -> int:
    counts = [k for k in _TEXTURE_COUNT_WEIGHTS if textured is None or (k > 0) is textured]
    weights = np.array([_TEXTURE_COUNT_WEIGHTS[k] for k in counts])
    return int(rng.choice(counts, p=weights / weights.sum()))


def _background(spec: SceneSpec, size: int) -> Array:
    """The background with its light and its pattern, (3, size, size) in [0, 1]."""
    ramp = np.linspace(-1, 1, size, dtype=np.float32)
    shade = 1 + spec.light[0] * ramp[None, :] + spec.light[1] * ramp[:, None]
    base = np.asarray(COLOURS[spec.colour], np.float32)[:, None, None] / 255 * shade[None]
    if spec.pattern:
        base = base + PATTERN_RMS * pattern(spec.pattern, size)[None]
    return np.clip(base, 0, 1).astype(np.float32)


def draw(spec: SceneSpec, size: int = SIZE) -> Scene:
    """Draw a scene.

    Args:
        spec: what to show.
        size: side of the square picture in pixels.
    """
    pixels = _background(spec, size)
    masks = np.zeros((len(spec.objects), size, size), np.float32)
    for i, placed in enumerate(spec.objects):
        side = round(placed.side * size)
        left, top = round(placed.x * size - side / 2), round(placed.y * size - side / 2)
        x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
        rgba = _cutout(placed.noun, side)[:, y0 - top : y1 - top, x0 - left : x1 - left]
        area = (slice(None), slice(y0, y1), slice(x0, x1))
        pixels[area] = pixels[area] * (1 - rgba[3]) + rgba[:3]
        masks[area] *= 1 - rgba[3]
        masks[i, y0:y1, x0:x1] = rgba[3]
    contrast = TEXTURE_RMS * min(1.0, (FULL_CONTRAST_TEXTURES / max(len(spec.textures), 1)) ** 0.5)
    for name in spec.textures:
        pixels += contrast * texture(name, size)[None]
    return Scene(spec, np.clip(pixels, 0, 1), masks)


def draw_scene(
    seed: int,
    *,
    size: int = SIZE,
    nouns: tuple[str, ...] = NOUNS,
    count: int | None = None,
    patterned: bool | None = None,
    textured: bool | None = None,
) -> Scene:
    """Draw the scene of a seed, in one step.

    Args:
        seed: the same seed and options give the same scene.
        size: side of the square picture in pixels.
        nouns: see `sample_spec`, also for the options that follow.
        count: number of objects.
        patterned: whether the background has a pattern.
        textured: whether textures lie over the picture.

    Raises:
        ValueError: `count` is not 1, 2 or 3.
    """
    spec = sample_spec(seed, nouns=nouns, count=count, patterned=patterned, textured=textured)
    return draw(spec, size)

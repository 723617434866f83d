"""Marked images of an evaluation of objects, whose true masks are known."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from torch import Tensor

from privgen.data.scenes import NOUNS, PREVIEW_SEED, Placed, SceneSpec, draw, sample_spec
from privgen.diffusion.sampling import silent
from privgen.evaluation.watermark.generation import as_saved, draw_keys
from privgen.io.images import load_image
from privgen.io.pixels import resize
from privgen.watermark.key import Key
from privgen.watermark.objects.in_pipeline import marking_objects
from privgen.watermark.objects.keys import ObjectKeys
from privgen.watermark.objects.write import ObjectMark, mark_objects


REDRAWN = 0.2
"""Last fraction of the steps, in which mini redraws a drawn scene."""
STEPS, GUIDANCE = 25, 3.0
OVERLAP = 0.4
"""Fraction of the object behind that the one in front covers, where two overlap."""
PHOTO_SIDE = 512
"""Short side in pixels of photographs."""
AREAS = (0.05, 0.1, 0.2, 0.3)
"""Fractions of a photograph that its masks cover, in turn."""


@dataclass(frozen=True, eq=False)
class Case:
    """One image with marked objects.

    Attributes:
        plain: (3, H, W) in [0, 1], the image without marks, rounded to 8 bits.
        marked: the same with marks.
        truth: (K, H, W) of 0 and 1, where the objects are.
        masks: (K, H, W) in [0, 1], where they were marked.
        keys: of the objects.
        qualities: in dB, inside the masks.
    """

    plain: Tensor
    marked: Tensor
    truth: Tensor
    masks: Tensor
    keys: tuple[Key, ...]
    qualities: tuple[float, ...]

    @property
    def areas(self) -> list[float]:
        """Fraction of the image that each object covers."""
        return [float(mask.mean()) for mask in self.truth]


def overlapping_spec(seed: int) -> SceneSpec:
    """A scene with two objects, of which the front one covers about `OVERLAP` of the other."""
    rng = np.random.Generator(np.random.PCG64(seed))
    first, second = (NOUNS[i] for i in rng.choice(len(NOUNS), size=2, replace=False))
    base = sample_spec(seed, count=2, patterned=False, textured=False)
    x, y, side = 0.38 + rng.uniform(-0.03, 0.03), 0.5 + rng.uniform(-0.03, 0.03), 0.5
    behind = Placed(first, x, y, side)
    whole = draw(SceneSpec((behind,), base.colour)).masks[0].sum()
    for distance in np.arange(0.7, 0, -0.05):
        spec = SceneSpec((behind, Placed(second, x + float(distance) * side, y, side)), base.colour, light=base.light)
        if draw(spec).masks[0].sum() <= (1 - OVERLAP) * whole:
            break
    return spec


def scene_cases(pipe: Any, specs: Sequence[SceneSpec], seed: int) -> Iterator[Case]:
    """Mark the objects of generated scenes, found by attention.

    Scenes are drawn, so that exact masks are known, and mini redraws the last fifth of their denoising.

    Args:
        pipe: mini.
        specs: what the scenes show.
        seed: of keys and noise.

    Yields:
        One case for each scene.
    """
    again = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    generator = torch.Generator().manual_seed(seed)
    for number, spec in enumerate(specs):
        scene = draw(spec)
        keys = draw_keys(len(spec.objects), generator, f"owner-{number}")
        owners = ObjectKeys({item.noun: key for item, key in zip(spec.objects, keys, strict=True)})
        given = {"prompt": scene.caption, "image": torch.from_numpy(scene.pixels)[None], "strength": REDRAWN}
        given |= {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "pt"}
        with silent(again):
            plain = again(**given, generator=torch.Generator().manual_seed(number)).images[0]
            with marking_objects(again, owners) as record:
                marked = again(**given, generator=torch.Generator().manual_seed(number)).images[0]
        [objects] = record
        truth = (torch.from_numpy(scene.masks) >= 0.5).float()
        masks = torch.stack([item.mask for item in objects]).cpu()
        qualities = tuple(item.object_psnr for item in objects)
        yield Case(as_saved(plain.cpu()), as_saved(marked.cpu()), truth, masks, keys, qualities)


def photograph_cases(paths: Sequence[Any], n: int, seed: int) -> Iterator[Case]:
    """Mark two or three ellipses in each of n photographs, which are taken in turn.

    Args:
        paths: of the photographs.
        n: how many cases.
        seed: of keys and places.

    Yields:
        One case for each photograph.

    Raises:
        PrivgenError: a photograph cannot be read.
    """
    generator, rng = torch.Generator().manual_seed(seed), np.random.Generator(np.random.PCG64(seed))
    for number in range(n):
        pixels = load_image(paths[number % len(paths)]).pixels
        factor = PHOTO_SIDE / min(pixels.shape[1:])
        size = (round(pixels.shape[1] * factor), round(pixels.shape[2] * factor))
        plain = as_saved(resize(pixels[None], size)[0])
        count = 2 + number % 2
        areas = [AREAS[(number + i) % len(AREAS)] for i in range(count)]
        masks = torch.stack(_ellipses(size, areas, rng))
        keys = draw_keys(count, generator, f"owner-{number}")
        marks = [ObjectMark(key.name, key, mask) for key, mask in zip(keys, masks, strict=True)]
        done = mark_objects(plain, marks, levels=255, check=False)
        yield Case(plain, done.pixels, masks, masks, keys, tuple(item.object_psnr for item in done.objects))


def _ellipses(size: tuple[int, int], areas: Sequence[float], rng: np.random.Generator) -> list[Tensor]:
    """Ellipses that cover fractions of a canvas and do not touch; where no place is left, a smaller one."""
    height, width = size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    found: list[Tensor] = []
    taken = torch.zeros(size, dtype=torch.bool)
    for area in sorted(areas, reverse=True):
        for attempt in range(10_000):
            shrunk = area * 0.97 ** max(0, attempt - 200)
            aspect = float(np.exp(rng.uniform(-0.3, 0.3)))
            b = (shrunk * height * width / np.pi / aspect) ** 0.5
            a = b * aspect
            if 2 * a >= width or 2 * b >= height:
                continue
            x, y = rng.uniform(a, width - a), rng.uniform(b, height - b)
            inside = ((columns - x) / a) ** 2 + ((rows - y) / b) ** 2 <= 1
            if not bool((inside & taken).any()):
                break
        taken |= inside
        found.append(inside.float())
    return found


def heldout_specs(setting: str, n: int, seed: int) -> list[SceneSpec]:
    """What the n scenes of a setting show."""
    first = PREVIEW_SEED + 1_000_000 * seed + 500_000
    if setting == "overlap":
        return [overlapping_spec(first + i) for i in range(n)]
    count = {"one_object": 1, "two_objects": 2, "three_objects": 3}[setting]
    return [sample_spec(first + i, count=count, textured=False) for i in range(n)]

"""Images with marked objects whose true masks are known, by number."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import StableDiffusionImg2ImgPipeline
from numpy.typing import NDArray
from torch import Tensor, nn

from privgen.data.scenes import NOUNS, PREVIEW_SEED, Placed, Scene, SceneSpec, draw, sample_spec
from privgen.diffusion.sampling import silent
from privgen.evaluation.watermark.generation import as_saved, draw_keys
from privgen.io.fingerprints import file_fingerprint, seed_from, settings_fingerprint, weights_fingerprint
from privgen.io.images import load_image
from privgen.io.pixels import resize
from privgen.watermark.key import Key
from privgen.watermark.objects.attention import LATE, THRESHOLD
from privgen.watermark.objects.in_pipeline import marking_objects
from privgen.watermark.objects.keys import ObjectKeys
from privgen.watermark.objects.write import ObjectMark, mark_objects


SCENES = {"one_object": 1, "two_objects": 2, "three_objects": 3, "overlap": 2}
"""Settings of generated scenes, and how many objects each scene has."""
PHOTOGRAPHS = "photographs"
"""Name of the setting of photographs."""
REDRAWN, REDRAWN_OVERLAP = 0.2, 0.08
"""Last fraction of the steps, in which mini redraws a drawn scene. mini has never seen objects overlap, and pulls them
apart if it has time for it; then the drawn masks would no longer be true."""
STEPS, GUIDANCE = 25, 3.0
OVERLAP = 0.4
"""Fraction of the object behind that the one in front covers, where two overlap."""
PHOTO_SIDE = 512
"""Short side in pixels of photographs."""
AREAS = ((0.05, 0.1), (0.05, 0.1, 0.2), (0.2, 0.3), (0.05, 0.1, 0.3))
"""Fractions of photographs that their masks cover, in turn."""

_CELL, _LAYOUTS = 8, 10_000  # pixels of the grid on which ellipses are laid out, and how many layouts are tried
_KEPT = 2  # unmarked images that a source keeps: a case is pasted into its neighbour


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


class CaseSource(Protocol):
    """The cases of one setting, by number. The same number gives the same case, whatever else is made."""

    @property
    def setting(self) -> str:
        """Name of the setting."""
        ...

    def plain(self, number: int) -> Tensor:
        """The image without marks: (3, H, W) in [0, 1], rounded to 8 bits."""
        ...

    def case(self, number: int) -> Case:
        """The image with marks."""
        ...

    def work(self, number: int) -> str:
        """All that the case and its neighbour depend on, as hexadecimal digits."""
        ...


def neighbour(number: int) -> int:
    """The case into whose image the object of another is pasted: 1 for 0, 0 for 1, 3 for 2, and so on."""
    return number ^ 1


class SceneSource:
    """Generated scenes, whose objects attention finds.

    Scenes are drawn, so that exact masks are known, and mini redraws the last fifth of their denoising; the last two
    of 25 steps where objects overlap.

    Args:
        pipe: mini.
        setting: one of `SCENES`.
        seed: of scenes, keys and noise.
    """

    def __init__(self, pipe: Any, setting: str, seed: int) -> None:
        self.setting, self.seed = setting, seed
        self._pipe = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        networks = [weights_fingerprint(part) for part in pipe.components.values() if isinstance(part, nn.Module)]
        self._model = settings_fingerprint(networks, pipe.scheduler.to_json_string())
        self._plain: dict[int, Tensor] = {}

    def spec(self, number: int) -> SceneSpec:
        """What a scene shows."""
        return scene_spec(self.setting, number, self.seed)

    def plain(self, number: int) -> Tensor:
        """See `CaseSource`."""
        if number not in self._plain:
            self._plain[number] = self._generated(draw(self.spec(number)), number)
            self._plain = dict(list(self._plain.items())[-_KEPT:])
        return self._plain[number]

    def case(self, number: int) -> Case:
        """See `CaseSource`."""
        spec, plain = self.spec(number), self.plain(number)
        scene, keys = draw(spec), keys_of(self.setting, number, len(spec.objects), self.seed)
        owners = ObjectKeys({item.noun: key for item, key in zip(spec.objects, keys, strict=True)})
        with marking_objects(self._pipe, owners) as record:
            marked = self._generated(scene, number)
        [objects] = record
        truth = (torch.from_numpy(scene.masks) >= 0.5).float()
        masks = torch.stack([item.mask for item in objects]).cpu()
        return Case(plain, marked, truth, masks, keys, tuple(item.object_psnr for item in objects))

    def work(self, number: int) -> str:
        """See `CaseSource`."""
        return settings_fingerprint(
            self._model,
            self.setting,
            self.seed,
            number,
            REDRAWN,
            REDRAWN_OVERLAP,
            STEPS,
            GUIDANCE,
            OVERLAP,
            LATE,
            THRESHOLD,
        )

    def _generated(self, scene: Scene, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_from(self.seed, self.setting, number))
        with silent(self._pipe):
            images = self._pipe(
                scene.caption,
                image=torch.from_numpy(scene.pixels)[None],
                strength=REDRAWN_OVERLAP if self.setting == "overlap" else REDRAWN,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                output_type="pt",
                generator=generator,
            ).images
        return as_saved(images[0].cpu())


class PhotographSource:
    """Photographs, taken in turn, with two or three ellipses as masks.

    Args:
        paths: of the photographs.
        seed: of their order, keys and places.

    Raises:
        PrivgenError: a photograph cannot be read; raised when it is needed.
    """

    setting = PHOTOGRAPHS

    def __init__(self, paths: Sequence[Path], seed: int) -> None:
        order = _random(seed, "order", 0).permutation(len(paths))
        self.paths, self.seed = [paths[i] for i in order], seed
        self._plain: dict[int, Tensor] = {}

    def plain(self, number: int) -> Tensor:
        """See `CaseSource`."""
        if number not in self._plain:
            pixels = load_image(self._path(number)).pixels
            factor = PHOTO_SIDE / min(pixels.shape[1:])
            size = (round(pixels.shape[1] * factor), round(pixels.shape[2] * factor))
            self._plain[number] = as_saved(resize(pixels[None], size)[0])
            self._plain = dict(list(self._plain.items())[-_KEPT:])
        return self._plain[number]

    def case(self, number: int) -> Case:
        """See `CaseSource`."""
        plain, areas = self.plain(number), AREAS[number % len(AREAS)]
        size = (plain.shape[1], plain.shape[2])
        masks = torch.stack(_ellipses(size, areas, _random(self.seed, self.setting, number)))
        keys = keys_of(self.setting, number, len(areas), self.seed)
        marks = [ObjectMark(key.name, key, mask) for key, mask in zip(keys, masks, strict=True)]
        done = mark_objects(plain, marks, levels=255, check=False)
        return Case(plain, done.pixels, masks, masks, keys, tuple(item.object_psnr for item in done.objects))

    def work(self, number: int) -> str:
        """See `CaseSource`."""
        files = [file_fingerprint(self._path(one)) for one in (number, neighbour(number))]
        return settings_fingerprint(files, self.setting, self.seed, number, PHOTO_SIDE, AREAS, _LAYOUTS)

    def _path(self, number: int) -> Path:
        return self.paths[number % len(self.paths)]


def keys_of(setting: str, number: int, count: int, seed: int) -> tuple[Key, ...]:
    """The keys of the objects of a case."""
    return draw_keys(count, torch.Generator().manual_seed(seed_from(seed, "keys", setting, number)), f"owner-{number}")


def scene_spec(setting: str, number: int, seed: int) -> SceneSpec:
    """What a scene of one of `SCENES` shows. No training run draws it."""
    first = PREVIEW_SEED + 1_000_000 * seed + 500_000
    if setting == "overlap":
        return overlapping_spec(first + number)
    return sample_spec(first + number, count=SCENES[setting], textured=False)


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


def _random(*parts: object) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed_from(*parts)))


def _ellipses(size: tuple[int, int], areas: Sequence[float], rng: np.random.Generator) -> list[Tensor]:
    """Ellipses that cover fractions of a canvas and do not touch; smaller ones where no layout is found."""
    height, width = size
    coarse = (height // _CELL, width // _CELL)
    for attempt in range(2 * _LAYOUTS):
        shrunk = 0.97 ** max(0, attempt - _LAYOUTS)
        taken = np.zeros(coarse, bool)
        found = []
        for area in sorted(areas, reverse=True):
            aspect = float(np.exp(rng.uniform(-0.3, 0.3)))
            b = (shrunk * area * height * width / np.pi / aspect) ** 0.5
            a = b * aspect
            x, y = (rng.uniform(min(r, n / 2), max(n - r, n / 2)) for r, n in ((a, width), (b, height)))
            fits = 2 * a < width and 2 * b < height
            inside = _inside(coarse, (x / _CELL, y / _CELL), (a / _CELL + 1, b / _CELL + 1))
            if not fits or bool((inside & taken).any()):
                break
            taken |= inside
            found.append(((x, y), (a, b)))
        if len(found) == len(areas):
            break
    return [torch.from_numpy(_inside(size, *ellipse)).float() for ellipse in found]


def _inside(size: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float]) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[: size[0], : size[1]]
    inside: NDArray[np.bool_] = ((columns - centre[0]) / radii[0]) ** 2 + ((rows - centre[1]) / radii[1]) ** 2 <= 1
    return inside

"""Learn the subject of image files, and save what was learnt with a sheet that shows it."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from privgen.attacks.adversaries.base import Adversary
from privgen.attacks.adversaries.images import purified, squares
from privgen.attacks.base import BaseAttack
from privgen.data.sheets import contact_sheet, picture, save_picture
from privgen.diffusion.sampling import Sampling, generate
from privgen.errors import PrivgenError, UsageError
from privgen.hub import Placement, load_pipeline, model_label
from privgen.io.files import iter_image_files, make_folder, write_error
from privgen.io.images import load_image
from privgen.models.family import Canvas


COLUMNS = 4
"""Images in a row of the sheet."""


@dataclass(frozen=True)
class Personalised:
    """What became of a personalisation.

    Attributes:
        adversary: representation of the adversary.
        model: label of the model.
        images: number of images that it learnt from, clean ones included.
        steps: number of training steps.
        seed: seed of the run.
        learnt: file or folder with what was learnt.
        sheet: file with pictures: training images, and images of the same prompts and seeds before and after.
    """

    adversary: str
    model: str
    images: int
    steps: int
    seed: int
    learnt: str
    sheet: str


@dataclass(frozen=True)
class BaseModel:
    """The model that learns.

    Attributes:
        model: see `privgen.hub.load_pipeline`.
        vae: autoencoder for a model without one.
        placement: device and precision.
    """

    model: str = "mini"
    vae: str | None = None
    placement: Placement = field(default_factory=Placement)


@dataclass(frozen=True)
class Material:
    """The image files that an adversary learns from.

    Attributes:
        paths: files, and folders of them.
        clean: folder of further images, which are not purified; None for none.
        purify: attack on the images of `paths` before they are learnt; None for none.
    """

    paths: tuple[str | os.PathLike[str], ...]
    clean: str | os.PathLike[str] | None = None
    purify: BaseAttack | None = None

    def load(self, generator: torch.Generator) -> list[Tensor]:
        """Return the images, (3, H, W) each, in [0, 1].

        Raises:
            PrivgenError: a file cannot be read.
        """
        images = _load(self.paths)
        if self.purify is not None:
            images = purified(images, self.purify, generator=generator)
        return images + ([] if self.clean is None else _load([self.clean]))


def personalize_files(
    adversary: Adversary,
    material: Material,
    output: str | os.PathLike[str],
    *,
    steps: int | None = None,
    seed: int = 0,
    base: BaseModel | None = None,
    overwrite: bool = False,
) -> Personalised:
    """Learn the subject of image files.

    Args:
        adversary: how to learn it.
        material: the images.
        output: folder for what is learnt and for `sheet.png`.
        steps: training steps; None is what suits adversary and model.
        seed: of all randomness.
        base: the model that learns.
        overwrite: whether to write to a folder that has files.

    Returns:
        What was learnt, and where it is.

    Raises:
        UsageError: see `Adversary.fit`; or a folder has no images.
        PrivgenError: a file cannot be read or written, the model cannot be loaded, or the folder has files.
    """
    folder, base = Path(output), base or BaseModel()
    _refuse_full(folder, overwrite)
    generator = torch.Generator().manual_seed(seed)
    images = material.load(generator)
    place = base.placement
    pipe = load_pipeline(base.model, vae=base.vae, device=place.device, dtype=place.dtype)
    steps = adversary.pace_for(pipe).effort if steps is None else steps
    learnt = adversary.fit(pipe, images, steps, generator=generator, progress=True)
    try:
        make_folder(folder)
        saved = adversary.save(learnt, folder)
    except OSError as error:
        raise write_error(folder, error) from error
    sheet = folder / "sheet.png"
    save_picture(_sheet(adversary, pipe, learnt, images, seed), sheet, overwrite=True)
    return Personalised(repr(adversary), model_label(base.model), len(images), steps, seed, str(saved), str(sheet))


def _sheet(adversary: Adversary, before: object, after: object, images: Sequence[Tensor], seed: int) -> Image.Image:
    prompts = (adversary.prompts_for(before) * COLUMNS)[:COLUMNS]
    seeds = range(seed, seed + COLUMNS)
    sampling = Sampling(batch_size=1)
    shown = squares(images[:COLUMNS], Canvas.of_pipeline(before).size)
    rows = {
        "learnt from": list(shown),
        "before": list(generate(before, prompts, seeds, sampling, progress="before")),
        "after": list(generate(after, prompts, seeds, sampling, progress="after")),
    }
    # The first row may be shorter than the others.
    blank = torch.ones_like(shown[0])
    rows["learnt from"] += [blank] * (COLUMNS - len(shown))
    captions = ["learnt from"] * len(shown) + [""] * (COLUMNS - len(shown))
    captions += [f"{row}: {prompt}" for row in ("before", "after") for prompt in prompts]
    return contact_sheet([picture(image.numpy()) for row in rows.values() for image in row], captions, COLUMNS)


def _load(paths: Iterable[str | os.PathLike[str]]) -> list[Tensor]:
    return [load_image(path).pixels for path in iter_image_files(paths)]


def _refuse_full(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder.")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise PrivgenError(f"The folder {folder} has files; choose another, or pass --overwrite.")

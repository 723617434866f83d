"""`privgen adapt`: networks for the marks of a model, in a folder that every command takes for the model."""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor

from privgen.attacks import JPEG
from privgen.errors import PrivgenError, UsageError
from privgen.hub import CONFIG, Placement, load_pipeline, resolve_model
from privgen.io.files import make_folder, write_error
from privgen.io.images import load_image
from privgen.io.pixels import floats
from privgen.models.family import Canvas
from privgen.training.watermark.adapt import PHOTOS, CodeSize, adapt
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.protocols import key_bits
from privgen.watermark.read.logits import read_logits
from privgen.watermark.write.mark_image import mark_loaded
from privgen.watermark.write.mark_spec import MarkSpec
from privgen.watermark.write.marker import Marker


HELD_OUT = PHOTOS.parent / "heldout"
"""Photographs on which the result is tried."""

TRIED = 8
"""How many of them."""

JPEG_QUALITY = 50


@dataclass(frozen=True)
class AdaptedModel:
    """What was made, and how well it reads marks on photographs that it was not made from.

    Attributes:
        folder: that every command takes as `--model`.
        base_model: whose latents they are.
        n_bits: bits of a message.
        psnr_db: quality of the marks that were tried.
        n: photographs that were tried.
        bit_accuracy: fraction of the bits that is read right, of marked photographs as they are.
        bit_accuracy_jpeg_50: the same after JPEG of quality 50.
        bit_accuracy_unmarked: the same of the photographs without a mark, about one half.
    """

    folder: str
    base_model: str
    n_bits: int
    psnr_db: float
    n: int
    bit_accuracy: float
    bit_accuracy_jpeg_50: float
    bit_accuracy_unmarked: float


def adapt_model(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    vae: str | os.PathLike[str] | None = None,
    photos: str | os.PathLike[str] | None = None,
    code: CodeSize | None = None,
    placement: Placement | None = None,
    overwrite: bool = False,
) -> AdaptedModel:
    """Make the networks of a model and save them in a folder.

    Args:
        model: see `privgen.hub.resolve_model`.
        output: the folder. It gets `privgen/`, and names the model; the model itself is not copied. The model's own
            folder will do, too.
        vae: folder or Hub id of an autoencoder to use instead of the model's own.
        photos: folder of photographs on which the strength of marks is set; None are those of the package.
        code: how large the code is.
        placement: where the networks compute.
        overwrite: replace networks that are there.

    Raises:
        PrivgenError: a model cannot be read, or the folder cannot be written or holds networks already.
        UsageError: the model's images are too small.
    """
    settings, place = code or CodeSize(), placement or Placement()
    target, source = Path(output), resolve_model(model)
    present = target / "privgen" / "extractor"
    if present.exists() and not overwrite:
        raise PrivgenError(f"{present} exists; choose another folder, or pass --overwrite.")
    pipe = load_pipeline(source, vae=vae, device=place.device, dtype="float32", safety_checker=False)
    folder = PHOTOS if photos is None else Path(photos)
    try:
        made = adapt(pipe.vae, settings.size or Canvas.of_pipeline(pipe).size, folder, settings)
    except ValueError as error:
        raise UsageError(f"There are no photographs in {folder}; name another folder.") from error
    made.extractor.to(pipe.device)
    made.latent_mapper.to(pipe.device)
    networks = Networks.of(pipeline=pipe, extractor=made.extractor, latent_mapper=made.latent_mapper)
    accuracies = _tried(networks, settings)
    config: dict[str, Any] = {"default_carrier": "latent"}
    if not (target / "model_index.json").is_file():
        config["base_model"] = _absolute(model)
        config |= {} if vae is None else {"base_vae": _absolute(vae)}
    parts = {"extractor": made.extractor.cpu(), "latent_mapper": made.latent_mapper.cpu()}
    _save(parts, config, target)
    return AdaptedModel(str(target), os.fspath(model), settings.n_bits, settings.psnr, TRIED, *accuracies)


@torch.no_grad()
def _tried(networks: Networks, settings: CodeSize) -> tuple[float, float, float]:
    """The fraction of bits that is read from marked photographs, after JPEG, and from photographs without a mark."""
    images = [load_image(path) for path in sorted(HELD_OUT.glob("*.jpg"))[:TRIED]]
    keys = [Key.new(str(i)) for i in range(len(images))]
    marker = Marker(networks, MarkSpec("latent", psnr=settings.psnr))
    marked = [floats(image.pixels) for image in mark_loaded(images, [255] * len(images), keys, marker)]
    attack, bits = JPEG(JPEG_QUALITY), key_bits(keys, networks.extractor).cpu() > 0.5

    def accuracy(pixels: list[Tensor]) -> float:
        return float(((read_logits(pixels, networks.extractor, batch_size=1) > 0) == bits).float().mean())

    return accuracy(marked), accuracy([attack(x) for x in marked]), accuracy([image.pixels for image in images])


def _absolute(name: str | os.PathLike[str]) -> str:
    folder = Path(name).expanduser()
    return str(folder.resolve()) if folder.is_dir() else os.fspath(name)


def _save(parts: Mapping[str, Any], config: Mapping[str, Any], target: Path) -> None:
    """Write all beside the target first, so that nothing half-written is ever there."""
    make_folder(target / "privgen")
    try:
        made = Path(mkdtemp(prefix=".adapt-", dir=target))
        try:
            for name, network in parts.items():
                network.save_pretrained(made / name)
            (made / Path(CONFIG).name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
            for part in made.iterdir():
                place = target / "privgen" / part.name
                if place.is_dir():
                    shutil.rmtree(place)
                part.replace(place)
        finally:
            with suppress(OSError):
                shutil.rmtree(made)
    except OSError as error:
        raise write_error(target, error) from error

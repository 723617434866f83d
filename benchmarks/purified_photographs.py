"""What purification leaves of marks and of protection on photographs: by residual, and with tiles at full size.

    python benchmarks/purified_photographs.py
    python benchmarks/purified_photographs.py --attack diffpure=100,fit=tiles --threads 2

Four held-out photographs of 512 to 640 pixels are marked with tiles at the default quality, and protected with the
shield at its default quality. Each attack runs on the marked photograph, on the protected one and on the original,
with the same noise. "protection_left" is how far the last two are apart afterwards in the latents of an autoencoder of
Stable Diffusion, over how far apart they were before, both at 512 pixels, at which adversaries train. Prints one JSON
line for each attack, with the time that it took, and the time that would have been announced before.
"""

import json
import time
from dataclasses import dataclass
from importlib.resources import files
from statistics import mean, median
from typing import Any, Self

import click
import torch
from torch import Tensor

from privgen import Key, Protection, Watermark
from privgen.attacks import BaseAttack, parse_attack
from privgen.attacks.adversaries.images import squares
from privgen.attacks.estimate import expected_seconds, measure_step
from privgen.diffusion.latents import encode
from privgen.io.images import load_image
from privgen.metrics.quality import psnr
from privgen.models.autoencoder import load_autoencoder
from privgen.watermark.key import Secret


PHOTOGRAPHS = (
    "skimage-astronaut.jpg",
    "gcompris-animals-panda.jpg",
    "gcompris-usa-mountrushmore.jpg",
    "lomiri-life.jpg",
)
ATTACKS = (
    *("none", "vae=1", "vae=1,fit=tiles", "regeneration=60", "regeneration=60,fit=tiles"),
    *("diffpure=100,steps=10", "diffpure=100,steps=10,fit=tiles", "diffpure=100", "gridpure=15"),
)
KEY = Key("owner", Secret(bytes(32)))
NOTHING = "flip=0"
SIDE = 512  # pixels of the squares that an adversary learns
P_VALUE = 1e-6


@dataclass(frozen=True)
class Photographs:
    """Photographs (3, H, W) in [0, 1], as they are, marked, and protected."""

    plain: list[Tensor]
    marked: list[Tensor]
    protected: list[Tensor]

    @classmethod
    def load(cls) -> Self:
        folder = files("privgen") / "data" / "photos" / "heldout"
        plain = [load_image(str(folder / name)).pixels for name in PHOTOGRAPHS]
        mark, protection = Watermark.from_pretrained("mini"), Protection.from_pretrained()
        marked = [mark.embed(image, KEY) for image in plain]
        return cls(plain, marked, [protection.protect(image).image for image in plain])


def purify(attack: BaseAttack, image: Tensor) -> Tensor:
    """Attack an image, always with the same noise, and round it as a file would."""
    return attack(image, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)


@torch.no_grad()
def measure(text: str, photographs: Photographs, vae: Any | None) -> dict[str, object]:
    """What an attack does to photographs, marked photographs and protected ones."""
    attack, marked = parse_attack(NOTHING if text == "none" else text), photographs.marked
    works = [attack.work(*image.shape[-2:]) for image in marked]
    step = measure_step(attack, marked[0])
    expected = expected_seconds(works, works[0], step) if step is not None else 0.0
    started = time.perf_counter()
    attacked = [purify(attack, image) for image in marked]
    seconds = time.perf_counter() - started
    mark = Watermark.from_pretrained("mini")
    p_values = [mark.detect(image, KEY).p_value for image in attacked]
    kept = []
    for pair in zip(photographs.plain, photographs.protected, strict=True) if vae is not None else ():
        purified = [purify(attack, image) for image in pair]
        apart = [encode(vae, squares(images, SIDE)).diff(dim=0).norm() for images in (pair, purified)]
        kept.append(float(apart[1] / apart[0]))
    quality = [float(psnr(image[None], before[None])) for image, before in zip(attacked, marked, strict=True)]
    return {
        "attack": text,
        "found": sum(p < P_VALUE for p in p_values),
        "images": len(p_values),
        "median_p": float(f"{median(p_values):.2g}"),
        "protection_left": round(mean(kept), 2) if kept else None,
        "psnr_db": round(mean(quality), 1),
        "seconds_an_image": round(seconds / len(marked), 1),
        "announced_seconds_an_image": round(expected / len(marked), 1),
    }


@click.command(help=__doc__.split("\n")[0])
@click.option("--attack", "texts", multiple=True, default=ATTACKS, metavar="NAME=STRENGTH")
@click.option("--autoencoder", default="madebyollin/taesd", show_default=True, help="Folder or Hub id.")
@click.option("--marks-only", is_flag=True, help="Leave out the protection, and two thirds of the time.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(texts: tuple[str, ...], autoencoder: str, marks_only: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    vae, photographs = None if marks_only else load_autoencoder(autoencoder), Photographs.load()
    for text in texts:
        click.echo(json.dumps(measure(text, photographs, vae)))


if __name__ == "__main__":
    main()

"""The main job, end to end: mark generated images and photographs, detect the marks, and draw it all on one page.

Run by `make demo`. Everything is written to out/demo; out/demo/demo.png is the page.
"""

import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from privgen import Detection, Key, Watermark, load_pipeline
from privgen.data.sheets import contact_sheet


OUT = Path("out/demo")
PROMPTS = ("a rocket on a blue background", "a car and a guitar on a yellow background")
PHOTOGRAPHS = ("gcompris-monuments-operahouse.jpg", "gcompris-fishes-fish28.jpg")
LOUDER = 10
"""The page shows differences so many times as strong as they are."""


def main(out: Path = OUT) -> list[Detection]:
    """Mark two generated images and two photographs, detect the marks, and draw the page.

    Args:
        out: folder for everything; it is emptied first.

    Returns:
        What was found in the four plain images, then in the four marked ones.
    """
    shutil.rmtree(out, ignore_errors=True)
    key, mark = Key.new("alice"), Watermark.from_pretrained("mini")
    key.save(out / "alice.key")

    pipe = load_pipeline("mini")
    pipe.set_progress_bar_config(disable=True)
    photographs = [Image.open(str(files("privgen.data") / "photos" / "heldout" / name)) for name in PHOTOGRAPHS]
    plain = generate(pipe) + photographs
    with mark.on(pipe, key):
        marked = generate(pipe)
    marked += mark.embed(photographs, key)
    found: list[Detection] = mark.detect(plain + marked, key)

    names = [*PROMPTS, *(name.removesuffix(".jpg") for name in PHOTOGRAPHS)]
    for name, image, detection in zip(
        [*names, *(f"{name}, marked" for name in names)], plain + marked, found, strict=True
    ):
        image.save(out / f"{name}.png")
        print(f"{name}: {detection}")
    page(plain, marked, found).save(out / "demo.png")
    marks = sum(detection.detected for detection in found[len(plain) :])
    false_alarms = sum(detection.detected for detection in found[: len(plain)])
    print(f"{marks} of {len(marked)} marks found; {false_alarms} of {len(plain)} plain images called marked.")
    print(f"The page is {out / 'demo.png'}")
    return found


def generate(pipe) -> list[Image.Image]:
    """An image for each prompt, always from the same noise."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(PROMPTS))]
    return pipe(list(PROMPTS), num_inference_steps=25, guidance_scale=3.0, generator=generators).images


def page(plain: list[Image.Image], marked: list[Image.Image], found: list[Detection]) -> Image.Image:
    """Rows of plain images, marked images and differences, with the verdict and p-value under each."""
    pairs = list(zip(plain, marked, strict=True))
    kinds = ["Plain"] * len(plain) + ["Marked"] * len(marked)
    captions = [f"{kind}: {said}".replace(" (", "\n(") for kind, said in zip(kinds, found, strict=True)]
    captions += [f"Difference x {LOUDER}; quality {psnr(a, b):.1f} dB" for a, b in pairs]
    pictures = [enlarged(image) for image in [*plain, *marked, *(difference(a, b) for a, b in pairs)]]
    return contact_sheet(pictures, captions, columns=len(plain), font_size=15)


def enlarged(image: Image.Image) -> Image.Image:
    """Small images at twice their size."""
    return image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST) if image.width < 200 else image


def difference(a: Image.Image, b: Image.Image) -> Image.Image:
    """b - a, louder, on mid-grey."""
    change = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    return Image.fromarray((128 + LOUDER * change).clip(0, 255).astype(np.uint8))


def psnr(a: Image.Image, b: Image.Image) -> float:
    """How little b differs from a, in dB."""
    change = np.asarray(b, dtype=float) - np.asarray(a, dtype=float)
    return float(20 * np.log10(255 / np.sqrt(np.mean(change**2))))


if __name__ == "__main__":
    main()

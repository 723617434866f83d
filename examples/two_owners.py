"""Two owners in one image: generate a cat and a pineapple, mark each with its own key, and find both again.

Run it with `python examples/two_owners.py`. Everything is written to out/two_owners; two_owners.png is the picture:
the image, the marked image, their difference, and for each key where its mark was found.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from privgen import Detection, Key, Watermark, load_pipeline
from privgen.data.sheets import contact_sheet
from privgen.watermark.objects.overlay import overlay


OUT = Path("out/two_owners")
PROMPT = "a cat and a pineapple on a blue background"
SEED = 1
LOUDER = 6
"""The picture shows the difference so many times as strong as it is."""
SIDE = 384


def main(out: Path = OUT) -> Detection:
    """Generate the image, mark both objects, find their marks, and draw the picture.

    Args:
        out: folder for everything; it is emptied first.

    Returns:
        What was found in the marked image.
    """
    shutil.rmtree(out, ignore_errors=True)
    alice, bob, carol = (Key.new(name) for name in ("alice", "bob", "carol"))
    mark, pipe = Watermark.from_pretrained("mini"), load_pipeline("mini")
    pipe.set_progress_bar_config(disable=True)

    plain = generate(pipe).images[0]
    with mark.on(pipe, objects={"cat": alice, "pineapple": bob}):
        output = generate(pipe)
    marked, objects = output.images[0], output.objects[0]
    for item in objects:
        print(f"{item.name}: marked for {item.key} at {item.object_psnr:.1f} dB on {item.area:.0%} of the image")

    # Nobody says where the objects are, nor which of the three keys were used. Carol owns nothing here.
    found = mark.detect(marked, [alice, bob, carol], locate=True)
    for region in found.regions:
        print(f"{region.key}: p = {region.p_value:.0e}")

    out.mkdir(parents=True)
    plain.save(out / "plain.png")
    marked.save(out / "marked.png")
    page(plain, marked, found).save(out / "two_owners.png")
    print(f"The picture is {out / 'two_owners.png'}")
    return found


def generate(pipe):
    """The output of the pipeline, always from the same noise."""
    seeded = torch.Generator().manual_seed(SEED)
    return pipe(PROMPT, num_inference_steps=25, guidance_scale=3.0, generator=seeded)


def page(plain: Image.Image, marked: Image.Image, found: Detection) -> Image.Image:
    """The image, the marked image, their difference, and the places of all keys that were found."""
    pixels = torch.from_numpy(np.asarray(marked, dtype=np.float32).transpose(2, 0, 1) / 255)
    change = np.asarray(marked, dtype=float) - np.asarray(plain, dtype=float)
    difference = Image.fromarray((128 + LOUDER * change).clip(0, 255).astype(np.uint8))
    owners = ", ".join(f"{region.key} p = {region.p_value:.0e}" for region in found.regions)
    captions = ["Generated", "Marked: two objects, two keys", f"Difference x {LOUDER}", f"Found: {owners}"]
    pictures = [plain, marked, difference, overlay(pixels, found.regions)]
    return contact_sheet([enlarged(picture) for picture in pictures], captions, columns=4, font_size=16)


def enlarged(image: Image.Image) -> Image.Image:
    """The image at `SIDE` pixels."""
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS if image.width > SIDE else Image.Resampling.NEAREST)


if __name__ == "__main__":
    main()

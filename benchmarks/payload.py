"""How often the payload of a mark is read, and what it costs the key.

    python benchmarks/payload.py --n 16

Packaged photographs that no network was trained on are marked at 42 dB with the carrier tile, each with a key of its
own: with a random ID, and without one. They are read as they are and after attacks. Prints, for each attack, the
fraction of images whose ID is read right, the fraction whose key is found with and without an ID (p <= 1e-6), the mean
correlation with the key in standard deviations, and how many wrong IDs were read: from marked images with and without
an ID, and by looking for the ID of a key where there is no mark at all. Then two round objects of each photograph are
marked with one ID, and located: the fraction of objects whose ID is read right, by their area.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from privgen.attacks import parse_attack
from privgen.io.images import load_image
from privgen.watermark.key import Key, Secret
from privgen.watermark.objects.carrier import TileCarrier
from privgen.watermark.objects.read import locate
from privgen.watermark.objects.write import ObjectMark, mark_objects
from privgen.watermark.tile.embed import mark_image
from privgen.watermark.tile.pattern import pattern_of
from privgen.watermark.tile.payload import pattern_with, read_payload
from privgen.watermark.tile.search import FPR, detect_tiles


ATTACKS = ("as it is", "jpeg=75", "jpeg=50", "jpeg=20", "crop=0.5", "scale=0.5", "blur=2")
AREAS = (0.2, 0.1, 0.05)
PHOTOS = Path(__file__).parents[1] / "privgen/data/photos/heldout"


def read(key: Key, pixels: Tensor, attack: str, *, seed: int) -> tuple[float, float, int | None]:
    """The key's p-value and correlation after an attack, and the ID that is read, wherever the key seems to be."""
    if attack != "as it is":
        pixels = parse_attack(attack)(pixels[None], generator=torch.Generator().manual_seed(seed))[0]
    pattern = pattern_of(key)
    [[match]] = detect_tiles([pixels], [pattern], search=attack.startswith("crop"))
    return match.p_value, match.z, read_payload(key, pattern, match.evidence)


def objects(pixels: Tensor, area: float, keys: Sequence[Key], payload: int) -> list[int | None]:
    """The IDs that are read from two round objects of an area, a fraction of the image, after JPEG 75."""
    down, across = torch.meshgrid(*(torch.linspace(0, 1, side) for side in pixels.shape[1:]), indexing="ij")
    masks = [((across - x) ** 2 + (down - 0.5) ** 2 < area / math.pi).float() for x in (0.25, 0.75)]
    marks = [ObjectMark(key.name, key, mask) for key, mask in zip(keys, masks, strict=True)]
    marked = mark_objects(pixels, marks, levels=255, check=False, carrier=TileCarrier(payload)).pixels
    read_from = (marked, parse_attack("jpeg=75")(marked[None])[0])
    return [found.payload for image in read_from for found in locate(image, keys)]


@click.command(help=__doc__.split("\n")[0])
@click.option("--n", type=click.IntRange(1), default=16, show_default=True, help="Photographs.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of photographs, keys, IDs and attacks.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write a record here.")
def main(n: int, seed: int, file: Path | None) -> None:
    generator, photos = np.random.default_rng(seed), sorted(PHOTOS.glob("*.jpg"))
    chosen = [photos[i] for i in generator.permutation(len(photos))[:n]]
    kinds = ("with", "without", "unmarked")
    rows: dict[str, dict[str, list[tuple[float, float, int | None]]]] = {
        attack: {kind: [] for kind in kinds} for attack in ATTACKS
    }
    payloads, sides = [], []
    of_objects: dict[float, list[list[bool]]] = {area: [] for area in AREAS}
    for number, path in enumerate(tqdm(chosen, unit="photograph")):
        key, payload = Key("random", Secret(generator.bytes(32))), int(generator.integers(2**32))
        pixels = load_image(path).pixels
        payloads.append(payload)
        sides.append(min(pixels.shape[1:]))
        marked = [mark_image(pixels, pattern_with(key, given), levels=255).pixels for given in (payload, None)]
        for attack in ATTACKS:
            for kind, image in zip(kinds, (*marked, pixels), strict=True):
                if kind != "unmarked" or attack == "as it is":
                    rows[attack][kind].append(read(key, image, attack, seed=number))
        pair = [key, Key("other", Secret(generator.bytes(32)))]
        for area in AREAS:
            of_objects[area].append([found == payload for found in objects(pixels, area, pair, payload)])
    record = {}
    click.echo(f"{n} photographs, short sides of {min(sides)} to {max(sides)} pixels")
    click.echo("attack     ID read  key found with, without  z with, without  wrong IDs")
    for attack, read_as in rows.items():
        right = float(np.mean([row[2] == payload for row, payload in zip(read_as["with"], payloads, strict=True)]))
        wrong = sum(row[2] not in (None, payload) for row, payload in zip(read_as["with"], payloads, strict=True))
        wrong += sum(row[2] is not None for kind in kinds[1:] for row in read_as[kind])
        found = [float(np.mean([row[0] <= FPR for row in read_as[kind]])) for kind in kinds[:2]]
        z = [float(np.mean([row[1] for row in read_as[kind]])) for kind in kinds[:2]]
        record[attack] = {"id_read": right, "tpr_1e-6": found, "z": z, "wrong_ids": wrong}
        click.echo(f"{attack:10} {right:7.3f} {found[0]:15.3f}, {found[1]:7.3f}  {z[0]:9.1f}, {z[1]:5.1f}  {wrong:9}")
    by_area = {}
    for area, right_in in of_objects.items():
        plain, after_jpeg = (float(np.mean(part)) for part in np.hsplit(np.array(right_in), 2))
        by_area[f"{area:g}"] = {"as it is": plain, "jpeg=75": after_jpeg}
        click.echo(f"objects of {area:.0%}: ID read {plain:.3f}, after jpeg=75 {after_jpeg:.3f}")
    if file:
        file.write_text(json.dumps({"n": n, "seed": seed, "attacks": record, "objects": by_area}, indent=2) + "\n")


if __name__ == "__main__":
    main()

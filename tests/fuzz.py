"""Damages files at random, and checks that reading them gives a value or one clear error: `make fuzz`.

    python tests/fuzz.py                       # 20,000 files, some minutes
    python tests/fuzz.py --n 500 --seed 7 --kind png --kind key

A file of each kind is made, then damaged: bits turned, bytes overwritten, parts cut out, doubled or swapped, the end
cut off, lengths and numbers replaced by extreme ones. What its reader may raise is `PrivgenError`, of which
`UsageError` is one. Everything else is a fault: its file is kept in --output, and the exit code is 1.
"""

import gzip
import io
import json
import random
import struct
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save
from tqdm import tqdm

from privgen.data.fashion import read_idx
from privgen.errors import PrivgenError
from privgen.hub import read_config, resolve_model
from privgen.io.foreign_weights import read_weights
from privgen.io.images import load_image
from privgen.io.journal import Journal
from privgen.io.tensor_cache import load_tensors
from privgen.models.loading import explained, refuse_code
from privgen.training.recipes import load_recipe, packaged_recipe
from privgen.watermark.key import Key
from privgen.watermark.objects.masks import open_mask
from privgen.watermark.token import Token


SIZE = (37, 26)
EXTREMES = (
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\x00\x00\x00\x00",
    b"\x80\x00\x00\x00",
    b"1e999",
    b"-1",
    b"NaN",
)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: of the file that is damaged; some readers go by its suffix.
        data: a whole file.
        read: reads the file.
        mend: makes damaged bytes pass the first checks, so that what lies behind them is tried too.
    """

    name: str
    data: bytes
    read: Callable[[Path], object]
    mend: Callable[[bytes], bytes] = bytes


def kinds() -> dict[str, Kind]:
    """All kinds of files that privgen reads, by name."""
    found = {name: Kind(f"image.{name}", data, _read_image) for name, data in _images().items()}
    for name in ("text.png", "grey16.png"):
        found[f"checked {name}"] = Kind(f"checked.{name}", found[name].data, _read_image, _with_checksums)
    found["mask"] = Kind("mask.png", _encoded("L", "PNG"), open_mask)
    with TemporaryDirectory() as folder:
        key = Key.new("alice").save(Path(folder) / "alice.key").read_bytes()
        token_file = Path(folder) / "token.safetensors"
        Token(torch.zeros(4, 32), tau=500, key_id="0" * 16).save(token_file)
        token = token_file.read_bytes()
    weights = save({"weight": torch.arange(24.0).reshape(4, 6), "bias": torch.zeros(4)}, {"fingerprint": "abc"})
    found["key"] = Kind("alice.key", key, Key.load)
    found["token"] = Kind("token.safetensors", token, Token.load)
    found["weights"] = Kind("weights.safetensors", weights, read_weights)
    found["tensors"] = Kind("cache.safetensors", weights, lambda path: load_tensors(path, "cache"))
    recipe = packaged_recipe("extractor").read_bytes()
    found["recipe"] = Kind("recipe.toml", recipe, lambda path: load_recipe("extractor", path))
    lines = b"".join(json.dumps({"work": "w", "file": f"{i}.png", "psnr": 42.0}).encode() + b"\n" for i in range(8))
    found["idx"] = Kind("labels.gz", gzip.compress(bytes((0, 0, 8, 1, 0, 0, 0, 24)) + bytes(24)), read_idx)
    found["journal"] = Kind("marks.jsonl", lines, lambda path: Journal(path).read(lambda row: float(row["psnr"])))
    config = json.dumps({"default_carrier": "tile", "base_model": "mini"}).encode()
    found["config"] = Kind("privgen_config.json", config, _read_config)
    index = (Path(resolve_model("mini")) / "model_index.json").read_bytes()
    found["index"] = Kind("model_index.json", index, _read_index)
    return found


def _images() -> dict[str, bytes]:
    formats = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP", "tiff": "TIFF", "bmp": "BMP", "gif": "GIF", "ppm": "PPM"}
    formats |= {"avif": "AVIF", "jp2": "JPEG2000"}
    images = {name: _encoded("P" if name == "gif" else "RGB", form) for name, form in formats.items()}
    fine = Image.fromarray((np.arange(SIZE[0] * SIZE[1], dtype=np.uint16) * 37).reshape(SIZE[::-1]))
    data = io.BytesIO()
    fine.save(data, "PNG")
    return images | {
        "grey16.png": data.getvalue(),
        "alpha.png": _encoded("RGBA", "PNG"),
        "cmyk.jpg": _encoded("CMYK", "JPEG"),
        "text.png": _with_text(),
    }


def _encoded(mode: str, form: str) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    more = {"exif": exif} if form in ("PNG", "JPEG", "WEBP", "TIFF", "AVIF") else {}
    data = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(data, form, **more)
    return data.getvalue()


def _with_text() -> bytes:
    """A PNG file with text of all kinds, before and behind the pixels, and a profile."""
    text = PngInfo()
    text.add_text("parameters", "a cat")
    text.add_text("workflow", "{}" * 40, zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>", zip=True)
    text.add(b"tEXt", b"Comment\0behind", after_idat=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = io.BytesIO()
    Image.linear_gradient("L").resize(SIZE).convert("RGB").save(data, "PNG", pnginfo=text, icc_profile=profile)
    return data.getvalue()


def _with_checksums(data: bytes) -> bytes:
    """A PNG file with the right checksum behind each chunk."""
    raw, at = bytearray(data), 8
    while at + 12 <= len(raw):
        end = at + 8 + int.from_bytes(raw[at : at + 4], "big")
        if end + 4 > len(raw):
            break
        raw[end : end + 4] = struct.pack(">I", zlib.crc32(raw[at + 4 : end]))
        at = end + 4
    return bytes(raw)


def _read_image(path: Path) -> object:
    pixels = load_image(path).pixels
    if not (pixels.ndim == 3 and len(pixels) == 3 and bool(((pixels >= 0) & (pixels <= 1)).all())):
        raise AssertionError(f"expected (3, H, W) in [0, 1], got {tuple(pixels.shape)}")
    return pixels


def _read_config(path: Path) -> object:
    folder = path.parent / "model"
    (folder / "privgen").mkdir(parents=True, exist_ok=True)
    (folder / "privgen" / path.name).write_bytes(path.read_bytes())
    return read_config(folder)


def _read_index(path: Path) -> object:
    """Read the parts that a model names; its networks are left out, which take seconds."""
    with explained(str(path.parent), "load"):
        index = DiffusionPipeline.load_config(path.parent)
        refuse_code(index, path.parent)
        return index


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file's bytes, damaged in one to four places."""
    raw = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not raw:
            break
        start = rng.randrange(len(raw))
        end = min(len(raw), start + rng.choice((1, 2, 4, 16, 200)))
        other = rng.randrange(len(raw))
        match rng.randrange(8):
            case 0:
                raw[start] ^= 1 << rng.randrange(8)
            case 1:
                raw[start:end] = rng.randbytes(end - start)
            case 2:
                del raw[start:end]
            case 3:
                raw[other:other] = raw[start:end]
            case 4:
                raw[start], raw[other] = raw[other], raw[start]
            case 5:
                extreme = rng.choice(EXTREMES)
                raw[start : start + len(extreme)] = extreme
            case 6:
                raw[start : start + 8] = struct.pack("<Q", rng.choice((2**63, 2**32, 2**31 - 1, len(raw), 0)))
            case _:
                del raw[start:]
    return bytes(raw)


def fuzz(kind: Kind, n: int, seed: int, folder: Path) -> tuple[Counter[str], list[str]]:
    """Damage a kind of file n times.

    Returns:
        How often it was read, and how often an error was raised; and a line for each fault, whose file is kept.
    """
    counts, faults = Counter[str](), []
    path = folder / kind.name
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(n):
        path.write_bytes(kind.mend(damaged(kind.data, random.Random(f"{seed} {kind.name} {number}"))))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.read(path)
            counts["read"] += 1
        except PrivgenError as error:
            counts["errors"] += 1
            if "\n" in str(error) or len(str(error)) > 600:
                faults.append(f"{kind.name}: the error is no single sentence: {str(error)[:200]!r}")
        except Exception as error:
            kept = folder / f"fault-{number}-{kind.name}"
            path.rename(kept)
            faults.append(f"{kept}: {type(error).__name__}: {error}")
    return counts, faults


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--n", type=click.IntRange(1), default=20_000, show_default=True, help="Files in all.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--kind", "chosen", multiple=True, help="Kinds of files, by default all; repeatable.")
@click.option("--output", "-o", type=click.Path(path_type=Path), default=Path("out/fuzz"), show_default=True)
def main(n: int, seed: int, chosen: tuple[str, ...], output: Path) -> None:
    known = {name: kind for name, kind in kinds().items() if name in (chosen or (name,))}
    every, faults = Counter[str](), []
    for name, kind in tqdm(known.items(), unit="kind"):
        counts, found = fuzz(kind, -(-n // len(known)), seed, output / name)
        faults += found
        every += counts
        tqdm.write(f"{name:<12} read {counts['read']:>6}   errors {counts['errors']:>6}   faults {len(found)}")
    click.echo(
        f"{every.total() + len(faults)} files: {every['read']} read, {every['errors']} refused, {len(faults)} faults"
    )
    for fault in faults:
        click.echo(fault)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

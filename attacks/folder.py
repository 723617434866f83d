"""Attacks on image files: each file by itself, at its own size, resumable."""

import hashlib
import json
import os
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from privgen import __version__
from privgen.attacks.base import BaseAttack
from privgen.errors import PrivgenError, UsageError
from privgen.files import iter_image_files, write_bytes
from privgen.images import encode_image, load_image


MANIFEST = "attacks.jsonl"
"""In the output folder: one line for each image that was made there, the last one of a name counts."""


@dataclass(frozen=True)
class AttackedFile:
    """What became of one file.

    Attributes:
        source: the file.
        output: the attacked image, or None where there is none.
        status: "done", "skipped" (the same attack and seed had made it before) or "failed".
        psnr_db: of what was written against the source; None where it was not measured, or is infinite.
        error: why it failed.
    """

    source: str
    output: str | None
    status: Literal["done", "skipped", "failed"]
    psnr_db: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class AttackedFolder:
    """What became of a batch.

    Attributes:
        attack: its repr.
        label: its label.
        seed: the seed of the batch.
        output: the output folder.
        files: one entry for each input, in order.
    """

    attack: str
    label: str
    seed: int
    output: str
    files: tuple[AttackedFile, ...]

    def count(self, status: Literal["done", "skipped", "failed"]) -> int:
        """How many files have that status."""
        return sum(file.status == status for file in self.files)


@dataclass(frozen=True)
class _Record:
    """A line of the manifest; equal in all but the output's digest means the same work."""

    output: str
    source_sha256: str
    attack: str
    seed: int
    version: str
    output_sha256: str = ""


def attack_files(
    attack: BaseAttack,
    paths: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    seed: int = 0,
    overwrite: bool = False,
    report: Callable[[AttackedFile], None] = lambda file: None,
) -> AttackedFolder:
    """Attack image files, one by one, and write the results as PNG files of the same size.

    PNG, whatever the source, because another lossy encoding would be a second attack. Each image draws from a
    generator of its own, seeded with `seed` and the file's name, so it does not matter which others are attacked.
    A file that cannot be read does not stop the rest.

    Args:
        attack: any attack.
        paths: image files, and folders of them.
        output: folder for the results; made if missing.
        seed: of all randomness.
        overwrite: replace images that are there and were not made by the same attack, seed and source.
        report: called with each file when it is through.

    Raises:
        UsageError: no image, two that would get the same name, or an output folder that inputs come from.
        PrivgenError: results exist that something else has made, and `overwrite` is false.
    """
    folder = Path(output)
    targets = _targets(iter_image_files(paths), folder)
    manifest = _read_manifest(folder)
    plans = {
        source: _Record(target.name, _digest_of(source), repr(attack), seed, __version__)
        for source, target in targets.items()
    }
    made = {source for source, plan in plans.items() if _is_made(plan, folder, manifest)}
    foreign = [target for source, target in targets.items() if source not in made and target.exists()]
    if foreign and not overwrite:
        raise PrivgenError(
            f"{len(foreign)} of the results exist in {folder} and were made otherwise, {foreign[0].name} first; "
            "choose another folder, or pass --overwrite (overwrite=True in Python)."
        )
    files = []
    for source, target in targets.items():
        if source in made:
            file = AttackedFile(str(source), str(target), "skipped")
        else:
            file = _attack_file(attack, source, target, plans[source])
        report(file)
        files.append(file)
    return AttackedFolder(repr(attack), attack.label, seed, str(folder), tuple(files))


def _targets(sources: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Where each result goes: under the source's name with .png, or with .png behind where two would be one."""
    targets: dict[Path, Path] = {}
    owners: dict[str, Path] = {}
    stems = Counter(source.stem for source in sources)
    for source in sources:
        if source.resolve().parent == folder.resolve():
            raise UsageError(f"{folder} is a folder that inputs come from; choose another one for the results.")
        name = f"{source.stem if stems[source.stem] == 1 else source.name}.png"
        if name in owners:
            raise UsageError(f"{owners[name]} and {source} would both become {name}; attack them one after the other.")
        owners[name] = source
        targets[source] = folder / name
    return targets


def _attack_file(attack: BaseAttack, source: Path, target: Path, plan: _Record) -> AttackedFile:
    try:
        loaded = load_image(source)
        generator = torch.Generator().manual_seed(_seed_of(plan.seed, source.name))
        with torch.no_grad():
            pixels = attack(loaded.pixels[None], generator=generator)[0]
        data = encode_image(replace(loaded, pixels=pixels), "PNG")
        # Before the image: if the run ends in between, the digest tells that the image is not there yet.
        _append(target.parent / MANIFEST, replace(plan, output_sha256=hashlib.sha256(data).hexdigest()))
        write_bytes(target, data, overwrite=True)
    except (PrivgenError, OSError, ValueError, MemoryError, struct.error) as error:
        return AttackedFile(str(source), None, "failed", error=str(error) or type(error).__name__)
    return AttackedFile(str(source), str(target), "done", psnr_db=_psnr(pixels, loaded.pixels))


def _psnr(images: Tensor, reference: Tensor) -> float | None:
    error = float((images.double() - reference.double()).square().mean())
    return -10 * float(torch.tensor(error).log10()) if error > 0 else None


def _seed_of(seed: int, name: str) -> int:
    """A seed below 2^63 for one file of a batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8]) >> 1


def _digest_of(path: Path) -> str:
    """SHA-256 of a file in hex; empty where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _is_made(plan: _Record, folder: Path, manifest: dict[str, _Record]) -> bool:
    record = manifest.get(plan.output)
    if record is None or replace(record, output_sha256="") != plan:
        return False
    return _digest_of(folder / plan.output) == record.output_sha256


def _read_manifest(folder: Path) -> dict[str, _Record]:
    """Records by output name; lines that are no records, such as a last one cut short, are passed over."""
    records = {}
    path = folder / MANIFEST
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            record = _Record(**json.loads(line))
        except (ValueError, TypeError):
            continue
        records[record.output] = record
    return records


def _append(path: Path, record: _Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")

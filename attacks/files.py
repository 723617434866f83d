"""Attacks on image files: each file by itself, at its own size, resumable."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from privgen.attacks.base import BaseAttack
from privgen.errors import PrivgenError
from privgen.io.batches import FILE_ERRORS, Ledger, name_outputs, reason
from privgen.io.fingerprints import file_fingerprint, seed_from
from privgen.io.images import encode_image, load_image


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
        UsageError: no image, or an output folder that inputs come from.
        PrivgenError: results exist that something else has made, and `overwrite` is false; or the attack needs
            what is not there.
    """
    targets = name_outputs(paths, output)
    ledger = Ledger(Path(output) / MANIFEST, f"{attack!r}, seed={seed}")
    digests = {source: file_fingerprint(source) for source in targets}
    made = {source for source, target in targets.items() if ledger.has(target, digests[source])}
    foreign = [target for source, target in targets.items() if source not in made and target.exists()]
    if foreign and not overwrite:
        raise PrivgenError(
            f"{len(foreign)} of the results exist in {output} and were made otherwise, {foreign[0].name} first; "
            "choose another folder, or pass --overwrite (overwrite=True in Python)."
        )
    if len(made) < len(targets):
        attack.prepare()
    files = []
    for source, target in targets.items():
        if source in made:
            file = AttackedFile(str(source), str(target), "skipped")
        else:
            file = _attack_file(attack, source, target, ledger, digests[source], seed)
        report(file)
        files.append(file)
    return AttackedFolder(repr(attack), attack.label, seed, str(output), tuple(files))


def _attack_file(
    attack: BaseAttack, source: Path, target: Path, ledger: Ledger, digest: str, seed: int
) -> AttackedFile:
    try:
        loaded = load_image(source)
        generator = torch.Generator().manual_seed(seed_from(seed, source.name))
        with torch.no_grad():
            pixels = attack(loaded.pixels[None], generator=generator)[0]
        ledger.write(target, encode_image(replace(loaded, pixels=pixels), "PNG"), digest, overwrite=True)
    except FILE_ERRORS as error:
        return AttackedFile(str(source), None, "failed", error=reason(error))
    return AttackedFile(str(source), str(target), "done", psnr_db=_psnr(pixels, loaded.pixels))


def _psnr(images: Tensor, reference: Tensor) -> float | None:
    error = float((images.double() - reference.double()).square().mean())
    return -10 * float(torch.tensor(error).log10()) if error > 0 else None

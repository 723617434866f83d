"""Attacks on image files: each file by itself, at its own size, resumable."""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from privgen.attacks.base import BaseAttack
from privgen.attacks.estimate import LONG, announcement, expected_seconds, measure_step
from privgen.attacks.steps import Work, advancing, count_steps
from privgen.errors import PrivgenError, UsageError
from privgen.io.batches import FILE_ERRORS, BatchOptions, Ledger, names_a_file, progress_bar, reason
from privgen.io.fingerprints import file_fingerprint, seed_from
from privgen.io.images import image_size
from privgen.metrics.quality import psnr


MANIFEST = "attacks.jsonl"
"""Journal in the output folder: which attack made which image, so that an interrupted batch goes on."""

_FEW = 2  # steps that are not measured before

Status: TypeAlias = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class AttackedFile:
    """What became of one file.

    Attributes:
        source: the file.
        output: the attacked image; None if there is none.
        status: "done", "skipped" (an earlier run with the same attack and seed made it) or "failed".
        psnr: of the attacked image against the source, in dB; None if it was not measured, if nothing changed, or if
            the attack changed the size.
        notes: what you should know, such as that only the first frame of an animation was read.
        error: why it failed.
    """

    source: str
    output: str | None
    status: Status
    psnr: float | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class AttackedFolder:
    """What became of a batch.

    Attributes:
        attack: representation of the attack.
        label: label of the attack.
        seed: seed of the batch.
        output: the output folder.
        files: one entry for each input, in order.
    """

    attack: str
    label: str
    seed: int
    output: str
    files: tuple[AttackedFile, ...]

    def count(self, status: Status) -> int:
        """How many files have that status."""
        return sum(file.status == status for file in self.files)


def attack_files(
    attack: BaseAttack,
    paths: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    seed: int = 0,
    batch: BatchOptions | None = None,
    report: Callable[[AttackedFile], None] = lambda file: None,
    announce: Callable[[str], None] | None = None,
) -> AttackedFolder:
    """Attack image files one by one, and write the results as PNG files.

    Results are PNG, because a lossy format would be a second attack. They have the size of their source, unless the
    attack changes it (`keeps_size`); transparency is then dropped. Each image draws from a generator of its own,
    whose seed comes from `seed` and the file's name, so it does not matter which other files are attacked. A file that
    cannot be read does not stop the rest. If you repeat the call after an interruption, it skips what it has made.

    Args:
        attack: any attack.
        paths: image files, and folders of them.
        output: folder for the results; made if missing. Or, for one image, the PNG file to write.
        seed: of all randomness.
        batch: how files are written; without `keep_format`, and without `quality`.
        report: called with each file when it is done.
        announce: called before the work begins with a line that says how long it will take, if that is more than 10
            seconds and the attack counts its steps. None measures nothing.

    Raises:
        UsageError: no image, an output folder that inputs come from, or `batch.keep_format`.
        PrivgenError: results exist that something else has made, and `batch.overwrite` is false; or the attack needs
            something that is missing.
    """
    batch = batch or BatchOptions()
    if batch.keep_format:
        raise UsageError("Attacked images are written as PNG, because a lossy format would be a second attack.")
    if names_a_file(output) and Path(output).suffix.lower() != ".png":
        raise UsageError(f"{output} must end in .png, because a lossy format would be a second attack.")
    targets = batch.outputs(paths, output)
    ledger = Ledger.of(output, MANIFEST, f"{attack!r}, seed={seed}{batch.made_by()}")
    digests = {source: file_fingerprint(source) for source in targets}
    made = {source for source, target in targets.items() if ledger.has(target, digests[source])}
    foreign = [target for source, target in targets.items() if source not in made and target.exists()]
    if foreign and not batch.overwrite:
        raise PrivgenError(
            f"{len(foreign)} of the results exist in {output} and were made otherwise, {foreign[0].name} first; "
            "choose another folder, or pass --overwrite (overwrite=True in Python)."
        )
    works: dict[Path, tuple[Work, ...]] = {}
    if len(made) < len(targets):
        attack.prepare()
        works = {source: _work(attack, source) for source in targets if source not in made}
        if announce is not None:
            _announce(attack, works, batch, announce)
    files = []
    stepwise = any(works.values())
    steps = {source: count_steps(works.get(source, ())) if stepwise else 1 for source in targets}
    unit = "step" if stepwise else "image"
    with progress_bar(sum(steps.values()), "attack", shown=batch.progress, unit=unit) as bar:
        for source, target in targets.items():
            with advancing(bar, steps[source]):
                if source in made:
                    files.append(AttackedFile(str(source), str(target), "skipped", ledger.figures(target).get("psnr")))
                else:
                    files.append(_attack_file(attack, source, target, ledger, digests[source], seed, batch))
            with bar.external_write_mode():
                report(files[-1])
    return AttackedFolder(repr(attack), attack.label, seed, str(output), tuple(files))


def _work(attack: BaseAttack, source: Path) -> tuple[Work, ...]:
    """The work for a file; none if it cannot be read."""
    size = image_size(source)
    return () if size is None else attack.work(*size)


def _announce(
    attack: BaseAttack, works: dict[Path, tuple[Work, ...]], batch: BatchOptions, announce: Callable[[str], None]
) -> None:
    """Measure a step of the attack on the first image that can be read, and say how long all images will take."""
    known = {source: work for source, work in works.items() if work}
    if sum(map(count_steps, known.values())) <= _FEW:
        return  # the measurement would take as long as the work
    for source, work in known.items():
        try:
            step = measure_step(attack, batch.load(source).pixels)
        except FILE_ERRORS:
            continue  # what is wrong with it is said when its turn comes
        if step is not None:
            seconds = expected_seconds(list(known.values()), work, step)
            if seconds > LONG:
                announce(announcement(list(known.values()), seconds))
        return


def _attack_file(
    attack: BaseAttack,
    source: Path,
    target: Path,
    ledger: Ledger,
    digest: str,
    seed: int,
    batch: BatchOptions,
) -> AttackedFile:
    try:
        loaded = batch.load(source)
        generator = torch.Generator().manual_seed(seed_from(seed, source.name))
        before = loaded.pixels
        with torch.no_grad():
            pixels = attack(before, generator=generator)
        same_size = pixels.shape == before.shape
        quality = float(psnr(pixels[None], before[None])) if same_size else math.inf
        data, lacking = batch.encode(loaded.with_pixels(pixels), target)
        ledger.write(target, data, digest, overwrite=True, figures={"psnr": quality})
    except FILE_ERRORS as error:
        return AttackedFile(str(source), None, "failed", error=reason(error))
    measured = quality if math.isfinite(quality) else None
    notes = loaded.notes + attack.notes(loaded.height, loaded.width) + lacking
    return AttackedFile(str(source), str(target), "done", measured, notes)

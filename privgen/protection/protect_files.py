"""Protection of image files: each by itself, at its own size, resumable."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from privgen.io.batches import FILE_ERRORS, BatchOptions, Ledger, progress_bar, reason
from privgen.io.files import refuse_existing
from privgen.io.fingerprints import file_fingerprint, seed_from
from privgen.io.images import from_bytes, is_lossy
from privgen.io.pixels import strips
from privgen.protection.method import PSNR
from privgen.protection.protection import Protection


LEDGER = "protected.jsonl"
"""In the output folder: what its images were made from, so that an interrupted batch goes on."""

_ENOUGH = 0.8  # fraction of a change that a file should hold
_FIGURES = ("psnr", "ssim", "visible_de_p99", "seconds")

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class ProtectedFile:
    """What became of one file.

    Attributes:
        source: the file.
        output: the protected image; None if there is none.
        status: "done", "skipped" (an earlier run with the same settings made it) or "failed".
        psnr: see `privgen.protection.protection.Protected`, also for the next three; None if it was not measured.
        ssim: structural similarity.
        visible_de_p99: visible difference.
        seconds: that the protection took, without reading and writing.
        notes: what you should know, such as that only the first frame of an animation was read.
        error: why it failed.
    """

    source: str
    output: str | None
    status: Status
    psnr: float | None = None
    ssim: float | None = None
    visible_de_p99: float | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class ProtectedFiles:
    """What became of a batch.

    Attributes:
        method: representation of the method.
        output: the output folder.
        files: one entry for each input, in order.
    """

    method: str
    output: str
    files: tuple[ProtectedFile, ...]

    def count(self, status: Status) -> int:
        """How many files have that status."""
        return sum(file.status == status for file in self.files)


def protect_files(
    paths: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    protection: Protection,
    *,
    psnr: float = PSNR,
    seed: int = 0,
    batch: BatchOptions | None = None,
    report: Callable[[ProtectedFile], None] = lambda file: None,
) -> ProtectedFiles:
    """Protect image files and write them, at their own size, mode and precision, into a folder.

    A file that cannot be read or written does not stop the rest. If you repeat the call after an interruption, it
    skips what it has made already. Each image draws from `seed` and its name, so it does not matter which other files
    are there.

    Args:
        paths: image files, and folders of them.
        output: folder for the results; made if missing. Names: see `privgen.io.batches.name_outputs`. For one image,
            it may be the file to write.
        protection: how to protect.
        psnr: quality of the results, in dB.
        seed: of all randomness.
        batch: how files are written.
        report: called with each file when it is done.

    Raises:
        UsageError: no image, or an output folder that inputs come from.
        PrivgenError: a model cannot be found or read.
    """
    batch = batch or BatchOptions()
    targets = batch.outputs(paths, output)
    surrogate = protection.surrogate
    models = [surrogate.model, surrogate.vae, *surrogate.autoencoders] if protection.method.uses_model else []
    against = ", ".join(os.fspath(name) for name in models if name is not None)
    made_by = f"{protection.method.made_by()}, models={against}, psnr={psnr:g}, seed={seed}{batch.made_by()}"
    ledger = Ledger.of(output, LEDGER, made_by)
    protection.method.prepare(surrogate)
    files = []
    with progress_bar(len(targets), "protect", shown=batch.progress) as bar:
        for source, target in targets.items():
            files.append(_protect(source, target, protection, (psnr, seed), ledger, batch))
            with bar.external_write_mode():
                report(files[-1])
            bar.update()
    return ProtectedFiles(repr(protection.method), str(output), tuple(files))


def _protect(
    source: Path,
    target: Path,
    protection: Protection,
    settings: tuple[float, int],
    ledger: Ledger,
    batch: BatchOptions,
) -> ProtectedFile:
    digest = file_fingerprint(source)
    if ledger.has(target, digest):
        psnr, ssim, visible, seconds = (ledger.figures(target).get(name) for name in _FIGURES)
        return ProtectedFile(str(source), str(target), "skipped", psnr, ssim, visible, seconds)
    try:
        refuse_existing(target, overwrite=batch.overwrite)
        loaded = batch.load(source)
        levels, (wanted, seed) = 2**loaded.bits - 1, settings
        pixels, figures = protection.on_loaded(loaded, levels, psnr=wanted, seed=seed_from(seed, source.name))
        data, lacking = batch.encode(loaded.with_pixels(pixels), target)
        known = {name: figures[name] for name in _FIGURES if figures[name] is not None}
        ledger.write(target, data, digest, overwrite=batch.overwrite, figures=known)
    except FILE_ERRORS as error:
        return ProtectedFile(str(source), None, "failed", error=reason(error))
    notes = loaded.notes + lacking
    if is_lossy(target) and (held := _held(data, pixels, loaded.stored)) < _ENOUGH:
        notes += (f"its file holds {held:.0%} of the change: --quality 95 holds more, PNG all of it",)
    return ProtectedFile(str(source), str(target), "done", **figures, notes=notes)


def _held(data: bytes, protected: Tensor, image: Tensor) -> float:
    """The fraction of a change that a lossy file holds: its projection on the change that was meant."""
    along, size = 0.0, 1e-12
    for held, meant, plain in zip(*map(strips, (from_bytes(data).stored, protected, image)), strict=True):
        change = meant - plain
        along += float(((held - plain) * change).sum())
        size += float(change.square().sum())
    return along / size

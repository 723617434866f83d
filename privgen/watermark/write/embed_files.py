"""Marks on image files: each by itself, at its own size, resumable."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from privgen.hub import find_extra, load_extra
from privgen.io.batches import FILE_ERRORS, Ledger, name_outputs, progress_bar, reason, sha256_of
from privgen.io.files import refuse_existing
from privgen.io.images import SAVE_FORMATS, encode_image, load_image
from privgen.watermark.key import Key
from privgen.watermark.protocols import ExtractorLike, key_bits
from privgen.watermark.read.p_values import threshold_matches
from privgen.watermark.write.marker import Carrier, Marker, default_carrier, load_marker
from privgen.watermark.write.residual import PSNR_DB, add_residual, read_logits, to_canvas


LEDGER = "marks.jsonl"
"""In the output folder: what its images were made from, so that an interrupted batch goes on."""

_READABLE_FPR = 1e-6


@dataclass(frozen=True)
class EmbeddedFile:
    """What became of one file.

    Attributes:
        source: the file.
        output: the marked image, or None where there is none.
        status: "done", "skipped" (the same work had made it before) or "failed".
        psnr_db: of the marked pixels against the source's, before lossy compression; None where it was not measured.
        matches: bits of the key that the extractor reads from the marked pixels; None where it was not measured.
        notes: what a user should know, such as that only the first frame of an animation was read.
        error: why it failed.
    """

    source: str
    output: str | None
    status: Literal["done", "skipped", "failed"]
    psnr_db: float | None = None
    matches: int | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class EmbeddedFiles:
    """What became of a batch.

    Attributes:
        key: name of the key.
        key_id: its public id.
        carrier: what the mark was written with.
        output: the output folder.
        files: one entry for each input, in order.
    """

    key: str
    key_id: str
    carrier: Carrier
    output: str
    files: tuple[EmbeddedFile, ...]

    def count(self, status: Literal["done", "skipped", "failed"]) -> int:
        """How many files have that status."""
        return sum(file.status == status for file in self.files)


def embed_files(
    paths: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    key: Key,
    *,
    model: str = "mini",
    carrier: Carrier | None = None,
    psnr_db: float = PSNR_DB,
    seed: int = 0,
    robust_steps: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    keep_format: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    report: Callable[[EmbeddedFile], None] = lambda file: None,
) -> EmbeddedFiles:
    """Mark image files and write them, at their own size, mode and precision, into a folder.

    A file that cannot be read or written does not stop the rest. Repeated after an interruption, the call skips what
    it has made already.

    Args:
        paths: image files, and folders of them.
        output: folder for the results; made if missing. Names: see `privgen.io.batches.name_outputs`.
        key: whose mark.
        model: an embedded model's name, a folder or a Hub id.
        carrier: what the mark is written with; by default the model's own choice.
        psnr_db: quality of each result at its own size.
        seed: of the noise that the carrier `token` works through.
        robust_steps: rounds in which the marks of the carrier `latent` are fitted to their image, so that they survive
            regeneration; see `privgen.watermark.write.robust_mark`.
        device: see `privgen.hub.resolve_device`.
        dtype: see `privgen.hub.resolve_dtype`.
        keep_format: write the format of the source where possible, lossy ones too; by default all become PNG.
        overwrite: replace images that are there and were not made by the same work.
        progress: show a bar on standard error, if that is a terminal.
        report: called with each file when it is through.

    Raises:
        UsageError: no image, an output folder that inputs come from, or marks that cannot be refined.
        PrivgenError: the model, or its networks, cannot be found or read.
    """
    suffix_of = _same_suffix if keep_format else lambda source: ".png"
    targets = name_outputs(paths, output, suffix_of)
    carrier = default_carrier(model) if carrier is None else carrier
    marker = load_marker(
        key, model=model, carrier=carrier, seed=seed, robust_steps=robust_steps, device=device, dtype=dtype
    )
    extractor = load_extra("extractor", model, device=device)
    ledger = Ledger(Path(output) / LEDGER, _made_by(key, model, carrier, psnr_db, seed, robust_steps))
    embed = _Embedding(marker, extractor, key_bits([key], extractor)[0], psnr_db, ledger, overwrite)
    files = []
    with progress_bar(len(targets), "embed", shown=progress) as bar:
        for source, target in targets.items():
            files.append(embed(source, target))
            with bar.external_write_mode():
                report(files[-1])
            bar.update()
    return EmbeddedFiles(key.name, key.key_id, carrier, str(output), tuple(files))


@dataclass(frozen=True)
class _Embedding:
    """What is done to each file of a batch."""

    marker: Marker
    extractor: ExtractorLike
    bits: Tensor
    psnr_db: float
    ledger: Ledger
    overwrite: bool

    def __call__(self, source: Path, target: Path) -> EmbeddedFile:
        digest = sha256_of(source)
        if self.ledger.has(target, digest):
            return EmbeddedFile(str(source), str(target), "skipped")
        try:
            refuse_existing(target, overwrite=self.overwrite)
            return self._embed(source, target, digest)
        except FILE_ERRORS as error:
            return EmbeddedFile(str(source), None, "failed", error=reason(error))

    def _embed(self, source: Path, target: Path, digest: str) -> EmbeddedFile:
        loaded = load_image(source)
        residual = self.marker.residuals(to_canvas([loaded.pixels], self.marker.size))[0]
        levels = 2**loaded.bits - 1
        marked = add_residual(loaded.pixels, residual, psnr_db=self.psnr_db, grey=loaded.grey, levels=levels)
        data = encode_image(replace(loaded, pixels=marked.pixels), SAVE_FORMATS[target.suffix.lower()])
        self.ledger.write(target, data, digest, overwrite=self.overwrite)
        read = read_logits([marked.pixels], self.extractor)[0] > 0
        matches = int((read == (self.bits.cpu() > 0.5)).sum())
        notes = loaded.notes
        if matches < threshold_matches(len(read), _READABLE_FPR):
            notes += (f"its mark can hardly be read back, {matches} of {len(read)} bits: too small or too plain",)
        return EmbeddedFile(str(source), str(target), "done", marked.psnr_db, matches, notes)


def _made_by(key: Key, model: str, carrier: Carrier, psnr_db: float, seed: int, robust_steps: int) -> str:
    """All that a marked file depends on beside its source; the key by its public id."""
    folders = [find_extra(name, model) for name in (f"{carrier}_mapper", "extractor")]
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    digests = [sha256_of(folder / name)[:16] for folder in folders for name in files]
    noise = f", seed={seed}" if carrier == "token" else ""
    rounds = f", robust_steps={robust_steps}" if robust_steps else ""
    return f"networks={'-'.join(digests)}, key={key.key_id}, carrier={carrier}, psnr_db={psnr_db:g}{noise}{rounds}"


def _same_suffix(source: Path) -> str:
    return source.suffix if source.suffix.lower() in SAVE_FORMATS else ".png"

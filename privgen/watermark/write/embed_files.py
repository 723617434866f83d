"""Marks on image files: each by itself, at its own size, resumable."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from privgen.errors import UsageError
from privgen.hub import find_extra
from privgen.io.batches import FILE_ERRORS, BatchOptions, Ledger, progress_bar, reason
from privgen.io.files import refuse_existing
from privgen.io.fingerprints import bytes_fingerprint, file_fingerprint, weights_fingerprint
from privgen.io.images import from_bytes, is_lossy
from privgen.provenance.seal import Origin
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.registry.issuer import Issuer
from privgen.watermark.tile.pattern import VERSION as TILE
from privgen.watermark.write.mark_image import already_marked_note, mark_loaded, unreadable_note
from privgen.watermark.write.mark_spec import Carrier, MarkSpec
from privgen.watermark.write.marker import Marker


LEDGER = "marks.jsonl"
"""In the output folder: what its images were made from, so that an interrupted batch goes on."""

Status = Literal["done", "skipped", "failed"]


@dataclass(frozen=True)
class EmbeddedFile:
    """What became of one file.

    Attributes:
        source: the file.
        output: the marked image; None if there is none.
        status: "done", "skipped" (an earlier run with the same settings made it) or "failed".
        psnr: of the marked pixels against the source's, in dB, before lossy compression; None if it was not measured.
        matches: bits of the key that are read from the marked file; None if it was not measured.
        notes: what you should know, such as that only the first frame of an animation was read.
        error: why it failed.
        payload: the ID that its mark carries; None if there is none.
    """

    source: str
    output: str | None
    status: Status
    psnr: float | None = None
    matches: int | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None
    payload: int | None = None


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

    def count(self, status: Status) -> int:
        """How many files have that status."""
        return sum(file.status == status for file in self.files)


def embed_files(
    paths: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    key: Key | Issuer,
    *,
    networks: Networks | None = None,
    spec: MarkSpec | None = None,
    batch: BatchOptions | None = None,
    known: Sequence[Key] = (),
    report: Callable[[EmbeddedFile], None] = lambda file: None,
) -> EmbeddedFiles:
    """Mark image files and write them, at their own size, mode and precision, into a folder.

    A file that cannot be read or written does not stop the rest. If you repeat the call after an interruption, it
    skips what it has made already.

    Args:
        paths: image files, and folders of them.
        output: folder for the results; made if missing. Names: see `privgen.io.batches.name_outputs`. For one image,
            it may be the file to write.
        key: whose mark; an `Issuer` gives each file an ID of its own, too, which its registry records with the digests
            of source and output. A repeated call gives a file the same ID.
        networks: of the model that writes; by default those of mini.
        spec: how the mark is written.
        batch: how files are written.
        known: keys whose marks an image may carry already, beside `key`; a note says so. Marks of several keys do not
            disturb each other.
        report: called with each file when it is done.

    Raises:
        UsageError: no image, an output folder that inputs come from, marks that cannot be written like that, or a
            payload besides the IDs of an `Issuer`.
        PrivgenError: the model, or its networks, cannot be found or read.
    """
    networks, batch = networks or Networks(), batch or BatchOptions()
    targets = batch.outputs(paths, output)
    issuer, spec = key if isinstance(key, Issuer) else None, spec or MarkSpec()
    if issuer is not None:
        if spec.payload is not None:
            raise UsageError("Each file gets an ID from the registry; leave the payload out.")
        spec = replace(spec, payload=0)  # the carrier that is chosen must hold one
    owner = key.key if isinstance(key, Issuer) else key
    marker = Marker(networks, spec)
    made_by = _made_by(owner, marker) + batch.made_by() + ("" if issuer is None else issuer.made_by())
    ledger, files = Ledger.of(output, LEDGER, made_by), []
    with progress_bar(len(targets), "embed", shown=batch.progress) as bar:
        for source, target in targets.items():
            files.append(_embed(source, target, [owner, *known], marker, ledger, batch, issuer))
            with bar.external_write_mode():
                report(files[-1])
            bar.update()
    return EmbeddedFiles(owner.name, owner.key_id, marker.carrier, str(output), tuple(files))


def _embed(
    source: Path,
    target: Path,
    keys: Sequence[Key],
    marker: Marker,
    ledger: Ledger,
    batch: BatchOptions,
    issuer: Issuer | None,
) -> EmbeddedFile:
    """Mark one file with the first of the keys, and say whether it carries marks of any of them already."""
    digest = file_fingerprint(source)
    issued, payload = None, marker.spec.payload
    if ledger.has(target, digest):
        known = ledger.figures(target)
        payload = int(known["payload"]) if "payload" in known else payload
        matches = int(known["matches"]) if "matches" in known else None
        return EmbeddedFile(str(source), str(target), "skipped", known.get("psnr"), matches, payload=payload)
    try:
        refuse_existing(target, overwrite=batch.overwrite)
        loaded = batch.load(source)
        if issuer is not None:
            issued = issuer.issue(target, digest, source.name, source_sha256=digest)
            payload, batch = issued.payload, issuer.batch_for(batch, issued)
            marker = replace(marker, spec=replace(marker.spec, payload=payload))
        before = already_marked_note(loaded.stored, keys, marker.networks)
        (marked,) = mark_loaded([loaded], [2**loaded.bits - 1], keys[:1], marker)
        origin = Origin(marker.spec.bindings(keys[0].key_id), batch.parent_of(source, loaded))
        data, lacking = batch.encode(loaded.with_pixels(marked.pixels), target, origin)
        psnr, notes = marked.psnr, loaded.notes + lacking + before
        # A lossy file does not hold the pixels that were marked, so they may go before it is decoded.
        held = None if is_lossy(target) else marked.pixels
        del loaded, marked
        held = from_bytes(data).stored if held is None else held
        matches, after = unreadable_note(held, keys[0], marker)
        if after and is_lossy(target):
            after = (f"{after[0]}, or compressed too strongly: --quality 95 keeps more of it",)
        figures: dict[str, float] = {"psnr": psnr, "matches": matches}
        if issuer is not None and issued is not None:
            figures["payload"] = issued.payload  # a repeated call says what the file carries
            # Before the file, so that no file is out whose digest the registry lacks.
            issuer.registry.record_output(issued, bytes_fingerprint(data))
        ledger.write(target, data, digest, overwrite=batch.overwrite, figures=figures)
    except FILE_ERRORS as error:
        return EmbeddedFile(str(source), None, "failed", error=reason(error))
    return EmbeddedFile(str(source), str(target), "done", psnr, matches, notes + after, payload=payload)


def _made_by(key: Key, marker: Marker) -> str:
    """All that a marked file depends on beside its source; the key by its public id."""
    networks, spec, carrier = marker.networks, marker.spec, marker.spec.network_carrier
    digests = []
    if carrier is not None and networks.model is None:
        digests = [weights_fingerprint(networks.mapper(carrier)), weights_fingerprint(networks.extractor)]
    elif carrier is not None and networks.model is not None:
        names = (f"{carrier}_mapper", "extractor")
        folders = [find_extra(name, networks.model, revision=networks.revision) for name in names]
        files = ("config.json", "diffusion_pytorch_model.safetensors")
        digests = [file_fingerprint(folder / name) for folder in folders for name in files]
    prefix = "-".join(digest[:16] for digest in digests)
    tile = f", tile={TILE}" if spec.has_tile else ""
    noise = f", seed={spec.seed}" if carrier == "token" else ""
    robust = f", robust_steps={spec.robust_steps}" if spec.robust_steps else ""
    payload = "" if spec.payload is None else f", payload={spec.payload}"
    written = f"carrier={marker.carrier}, psnr={spec.quality:g}{tile}{noise}{robust}{payload}"
    return f"networks={prefix}, key={key.key_id}, {written}"

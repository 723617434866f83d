"""What a file proves of its image's origin: Content Credentials, label and mark, read together.

Each proves something else. Credentials prove who signed this very file, and are lost whenever it is saved anew. A mark
proves whose key marked these pixels, with a p-value, and survives that. A label proves nothing by itself.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from privgen.errors import printable
from privgen.io.batches import FILE_ERRORS, reason
from privgen.io.files import MAX_PIXELS
from privgen.io.images import load_image
from privgen.provenance.content_credentials import FoundCredentials, read, recover
from privgen.provenance.label import Label, read_label
from privgen.watermark.read.detection import Detection, Detector, detection_record
from privgen.watermark.registry.found import FoundRecord, records_of
from privgen.watermark.registry.registry import Registry


Agreement = Literal["same", "other", "none"]


@dataclass(frozen=True)
class Verification:
    """What one file proves. Printed, it explains itself in words.

    Attributes:
        file: the file.
        credentials: its Content Credentials, and whether they hold.
        label: what its metadata says of its origin.
        detection: whose mark it carries; None if no keys were looked for.
        records: what a registry knows of the marks that were found.
        recovered: credentials that the registry kept for the IDs that were found, if those of the file do not hold.
        sought: key_ids of all keys that were looked for.
    """

    file: str
    credentials: FoundCredentials
    label: Label
    detection: Detection | None = None
    records: tuple[FoundRecord, ...] = ()
    recovered: tuple[FoundCredentials, ...] = ()
    sought: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def marked(self) -> bool:
        """Whether the image carries the mark of one of the keys."""
        return self.detection is not None and self.detection.detected

    @property
    def label_signed(self) -> bool:
        """Whether a signature covers the label."""
        return bool(self.label.words()) and self.credentials.holds

    @property
    def agreement(self) -> Agreement:
        """Whether the credentials name a mark that was found: "same", "other", or "none" if nothing can be said.

        "other" means that a mark which the credentials name was looked for and not found, and another one was.
        """
        if not self.credentials.bindings or self.detection is None or not self.detection.detected:
            return "none"
        found = {match.key_id for match in self.detection.keys if match.detected}
        named = {binding.key_id for binding in self.credentials.bindings}
        return "same" if found & named else "other" if self.sought & named else "none"

    @property
    def proven(self) -> bool:
        """Whether credentials or a mark prove an origin, and neither speaks against it."""
        broken = self.credentials.state in ("changed", "invalid") or self.agreement == "other"
        return (self.credentials.holds or self.marked) and not broken

    def __str__(self) -> str:
        rows = [("Credentials", self.credentials.words()), ("Label", self._label()), ("Mark", self._mark())]
        rows += [("Registry", f"{record}.") for record in self.records]
        rows += [("Registry", f"Content Credentials {found.words()}") for found in self.recovered]
        # Names of signers and texts of labels are what anybody has written; a line break must not make a line of ours.
        lines = [printable(self.file), *(f"  {name + ':':<13}{printable(text)}" for name, text in rows)]
        return "\n".join([*lines, f"  {'Together:':<13}{self._together()}"])

    def _label(self) -> str:
        if not (said := self.label.words()):
            return "none."
        if self.credentials.holds:
            return f"{said}. The signature covers it."
        return f"{said}. No valid signature covers it, so anybody could have written it."

    def _mark(self) -> str:
        if self.detection is None:
            return "not looked for; name a key."
        text = f"{self.detection}."
        if self.agreement == "same":
            text += " The credentials name this mark."
        elif self.agreement == "other":
            text += " The credentials name another mark."
        elif self.credentials.bindings:
            text += " The credentials name a mark; it is of a key that is not here, or it is gone."
        return text

    def _together(self) -> str:
        if self.agreement == "other":
            return "the credentials are of another image: do not rely on them."
        if self.credentials.state in ("changed", "invalid"):
            rest = "the mark alone shows the origin" if self.marked else "nothing shows where it comes from"
            return f"the file is not as it was signed; {rest}."
        if self.credentials.holds:
            return "the file is as it was signed" + (", and its mark is there." if self.marked else ".")
        if self.marked:
            leads = ", and leads back to its credentials" if self.recovered else ""
            return f"the file carries no credentials, but its mark shows the origin{leads}."
        return "nothing proves where it comes from."

    def record(self) -> dict[str, Any]:
        """One nested mapping, for JSON."""
        label = {name: text for name, text in vars(self.label).items() if text}
        return {
            "file": self.file,
            "proven": self.proven,
            "credentials": asdict(self.credentials) | {"words": self.credentials.words()},
            "label": label | {"ai": self.label.is_ai, "signed": self.label_signed, "words": self._label()},
            "mark": None if self.detection is None else detection_record(self.detection) | {"words": self._mark()},
            "records": [record.record() for record in self.records],
            "recovered": [asdict(found) | {"words": found.words()} for found in self.recovered],
            "agreement": self.agreement,
            "together": self._together(),
        }


def verify_file(
    path: str | os.PathLike[str],
    detector: Detector | None = None,
    *,
    anchors: str | None = None,
    registry: Registry | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Verification:
    """Say what an image file proves of its origin.

    Args:
        path: the file.
        detector: looks for marks; None looks for none.
        anchors: certificates in PEM that you trust.
        registry: says what it knows of the marks that are found; the detector looks for its keys.
        max_pixels: see `privgen.io.images.load_image`.

    Raises:
        PrivgenError: the file cannot be read.
    """
    loaded = load_image(path, max_pixels=max_pixels)
    detection = None if detector is None else detector([loaded.stored])[0]
    records: tuple[FoundRecord, ...] = ()
    recovered = []
    credentials, label = read(Path(path), anchors=anchors), read_label(loaded.metadata.xmp)
    if registry is not None and detection is not None:
        records = records_of(registry, detection)
        for found in records:
            kept = None if found.payload is None else registry.credentials_of(found.key.key_id, found.payload)
            if kept is not None and not credentials.holds:
                recovered.append(recover(kept, anchors=anchors))
    sought = frozenset(() if detector is None else (key.key_id for key in detector.keys))
    return Verification(str(path), credentials, label, detection, records, tuple(recovered), sought)


def verify_files(
    paths: Iterable[Path],
    detector: Detector | None = None,
    *,
    anchors: str | None = None,
    registry: Registry | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[tuple[Path, Verification | None, str | None]]:
    """Say what image files prove, one after the other; a file that cannot be read does not stop the rest.

    Args:
        paths: image files.
        detector: see `verify_file`.
        anchors: see `verify_file`.
        registry: see `verify_file`.
        max_pixels: see `verify_file`.

    Yields:
        Each file with what it proves, or with the reason why it could not be read.
    """
    for path in paths:
        try:
            yield path, verify_file(path, detector, anchors=anchors, registry=registry, max_pixels=max_pixels), None
        except FILE_ERRORS as error:
            yield path, None, reason(error)

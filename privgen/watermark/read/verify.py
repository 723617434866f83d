"""What a file proves of its image's origin: Content Credentials, label and mark, read together.

Each proves something else. Credentials prove who signed this very file, and are lost whenever it is saved anew. A mark
proves whose key marked these pixels, with a p-value, and survives that. A label proves nothing by itself.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
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


Agreement = Literal["same", "unnamed", "other", "none"]


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
    """

    file: str
    credentials: FoundCredentials
    label: Label
    detection: Detection | None = None
    records: tuple[FoundRecord, ...] = ()
    recovered: tuple[FoundCredentials, ...] = ()

    @property
    def marked(self) -> bool:
        """Whether the image carries the mark of one of the keys."""
        return bool(self.found)

    @property
    def label_signed(self) -> bool:
        """Whether a signature covers the label."""
        return bool(self.label.words()) and self.credentials.holds

    @property
    def found(self) -> frozenset[str]:
        """Public ids of the keys whose marks the image carries."""
        matches = () if self.detection is None else self.detection.keys
        return frozenset(match.key_id for match in matches if match.detected)

    @property
    def revoked(self) -> frozenset[str]:
        """Those of the found keys that a registry has revoked: others may have them, and write such marks."""
        return frozenset(item.key.key_id for item in self.records if item.key.status == "revoked")

    @property
    def agreement(self) -> Agreement:
        """What valid credentials and the marks say of each other.

        - "same": all marks that were found are named, by the credentials or by those of an unchanged parent.
        - "unnamed": a mark that was found is not named, besides one that is.
        - "other": marks were found, and none of them is named.
        - "none": there is nothing to compare.
        """
        if not (self.credentials.holds and self.credentials.bindings and self.found):
            return "none"
        parents = [parent for parent in self.credentials.parents if parent.state == "valid"]
        bindings = [*self.credentials.bindings, *(item for parent in parents for item in parent.bindings)]
        named = {item.key_id for item in bindings}
        return "same" if self.found <= named else "unnamed" if self.found & named else "other"

    @property
    def proven(self) -> bool:
        """Whether credentials or a mark prove an origin, and neither speaks against it."""
        broken = self.credentials.state in ("changed", "invalid") or self.agreement in ("unnamed", "other")
        return (self.credentials.holds or bool(self.found - self.revoked)) and not broken

    def __str__(self) -> str:
        rows = [("Credentials", self.credentials.words())]
        rows += [("Made from", f"{parent.words()}.") for parent in self.credentials.parents]
        rows += [("Label", self._label()), ("Mark", self._mark())]
        rows += [("Registry", f"{record}.") for record in self.records]
        rows += [("Registry", f"Content Credentials {found.words()}") for found in self.recovered]
        lines = [printable(self.file), *(f"  {name + ':':<13}{printable(text)}" for name, text in rows)]
        return "\n".join([*lines, f"  {'Together:':<13}{self._together()}"])

    def _label(self) -> str:
        if not (said := self.label.words()):
            return "none."
        if self.credentials.holds:
            return f"{said}. The signature covers it: the signer answers for it."
        return f"{said}. No valid signature covers it, so anybody could have written it."

    def _mark(self) -> str:
        if self.detection is None:
            return "not looked for; name a key."
        text = f"{self.detection}."
        named = self.credentials.bindings if self.credentials.holds else ()
        missing = [item for item in named if item.key_id not in self.found]
        if self.agreement == "same":
            text += " The credentials name what was found."
        elif self.agreement in ("unnamed", "other"):
            text += " The credentials do not name all of it."
        if any(item.box is not None for item in missing) and not self.detection.spec.locate:
            text += " The credentials name marks of objects; --locate looks for them."
        elif missing and not self.found:
            hint = "" if self.detection.spec.search else "; --search also finds it in a part of the image"
            text += f" The credentials name a mark that was not found: its key is not here, or it is gone{hint}."
        return text

    def _together(self) -> str:
        if self.agreement in ("unnamed", "other"):
            return "the file is as it was signed, but the signer does not name a mark in it: whose it is, is open."
        shown = "the mark alone shows the origin" if self.found - self.revoked else "nothing shows where it comes from"
        if self.found and not self.found - self.revoked:
            shown = "its mark is of a revoked key, which others may have, and shows nothing"
        if self.credentials.state == "changed":
            return f"the file is not as it was signed; {shown}."
        if self.credentials.state == "invalid":
            return f"the credentials cannot be relied on; {shown}."
        if self.credentials.holds:
            return "the file is as it was signed" + (", and its mark is there." if self.agreement == "same" else ".")
        if self.found - self.revoked:
            leads = ", and leads back to its credentials" if self.recovered else ""
            none = "has no credentials" if self.credentials.state == "none" else "has credentials that cannot be read"
            return f"the file {none}, but its mark shows the origin{leads}."
        return f"{shown}." if self.found else "nothing proves where it comes from."

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
    return Verification(str(path), credentials, label, detection, records, tuple(recovered))


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

"""What a registry knows of the marks that were found in an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from privgen.watermark.read.detection import Detection
from privgen.watermark.registry.registry import Registry
from privgen.watermark.registry.values import Issued, KeyEntry


@dataclass(frozen=True)
class FoundRecord:
    """What a registry knows of one mark. Printed, it is one clear line.

    Attributes:
        key: whose mark it is.
        payload: the ID that it carries; None if it carries none that can be read.
        issued: what the ID was issued for; None if the registry did not issue it.
    """

    key: KeyEntry
    payload: int | None = None
    issued: Issued | None = None

    def __str__(self) -> str:
        if self.payload is None:
            return f"key {self.key}; no ID"
        return f"key {self.key}; ID {self.payload}, {self.issued or 'which the registry did not issue'}"

    def record(self) -> dict[str, Any]:
        """One mapping, for JSON."""
        issued = None if self.issued is None else self.issued.record()
        return {"key": self.key.record(), "payload": self.payload, "issued": issued}


def records_of(registry: Registry, detection: Detection) -> tuple[FoundRecord, ...]:
    """Return what a registry knows of all marks that were found in an image, each once.

    Args:
        registry: with the keys that were looked for; others are passed over.
        detection: what was found.
    """
    marks: Sequence[tuple[str, int | None]] = [(region.key_id, region.payload) for region in detection.regions]
    with_id = {key_id for key_id, payload in marks if payload is not None}
    records = []
    for key_id, payload in dict.fromkeys(marks):
        entry = registry.find(key_id)
        if entry is None or (payload is None and key_id in with_id):
            continue
        issued = None if payload is None else registry.lookup(key_id, payload)
        records.append(FoundRecord(entry, payload, issued))
    return tuple(records)

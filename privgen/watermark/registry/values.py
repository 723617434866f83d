"""What goes into a registry and comes out of it. None of these values holds a secret."""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args


Status = Literal["active", "superseded", "revoked"]
"""Of a key: in use; replaced by a new key of the same name; or no longer to be used. All are still detected."""

STATUSES: tuple[Status, ...] = get_args(Status)


@dataclass(frozen=True)
class KeyEntry:
    """What a registry knows of a key, without its secret.

    Attributes:
        name: of the key. Only one active key has it; keys that it was rotated from have it, too.
        key_id: public id, 16 hexadecimal digits.
        fingerprint: public fingerprint, 64 hexadecimal digits.
        created: when the key was made, ISO 8601 in UTC.
        added: when it was added to the registry.
        status: see `Status`.
        parent: key_id of the key that this one is derived from; None if it has a secret of its own.
        label: that it is derived with; None without a parent.
        successor: key_id of the key that replaced it; None if none has.
        ended: when it was revoked or superseded; None while it is active.
        why: it was revoked; None if it was not.
    """

    name: str
    key_id: str
    fingerprint: str
    created: str
    added: str
    status: Status = "active"
    parent: str | None = None
    label: str | None = None
    successor: str | None = None
    ended: str | None = None
    why: str | None = None

    def __str__(self) -> str:
        if self.status == "revoked":
            return f"{self.name} ({self.key_id}), revoked {_day(self.ended)}{f': {self.why}' if self.why else ''}"
        if self.status == "superseded":
            return f"{self.name} ({self.key_id}), replaced {_day(self.ended)} by {self.successor}"
        return f"{self.name} ({self.key_id})"

    def record(self) -> dict[str, Any]:
        """One flat mapping, for JSON."""
        return dict(vars(self))


@dataclass(frozen=True)
class IssuedFor:
    """What an ID is issued for. Every field is yours to fill; none is needed.

    Attributes:
        note: free text or JSON, such as "client 17, licence 2026-044".
        file: name of the image.
        user: for whom.
        model: that generated the image.
        source_sha256: of the file that was marked, 64 hexadecimal digits.
    """

    note: str | None = None
    file: str | None = None
    user: str | None = None
    model: str | None = None
    source_sha256: str | None = None

    def in_words(self) -> str:
        """What it was issued for, such as "client 17"; empty if nothing is known."""
        named = [("note", self.note), ("user", self.user), ("file", self.file), ("model", self.model)]
        return ", ".join(text if name == "note" else f"{name} {text}" for name, text in named if text)


FOR = tuple(field.name for field in fields(IssuedFor))
"""Names of the fields of `IssuedFor`, which are columns of the registry, too."""


@dataclass(frozen=True)
class Issued:
    """An ID that was issued, and what for. Printed, it is one clear phrase.

    Example:
        >>> from privgen.watermark.registry.values import Issued, IssuedFor
        >>> print(Issued("0123456789abcdef", 7, "2026-11-28T10:00:00+00:00", IssuedFor("client 17")))
        issued 2026-11-28 for client 17

    Attributes:
        key_id: public id of the key that it was issued with.
        payload: the ID, 0..4294967295; no two of one key are the same.
        issued: when, ISO 8601 in UTC.
        issued_for: what for.
        output_sha256: of the marked file, 64 hexadecimal digits; None if none is recorded.
    """

    key_id: str
    payload: int
    issued: str
    issued_for: IssuedFor = field(default_factory=IssuedFor)
    output_sha256: str | None = None

    def __str__(self) -> str:
        what = self.issued_for.in_words()
        return f"issued {_day(self.issued)}{f' for {what}' if what else ''}"

    def record(self) -> dict[str, Any]:
        """One flat mapping, for JSON."""
        own = {name: value for name, value in vars(self).items() if name != "issued_for"}
        return {**own, **vars(self.issued_for)}


def _day(time: str | None) -> str:
    return (time or "")[:10]

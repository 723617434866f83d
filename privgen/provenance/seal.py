"""Seals: what is written into files after the mark, in the one order that works: metadata, then the signature."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from uuid import uuid4

from privgen.errors import UsageError
from privgen.io.fingerprints import settings_fingerprint
from privgen.io.metadata import HOLDS, Metadata
from privgen.provenance.claim import Claim, SoftBinding
from privgen.provenance.content_credentials import sign
from privgen.provenance.credentials import Credentials
from privgen.provenance.label import AI_MADE, PRESETS, Label, Preset, write_label


SAID = ("provider", "system", "system_version", "creator", "credit")
"""What the caller may say in a label; the rest is found out for each file."""


@dataclass(frozen=True)
class Origin:
    """Where the pixels of one file come from.

    Attributes:
        bindings: the marks that they carry.
        parent: content and format of the file that they were made from; None if a model made them.
        system: the model that made them.
        system_version: its version.
    """

    bindings: Sequence[SoftBinding] = ()
    parent: tuple[bytes, str] | None = field(default=None, repr=False)
    system: str = ""
    system_version: str = ""


@dataclass(frozen=True)
class Seal:
    """How the origin of images is said in their files: by a label, and by a signature.

    Example:
        >>> from privgen import Credentials, Key, Seal, Watermark
        >>> seal = Seal(Credentials.new("alice"), preset="eu-ai-act")
        >>> mark, key = Watermark.from_pretrained("mini"), Key.new("alice")
        >>> path = mark.publish("photo.jpg", "published.jpg", key, seal=seal)
        >>> mark.verify(path, key).credentials.state
        'valid'

    Attributes:
        credentials: who signs; None for no signature.
        label: what the metadata says; see `SAID`.
        preset: the law whose list of facts the label has to cover. It says that the images are made by AI.
        identifier: of the one file that it seals; empty draws one for each file.
        keep: called with the credentials of each file that is signed, to keep them where its mark leads back to them;
            None keeps them in the file alone.

    Raises:
        UsageError: an unknown preset, or a label that lacks what the law lists.
    """

    credentials: Credentials | None = None
    label: Label = field(default_factory=Label)
    preset: Preset | None = None
    identifier: str = ""
    keep: Callable[[bytes], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.preset not in (None, *PRESETS):
            raise UsageError(f"expected one of the labels {', '.join(PRESETS)}, got {self.preset!r}")
        if self.preset == "sb-942" and not self.label.provider:
            raise UsageError(
                "A label for sb-942 also names the provider: --say provider=NAME, or Label(provider=...)."
            )

    def claim(self, title: str, origin: Origin) -> Claim:
        """What is said of one file, with the time and an identifier that no other file has.

        Args:
            title: name of the file.
            origin: where its pixels come from.

        Raises:
            UsageError: the label lacks what the law lists, or nothing says how an image without a file was made,
                which a signature has to say.
        """
        label = self.label
        if self.credentials is not None and origin.parent is None and not label.source_type:
            if not origin.system and self.preset is None:
                raise UsageError(
                    f"Say how {title} was made: give the label a source_type, or name the file that it was made from."
                )
            label = replace(label, source_type=AI_MADE)
        if self.preset is not None:
            label = replace(
                label,
                source_type=label.source_type or AI_MADE,
                system=label.system or origin.system,
                system_version=label.system_version or ("" if label.system else origin.system_version),
                created=label.created or datetime.now(UTC).isoformat(timespec="seconds"),
                identifier=self.identifier or f"urn:uuid:{uuid4()}",
            )
            label.complete(self.preset)
        return Claim(title, label, origin.bindings, origin.parent)

    def labelled(self, metadata: Metadata, claim: Claim, kind: str) -> Metadata:
        """Return the metadata of a file with the label in it.

        Args:
            metadata: of the file.
            claim: see `claim`.
            kind: format of the file.

        Raises:
            ValueError: the format cannot hold a label.
        """
        if not claim.label.properties():
            return metadata
        if "xmp" not in HOLDS[kind]:
            raise ValueError(f"{kind} files hold no label; write PNG, JPEG, WebP, TIFF or AVIF")
        return replace(metadata, xmp=write_label(metadata.xmp, claim.label))

    def signed(self, data: bytes, claim: Claim, kind: str) -> bytes:
        """Return the content of a file with the signature in it; unchanged if nobody signs.

        Args:
            data: the content, with the label in it.
            claim: see `claim`.
            kind: format of the file.

        Raises:
            PrivgenError: see `privgen.provenance.content_credentials.sign`.
        """
        return data if self.credentials is None else sign(data, kind, claim, self.credentials, self.keep)

    def fingerprint(self) -> str:
        """Of all that a file depends on, except its time, for a `privgen.io.batches.Ledger`."""
        signer = None if self.credentials is None else self.credentials.certificates
        return settings_fingerprint(signer, self.preset, *self.label.properties().items())[:16]

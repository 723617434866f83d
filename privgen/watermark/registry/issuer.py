"""Issue an ID for each image of a batch that is marked."""

import os
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from privgen.errors import UsageError, printable
from privgen.io.batches import BatchOptions
from privgen.io.fingerprints import settings_fingerprint
from privgen.watermark.key import Key
from privgen.watermark.registry.registry import Registry
from privgen.watermark.registry.values import Issued, IssuedFor


@dataclass(frozen=True)
class Issuer:
    """Issues IDs with one key.

    Attributes:
        registry: that holds the key and records the IDs.
        name: name or key_id of an active key.
        issued_for: what all IDs of the batch are issued for; each also gets its file and the file's digest.
    """

    registry: Registry
    name: str
    issued_for: IssuedFor = field(default_factory=IssuedFor)

    @cached_property
    def key(self) -> Key:
        """The key, with its secret.

        Raises:
            UsageError: there is no such key, or it is not active.
        """
        entry = self.registry.find(self.name)
        if entry is not None and entry.status != "active":
            raise UsageError(f"IDs are issued with active keys, and this one is not: {entry}.")
        return self.registry.key(self.name)

    def issue(self, output: Path, source: str, file: str, *, source_sha256: str | None = None) -> Issued:
        """Issue an ID for one image, or return the one that it got before.

        The same source that becomes the same output, for the same purpose, has one ID, however often you repeat it.

        Args:
            output: the file that will carry the ID.
            source: a text that tells what the image is made from, such as the digest of a file.
            file: name of the image.
            source_sha256: digest of the file that it is made from, if there is one.
        """
        what = self.issued_for
        place = Path(os.path.realpath(output)).as_posix()
        request = settings_fingerprint(source, place, what.note, what.user, what.model)
        issued_for = replace(what, file=what.file or printable(file), source_sha256=source_sha256)
        return self.registry.issue(self.name, issued_for, request=request)

    def batch_for(self, batch: BatchOptions, issued: Issued) -> BatchOptions:
        """How the file of an ID is written: a seal says the ID, and the registry keeps the file's credentials.

        Args:
            batch: how all files are written.
            issued: the ID.
        """
        if batch.seal is None:
            return batch
        identifier = f"privgen:{issued.key_id}:{issued.payload}"
        keep = partial(self.registry.keep_credentials, issued)
        return replace(batch, seal=replace(batch.seal, identifier=identifier, keep=keep))

    def made_by(self) -> str:
        """What a marked file depends on besides its source; see `privgen.io.batches.Ledger`."""
        return f", issued={settings_fingerprint(self.key.key_id, vars(self.issued_for))[:16]}"

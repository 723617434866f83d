"""The front door of registries."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from privgen.errors import PrivgenError, UsageError
from privgen.watermark.key import Key
from privgen.watermark.registry import database, ids, keys
from privgen.watermark.registry.values import STATUSES, Issued, IssuedFor, KeyEntry, Status


class Registry:
    """Keys, and the IDs that were issued with them, in one SQLite file.

    Any number of processes may read it while one writes; others that want to write wait for up to 30 seconds. What a
    method has written is on the disk when it returns. A connection belongs to the thread and the process that made it:
    open the registry again in others.

    The file holds secrets, and only its owner may read it. No method but `key` and `keys` returns a secret.

    Example:
        >>> from privgen import Key, Registry
        >>> from privgen.watermark.registry.values import IssuedFor
        >>> with Registry.create("studio.db") as registry:
        ...     entry = registry.add(Key.new("studio"))
        ...     issued = registry.issue("studio", IssuedFor("client 17"))
        >>> with Registry.open("studio.db") as registry:
        ...     registry.lookup(entry.key_id, issued.payload).issued_for.note
        'client 17'

    Args:
        path: the file, which exists.
        write: also to write.

    Raises:
        PrivgenError: the file is missing, cannot be read or written, is not a registry, is damaged, or was made by a
            newer privgen.
    """

    def __init__(self, path: str | os.PathLike[str], *, write: bool = True) -> None:
        self.path = Path(path)
        self._connection = database.connect(self.path, write=write)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Self:
        """Make an empty registry, which only its owner may read, and open it.

        Raises:
            PrivgenError: the file exists, or cannot be made.
        """
        database.create(Path(path))
        return cls(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, write: bool = True) -> Self:
        """Open a registry; see `Registry`. Without `write`, it may lie in a folder that is read-only."""
        return cls(path, write=write)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Registry({str(self.path)!r})"

    # Keys

    def add(self, key: Key) -> KeyEntry:
        """Add a key with its secret.

        Raises:
            UsageError: an active key has its name, or the key is there already.
            PrivgenError: the registry cannot be written.
        """
        with self._writing() as connection:
            self._refuse_known(connection, key)
            keys.insert(connection, key, _now())
        return self._entry(key.key_id)[1]

    def derive(self, parent: str, label: str, name: str | None = None) -> KeyEntry:
        """Add a key that is derived from another one; only its label is stored.

        Args:
            parent: name or key_id of the key that it is derived from.
            label: see `privgen.watermark.key.Key.derive`.
            name: of the new key; by default made of the label.

        Raises:
            UsageError: no such parent, a label or name that is not allowed, or a key that is there already.
            PrivgenError: the registry cannot be written.
        """
        with self._writing() as connection:
            number, entry = self._entry(parent)
            derived = keys.secrets_of(connection, [number])[entry.key_id].derive(label, name)
            self._refuse_known(connection, derived)
            keys.insert(connection, derived, _now(), parent=number, label=label)
        return self._entry(derived.key_id)[1]

    def list(self, status: Status | None = None) -> tuple[KeyEntry, ...]:
        """Return all keys, or those of one status, in the order in which they were added."""
        if status not in (None, *STATUSES):
            raise UsageError(f"expected a status of {', '.join(STATUSES)}, got {status!r}")
        with database.explained(self.path):
            return tuple(entry for entry in keys.entries(self._connection) if status in (None, entry.status))

    def find(self, name_or_id: str) -> KeyEntry | None:
        """Return what is known of a key, by its name or its key_id; None if there is none."""
        with database.explained(self.path):
            found = keys.find(self._connection, name_or_id)
        return None if found is None else found[1]

    def key(self, name_or_id: str) -> Key:
        """Return a key with its secret, by its name or its key_id.

        Raises:
            UsageError: there is none.
        """
        number, entry = self._entry(name_or_id)
        with database.explained(self.path):
            return keys.secrets_of(self._connection, [number])[entry.key_id]

    def keys(self) -> tuple[Key, ...]:
        """Return all keys with their secrets, also those that were revoked or replaced, whose marks are out there."""
        with database.explained(self.path):
            return tuple(keys.secrets_of(self._connection).values())

    def revoke(self, name_or_id: str, why: str | None = None) -> KeyEntry:
        """Say that a key, and all keys that are derived from it, are not to be used any more.

        Whoever has the secret of a key has those of the keys that are derived from it. Their marks are still detected,
        and said to be of revoked keys.

        Args:
            name_or_id: of the key.
            why: in words, such as "secret leaked".

        Raises:
            UsageError: there is no such key, or it is revoked already.
        """
        with self._writing() as connection:
            number, entry = self._entry(name_or_id)
            if entry.status == "revoked":
                raise UsageError(f"The key {entry} already.")
            keys.revoke(connection, number, _now(), why, f"derived from {entry.name}, which was revoked")
        return self._entry(entry.key_id)[1]

    def rotate(self, name: str) -> KeyEntry:
        """Replace an active key by a new one of the same name, and return the new one.

        The old key stays, and its marks are still detected. A key that is derived gets a random secret as its
        successor.

        Raises:
            UsageError: there is no active key of that name.
        """
        with self._writing() as connection:
            number, entry = self._entry(name)
            if entry.status != "active":
                raise UsageError(f"Only an active key can be rotated, and {entry} is {entry.status}.")
            key, now = Key.new(entry.name), _now()
            connection.execute("UPDATE keys SET status = 'superseded', ended = ? WHERE id = ?", [now, number])
            successor = keys.insert(connection, key, now)
            connection.execute("UPDATE keys SET successor = ? WHERE id = ?", [successor, number])
        return self._entry(key.key_id)[1]

    # Issued IDs

    def issue(
        self, name_or_id: str, issued_for: IssuedFor | None = None, *, payload: int | None = None, request: str = ""
    ) -> Issued:
        """Issue an ID with a key, for one image.

        Args:
            name_or_id: of an active key.
            issued_for: what for.
            payload: an ID of your choice, 0..4294967295; None draws a random one that was not issued before.
            request: a text that tells this request from all others, such as the digest of a file. If you ask again
                with the same text, you get the ID that you got before. Empty is a new request.

        Raises:
            UsageError: there is no such key, it is not active, the ID that you chose was issued before, or the request
                got another ID before.
            PrivgenError: the registry cannot be written.
        """
        return self.issue_all(name_or_id, [(issued_for or IssuedFor(), request)], payload=payload)[0]

    def issue_all(
        self, name_or_id: str, requests: Sequence[tuple[IssuedFor, str]], *, payload: int | None = None
    ) -> tuple[Issued, ...]:
        """Issue IDs for many images at once, which is much faster than one at a time: all of them or none.

        Args:
            name_or_id: see `issue`.
            requests: for each image what it is issued for, and the text of the request; see `issue`.
            payload: see `issue`; for one image only.
        """
        issued = []
        with self._writing() as connection:
            number, entry = self._entry(name_or_id)
            if entry.status != "active":
                raise UsageError(f"The key {entry}, is {entry.status}; issue IDs with an active key.")
            for issued_for, request in requests:
                before = ids.requested(connection, number, request or None)
                if before is not None and payload not in (None, before.payload):
                    raise UsageError(f"This request got the ID {before.payload} before; leave the payload out.")
                if before is None:
                    now = _now()
                    drawn = ids.insert(connection, number, now, issued_for, payload=payload, request=request or None)
                    before = Issued(entry.key_id, drawn, now, issued_for)
                issued.append(before)
        return tuple(issued)

    def record_output(self, issued: Issued, output_sha256: str) -> None:
        """Record the digest of the file that carries an ID.

        Raises:
            UsageError: the ID was not issued.
        """
        with self._writing() as connection:
            if not ids.set_output(connection, issued.key_id, issued.payload, output_sha256):
                raise UsageError(f"The ID {issued.payload} was not issued with the key {issued.key_id}.")

    def keep_credentials(self, issued: Issued, manifest: bytes) -> None:
        """Keep the Content Credentials of the file that carries an ID, so that its mark leads back to them.

        Args:
            issued: the ID.
            manifest: the manifest store, some kilobytes; it replaces an earlier one.

        Raises:
            UsageError: the ID was not issued.
        """
        with self._writing() as connection:
            if not ids.set_manifest(connection, issued.key_id, issued.payload, manifest):
                raise UsageError(f"The ID {issued.payload} was not issued with the key {issued.key_id}.")

    def credentials_of(self, key_id: str, payload: int) -> bytes | None:
        """Return the Content Credentials that were kept for an ID; None if there are none."""
        with database.explained(self.path):
            return ids.manifest(self._connection, key_id, payload)

    def lookup(self, key_id: str, payload: int) -> Issued | None:
        """Return what an ID was issued for; None if it was not issued with that key."""
        with database.explained(self.path):
            return ids.lookup(self._connection, key_id, payload)

    def with_output(self, output_sha256: str) -> tuple[Issued, ...]:
        """Return the IDs whose marked file has that SHA-256 digest."""
        with database.explained(self.path):
            return tuple(ids.with_output(self._connection, output_sha256))

    def issued(self, name_or_id: str | None = None) -> Iterator[Issued]:
        """Yield all issued IDs, or those of one key, as they were at one moment."""
        number = None if name_or_id is None else self._entry(name_or_id)[0]
        with database.explained(self.path):
            yield from ids.all_issued(self._connection, number)

    def check(self) -> tuple[int, int]:
        """Examine the whole file, and return how many keys and how many issued IDs it holds.

        Raises:
            PrivgenError: the file, or one of its keys, is damaged.
        """
        with database.explained(self.path):
            (found,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
            if found != "ok" or self._connection.execute("PRAGMA foreign_key_check").fetchone():
                raise PrivgenError(f"The registry {self.path} is damaged; restore it from a copy.")
            (count,) = self._connection.execute("SELECT count(*) FROM ids").fetchone()
        return len(self.keys()), int(count)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that writes: all of it or nothing."""
        with database.explained(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _entry(self, name_or_id: str) -> tuple[int, KeyEntry]:
        with database.explained(self.path):
            found = keys.find(self._connection, name_or_id)
        if found is None:
            raise UsageError(f"The registry {self.path} has no key {name_or_id}; `privgen registry list` shows all.")
        return found

    def _refuse_known(self, connection: sqlite3.Connection, key: Key) -> None:
        for known in (key.key_id, key.name):
            found = keys.find(connection, known)
            if found is not None and (found[1].key_id == key.key_id or found[1].status == "active"):
                raise UsageError(f"The registry {self.path} already has a key {found[1]}.")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""The issued IDs of a registry: rows of its table `ids` as values."""

import secrets
import sqlite3
from collections.abc import Iterator

from privgen.errors import PrivgenError, UsageError
from privgen.watermark.registry.values import FOR, Issued, IssuedFor
from privgen.watermark.tile.payload_code import LARGEST, check_payload


_TRIES = 32
_SELECT = f"""
SELECT k.key_id, i.payload, i.issued, i.output_sha256, {", ".join(f"i.{name}" for name in FOR)}
FROM ids AS i JOIN keys AS k ON k.id = i.key
"""


def lookup(connection: sqlite3.Connection, key_id: str, payload: int) -> Issued | None:
    """Return what an ID was issued for; None if it was not issued with that key."""
    row = connection.execute(f"{_SELECT} WHERE k.key_id = ? AND i.payload = ?", [key_id, payload]).fetchone()
    return None if row is None else _issued(row)


def requested(connection: sqlite3.Connection, key: int, request: str | None) -> Issued | None:
    """Return the ID that was issued for a request before; None if there is none."""
    if request is None:
        return None
    row = connection.execute(f"{_SELECT} WHERE i.key = ? AND i.request = ?", [key, request]).fetchone()
    return None if row is None else _issued(row)


def all_issued(connection: sqlite3.Connection, key: int | None = None) -> Iterator[Issued]:
    """Yield all IDs, or those of one key, by key and payload."""
    where, values = ("", []) if key is None else (" WHERE i.key = ?", [key])
    for row in connection.execute(f"{_SELECT}{where} ORDER BY i.key, i.payload", values):
        yield _issued(row)


def insert(
    connection: sqlite3.Connection,
    key: int,
    time: str,
    issued_for: IssuedFor,
    *,
    payload: int | None = None,
    request: str | None = None,
) -> int:
    """Issue an ID, and return it.

    IDs are random. So two copies of a registry hardly ever issue the same one, an ID does not tell how many there are,
    and an ID that is read wrongly leads to no record.

    Args:
        connection: to the registry, in a transaction.
        key: row number of the key.
        time: now.
        issued_for: what for.
        payload: an ID of your choice; None draws one.
        request: see `privgen.watermark.registry.registry.Registry.issue`.

    Raises:
        UsageError: the ID that you chose was issued before, or is out of its range.
        PrivgenError: the key has hardly any IDs left.
    """
    columns = ("key", "payload", "issued", "request", *FOR)
    statement = (
        f"INSERT INTO ids ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))}) ON CONFLICT DO NOTHING"
    )
    for _ in range(_TRIES):
        drawn = secrets.randbelow(LARGEST + 1) if payload is None else check_payload(payload)
        values = (key, drawn, time, request, *(getattr(issued_for, name) for name in FOR))
        if connection.execute(statement, values).rowcount:
            return drawn
        if payload is not None:
            raise UsageError(f"The ID {payload} was issued with this key before; choose another, or let one be drawn.")
    raise PrivgenError("This key has hardly any IDs left; rotate it.")


def set_output(connection: sqlite3.Connection, key_id: str, payload: int, output_sha256: str) -> bool:
    """Record the digest of the file that carries an ID. Returns whether the ID was issued."""
    statement = "UPDATE ids SET output_sha256 = ? WHERE payload = ? AND key = (SELECT id FROM keys WHERE key_id = ?)"
    return connection.execute(statement, [output_sha256, payload, key_id]).rowcount > 0


def set_manifest(connection: sqlite3.Connection, key_id: str, payload: int, manifest: bytes) -> bool:
    """Keep the credentials of the file that carries an ID. Returns whether the ID was issued."""
    statement = (
        "INSERT OR REPLACE INTO manifests (key, payload, manifest) SELECT i.key, i.payload, ? FROM ids AS i "
        "JOIN keys AS k ON k.id = i.key WHERE k.key_id = ? AND i.payload = ?"
    )
    return connection.execute(statement, [manifest, key_id, payload]).rowcount > 0


def manifest(connection: sqlite3.Connection, key_id: str, payload: int) -> bytes | None:
    """Return the credentials of the file that carries an ID; None if none were kept."""
    statement = (
        "SELECT manifest FROM manifests AS m JOIN keys AS k ON k.id = m.key WHERE k.key_id = ? AND m.payload = ?"
    )
    row = connection.execute(statement, [key_id, payload]).fetchone()
    return None if row is None else bytes(row[0])


def with_output(connection: sqlite3.Connection, output_sha256: str) -> list[Issued]:
    """Return the IDs whose marked file has that digest."""
    return [_issued(row) for row in connection.execute(f"{_SELECT} WHERE i.output_sha256 = ?", [output_sha256])]


def _issued(row: tuple[str, int, str, str | None, *tuple[str | None, ...]]) -> Issued:
    key_id, payload, issued, output, *what = row
    return Issued(key_id, payload, issued, IssuedFor(*what), output)

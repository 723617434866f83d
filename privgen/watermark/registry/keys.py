"""The keys of a registry: rows of its table `keys` as values, and secrets as `Key`."""

import hmac
import sqlite3
from collections.abc import Iterable

from privgen.errors import PrivgenError
from privgen.watermark.key import Key, Secret
from privgen.watermark.registry.values import KeyEntry


_SELECT = """
SELECT k.id, k.name, k.key_id, k.fingerprint, k.created, k.added, k.status, p.key_id, k.label, s.key_id, k.ended, k.why
FROM keys AS k LEFT JOIN keys AS p ON p.id = k.parent LEFT JOIN keys AS s ON s.id = k.successor
"""


def entries(connection: sqlite3.Connection) -> list[KeyEntry]:
    """Return all keys, in the order in which they were added."""
    return [KeyEntry(*row[1:]) for row in connection.execute(f"{_SELECT} ORDER BY k.id")]


def find(connection: sqlite3.Connection, name_or_id: str) -> tuple[int, KeyEntry] | None:
    """Return the row number and the entry of a key; None if there is none.

    Args:
        connection: to the registry.
        name_or_id: a key_id, or the name of an active key; or the name of a key that has ended, of which the last one
            counts.
    """
    row = connection.execute(
        f"{_SELECT} WHERE k.name = ?1 OR k.key_id = ?1 ORDER BY k.key_id = ?1 DESC, k.status = 'active' DESC, "
        "k.id DESC LIMIT 1",
        [name_or_id],
    ).fetchone()
    return None if row is None else (row[0], KeyEntry(*row[1:]))


def insert(
    connection: sqlite3.Connection, key: Key, added: str, *, parent: int | None = None, label: str | None = None
) -> int:
    """Add an active key, and return its row number.

    Args:
        connection: to the registry.
        key: its secret is stored, unless it has a parent.
        added: the time.
        parent: row number of the key that it is derived from.
        label: that it is derived with.
    """
    secret = bytes(key.secret) if parent is None else None
    values = (key.name, key.key_id, key.fingerprint, key.created, added, secret, parent, label)
    cursor = connection.execute(
        "INSERT INTO keys (name, key_id, fingerprint, created, added, secret, parent, label) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        values,
    )
    return int(cursor.lastrowid or 0)


def revoke(connection: sqlite3.Connection, number: int, time: str, why: str | None, why_derived: str) -> None:
    """Revoke a key, and all keys that are derived from it and are not revoked yet.

    Args:
        connection: to the registry, in a transaction.
        number: row number of the key.
        time: now.
        why: the key is revoked.
        why_derived: the others are.
    """
    connection.execute(
        "WITH RECURSIVE below(id) AS (SELECT ?1 UNION SELECT k.id FROM keys AS k JOIN below ON k.parent = below.id) "
        "UPDATE keys SET status = 'revoked', ended = ?2, why = CASE WHEN id = ?1 THEN ?3 ELSE ?4 END "
        "WHERE id IN below AND status != 'revoked'",
        [number, time, why, why_derived],
    )


def secrets_of(connection: sqlite3.Connection, chosen: Iterable[int] | None = None) -> dict[str, Key]:
    """Return keys with their secrets, by key_id, in the order in which they were added.

    Args:
        connection: to the registry.
        chosen: row numbers; None is all.

    Raises:
        PrivgenError: a secret does not belong to its fingerprint.
    """
    rows = connection.execute("SELECT id, name, created, fingerprint, secret, parent, label FROM keys").fetchall()
    known = {row[0]: row[1:] for row in rows}
    made: dict[int, Key] = {}

    def key_of(number: int) -> Key:
        if number not in made:
            name, created, fingerprint, secret, parent, label = known[number]
            key = Key(name, Secret(secret), created) if parent is None else key_of(parent).derive(label, name)
            if not hmac.compare_digest(key.fingerprint, fingerprint):
                raise PrivgenError(f"The key {name} in the registry is damaged; restore the registry from a copy.")
            made[number] = key
        return made[number]

    keys = [key_of(number) for number in (sorted(known) if chosen is None else chosen)]
    return {key.key_id: key for key in keys}

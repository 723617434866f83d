"""The file of a registry: make it, open it, and say in one sentence what is wrong with it.

The file is in SQLite's WAL mode, so one process writes while others read. A commit is on the disk before the call
returns (`synchronous=FULL`). With the faster `NORMAL`, a power failure could undo the last commits, and then an image
that is already published would carry an ID that the registry does not know, and may issue again.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from privgen.errors import PrivgenError
from privgen.io.files import make_folder
from privgen.io.own_files import warn_if_open


APPLICATION_ID = 0x50475247  # "PGRG", in the header of every registry
SCHEMA_VERSION = 1
WAIT_SECONDS = 30.0
"""How long to wait for another process that writes."""

_SCHEMA = f"""
CREATE TABLE keys (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    key_id TEXT NOT NULL UNIQUE,
    fingerprint TEXT NOT NULL UNIQUE,
    created TEXT NOT NULL,
    added TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'superseded', 'revoked')),
    secret BLOB CHECK (secret IS NULL OR length(secret) = 32),
    parent INTEGER REFERENCES keys(id),
    label TEXT,
    successor INTEGER REFERENCES keys(id),
    ended TEXT,
    why TEXT,
    CHECK ((secret IS NULL) = (parent IS NOT NULL)),
    CHECK ((parent IS NULL) = (label IS NULL))
);
CREATE UNIQUE INDEX active_names ON keys(name) WHERE status = 'active';
CREATE TABLE ids (
    key INTEGER NOT NULL REFERENCES keys(id),
    payload INTEGER NOT NULL CHECK (payload BETWEEN 0 AND 4294967295),
    issued TEXT NOT NULL,
    request TEXT,
    note TEXT,
    file TEXT,
    user TEXT,
    model TEXT,
    source_sha256 TEXT,
    output_sha256 TEXT,
    PRIMARY KEY (key, payload)
) WITHOUT ROWID;
CREATE TABLE manifests (
    key INTEGER NOT NULL,
    payload INTEGER NOT NULL,
    manifest BLOB NOT NULL,
    PRIMARY KEY (key, payload),
    FOREIGN KEY (key, payload) REFERENCES ids(key, payload)
);
CREATE UNIQUE INDEX requests ON ids(key, request) WHERE request IS NOT NULL;
CREATE INDEX outputs ON ids(output_sha256) WHERE output_sha256 IS NOT NULL;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


def create(path: Path) -> None:
    """Make an empty registry that only its owner can read.

    Raises:
        PrivgenError: the file exists, or it cannot be made.
    """
    try:
        make_folder(path.parent)
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        raise PrivgenError(f"{path} exists, and registries are not overwritten; choose another path.") from None
    except OSError as error:
        raise PrivgenError(f"The registry {path} cannot be made: {error.strerror}; choose another folder.") from error
    try:
        with explained(path):
            connection = sqlite3.connect(path, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(f"BEGIN IMMEDIATE;{_SCHEMA}COMMIT;")
            finally:
                connection.close()
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def connect(path: Path, *, write: bool = True) -> sqlite3.Connection:
    """Open a registry.

    Args:
        path: the file.
        write: also to write. Without it, the file may lie in a folder that is read-only.

    Raises:
        PrivgenError: the file is missing, cannot be read or written, is not a registry, is damaged, or was made by a
            newer privgen.
    """
    _check_file(path, write=write)
    with explained(path):
        connection = _open(path, write=write)
        try:
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA synchronous = FULL")
            _check_version(connection, path)
        except BaseException:
            connection.close()
            raise
    warn_if_open("registry", [path])
    return connection


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise what SQLite reports of a file as one sentence that says what to do."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise PrivgenError(f"The registry {path} refuses this: {error}.") from error
    except sqlite3.Error as error:
        raise PrivgenError(_reason(path, error)) from error


def _reason(path: Path, error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # extended codes hold the plain one in their last byte
    if code == sqlite3.SQLITE_NOTADB:
        return f"{path} is not a registry; `privgen registry create` makes one."
    if code == sqlite3.SQLITE_CORRUPT:
        return f"The registry {path} is damaged; restore it from a copy."
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"The registry {path} is locked by another program; run it again when that has finished."
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return f"The registry {path} cannot be written: it or its folder is read-only; change its permissions."
    if code == sqlite3.SQLITE_FULL:
        return f"The registry {path} was not written: the disk is full; free some space and run it again."
    if code == sqlite3.SQLITE_CANTOPEN:
        return f"The registry {path} cannot be opened; check the permissions of the file and of its folder."
    return f"The registry {path} cannot be used: {error}; `privgen registry check` examines it."


def _check_file(path: Path, *, write: bool) -> None:
    if not path.exists():
        raise PrivgenError(f"There is no registry {path}; `privgen registry create` makes one.")
    if not path.is_file():
        raise PrivgenError(f"{path} is not a file; name the file of a registry.")
    if not os.access(path, os.R_OK):
        raise PrivgenError(f"The registry {path} cannot be read: permission denied; check its permissions.")
    if write and not (os.access(path, os.W_OK) and os.access(path.resolve().parent, os.W_OK)):
        raise PrivgenError(
            f"The registry {path} cannot be written: it or its folder is read-only; change its permissions."
        )


def _open(path: Path, *, write: bool) -> sqlite3.Connection:
    """Open a file; of a folder that is read-only, as one that nobody changes."""
    real = path.resolve()  # SQLite keeps its -wal file beside the file that a link leads to
    place = real.as_uri()
    modes = ("mode=rw",) if write else ("mode=ro", "mode=ro&immutable=1")
    for mode in modes[:-1]:
        with suppress(sqlite3.OperationalError):
            return _probed(f"{place}?{mode}")
        if _has_content(real.with_name(real.name + "-wal")):
            raise PrivgenError(f"The registry {path} has changes in its -wal file; copy both to a folder of yours.")
    return _probed(f"{place}?{modes[-1]}")


def _probed(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=WAIT_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA application_id").fetchone()
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _has_content(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise PrivgenError(f"{path} is not a registry; `privgen registry create` makes one.")
    if version > SCHEMA_VERSION:
        raise PrivgenError(
            f"The registry {path} has version {version}, and this privgen reads {SCHEMA_VERSION}; upgrade privgen."
        )

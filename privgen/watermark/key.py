"""Keys: a name, a secret, and the message bits and the fingerprint that are derived from the secret.

A mark carries the message bits. The fingerprint is public. Both are derived from the secret by HKDF with SHA-256 (RFC
5869), each under its own label, so neither tells anything about the other or about the secret.

Keys form a hierarchy: `Key.derive` makes a key of another one and a label. So one secret, that of an installation,
gives each user or image a key of its own, and none of these needs to be stored.
"""

import hmac
import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from privgen.errors import PrivgenError, UsageError
from privgen.io.own_files import NAME, OwnFile, check_name, own_path, user_folder
from privgen.watermark.hkdf import hkdf_sha256


SUFFIX = ".key"
KEY_FILE = OwnFile("key", SUFFIX, "privgen-key", 1, "`privgen key new`")

SECRET_BYTES = 32
_VARIABLE, _FOLDER = "PRIVGEN_KEYS", "keys"
_LABEL = b"privgen/watermark/v1/"
_DERIVED = _LABEL + b"derive/"
_LABELS = re.compile(r"[A-Za-z0-9._@+-]+(?:/[A-Za-z0-9._@+-]+)*")
_LONGEST_LABEL = 255


class Secret(bytes):
    """Bytes that print as `<secret>`, so that they never get into logs, messages or reports."""

    def __repr__(self) -> str:
        return "<secret>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)


@dataclass(frozen=True)
class Key:
    """A key, which identifies the owner of a mark.

    Example:
        >>> from privgen import Key
        >>> key = Key.new("alice")
        >>> len(key.bits())
        48
        >>> path = key.save("alice.key")
        >>> Key.load("alice.key") == key
        True

    Attributes:
        name: 1 to 64 letters, digits, dots, hyphens and underscores. It is only a label: nothing is derived from it.
        secret: 32 random bytes.
        created: time of creation, ISO 8601 in UTC.
    """

    name: str
    secret: Secret = field(repr=False)
    created: str = ""

    def __post_init__(self) -> None:
        """Check the name and hide the secret."""
        check_name(self.name, "a key")
        if not isinstance(self.secret, bytes) or len(self.secret) != SECRET_BYTES:
            raise ValueError(f"expected a secret of {SECRET_BYTES} bytes")
        object.__setattr__(self, "secret", Secret(self.secret))

    @classmethod
    def new(cls, name: str) -> "Key":
        """Make a key with a random secret from the operating system.

        Args:
            name: name of the key.

        Raises:
            UsageError: the name is not allowed; see `Key`.
        """
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(name, Secret(secrets.token_bytes(SECRET_BYTES)), created)

    def bits(self, n: int = 48) -> tuple[int, ...]:
        """Return the message bits that a mark of this key carries.

        Args:
            n: number of bits, at least 1. A shorter message is the beginning of a longer one.

        Returns:
            `n` values, each 0 or 1.
        """
        if n < 1:
            raise ValueError(f"expected at least one bit, got {n}")
        stream = hkdf_sha256(self.secret, info=_LABEL + b"message", length=-(-n // 8))
        return tuple(stream[i // 8] >> (7 - i % 8) & 1 for i in range(n))

    @property
    def fingerprint(self) -> str:
        """The public fingerprint of the key, 64 hexadecimal digits."""
        return hkdf_sha256(self.secret, info=_LABEL + b"fingerprint", length=32).hex()

    @property
    def key_id(self) -> str:
        """The first 16 digits of the fingerprint; public, and short enough for people to compare."""
        return self.fingerprint[:16]

    def derive(self, label: str, name: str | None = None) -> "Key":
        """Return the key that belongs to this one and a label, always the same.

        Its secret is HKDF with SHA-256 (RFC 5869) of this key's secret, with `privgen/watermark/v1/derive/` and the
        label as `info`. No other use has an `info` that begins so. Who has a derived key learns nothing about this
        one, or about keys of other labels; who has this key has them all.

        Example:
            >>> from privgen import Key
            >>> studio = Key.new("studio")
            >>> studio.derive("user/alice").name
            'user.alice'

        Args:
            label: names separated by slashes, such as "user/alice" or "image/2026/17": 1 to 255 letters, digits, and
                the signs . _ @ + -. `derive("a/b")` is another key than `derive("a").derive("b")`.
            name: of the new key; by default the label with dots for all that a name cannot hold.

        Raises:
            UsageError: a label or a name that is not allowed.
        """
        if not _LABELS.fullmatch(label) or len(label) > _LONGEST_LABEL:
            raise UsageError(
                f"{label!r} cannot be a label; use names separated by slashes, such as user/alice, of letters, digits "
                "and . _ @ + -, 255 signs at most."
            )
        secret = hkdf_sha256(self.secret, info=_DERIVED + label.encode(), length=SECRET_BYTES)
        own_name = re.sub(r"[^A-Za-z0-9._-]", ".", label).lstrip(".-")[:64]
        return Key(own_name if name is None else name, Secret(secret), self.created)

    def public(self) -> dict[str, str]:
        """Return everything about the key that is public: name, key_id, fingerprint and time of creation."""
        return {"name": self.name, "key_id": self.key_id, "fingerprint": self.fingerprint, "created": self.created}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the key to a new file that only its owner can read.

        Args:
            path: a new file. Existing files are never overwritten: without its key, a mark cannot be detected.

        Returns:
            The path.

        Raises:
            PrivgenError: the path exists or cannot be written.
        """
        KEY_FILE.write(Path(path), {**self.public(), "secret": self.secret.hex()})
        return Path(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Key":
        """Read a key file. Logs a warning, once for each file, if the file is open to other users.

        Args:
            path: a file that `save` wrote.

        Raises:
            PrivgenError: the file cannot be read, is not a key, is damaged, or has another format version.
        """
        path = Path(path)
        key = _from_document(KEY_FILE.read(path), path)
        KEY_FILE.warn_if_open(path)
        return key


def load_key(file_or_name: str | os.PathLike[str]) -> Key:
    """Load a key file, or a key by its name from `key_folder()`.

    Example:
        >>> from privgen import Key, load_key
        >>> path = Key.new("bob").save("bob.key")
        >>> load_key("bob.key").name
        'bob'

    Args:
        file_or_name: a path or a name. If a file of that path exists, it is loaded.

    Raises:
        PrivgenError: there is no such file and no key of that name, or `Key.load` fails.
    """
    path = Path(file_or_name)
    named = key_folder() / f"{path}{SUFFIX}"
    if not path.is_file() and NAME.fullmatch(str(file_or_name)) and named.exists():
        return Key.load(named)  # also where a folder has the name of a key
    if not path.exists():
        raise PrivgenError(
            f"There is no key file {path}, nor a key of that name in {key_folder()}; `privgen key new` makes one."
        )
    return Key.load(path)


def load_keys(places: Iterable[str | os.PathLike[str]]) -> list[Key]:
    """Load keys, each as `load_key` does, and all keys of each folder that is named.

    Args:
        places: key files, names of keys, and folders that hold files `*.key`.

    Returns:
        The keys in the order of `places`, those of a folder sorted by name.

    Raises:
        PrivgenError: a folder without keys, or `load_key` fails.
    """
    keys = []
    for place in places:
        if not Path(place).is_dir():
            keys.append(load_key(place))
            continue
        if not (files := sorted(Path(place).glob(f"*{SUFFIX}"))):
            if NAME.fullmatch(str(place)) and (key_folder() / f"{place}{SUFFIX}").exists():
                keys.append(load_key(place))
                continue
            raise PrivgenError(f"The folder {place} holds no keys; their files end in {SUFFIX}.")
        keys += [_from_document(KEY_FILE.read(file), file) for file in files]
        KEY_FILE.warn_if_open(*files)
    return keys


def key_folder() -> Path:
    """Return the folder of keys: $PRIVGEN_KEYS, or privgen/keys in $XDG_CONFIG_HOME (by default ~/.config)."""
    return user_folder(_VARIABLE, _FOLDER)


def default_path(name: str) -> Path:
    """Return the path of a key in `key_folder()`. Makes that folder, for its owner only, if it is missing.

    Args:
        name: name of the key.

    Raises:
        PrivgenError: the folder cannot be made.
    """
    check_name(name, "a key")
    return own_path(name, _VARIABLE, _FOLDER, SUFFIX)


def _from_document(document: dict[str, Any], path: Path) -> Key:
    try:
        key = Key(document["name"], Secret(bytes.fromhex(document["secret"])), str(document["created"]))
        intact = hmac.compare_digest(key.fingerprint, document["fingerprint"])
    except (KeyError, TypeError, ValueError, UsageError):
        intact = False
    if not intact:
        raise PrivgenError(f"The key {path} is damaged; restore it from a copy.") from None
    return key

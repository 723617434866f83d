"""The keys and credentials that the page offers: by name only, so that no secret reaches the browser."""

from pathlib import Path

from privgen.errors import UsageError
from privgen.io.own_files import check_name
from privgen.provenance.credentials import SUFFIX as CREDENTIALS_SUFFIX
from privgen.provenance.credentials import Credentials, credentials_folder
from privgen.watermark.key import SUFFIX, Key, default_path, key_folder


def key_names() -> list[str]:
    """The names of the keys in the folder of keys."""
    return sorted(path.stem for path in key_folder().glob(f"*{SUFFIX}"))


def credentials_names() -> list[str]:
    """The names of the credentials in their folder."""
    return sorted(path.stem for path in credentials_folder().glob(f"*{CREDENTIALS_SUFFIX}"))


def load_named_key(name: str | None) -> Key:
    """Load a key by its name. Paths are refused: the page reads nothing but the folder of keys.

    Raises:
        UsageError: no name, or one that no key may have.
        PrivgenError: there is no such key, or it cannot be read.
    """
    if not name:
        raise UsageError("Choose a key, or make one.")
    check_name(name, "a key")
    return Key.load(key_folder() / f"{name}{SUFFIX}")


def load_named_credentials(name: str | None) -> Credentials | None:
    """Load credentials by their name, as `load_named_key` does; None if no name is given.

    Raises:
        UsageError: a name that no credentials may have.
        PrivgenError: there are no such credentials, or they cannot be read.
    """
    if not name:
        return None
    check_name(name, "credentials")
    return Credentials.load(credentials_folder() / f"{name}{CREDENTIALS_SUFFIX}")


def make_key(name: str) -> Path:
    """Make a key in the folder of keys, and return its file.

    Raises:
        UsageError: the name is not allowed.
        PrivgenError: there is such a key already, or its file cannot be written.
    """
    name = name.strip()
    if not name:
        raise UsageError("Give the new key a name.")
    return Key.new(name).save(default_path(name))

"""Files that hold secrets of the user: where they are, how they are named, and how they are read."""

import json
import logging
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

from privgen.errors import PrivgenError, UsageError


logger = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LARGEST = 65_536


def user_folder(variable: str, name: str) -> Path:
    """Return the user's folder for a kind of files.

    Args:
        variable: environment variable that names it.
        name: of the folder in privgen's folder in $XDG_CONFIG_HOME, by default ~/.config.
    """
    if own := os.environ.get(variable):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "privgen" / name


def check_name(name: str, what: str) -> None:
    """Check the name of a key or of credentials, which is part of the name of their file.

    Args:
        name: the name.
        what: what it names, for the message.

    Raises:
        UsageError: it is not 1 to 64 letters, digits, dots, hyphens and underscores, or begins with a dot or a hyphen.
    """
    if not _NAME.fullmatch(name) or name.startswith((".", "-")):
        raise UsageError(
            f"{name!r} cannot name {what}; use 1 to 64 letters, digits, dots, hyphens and underscores, "
            "and neither a dot nor a hyphen first."
        )


def read_own(path: Path, kind: str, version: int, hint: str) -> dict[str, Any]:
    """Read a JSON file that holds a secret. No error quotes its text.

    Args:
        path: the file.
        kind: its format.
        version: its version of the format.
        hint: what makes such files, for messages.

    Raises:
        PrivgenError: it cannot be read, or is of another format or version.
    """
    # Exceptions are raised `from None`, because their causes contain the text of the file.
    try:
        if not path.is_file():
            raise PrivgenError(f"{path} is not a file; {hint}.")
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        document = json.loads(content.decode()) if len(content) <= _LARGEST else None
    except OSError as error:
        raise PrivgenError(f"{path} cannot be read: {error.strerror}; check its permissions.") from None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("format") != kind:
        raise PrivgenError(f"{path} is not a file of {kind}; {hint}.")
    if document.get("version") != version:
        raise PrivgenError(
            f"{path} has format version {document.get('version')!r}, and this privgen reads {version}; "
            "upgrade privgen."
        )
    return document


@cache
def warn_if_open(path: Path) -> None:
    """Log a warning, once for each file, if other users can read it."""
    if os.name == "posix" and path.stat().st_mode & 0o077:
        logger.warning("Others on this computer may read %s; run: chmod 600 %s", path, path)

"""Files that hold secrets of the user: where they are, how they are named, and how they are read."""

import json
import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from privgen.errors import PrivgenError, UsageError, printable, shortened
from privgen.io.files import write_text


logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a key or credentials may be called; neither a dot nor a hyphen comes first."""

_LARGEST = 65_536


@dataclass(frozen=True)
class OwnFile:
    """A kind of JSON file that holds a secret.

    Attributes:
        what: such a file in words, such as "key".
        suffix: of its name.
        kind: its format, as the file says.
        version: of the format.
        made_by: what makes such files.
    """

    what: str
    suffix: str
    kind: str
    version: int
    made_by: str

    def read(self, path: Path) -> dict[str, Any]:
        """Read a file. No error quotes its text.

        Raises:
            PrivgenError: it cannot be read, or is of another format or version.
        """
        # Exceptions are raised `from None`, because their causes contain the text of the file.
        try:
            if not path.is_file():
                state = "is not a file" if path.exists() else "does not exist"
                raise PrivgenError(f"The {self.what} {path} {state}.")
            with path.open("rb") as file:
                content = file.read(_LARGEST + 1)
            document = json.loads(content.decode()) if len(content) <= _LARGEST else None
        except OSError as error:
            raise PrivgenError(
                f"The {self.what} {path} cannot be read: {error.strerror}; check its permissions."
            ) from None
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict) or document.get("format") != self.kind:
            raise PrivgenError(f"{path} is not a privgen {self.what}; {self.made_by} makes one.")
        if (version := document.get("version")) != self.version:
            raise PrivgenError(
                f"The {self.what} {path} has format version {shortened(version, 20)}, and this privgen reads "
                f"{self.version}; upgrade privgen."
            )
        return document

    def write(self, path: Path, fields: Mapping[str, Any]) -> None:
        """Write a new file that only its owner can read. Existing files are never overwritten.

        Args:
            path: a new file.
            fields: its content.

        Raises:
            PrivgenError: the path exists or cannot be written.
        """
        document = {"format": self.kind, "version": self.version, **fields}
        try:
            write_text(path, json.dumps(document, indent=2) + "\n", mode=0o600)
        except PrivgenError:
            if path.exists():
                raise PrivgenError(
                    f"{path} exists, and {self.what}s are not overwritten; choose another path."
                ) from None
            raise

    def warn_if_open(self, *paths: Path) -> None:
        """Log a warning, once for the same files, if other users may read or own some of them."""
        warn_if_open(self.what, paths)


def user_folder(variable: str, name: str) -> Path:
    """Return the user's folder for a kind of files.

    Args:
        variable: environment variable that names it.
        name: of the folder in privgen's folder in $XDG_CONFIG_HOME, by default ~/.config.
    """
    if own := os.environ.get(variable):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "privgen" / name


def own_path(name: str, variable: str, folder: str, suffix: str) -> Path:
    """Return the path of a file in the user's folder, which is made, for its owner only, if it is missing.

    Args:
        name: of the key or the credentials.
        variable: see `user_folder`, as for `folder`.
        folder: see `variable`.
        suffix: of the file.

    Raises:
        PrivgenError: the folder cannot be made.
    """
    place = user_folder(variable, folder)
    try:
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise PrivgenError(
            f"The folder of {folder} {place} cannot be made: {error.strerror}; set {variable}."
        ) from error
    return place / f"{name}{suffix}"


def check_name(name: str, what: str) -> None:
    """Check the name of a key or of credentials, which is part of the name of their file.

    Args:
        name: the name.
        what: what it names, for the message.

    Raises:
        UsageError: it is not 1 to 64 letters, digits, dots, hyphens and underscores, or begins with a dot or a hyphen.
    """
    if not NAME.fullmatch(name) or name.startswith((".", "-")):
        raise UsageError(
            f"{name!r} cannot name {what}; use 1 to 64 letters, digits, dots, hyphens and underscores, "
            "and neither a dot nor a hyphen first."
        )


def warn_if_open(what: str, paths: Sequence[Path]) -> None:
    """Log a warning of files that other users may read or own, in one line however many files there are.

    Args:
        what: one of the files in words, such as "key".
        paths: the files, which exist. The same ones are warned of once.
    """
    if os.name != "posix":
        return
    states = {path: path.stat() for path in paths}
    if readable := [path for path, state in states.items() if state.st_mode & 0o077]:
        several = f"{shlex.quote(str(readable[0].parent))}/*{readable[0].suffix}"
        files = shlex.quote(str(readable[0])) if len(readable) == 1 else several
        _warn("Others on this computer may read %s; run: chmod 600 %s", _some(what, readable), printable(files))
    me = os.geteuid()
    if foreign := [path for path, state in states.items() if me and state.st_uid not in (0, me)]:
        _warn("Another user owns, and may use or replace, %s; make a copy of your own", _some(what, foreign))


@cache
def _warn(message: str, *parts: str) -> None:
    """Log a warning once."""
    logger.warning(message, *parts)


def _some(what: str, paths: Sequence[Path]) -> str:
    first = printable(paths[0])
    return f"the {what} {first}" if len(paths) == 1 else f"{len(paths)} {what}s, such as {first}"

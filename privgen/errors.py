"""Errors that say what to do, and texts of files made safe to show; the command line prints one sentence."""

import re


# Control characters, among them those that begin commands for terminals; halves of surrogate pairs, which stand for
# bytes that are no UTF-8; and characters that turn the direction of writing or break lines.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


class PrivgenError(Exception):
    """Something failed that the caller can do something about (exit code 1)."""


class UsageError(PrivgenError):
    """The call itself cannot mean anything sensible (exit code 2)."""


def shortened(value: object, length: int = 200) -> str:
    """Return a value as text of one line for a message; a long one loses its middle.

    Args:
        value: an exception, a text, or anything that a file said.
        length: characters that may stay.
    """
    try:
        text = " ".join(str(value).split())
    except (RecursionError, ValueError):  # nested too deeply, or a number with thousands of digits
        text = f"a {type(value).__name__} too large to show"
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}...{text[-half:]}"


def quoted(text: object, length: int = 80) -> str:
    """Return a stranger's text in quotation marks, so that nobody takes it for words of ours; see `shortened`."""
    return '"' + printable(shortened(text, length)).replace('"', "'") + '"'


def printable(text: object, keep: str = "") -> str:
    r"""Return a text in which characters that would steer a terminal, or cannot be written, are escaped as in Python.

    Names of files and what files say may hold any characters: an escape sequence would change colours, move the
    cursor or rename the window.

    Example:
        >>> from privgen.errors import printable
        >>> print(printable("\x1b[31mred.png"))
        \x1b[31mred.png

    Args:
        text: a text, or anything that has one.
        keep: characters that stay, such as a line break.
    """

    def escaped(found: re.Match[str]) -> str:
        character = found.group()
        return character if character in keep else character.encode("unicode_escape").decode()

    return UNPRINTABLE.sub(escaped, str(text))

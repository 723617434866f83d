"""Exit codes, and exceptions turned into one sentence."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import click

from privgen.errors import PrivgenError, UsageError, printable


EXIT_FAILED = click.ClickException.exit_code
EXIT_USAGE = 2
EXIT_NOT_DETECTED = 3
EXIT_INTERRUPTED = 130


class _Misused(click.ClickException):
    exit_code = EXIT_USAGE


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """Report exceptions as a message and an exit code; with ``PRIVGEN_DEBUG=1`` the traceback comes first.

    The root command runs every other one inside of it. It is a context manager and a decorator.
    """
    try:
        yield
    except click.ClickException as error:
        if (text := printable(error.message, keep="\n")) == error.message:
            raise
        kind = _Misused if error.exit_code == EXIT_USAGE else click.ClickException
        raise kind(text) from error
    except (click.exceptions.Exit, click.Abort, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        click.echo("\nInterrupted; what was finished is kept.", err=True)
        raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
    except Exception as error:
        if os.environ.get("PRIVGEN_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        kind = _Misused if isinstance(error, UsageError) else click.ClickException
        raise kind(printable(sentence(error))) from error


def sentence(error: Exception) -> str:
    """The message of an exception, on one line."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, (PrivgenError, OSError, ValueError)) and text:
        return text
    return f"Unexpected {type(error).__name__}: {text or 'no message'} (PRIVGEN_DEBUG=1 shows where)."

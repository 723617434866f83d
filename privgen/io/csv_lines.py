"""Lines of CSV that are safe to show and to open in a spreadsheet."""

import csv
import io
from collections.abc import Iterable

from privgen.errors import printable


def csv_line(values: Iterable[object]) -> str:
    """Return values as a line of CSV, with its newline.

    What would steer a terminal is escaped. A text that a spreadsheet would take for a formula gets an apostrophe in
    front.

    Args:
        values: numbers, texts, and None for an empty cell.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(map(_cell, values))
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text

"""Progress of long work on standard error: a bar on a terminal, plain lines in a log."""

import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import tqdm


T = TypeVar("T")

if TYPE_CHECKING:
    from tqdm import tqdm as _Tqdm
else:

    class _Tqdm(tqdm.tqdm, Generic[T]):
        """The bar of tqdm, which takes a type only where types are checked."""


INTERVAL = 30.0
"""Seconds between two lines of a log."""


class Bar(_Tqdm[T]):
    """A progress bar on a terminal. Elsewhere a line at the beginning, one every half minute, and one at the end.

    So a log holds lines and no control characters. It takes what `tqdm.tqdm` takes; use it in the same ways.
    """

    disable: bool
    _said, _said_at = "", -INTERVAL

    @property
    def _plain(self) -> bool:
        return not getattr(self.fp, "isatty", bool)()

    def display(self, msg: str | None = None, pos: int | None = None) -> bool | None:
        """Show the present state; in a log at most every half minute."""
        if not self._plain:
            return super().display(msg, pos)
        if time.monotonic() - self._said_at >= INTERVAL:
            self._say()
        return True

    def clear(self, *args: Any, **options: Any) -> None:
        """Take the bar from the terminal; lines of a log stay."""
        if not self._plain:
            super().clear(*args, **options)

    def close(self) -> None:
        """End the bar, or write the last line."""
        if not self.disable and self._plain:
            self._say()
            self.disable = True
            self._decr_instances(self)
        super().close()

    def _say(self) -> None:
        state = self.format_dict
        count = f"{state['n']} of {state['total']}" if state["total"] else str(state["n"])
        parts = [f"{state['prefix'].removesuffix(': ')}: {count}" if state["prefix"] else f"{state['unit']} {count}"]
        parts += [f"{self.format_interval(state['elapsed'])} so far"]
        if state["rate"] and state["total"] and state["n"] < state["total"]:
            parts += [f"{self.format_interval((state['total'] - state['n']) / state['rate'])} to go"]
        parts += [state["postfix"]] if state["postfix"] else []
        line = ", ".join(parts)
        if line != self._said:
            self.fp.write(line + "\n")
            self.fp.flush()
        self._said, self._said_at = line, time.monotonic()

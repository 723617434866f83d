"""Where the page keeps pictures while you work on them: a folder that only you can read, for as long as needed."""

import shutil
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp

from privgen.errors import UsageError


class Desk:
    """The pictures that lie on the page: for each visitor and tab, the one that was dropped, and what was made of it.

    A new picture replaces the one before, and new results replace those before. All of a visitor's files go when the
    visitor leaves, and the folder goes when the desk is closed.

    Attributes:
        folder: holds all files; readable for you alone.
    """

    def __init__(self) -> None:
        self._temporary = TemporaryDirectory(prefix="privgen-app-")  # made with mode 0700
        self.folder = Path(self._temporary.name)
        self._pictures: defaultdict[str, dict[str, Path]] = defaultdict(dict)
        self._results: defaultdict[str, dict[str, Path]] = defaultdict(dict)

    def drop(self, visitor: str, tab: str, upload: Path) -> Path:
        """Take a picture from where it was uploaded to, and forget the one that lay here before.

        Args:
            visitor: whose it is.
            tab: where it was dropped.
            upload: the file, in `folder`.

        Returns:
            Where it lies now, under the same name.

        Raises:
            UsageError: the file is gone.
        """
        self.clear(visitor, tab)
        try:
            folder = Path(mkdtemp(dir=self.folder))
            moved = Path(shutil.move(upload, folder / upload.name))
        except OSError as error:
            raise UsageError("The picture is not there any more; drop it again.") from error
        self._pictures[visitor][tab] = moved
        return moved

    def picture(self, visitor: str, tab: str) -> Path:
        """Return the picture that was dropped on a tab.

        Raises:
            UsageError: there is none.
        """
        picture = self._pictures[visitor].get(tab)
        if picture is None or not picture.is_file():
            raise UsageError("There is no picture yet; drop one first.")
        return picture

    def results(self, visitor: str, tab: str) -> Path:
        """Return an empty folder for the results of a tab; the results before are deleted."""
        self._remove(self._results[visitor].pop(tab, None))
        folder = self._results[visitor][tab] = Path(mkdtemp(dir=self.folder))
        return folder

    def clear(self, visitor: str, tab: str) -> None:
        """Delete the picture of a tab, and what was made of it."""
        picture = self._pictures[visitor].pop(tab, None)
        self._remove(None if picture is None else picture.parent)
        self._remove(self._results[visitor].pop(tab, None))

    def leave(self, visitor: str) -> None:
        """Delete all that a visitor has on the desk."""
        for tab in {*self._pictures[visitor], *self._results[visitor]}:
            self.clear(visitor, tab)
        del self._pictures[visitor], self._results[visitor]

    def close(self) -> None:
        """Delete the folder with all that is in it."""
        self._temporary.cleanup()

    def _remove(self, folder: Path | None) -> None:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

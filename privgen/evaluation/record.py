"""Reports: what an evaluation found, as a record in the terms of JSON and as files in a folder."""

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from PIL import Image

from privgen.data.sheets import save_picture
from privgen.environment import Environment
from privgen.evaluation.intervals import Measured
from privgen.io.files import refuse_existing, write_text


RESULTS = "results.json"
"""The file of the record, in the folder of an evaluation."""


class Report(ABC):
    """What an evaluation found.

    Subclasses are frozen dataclasses with a field `environment`, and fields `pictures` and `pages` if they have any.

    Attributes:
        environment: versions and devices that the figures were computed with.
        pictures: Pillow images by name; `save` writes each as NAME.png.
        pages: texts by file name, such as HTML.
    """

    environment: Environment
    pictures: Mapping[str, Image.Image] = MappingProxyType({})
    pages: Mapping[str, str] = MappingProxyType({})

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """Everything that was measured, by name: numbers, `Measured` values, and mappings and lists of them."""

    def record(self) -> dict[str, Any]:
        """The figures in the terms of JSON, with `environment` at the end; what is not a number is None."""
        record: dict[str, Any] = finite({**self.figures(), "environment": asdict(self.environment)})
        return record

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write pictures and pages, and then `results.json`; so a folder with a record is complete.

        Args:
            folder: made if it does not exist.
            overwrite: whether existing files may be replaced.

        Raises:
            PrivgenError: a file exists and may not be replaced, or cannot be written.
        """
        for name, picture in self.pictures.items():
            save_picture(picture, Path(folder) / f"{name}.png", overwrite=overwrite)
        for name, page in self.pages.items():
            write_text(Path(folder) / name, page, overwrite=overwrite)
        text = json.dumps(self.record(), indent=2, allow_nan=False)
        write_text(Path(folder) / RESULTS, f"{text}\n", overwrite=overwrite)


def check_output(folder: str | os.PathLike[str], beside: Iterable[str] = (), *, overwrite: bool = False) -> None:
    """Refuse a folder that holds an evaluation already, before time is spent on another.

    Args:
        folder: where a report will be saved.
        beside: names of the files that will lie beside `results.json`.
        overwrite: whether existing files may be replaced.

    Raises:
        PrivgenError: one of the files exists and may not be replaced.
    """
    for name in (RESULTS, *beside):
        refuse_existing(Path(folder) / name, overwrite=overwrite)


def finite(value: Any) -> Any:
    """A value in the terms of JSON: a `Measured` becomes a mapping, and what is not a finite number becomes None.

    Args:
        value: numbers, strings, `Measured` values, and mappings, lists and tuples of them, as deep as you like.
    """
    if isinstance(value, Measured):
        return finite(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

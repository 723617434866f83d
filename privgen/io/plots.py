"""Plots without a display: matplotlib figures as Pillow images and PNG bytes."""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING

from PIL import Image


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that no window shows.

    Args:
        width: in inches.
        height: in inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_panels(count: int, *, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with panels in rows.

    Args:
        count: panels, at least one.
        columns: panels in a row, at most.
        width: of a panel, in inches.
        height: of a panel, in inches.

    Returns:
        The figure and the axes of its panels, row by row.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = new_figure(width * columns, height * rows)
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def png_bytes(figure: Figure, *, dpi: int = 110) -> bytes:
    """A figure as a PNG file that names no software, so that equal plots are equal files."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
    return file.getvalue()


def as_image(figure: Figure, *, dpi: int = 110) -> Image.Image:
    """A figure as an RGB Pillow image."""
    return Image.open(io.BytesIO(png_bytes(figure, dpi=dpi))).convert("RGB")


def png_uri(png: bytes) -> str:
    """A PNG file as a data URI, which HTML shows as an image without loading a file."""
    return data_uri(png, "image/png")


def data_uri(data: bytes, kind: str) -> str:
    """A file as a data URI, which HTML shows without loading a file.

    Args:
        data: the file.
        kind: media type, such as "image/jpeg".
    """
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"

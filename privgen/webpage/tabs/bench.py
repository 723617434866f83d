"""What the tabs share: the desk, the networks, and the pieces that every tab is made of."""

import html
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ParamSpec, TypeVar

import gradio as gr
from PIL import Image

from privgen.errors import PrivgenError
from privgen.io.files import IMAGE_SUFFIXES
from privgen.protection.protection import Protection
from privgen.watermark.networks import Networks
from privgen.webpage.desk import Desk
from privgen.webpage.pictures import save_picture
from privgen.webpage.verify import show


P = ParamSpec("P")
R = TypeVar("R")

JOB: dict[str, Any] = {"concurrency_id": "job", "concurrency_limit": 1, "api_visibility": "private"}
"""Of events that compute: one at a time, and callable from the page only."""

QUICK: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
"""Of events that only change what is shown."""

HEIGHT = 340
"""Of pictures on the page, in pixels."""


@dataclass(frozen=True)
class Bench:
    """What the tabs work with.

    Attributes:
        desk: where pictures lie.
        networks: write and read marks.
        protection: protects.
    """

    desk: Desk
    networks: Networks
    protection: Protection

    def says_errors(self, function: Callable[P, R]) -> Callable[P, R]:
        """Make a function show its errors on the page, as one sentence that names no folder."""

        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except (PrivgenError, OSError, ValueError, MemoryError) as error:
                raise self._shown(" ".join(str(error).split()) or "There is not enough memory.") from None
            except Exception as error:
                traceback.print_exc()
                kind = type(error).__name__
                raise self._shown(f"Unexpected {kind}; where privgen runs, its traceback is shown.") from None

        return wrapped

    def _shown(self, text: str) -> gr.Error:
        """An error to show. File names may hold HTML, and the folders of the desk tell nobody anything."""
        text = re.sub(rf"{re.escape(str(self.desk.folder))}/[^/]+/", "", text)
        return gr.Error(html.escape(text), duration=None, print_exception=False)


def visitor_of(request: gr.Request) -> str:
    """Who works on the page: one for each time it was opened."""
    return str(request.session_hash)


@dataclass(frozen=True)
class Place:
    """Where a picture is dropped.

    Attributes:
        picture: shows it; place it with `render`.
        dropped: happens when there is another one.
    """

    picture: gr.Image
    dropped: Any

    def connect(self, button: gr.Button, job: Callable[..., Any], inputs: list[Any], outputs: list[Any]) -> None:
        """Have a button do a job, and forget its results when there is another picture or the job fails.

        Args:
            button: starts it.
            job: takes the request and the values of the inputs, and returns those of the outputs.
            inputs: components.
            outputs: components.
        """
        started = button.click(job, inputs, outputs, **JOB)
        for event in (self.dropped, started.failure):
            event(lambda: tuple(map(_emptied, outputs)), None, outputs, **QUICK)


def _emptied(component: gr.Image | gr.HTML | gr.DownloadButton) -> Any:
    """A component of results without its result."""
    if isinstance(component, gr.HTML):
        return ""
    if isinstance(component, gr.Image):
        return gr.Image(None, label=component.label, visible=component.visible)
    return gr.DownloadButton(visible=False)


def place_for_picture(bench: Bench, tab: str) -> Place:
    """Make the place where a picture is dropped.

    Args:
        bench: has the desk on which it lies.
        tab: name of the tab.
    """
    drop = gr.File(
        label="Picture",
        show_label=False,
        file_types=sorted(IMAGE_SUFFIXES),
        height=140,
        elem_id=f"{tab}-drop",
    )
    picture = picture_of("Picture", f"{tab}-picture", render=False)

    def take(upload: str, request: gr.Request) -> tuple[gr.Image, None]:
        visitor = visitor_of(request)
        dropped = bench.desk.drop(visitor, tab, Path(upload))
        try:
            shown = show(dropped)
        except Exception:
            bench.desk.clear(visitor, tab)
            raise
        return shown_as(dropped.name, shown, dropped.parent), None

    taken = drop.upload(bench.says_errors(take), drop, [picture, drop], **{**JOB, "show_progress": "minimal"})
    taken.failure(lambda: (gr.Image(None, label="Picture"), None), None, [picture, drop], **QUICK)
    return Place(picture, taken.then)


def picture_of(label: str, elem_id: str, *, render: bool = True, visible: bool = True) -> gr.Image:
    """Make a picture that is looked at, not changed."""
    return gr.Image(
        label=label,
        interactive=False,
        height=HEIGHT,
        buttons=["fullscreen"],
        elem_id=elem_id,
        render=render,
        visible=visible,
    )


def shown_as(label: str, picture: Image.Image, folder: Path) -> gr.Image:
    """Show a picture under a label.

    Args:
        label: above it.
        picture: what is shown.
        folder: of the desk, for its file; Gradio copies what lies elsewhere, and keeps the copy.
    """
    place = Path(mkdtemp(dir=folder))
    return gr.Image(str(save_picture(picture, place / "picture.png")), label=label, visible=True)


def keys_of(tab: str, label: str, **settings: Any) -> gr.Dropdown:
    """Make the list of keys to choose from; `privgen.webpage.page` fills it."""
    return gr.Dropdown([], label=label, interactive=True, elem_id=f"{tab}-key", **settings)


def download_of(tab: str) -> gr.DownloadButton:
    """Make the button that gives the file; it shows when there is one."""
    return gr.DownloadButton("Download", visible=False, elem_id=f"{tab}-download")


def download(file: Path) -> gr.DownloadButton:
    """Show the button for a file."""
    return gr.DownloadButton(f"Download {file.name}", value=str(file), visible=True)


def in_words(verdict: str, tone: str, rows: Mapping[str, str], notes: tuple[str, ...] = ()) -> str:
    """Return what was found as HTML; all texts are escaped, since files may hold any.

    Args:
        verdict: the sentence above all.
        tone: "good", "bad" or "plain".
        rows: what is said of what.
        notes: what you should know besides.
    """
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd>" for name, text in rows.items() if text)
    more = "".join(f"<p>{html.escape(note[:1].upper() + note[1:])}.</p>" for note in notes)
    return f'<div class="words"><p class="verdict {tone}">{html.escape(verdict)}</p><dl>{facts}</dl>{more}</div>'

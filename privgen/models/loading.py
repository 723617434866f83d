"""What all loading of models shares: no noise on the terminal, and errors of one sentence."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from privgen.errors import PrivgenError, shortened


_LIBRARIES = ("diffusers", "transformers", "privgen.hallucination.scheduler")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keep the bars and warnings with which Diffusers and Transformers load models away; downloads keep their bars.

    When the block ends, both libraries are set as they were before.
    """
    bars = diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity(), diffusers_logging.get_verbosity()
    downloads_hidden = are_progress_bars_disabled()
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if not downloads_hidden:
        enable_progress_bars()  # Transformers has switched these off with its own
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity[0])
        diffusers_logging.set_verbosity(verbosity[1])
        if bars[0]:
            diffusers_logging.enable_progress_bar()
        if bars[1]:
            transformers_logging.enable_progress_bar()
        if downloads_hidden:
            disable_progress_bars()


@contextmanager
def explained(source: str, doing: str) -> Iterator[None]:
    """Turn errors of Diffusers, Transformers and the Hub into a PrivgenError of one sentence."""
    try:
        yield
    except PrivgenError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, SafetensorError) as error:
        reason = shortened(error, 300).rstrip(".") or type(error).__name__
        raise PrivgenError(f"privgen could not {doing} {source}: {reason}. {_advice(source)}") from error


def check_model_folder(source: str | os.PathLike[str]) -> None:
    """Check that a model's folder holds folders and regular files only: reading a pipe or a device may never end.

    Args:
        source: a folder; anything else, such as a Hub id, passes.

    Raises:
        PrivgenError: it holds something else.
    """
    for path in Path(source).rglob("*"):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise PrivgenError(f"{path} is neither a file nor a folder; remove it from the model, or use another one.")


def refuse_code(index: Mapping[str, Any], source: str | os.PathLike[str]) -> None:
    """Refuse a pipeline whose parts are code of its own, or of packages that privgen does not know.

    Diffusers imports the packages that an index names; some versions also run code from local folders without asking.

    Args:
        index: content of the pipeline's `model_index.json`.
        source: its folder or Hub id, for the message.

    Raises:
        PrivgenError: a part is neither from Diffusers nor from Transformers, nor a scheduler of this package.
    """
    root = Path(source)
    parts = {name: value[0] for name, value in index.items() if isinstance(value, list | tuple) and value}
    strange = [library for library in parts.values() if not (library in (None, *_LIBRARIES) or _is_pipeline(library))]
    coded = [name for name, library in parts.items() if library and (root / name / f"{library}.py").is_file()]
    if not isinstance(index.get("_class_name"), str) or strange or coded:
        raise PrivgenError(f"The model {source} comes with code of its own, which privgen does not run; use another.")


def _is_pipeline(library: object) -> bool:
    """Whether Diffusers has a folder of that name among its pipelines, as for the safety checker."""
    return isinstance(library, str) and library.isidentifier() and hasattr(diffusers.pipelines, library)


def _advice(source: str) -> str:
    if Path(source).is_dir():
        return "Check that the folder is complete and that its weights are safetensors."
    return "Check the id, the network (HF_HUB_OFFLINE, HF_TOKEN), and that its weights are safetensors."

"""What all loading of models shares: no noise on the terminal, and errors of one sentence."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from privgen.errors import PrivgenError


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
    except (OSError, ValueError, TypeError, AttributeError, SafetensorError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
        raise PrivgenError(f"privgen could not {doing} {source}: {reason}. {_advice(source)}") from error


def _advice(source: str) -> str:
    if Path(source).is_dir():
        return "Check that the folder is complete and that its weights are safetensors."
    return "Check the id, the network (HF_HUB_OFFLINE, HF_TOKEN), and that its weights are safetensors."

"""Load models from this package, a local folder or the Hugging Face Hub.

Weights must be safetensors. Code that comes with a model is never run. The internet is used for Hub ids only.

A folder or Hub repository can have networks of this package beside the pipeline, in `privgen/<name>/`, each with the
`config.json` and `diffusion_pytorch_model.safetensors` that `save_pretrained` writes. See `EXTRAS`.
"""

import json
import os
import re
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download

from privgen.errors import PrivgenError, UsageError, shortened
from privgen.io.files import read_small
from privgen.models.autoencoder import load_autoencoder
from privgen.models.loading import check_model_folder, explained, quiet_loading, refuse_code


EMBEDDED = ("mini", "mini-sd")
"""Models that ship inside this package. "mini-sd" has no autoencoder: its latents are those of Stable Diffusion 1 and
2, and you name an autoencoder that has them."""

EXTRAS = {
    "extractor": {"Extractor": "extractor", "LatentReader": "latent_reader", "AnswerReader": "answer_reader"},
    "aligner": {"Aligner": "aligner"},
    "token_mapper": {"TokenMapper": "mappers"},
    "latent_mapper": {"LatentMapper": "mappers"},
    "object_code": {"ObjectCode": "object_code"},
    "shift": {"ShiftNetwork": "shift_network"},
}
"""Networks of this package that a model can have: name of the folder, and the classes that it can be of, each with its
module in `privgen.models`. The first class is meant where `config.json` names none of them."""

CONFIG = "privgen/privgen_config.json"
"""In a model's folder: "default_carrier", the carrier that suits the model best, by measurement; and "base_model" and
"base_vae" of a folder that holds networks of this package only, for a model that lies elsewhere."""

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
"""Precisions by name."""


@dataclass(frozen=True)
class Placement:
    """Device and precision of networks.

    Attributes:
        device: see `resolve_device`.
        dtype: precision of a pipeline's weights, see `resolve_dtype`.
    """

    device: str = "auto"
    dtype: str = "auto"


_MODELS = Path(__file__).parent / "models"
_INDEX = "model_index.json"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)


def resolve_model(name: str | os.PathLike[str] = "mini") -> str:
    """Find a model by name, without loading or downloading it.

    Args:
        name: name of an embedded model, which comes before a folder of that name; folder of a saved Diffusers
            pipeline, or one that `privgen adapt` made; or Hub id such as `organisation/name`.

    Returns:
        The path of a folder, or the Hub id.

    Raises:
        PrivgenError: `name` is none of these, or this installation lacks the embedded model.
    """
    text = os.fspath(name)
    if text in EMBEDDED:
        return _embedded(text)
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        if not (folder / _INDEX).is_file() and "base_model" not in read_config(folder):
            raise PrivgenError(
                f"{folder} is not a Diffusers model: it has no {_INDEX}; name the folder that holds it."
            )
        return str(folder)
    if text and folder.exists():
        raise PrivgenError(
            f"{folder} is a file, and models are folders; load it with Diffusers' `from_single_file` and save it with "
            "`save_pretrained`."
        )
    if _HUB_ID.fullmatch(text):
        return text
    raise PrivgenError(
        f"There is no model {text!r}; name an embedded one ({', '.join(EMBEDDED)}), a folder or a Hub id such as "
        "organisation/name."
    )


def read_config(folder: Path) -> dict[str, Any]:
    """What a model's folder says in `CONFIG`; nothing if it has no such file.

    Raises:
        PrivgenError: the file cannot be read.
    """
    file = folder / CONFIG
    try:
        found = json.loads(read_small(file)) if file.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        reason = shortened(error.strerror if isinstance(error, OSError) else error).rstrip(".")
        raise PrivgenError(f"The settings {file} cannot be read: {reason}.") from error
    if not isinstance(found, dict):
        raise PrivgenError(f"The settings {file} are no JSON object.")
    return found


def pipeline_of(source: str) -> tuple[str, str | None]:
    """Where the pipeline of a model lies, and the autoencoder to use instead of its own.

    Args:
        source: from `resolve_model`. A folder that `privgen adapt` made names another model, and other sources stand
            for themselves.

    Raises:
        PrivgenError: the other model does not exist.
    """
    folder = Path(source)
    if not folder.is_dir() or (folder / _INDEX).is_file():
        return source, None
    config = read_config(folder)
    base = config.get("base_vae")
    return resolve_model(str(config["base_model"])), None if base is None else str(base)


def model_label(name: str | os.PathLike[str]) -> str:
    """The name of a model for headers and reports; of a folder its own name only, not where it lies.

    Args:
        name: see `resolve_model`.

    Raises:
        PrivgenError: there is no such model.
    """
    source = resolve_model(name)
    return Path(source).name if Path(source).is_dir() else source


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Return a device by name.

    Args:
        name: a PyTorch device such as "cpu", "cuda:1" or "mps"; "auto" is CUDA, else MPS, else the CPU.

    Raises:
        UsageError: the name is not that of a device.
        PrivgenError: this computer or this PyTorch does not have the device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is not a device; use auto, cpu, cuda, cuda:N or mps.") from error
    missing = device.type == "mps" and not _has_mps()
    missing |= device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if missing:
        raise PrivgenError(f"PyTorch finds no device {device} here; use --device auto or cpu.")
    return device


def resolve_dtype(name: str | torch.dtype = "auto", device: str | torch.device = "cpu") -> torch.dtype:
    """Return a precision of weights by name.

    Args:
        name: a key of `DTYPES`, or a PyTorch dtype; "auto" is float16 on CUDA and float32 elsewhere.
        device: device of the weights.

    Raises:
        UsageError: the name is not that of a precision.
    """
    if isinstance(name, torch.dtype):
        return name
    if name == "auto":
        return torch.float16 if torch.device(device).type == "cuda" else torch.float32
    if name not in DTYPES:
        raise UsageError(f"{name!r} is not a precision; use auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def load_pipeline(
    model: str | os.PathLike[str] = "mini",
    *,
    vae: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    variant: str | None = None,
    safety_checker: bool = True,
    pipeline_class: type[DiffusionPipeline] = DiffusionPipeline,
) -> Any:
    """Load a Diffusers pipeline.

    Example:
        >>> from privgen import load_pipeline
        >>> pipe = load_pipeline("mini", device="cpu")
        >>> images = pipe("a cat on a pink background", num_inference_steps=2, guidance_scale=3.0).images
        >>> images[0].size
        (128, 128)

    Args:
        model: see `resolve_model`.
        vae: folder or Hub id of an autoencoder to use instead of the model's own; "mini-sd" needs one, such as
            "madebyollin/taesd".
        device: see `resolve_device`.
        dtype: see `resolve_dtype`.
        revision: branch, tag or commit of a Hub id.
        variant: variant of the weight files, such as "fp16".
        safety_checker: keep the safety checker, if the model has one.
        pipeline_class: class of the pipeline; `DiffusionPipeline` stands for the class that the model names.

    Returns:
        An instance of `pipeline_class` on the device.

    Raises:
        PrivgenError: the model cannot be found, downloaded or read, is not in safetensors, or comes with code.
        UsageError: the device or the precision does not exist.
    """
    source, own_vae = pipeline_of(resolve_model(model))
    vae, place = own_vae if vae is None else vae, resolve_device(device)
    precision = resolve_dtype(dtype, place)
    with quiet_loading(), explained(source, "load"):
        check_model_folder(source)
        index = DiffusionPipeline.load_config(source, revision=revision)
        refuse_code(index, source)
        options: dict[str, Any] = {}
        if not safety_checker and "safety_checker" in index:
            options = {"safety_checker": None, "requires_safety_checker": False}
        if vae is not None:
            options["vae"] = load_autoencoder(vae).to(precision)
        elif source == str(_MODELS / "mini-sd"):
            raise PrivgenError(
                "mini-sd needs an autoencoder with the latents of Stable Diffusion 1; name one with --vae (vae= in "
                "Python), such as madebyollin/taesd or a folder."
            )
        pipeline = pipeline_class.from_pretrained(
            source, revision=revision, variant=variant, dtype=precision, use_safetensors=True, **options
        )
    if pipeline.dtype != precision:  # before Diffusers 0.39 the argument has another name
        pipeline.to(precision)
    return pipeline.to(place)


def load_extra(
    name: str,
    model: str | os.PathLike[str] | DiffusionPipeline = "mini",
    *,
    device: str | torch.device = "auto",
    revision: str | None = None,
) -> Any:
    """Load a network of this package that a model has, in float32 and evaluation mode.

    Args:
        name: a key of `EXTRAS`.
        model: see `resolve_model`; or a pipeline, which stands for the model that it was loaded from.
        device: see `resolve_device`.
        revision: branch, tag or commit of a Hub id.

    Returns:
        An instance of a class that `EXTRAS` names.

    Raises:
        UsageError: `name` is not a key of `EXTRAS`.
        PrivgenError: the model does not have the network, or it cannot be downloaded or read.
    """
    if name not in EXTRAS:
        raise UsageError(f"{name!r} is not a network of this package; choose from {', '.join(EXTRAS)}.")
    source, place = _source(model), resolve_device(device)
    with explained(source, f"load the {name} of"):
        folder = find_extra(name, source, revision=revision)
        check_model_folder(folder)
        written = json.loads(read_small(folder / "config.json")).get("_class_name")
        kind = written if written in EXTRAS[name] else next(iter(EXTRAS[name]))
        network = getattr(import_module(f"privgen.models.{EXTRAS[name][kind]}"), kind)
        loaded = network.from_pretrained(folder, use_safetensors=True, local_files_only=True)
        # Convolutions are faster in this layout, on CPUs and GPUs.
        return loaded.to(place, memory_format=torch.channels_last).eval()


def find_extra(name: str, model: str | os.PathLike[str] = "mini", *, revision: str | None = None) -> Path:
    """Return the folder of a network of this package; download it if the model is a Hub id.

    Args:
        name: a key of `EXTRAS`.
        model: see `resolve_model`.
        revision: branch, tag or commit of a Hub id.

    Raises:
        PrivgenError: the model does not have the network.
    """
    source = resolve_model(model)
    root = Path(source)
    if not root.is_dir():
        patterns = [f"privgen/{name}/*.json", f"privgen/{name}/*.safetensors"]
        with explained(source, f"fetch the {name} of"):
            root = Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    folder = root / "privgen" / name
    if (folder / "config.json").is_file():
        return folder
    if root.parent == _MODELS:
        raise PrivgenError(f"The embedded model {root.name} lacks its {name}; install privgen again.")
    raise PrivgenError(
        f"The model {source} has no {name} for privgen (no file privgen/{name}/config.json); train one for it, or "
        f"use a model that has one, such as {EMBEDDED[0]}."
    )


def _embedded(name: str) -> str:
    folder = _MODELS / name
    if not (folder / _INDEX).is_file():
        raise PrivgenError(
            f"The embedded model {name} is missing from this installation; install privgen again, or pass --model."
        )
    return str(folder)


def _source(model: str | os.PathLike[str] | DiffusionPipeline) -> str:
    if not isinstance(model, DiffusionPipeline):
        return resolve_model(model)
    origin = getattr(model.config, "_name_or_path", None)
    if not origin:
        raise PrivgenError(
            "This pipeline was not loaded from a model, so privgen does not know where its networks are; name the "
            "model to load them from."
        )
    return resolve_model(origin)


def _has_mps() -> bool:
    return torch.backends.mps.is_available()

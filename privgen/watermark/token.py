"""Tokens: the learned text embedding of a key, its file, and prompts that end in a token.

"Your Text Encoder Can Be An Object-Level Watermarking Controller" (arXiv 2503.11945): one pseudo-word that is appended
to the prompt late in denoising (t <= tau) writes a key's message into the image.

The file is a plain textual inversion: one tensor in safetensors, which Diffusers' `load_textual_inversion` reads. The
file's header has everything else. The file contains neither the secret of the key nor its message, but whoever has
the file can mark images in the key's name.
"""

import os
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from privgen import __version__
from privgen.errors import PrivgenError, UsageError, shortened
from privgen.io.files import refuse_existing, write_bytes
from privgen.watermark.key import Key
from privgen.watermark.protocols import TokenMapperLike, config_value, key_bits


DEFAULT_TAU = 250
"""Default of `tau`: a token acts on timesteps t <= tau, of 1000."""

SUFFIX = ".safetensors"

_NAME = re.compile(r"<[a-z0-9._-]{1,80}>")
_KEY_ID = re.compile(r"[0-9a-f]{16}")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_RESERVED = frozenset({"format", "privgen", "key_id", "tau", "negative"})


@dataclass(frozen=True, eq=False, repr=False)
class Token:
    """The text embedding that writes a key's message into an image.

    Attributes:
        embedding: (vectors, dim) float32, input embeddings of a text encoder.
        key_id: public id of the key, `Key.key_id`.
        tau: the token acts on timesteps t <= tau, on the scale of 1000 training timesteps.
        name: the pseudo-word, by default `<privgen-KEYID>`. It is in lower case, because CLIP's tokenizers turn
            everything into lower case.
        metadata: further entries for the file's header, such as method and base model.
        negative: embedding of the same shape for the end of the negative prompt; None leaves the negative prompt as
            it is.
    """

    embedding: Tensor
    key_id: str
    tau: int = DEFAULT_TAU
    name: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    negative: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the values, and copy the tensors so that nobody else can change them."""
        shape = tuple(self.embedding.shape)
        if len(shape) != 2 or 0 in shape or not bool(self.embedding.isfinite().all()):
            raise ValueError(f"expected a finite embedding of shape (vectors, dim), got shape {shape}")
        if not _KEY_ID.fullmatch(self.key_id):
            raise ValueError(f"expected a key_id of 16 hexadecimal digits, got {self.key_id!r}")
        name = self.name or f"<privgen-{self.key_id}>"
        if not _NAME.fullmatch(name):
            raise ValueError(f"expected a name like <privgen-0a1b>, in lower case, got {name!r}")
        if reserved := _RESERVED & set(self.metadata):
            raise ValueError(
                f"expected other metadata than {', '.join(sorted(reserved))}, which the token sets itself"
            )
        if self.negative is not None and tuple(self.negative.shape) != shape:
            raise ValueError(f"expected a negative of shape {shape}, got {tuple(self.negative.shape)}")
        check_tau(self.tau)
        entries = {str(key): str(value) for key, value in self.metadata.items()}
        own = {"embedding": _copy(self.embedding), "name": name, "metadata": MappingProxyType(entries)}
        own["negative"] = None if self.negative is None else _copy(self.negative)
        for attribute, value in own.items():
            object.__setattr__(self, attribute, value)

    @property
    def vectors(self) -> int:
        """Number of places in a prompt that the token takes."""
        return self.embedding.shape[0]

    def __repr__(self) -> str:
        vectors, dim = self.embedding.shape
        return f"Token({self.name}, {vectors} x {dim}, key_id={self.key_id}, tau={self.tau})"

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a textual-inversion file, whole or not at all.

        Args:
            path: file to write; it must end in .safetensors.
            overwrite: replace the file if it exists.

        Returns:
            The path.

        Raises:
            UsageError: the path has another suffix.
            PrivgenError: the path exists or cannot be written.
        """
        target = Path(path)
        check_token_path(target, overwrite=overwrite)
        header = {"format": "pt", "privgen": __version__, "key_id": self.key_id, "tau": str(self.tau)}
        if self.negative is not None:  # in the header, because a textual inversion has one tensor
            header["negative"] = b64encode(self.negative.numpy().astype("<f4").tobytes()).decode()
        write_bytes(target, save({self.name: self.embedding}, {**self.metadata, **header}), overwrite=overwrite)
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Token":
        """Read a token from a file that `save` wrote.

        Args:
            path: the file.

        Raises:
            PrivgenError: the file cannot be read, is damaged, or is not a token of this package.
        """
        path = Path(path)
        if not path.is_file():
            raise PrivgenError(f"The token {path} {'is not a file' if path.exists() else 'does not exist'}.")
        try:
            with safe_open(path, framework="pt") as file:
                header, names = file.metadata() or {}, list(file.keys())
                tensors = [file.get_tensor(name) for name in names[:1]]
        except (OSError, SafetensorError) as error:
            raise PrivgenError(f"The token {path} cannot be read ({error}); get a complete copy.") from error
        if len(names) != 1 or "privgen" not in header:
            raise PrivgenError(
                f"{path} is not a token of privgen: a plain textual inversion has no key; name a token's file."
            )
        extra = {key: value for key, value in header.items() if key not in _RESERVED}
        try:
            if tensors[0].dtype not in _DTYPES:
                raise ValueError(f"expected floating-point numbers, got {tensors[0].dtype}")
            negative = _decode(header.get("negative"), tensors[0])
            return cls(tensors[0], header["key_id"], int(header["tau"]), names[0], extra, negative)
        except (KeyError, ValueError) as error:
            raise PrivgenError(f"The token {path} is damaged ({shortened(error)}); get a complete copy.") from error


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True).contiguous()


def _decode(text: str | None, like: Tensor) -> Tensor | None:
    if text is None:
        return None
    numbers = np.frombuffer(b64decode(text, validate=True), "<f4")
    return torch.from_numpy(numbers.astype(np.float32)).view(like.shape)


def check_token_path(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Check that a token may be written here, before work is spent on it.

    Args:
        path: the file.
        overwrite: whether an existing file may be replaced.

    Raises:
        UsageError: it has another suffix than .safetensors.
        PrivgenError: it exists and may not be replaced.
    """
    if Path(path).suffix != SUFFIX:
        raise UsageError(f"{path} must end in {SUFFIX}; tokens are stored in that format.")
    refuse_existing(path, overwrite=overwrite)


def check_tau(tau: float) -> None:
    """Check a timestep on the scale of 1000.

    Raises:
        ValueError: `tau` is not in 0..1000.
    """
    if not 0 <= tau <= 1000:
        raise ValueError(f"expected tau in 0..1000, on the scale of 1000 training timesteps, got {tau}")


def issue_token(
    mapper: TokenMapperLike, key: Key, *, tau: int | None = None, metadata: Mapping[str, str] | None = None
) -> Token:
    """Make the token of a key with a token mapper. It takes milliseconds and no training.

    Args:
        mapper: maps message bits to embeddings.
        key: key of the token.
        tau: see `Token`; by default the one that the mapper was trained for.
        metadata: entries for the file's header, such as `{"base_model": "mini"}`.
    """
    with torch.no_grad():
        embedding, negative = token_embeddings(mapper, key_bits([key], mapper))
    return Token(
        embedding[0],
        key.key_id,
        int(config_value(mapper, "tau", DEFAULT_TAU)) if tau is None else tau,
        metadata={"method": "token_mapper", **(metadata or {})},
        negative=None if negative is None else negative[0],
    )


def token_embeddings(mapper: TokenMapperLike, bits: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the embeddings that messages append to prompts and to negative prompts.

    Args:
        mapper: maps message bits to embeddings. If its `config.complement` is true, the negative prompt gets the
            embedding of the opposite message, in which every bit is flipped.
        bits: (B, n_bits) of 0 and 1.

    Returns:
        Embeddings (B, vectors, dim) for prompts; and the same for negative prompts, or None if these get none.
    """
    return mapper(bits), mapper(1 - bits) if config_value(mapper, "complement", False) else None


def text_models(pipe: DiffusionPipeline) -> tuple[Any, Any]:
    """Return the text encoder and the tokenizer of a pipeline that has one of each.

    Raises:
        UsageError: the pipeline has no text encoder or several.
    """
    encoder, tokenizer = getattr(pipe, "text_encoder", None), getattr(pipe, "tokenizer", None)
    if encoder is None or tokenizer is None:
        raise UsageError(f"A token needs a tokenizer and a text encoder, and this {type(pipe).__name__} has none.")
    if getattr(pipe, "text_encoder_2", None) is not None:
        raise UsageError(
            f"{type(pipe).__name__} has several text encoders, and a token is the embedding of one; use a model of "
            "the Stable Diffusion 1 or 2 family, or the carrier latent."
        )
    return encoder, tokenizer


def encode_with_token(
    pipe: DiffusionPipeline,
    prompts: str | Sequence[str],
    token: Token | Tensor,
    *,
    clip_skip: int | None = None,
) -> Tensor:
    """Encode prompts with a token between the last word and the end-of-text token.

    The result is the same as with `load_textual_inversion` and a prompt "... <token>". But nothing is added to the
    tokenizer or the text encoder, each sample can have its own token, and gradients reach the embedding.

    Args:
        pipe: a pipeline with one `tokenizer` and one `text_encoder`, such as Stable Diffusion 1 or 2.
        prompts: one prompt or B prompts.
        token: a token; or its embedding, (vectors, dim); or (B, vectors, dim), one embedding for each sample. One
            prompt can be combined with many embeddings, and many prompts with one embedding.
        clip_skip: number of layers to skip from the end of the text encoder, as in Diffusers.

    Returns:
        (B, length, dim), like the prompt embeddings of `encode_prompt`, in the text encoder's dtype.

    Raises:
        UsageError: a prompt leaves no room for the token, or the pipeline has no text encoder or several.
        ValueError: the shapes do not fit, for example because the token belongs to another model.
    """
    encoder, tokenizer = text_models(pipe)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    vectors = _batched(token.embedding if isinstance(token, Token) else token, len(texts))
    texts = texts * len(vectors) if len(texts) == 1 else texts
    table = encoder.get_input_embeddings()
    dim = table.weight.shape[1]
    if vectors.shape[2] != dim:
        raise ValueError(
            f"expected vectors of {dim} numbers, got {vectors.shape[2]}: the token belongs to another model"
        )
    if hasattr(pipe, "maybe_convert_prompt"):
        texts = pipe.maybe_convert_prompt(texts, tokenizer)
    ids, mask, starts = _ids_with_room(texts, tokenizer, encoder.config.max_position_embeddings, vectors.shape[1])
    device = getattr(pipe, "_execution_device", encoder.device)  # an offloaded encoder is on another device
    use_mask = getattr(encoder.config, "use_attention_mask", False)
    with _vectors_at(table, starts, vectors):
        output = encoder(
            ids.to(device),
            attention_mask=mask.to(device) if use_mask else None,
            output_hidden_states=clip_skip is not None,
        )
    if clip_skip is None:
        return output[0]
    # The text model is the encoder itself since Transformers 5.
    normalise = getattr(encoder, "text_model", encoder).final_layer_norm
    return normalise(output.hidden_states[-(clip_skip + 1)])


def _batched(embedding: Tensor, texts: int) -> Tensor:
    """Return the embedding as (B, vectors, dim), where B is the larger of its batch size and `texts`."""
    if embedding.ndim not in (2, 3):
        raise ValueError(f"expected an embedding (vectors, dim) or (B, vectors, dim), got {tuple(embedding.shape)}")
    batch = embedding if embedding.ndim == 3 else embedding[None]
    if 1 not in (len(batch), texts) and len(batch) != texts:
        raise ValueError(f"expected as many prompts as embeddings, got {texts} and {len(batch)}")
    return batch.expand(max(len(batch), texts), -1, -1)


def _ids_with_room(texts: list[str], tokenizer: Any, longest: int, vectors: int) -> tuple[Tensor, Tensor, list[int]]:
    """Return token ids and attention mask, both (B, length), and the place of each prompt's first vector."""
    length = min(tokenizer.model_max_length, longest)
    ids, mask, starts = [], [], []
    for text in texts:
        *words, end = tokenizer(text).input_ids
        if (room := length - 1 - len(words)) < vectors:
            raise UsageError(
                f"The prompt {text[:60]!r} leaves room for {max(room, 0)} vectors of the token's {vectors}; "
                f"shorten it by {vectors - room} tokens."
            )
        starts.append(len(words))
        # The placeholder must not be the end-of-text token, because CLIP pools at its first place.
        row = [*words, *[tokenizer.bos_token_id] * vectors, end]
        mask.append([1] * len(row) + [0] * (length - len(row)))
        ids.append(row + [tokenizer.pad_token_id] * (length - len(row)))
    return torch.tensor(ids), torch.tensor(mask), starts


@contextmanager
def _vectors_at(table: nn.Module, starts: list[int], vectors: Tensor) -> Iterator[None]:
    """Make an embedding table return `vectors`, (B, vectors, dim), at the places that begin at `starts`.

    This takes a hook, because CLIPTextModel has no argument `inputs_embeds` in any version of Transformers.
    """
    rows = torch.arange(len(starts))[:, None].expand(-1, vectors.shape[1])
    columns = torch.tensor(starts)[:, None] + torch.arange(vectors.shape[1])

    def replace(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        places = (rows.to(output.device), columns.to(output.device))
        return output.index_put(places, vectors.to(output))

    handle = table.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()

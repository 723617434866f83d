"""Adversaries that learn a few vectors of text and leave the networks as they are."""

import copy
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from privgen.attacks.adversaries.base import Adversary, Pace
from privgen.attacks.adversaries.learning import Learner, check_pipeline, share_network, with_parts
from privgen.errors import PrivgenError, UsageError
from privgen.io.files import write_bytes


@dataclass(frozen=True)
class TextualInversion(Adversary):
    """Textual inversion: learns the input embeddings of a new word (arXiv 2208.01618).

    On mini this learns little: the small text encoder saturates. Use `PromptEmbeds` there.

    Args:
        word: a new word, such as "<subject>". With several vectors it stands for as many tokens, as in Diffusers.
        prompts: see `Adversary`.
        lr: see `Adversary`.
        batch_size: see `Adversary`.
        vectors: how many input embeddings to learn.
        initializer: a word whose embedding is the first guess, such as "dog"; the mean of all words without it.

    Raises:
        UsageError: see `Adversary`; or there are no vectors.
    """

    name: ClassVar[str] = "textual-inversion"
    pace: ClassVar[Pace] = Pace(lr=5e-4, effort=1000)
    small_pace: ClassVar[Pace] = Pace(lr=5e-3, effort=500)

    _: KW_ONLY
    vectors: int = 1
    initializer: str = ""

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        _check_vectors(self.vectors)

    @property
    def tokens(self) -> list[str]:
        """The new tokens, named as Diffusers names those of several vectors."""
        return [self.word, *(f"{self.word}_{i}" for i in range(1, self.vectors))]

    def _learner(self, pipeline: Any, prompts: tuple[str, ...], generator: torch.Generator) -> Learner:
        tokenizer, text_encoder = copy.deepcopy(pipeline.tokenizer), share_network(pipeline.text_encoder).float()
        known = set(tokenizer.get_vocab()) & set(self.tokens)
        if known or tokenizer.add_tokens(self.tokens) != self.vectors:
            raise UsageError(f"The tokenizer knows {self.word!r} already; give a new word, such as <subject>.")
        table = text_encoder.get_input_embeddings().weight
        guess = tokenizer(self.initializer, add_special_tokens=False).input_ids if self.initializer else []
        first = (table[guess] if guess else table).mean(0, keepdim=True)
        rows = tokenizer.convert_tokens_to_ids(self.tokens)
        # Some models' tables have more rows than their tokenizers have words.
        grown = torch.zeros(max(len(table), rows[-1] + 1), table.shape[1], device=table.device)
        grown[: len(table)] = table
        grown[rows] = first
        weight = nn.Parameter(grown)
        learnt = torch.zeros(len(grown), 1, device=table.device)
        learnt[rows] = 1
        weight.register_hook(lambda gradient: gradient * learnt)
        text_encoder.get_input_embeddings().weight = weight
        text_encoder.get_input_embeddings().num_embeddings = len(weight)
        text_encoder.config.vocab_size = len(weight)
        parts = with_parts(pipeline, tokenizer=tokenizer, text_encoder=text_encoder)
        return Learner(parts, ("text_encoder",), [weight])

    def save(self, pipeline: Any, folder: Path) -> Path:
        """Write `learned_embeds.safetensors`, for `pipeline.load_textual_inversion`."""
        rows = pipeline.tokenizer.convert_tokens_to_ids(self.tokens)
        vectors = pipeline.text_encoder.get_input_embeddings().weight[rows]
        return _write(folder / "learned_embeds.safetensors", self.word, vectors, {"format": "pt"})


@dataclass(frozen=True)
class PromptEmbeds(Adversary):
    """Textual inversion in the space of encoded prompts: learns vectors that replace the padding of a prompt.

    No text encoder stands between these vectors and the UNet, so this works where `TextualInversion` does not, as on
    mini. The pipeline writes the vectors behind each prompt that has the word; other prompts stay as they are. With
    `clip_skip` they are not written.

    Args:
        word: a word of the vocabulary.
        prompts: see `Adversary`.
        lr: see `Adversary`.
        batch_size: see `Adversary`.
        vectors: how many to write behind the end of the prompt; fewer where the prompt leaves less room.

    Raises:
        UsageError: see `Adversary`; or there are no vectors.
    """

    name: ClassVar[str] = "prompt-embeds"
    pace: ClassVar[Pace] = Pace(lr=1e-2, effort=500)
    small_pace: ClassVar[Pace] = Pace(lr=5e-2, effort=800)

    _: KW_ONLY
    vectors: int = 16

    def __post_init__(self) -> None:
        """Check the values."""
        super().__post_init__()
        _check_vectors(self.vectors)

    def _learner(self, pipeline: Any, prompts: tuple[str, ...], generator: torch.Generator) -> Learner:
        with torch.no_grad():
            embeds = pipeline.encode_prompt(prompts[0], pipeline.unet.device, 1, False)[0][0]
        ids = pipeline.tokenizer(prompts[0]).input_ids
        padding = embeds[len(ids) : len(ids) + self.vectors]
        if len(padding) < self.vectors:
            room = max(len(embeds) - len(ids), 0)
            raise UsageError(f"The prompt leaves room for {room} vectors, not {self.vectors}; learn fewer.")
        vectors = nn.Parameter(padding.float().clone())
        written = _with_padding(pipeline, self.word, vectors)
        return Learner(written, ("text_encoder",), [vectors])

    def save(self, pipeline: Any, folder: Path) -> Path:
        """Write `prompt_embeds.safetensors`, for `load_prompt_embeds`. Diffusers has no form of its own for them."""
        (hook,) = (h for h in pipeline.text_encoder._forward_hooks.values() if isinstance(h, PaddingVectors))
        return _write(folder / "prompt_embeds.safetensors", self.word, hook.vectors, {"privgen": "prompt_embeds"})


@dataclass(eq=False)
class PaddingVectors:
    """A forward hook of a CLIP text encoder that writes vectors over the padding of prompts that have a word.

    Attributes:
        vectors: (V, dim), written behind the end of the prompt.
        word: ids of the word's tokens.
        end: id of the token that ends a prompt.
    """

    vectors: Tensor
    word: list[int]
    end: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Return the output of the text encoder with the vectors in its last hidden state."""
        ids = args[0] if args else kwargs["input_ids"]
        hidden = output[0]
        states = [self._write(row, state) for row, state in zip(ids.tolist(), hidden, strict=True)]
        changed = torch.stack(states)
        if isinstance(output, tuple):
            return (changed, *output[1:])
        return type(output)(**{**output, "last_hidden_state": changed})

    def _write(self, ids: list[int], state: Tensor) -> Tensor:
        starts = range(len(ids) - len(self.word) + 1)
        if not any(ids[i : i + len(self.word)] == self.word for i in starts) or self.end not in ids:
            return state
        first = ids.index(self.end) + 1
        vectors = self.vectors[: len(state) - first].to(state)
        return torch.cat([state[:first], vectors, state[first + len(vectors) :]])


def load_prompt_embeds(pipeline: Any, path: str | Path) -> Any:
    """Return a pipeline that draws a subject which `PromptEmbeds` learnt and saved.

    Args:
        pipeline: the pipeline that it was learnt for. It is not changed.
        path: the file.

    Raises:
        UsageError: the pipeline is of another family, or has text embeddings of another width.
        PrivgenError: the file cannot be read, or holds something else.
    """
    check_pipeline(pipeline)
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("privgen") != "prompt_embeds":
                raise PrivgenError(f"{path} does not hold prompt embeddings; name a file that privgen saved.")
            (word,) = file.keys()
            vectors = file.get_tensor(word)
    except (OSError, SafetensorError, ValueError) as error:
        raise PrivgenError(f"{path} cannot be read ({error}); get a complete copy.") from error
    width = pipeline.text_encoder.config.hidden_size
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise UsageError(f"{path} holds vectors for another model: {tuple(vectors.shape)}, and this one has {width}.")
    return _with_padding(pipeline, word, vectors.to(pipeline.unet.device))


def _with_padding(pipeline: Any, word: str, vectors: Tensor) -> Any:
    ids = pipeline.tokenizer(word, add_special_tokens=False).input_ids
    text_encoder = share_network(pipeline.text_encoder)
    hook = PaddingVectors(vectors, ids, pipeline.tokenizer.eos_token_id)
    text_encoder.register_forward_hook(hook, with_kwargs=True)
    return with_parts(pipeline, text_encoder=text_encoder)


def _check_vectors(vectors: int) -> None:
    if vectors < 1:
        raise UsageError(f"There are {vectors} vectors to learn; give at least 1.")


def _write(path: Path, word: str, vectors: Tensor, header: Mapping[str, str]) -> Path:
    values = vectors.detach().to("cpu", torch.float32).contiguous()
    write_bytes(path, save({word: values}, dict(header)), overwrite=True)
    return path

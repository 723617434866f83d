"""Find the tokens of a word in prompts, as a pipeline's denoiser sees them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from privgen.errors import UsageError
from privgen.models.family import TextEncoder, family_of


def prompts_of_call(pipe: Any, call: Mapping[str, Any]) -> list[dict[str, str]]:
    """The prompts that each image of a pipeline's call is generated from.

    Args:
        pipe: a text-to-image pipeline.
        call: the arguments of its call by name, defaults included.

    Returns:
        For each image the prompt of each text encoder, by the encoder's name.

    Raises:
        UsageError: the call has embeddings instead of a prompt.
    """
    if call.get("prompt") is None:
        raise UsageError("Attention finds objects by the words of the prompt; pass prompt, or a mask for each object.")
    each = int(call.get("num_images_per_prompt") or 1)
    columns = {}
    for encoder in family_of(pipe).text_encoders:
        given = call.get(encoder.prompt) or call["prompt"]
        columns[encoder.name] = [given] if isinstance(given, str) else list(given)
    count = max(len(texts) for texts in columns.values())
    rows = ({name: texts[i % len(texts)] for name, texts in columns.items()} for i in range(count))
    return [row for row in rows for _ in range(each)]


def word_places(pipe: Any, prompts: Sequence[Mapping[str, str]], words: Sequence[str]) -> list[list[Tensor]]:
    """The places of words among the text tokens that a pipeline's image attends to.

    Words are found whole and in either case: "cat" is in "A Cat, asleep", but not in "cats". A word may be several
    tokens, or several words. If it comes several times, all its places count.

    Args:
        pipe: a text-to-image pipeline of a family of `privgen.models.family`.
        prompts: for each image the prompt of each text encoder, by the encoder's name; see `prompts_of_call`.
        words: that are looked for in each prompt.

    Returns:
        For each prompt and each word its places, a tensor of at least one whole number.

    Raises:
        UsageError: a word is not in a prompt, or is after the last token that the model reads.
    """
    encoders = [
        encoder
        for encoder in family_of(pipe).text_encoders
        if encoder.start is not None and getattr(pipe, encoder.name) is not None
    ]
    return [[_places(pipe, encoders, texts, word) for word in words] for texts in prompts]


def _places(pipe: Any, encoders: Sequence[TextEncoder], texts: Mapping[str, str], word: str) -> Tensor:
    places: set[int] = set()
    cut_off = False
    for encoder in encoders:
        spans = _spans(pipe, encoder, texts[encoder.name], word)
        room = encoder.max_tokens(pipe) - 1  # the last token ends the prompt
        read = [span for span in spans if span.stop <= room]
        cut_off |= len(read) < len(spans)
        places |= {(encoder.start or 0) + place for span in read for place in span}
    if places:
        return torch.tensor(sorted(places))
    text = texts[encoders[0].name]
    if cut_off:
        raise UsageError(f'The word "{word}" comes after the last token that the model reads of "{text[:60]}...".')
    raise UsageError(f'The prompt "{text}" has no word "{word}"; name an object as the prompt does, or give its mask.')


def _spans(pipe: Any, encoder: TextEncoder, text: str, word: str) -> list[range]:
    """Where the tokens of a word are among those of a text, one range for each time that it comes."""
    tokenizer = getattr(pipe, encoder.tokenizer)
    if hasattr(pipe, "maybe_convert_prompt"):  # a word of textual inversion may be several pseudo-words
        text, word = pipe.maybe_convert_prompt(text, tokenizer), pipe.maybe_convert_prompt(word, tokenizer)
    pattern = r"\s+".join(re.escape(part) for part in word.split())
    if not pattern:
        return []

    def tokens_before(end: int) -> int:
        return len(tokenizer(text[:end].rstrip(), add_special_tokens=False).input_ids)

    first = tokenizer("").input_ids[:1]
    begin = int(tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id])
    found = re.finditer(rf"(?<!\w){pattern}(?!\w)", text, re.IGNORECASE)
    return [range(begin + tokens_before(hit.start()), begin + tokens_before(hit.end())) for hit in found]

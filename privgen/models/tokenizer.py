"""A CLIP tokenizer for a small vocabulary, with one token for each word."""

import re
from collections.abc import Iterable
from itertools import pairwise

from transformers import CLIPTokenizer, PreTrainedTokenizerBase

from privgen.data.patterns import PATTERNS, TEXTURES
from privgen.data.scenes import COLOURS, HELDOUT_NOUNS, NOUNS


SMALL_VOCABULARY = 10_000
"""Tokenizers with fewer tokens do not know most of a language's words."""

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
END = "</w>"


def scene_words() -> tuple[str, ...]:
    """All words and signs of the captions of scenes, those of held-out objects included."""
    text = " ".join((*NOUNS, *HELDOUT_NOUNS, *COLOURS, *PATTERNS, *TEXTURES, "a an and on background with texture ,"))
    return tuple(dict.fromkeys(re.findall(r"\w+|,", text)))


def build_tokenizer(words: Iterable[str], max_length: int = 77) -> CLIPTokenizer:
    """Build a byte-pair tokenizer that has one token for each of some words, and spells all others by letters.

    Args:
        words: lower-case words and signs.
        max_length: tokens of a padded prompt.
    """
    words = list(words)
    signs = [chr(c) for c in range(33, 127) if not chr(c).isupper()]
    merges: list[tuple[str, str]] = []
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        # Pairs that are added for this word rank last, so earlier words still merge as before.
        while len(pieces := _spell(word, ranks)) > 1:
            pair = (pieces[0], pieces[1])
            ranks[pair] = len(merges)
            merges.append(pair)
    tokens = dict.fromkeys([*signs, *(sign + END for sign in signs), *(a + b for a, b in merges), BOS, EOS])
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=EOS, model_max_length=max_length)


def unknown_words(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[str]:
    """Return the words of a prompt that a tokenizer of a small vocabulary spells by letters, in lower case.

    Nobody taught the model what such words mean. Large vocabularies spell rare words, too, and know what they mean; so
    for them the list is empty.

    Args:
        tokenizer: of the model.
        prompt: the prompt.
    """
    if len(tokenizer) >= SMALL_VOCABULARY:
        return []
    words = dict.fromkeys(re.findall(r"\w+", prompt.lower()))
    return [word for word in words if len(tokenizer.tokenize(word)) > 1]


def _spell(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Encode one word with the pairs that are known so far."""
    pieces = [*word[:-1], word[-1] + END]
    while len(pieces) > 1:
        pairs = list(pairwise(pieces))
        best = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
        if best not in ranks:
            break
        i = pairs.index(best)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]
    return pieces

"""The mapper that training starts from says words of the model's own."""

import pytest
import torch

from privgen.models.watermark import TokenMapper
from privgen.watermark.token import token_embeddings
from privgen.watermark.train_mapper import start_from_words, word_ids


N_BITS, DIM = 6, 16
WORDS, NEUTRAL = [3, 5, 7, 9, 11, 13], 2


@pytest.fixture
def table(generator):
    return 0.3 * torch.randn(20, DIM, generator=generator)


@pytest.fixture
def bits(generator):
    return torch.randint(2, (4, N_BITS), generator=generator).float()


def mapper(vectors, **options):
    return TokenMapper(N_BITS, vectors, DIM, hidden=8, scale=0.3, **options)


def test_a_word_for_each_bit(table, bits):
    start = mapper(N_BITS)
    start_from_words(start, table, WORDS, NEUTRAL)
    torch.testing.assert_close(start(bits), torch.where(bits[:, :, None] > 0, table[WORDS], table[NEUTRAL]))


def test_bits_that_share_a_vector_add_up(table, bits):
    start = mapper(2)
    start_from_words(start, table, WORDS, NEUTRAL)
    added = bits[:, :, None] * (table[WORDS] - table[NEUTRAL])
    said = table[NEUTRAL] + torch.stack([added[:, ::2].sum(1), added[:, 1::2].sum(1)], dim=1)
    torch.testing.assert_close(start(bits), said)


def test_the_complement_is_the_opposite_message(bits):
    with_complement = mapper(3, complement=True)
    said, opposite = token_embeddings(with_complement, bits)
    torch.testing.assert_close(opposite, with_complement(1 - bits))
    torch.testing.assert_close(said, with_complement(bits))
    assert token_embeddings(mapper(3), bits)[1] is None


def test_words_of_several_tokens(tiny_pipe):
    with pytest.raises(ValueError, match="one token each, got linen; use from_words = false"):
        word_ids(tiny_pipe.tokenizer, ["a", "linen"], ".")
    ids, neutral = word_ids(tiny_pipe.tokenizer, ["a", "b"], ".")
    assert [*ids, neutral] == [tiny_pipe.tokenizer(word).input_ids[1] for word in "ab."]

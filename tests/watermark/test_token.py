import contextlib
import dataclasses

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from privgen import __version__
from privgen.errors import PrivgenError, UsageError
from privgen.watermark.key import Key, Secret
from privgen.watermark.protocols import key_bits
from privgen.watermark.token import Token, encode_with_token, issue_token


KEY = Key("alice", Secret(bytes(range(32))))
KEY_ID = KEY.key_id


def embedding(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Mapper(torch.nn.Linear):
    """16 bits to 2 vectors of 32 numbers."""

    def __init__(self):
        super().__init__(16, 64)
        self.config = type("Config", (), {"n_bits": 16, "tau": 300})()

    def forward(self, bits):
        return super().forward(bits).view(-1, 2, 32)


def encoded_by_diffusers(pipe, prompt):
    with torch.no_grad():
        return pipe.encode_prompt(prompt, "cpu", 1, False)[0]


@pytest.mark.parametrize("vectors", [1, 3])
def test_a_saved_token_is_a_plain_textual_inversion_with_the_same_effect(tiny_pipe, tmp_path, vectors):
    token = Token(embedding(vectors, 32), KEY_ID)
    path = token.save(tmp_path / "alice.safetensors")
    ours = encode_with_token(tiny_pipe, "a cat", token)
    plain = encoded_by_diffusers(tiny_pipe, "a cat")
    tiny_pipe.load_textual_inversion(path)
    assert torch.equal(ours, encoded_by_diffusers(tiny_pipe, f"a cat {token.name}"))
    assert not torch.allclose(ours, plain, atol=1e-2)


def test_a_tokens_file_holds_one_tensor_and_what_is_public(tmp_path):
    token = Token(embedding(2, 32), KEY_ID, 141, metadata={"method": "optimised", "base_model": "mini"})
    path = token.save(tmp_path / "deep" / "alice.safetensors")
    with safe_open(path, "pt") as file:
        assert list(file.keys()) == [f"<privgen-{KEY_ID}>"]
        assert file.metadata() == {
            "format": "pt",
            "privgen": __version__,
            "key_id": KEY_ID,
            "tau": "141",
            "method": "optimised",
            "base_model": "mini",
        }
    content = path.read_bytes()
    assert bytes(KEY.secret) not in content
    assert KEY.secret.hex().encode() not in content


def test_a_token_survives_its_file(tmp_path):
    token = Token(embedding(4, 8), KEY_ID, 100, "<mine>", {"method": "optimised"})
    loaded = Token.load(token.save(tmp_path / "a.safetensors"))
    assert torch.equal(loaded.embedding, token.embedding)
    for field in ("key_id", "tau", "name", "metadata"):
        assert getattr(loaded, field) == getattr(token, field)
    assert repr(loaded) == f"Token(<mine>, 4 x 8, key_id={KEY_ID}, tau=100)"


def test_a_token_is_a_value_that_nobody_can_change():
    given = embedding(1, 8).requires_grad_()
    token = Token(given, KEY_ID)
    with torch.no_grad():
        given.zero_()
    assert token.embedding.abs().sum() > 0
    assert not token.embedding.requires_grad
    with pytest.raises(dataclasses.FrozenInstanceError):
        token.tau = 3
    with pytest.raises(TypeError):
        token.metadata["method"] = "other"


def test_a_token_file_is_not_overwritten_unasked(tmp_path):
    first, second = Token(embedding(1, 8), KEY_ID), Token(embedding(1, 8, seed=1), KEY_ID)
    path = first.save(tmp_path / "a.safetensors")
    with pytest.raises(PrivgenError, match="exists"):
        second.save(path)
    assert torch.equal(Token.load(path).embedding, first.embedding)
    assert torch.equal(Token.load(second.save(path, overwrite=True)).embedding, second.embedding)
    with pytest.raises(UsageError, match=r"must end in \.safetensors"):
        first.save(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"embedding": torch.zeros(8)}, "shape"),
        ({"embedding": torch.zeros(0, 8)}, "shape"),
        ({"embedding": torch.full((1, 8), torch.nan)}, "finite"),
        ({"key_id": "alice"}, "key_id"),
        ({"tau": -1}, "0..1000"),
        ({"tau": 1001}, "0..1000"),
        ({"name": "<Alice>"}, "lower case"),
        ({"name": "two words"}, "name"),
        ({"metadata": {"tau": "3"}}, "other metadata"),
    ],
)
def test_a_token_refuses_what_makes_no_sense(change, match):
    with pytest.raises(ValueError, match=match):
        Token(**{"embedding": torch.zeros(1, 8), "key_id": KEY_ID, **change})


def write_foreign(path, kind):
    header = {"privgen": "0", "key_id": KEY_ID, "tau": "9"}
    tensors = {"<x>": torch.zeros(1, 8)}
    if kind == "text":
        path.write_text("not a token")
    elif kind == "plain":
        save_file(tensors, path)
    elif kind == "two":
        save_file({**tensors, "<y>": torch.zeros(1, 8)}, path, header)
    elif kind == "header":
        save_file(tensors, path, {**header, "tau": "soon"})
    elif kind == "key":
        save_file(tensors, path, {key: value for key, value in header.items() if key != "key_id"})
    elif kind == "cut":
        save_file(tensors, path, header)
        path.write_bytes(path.read_bytes()[:-8])
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("missing", "does not exist"),
        ("folder", "is not a file"),
        ("text", "cannot be read"),
        ("cut", "cannot be read"),
        ("plain", "not a token of privgen"),
        ("two", "not a token of privgen"),
        ("header", "damaged"),
        ("key", "damaged"),
    ],
)
def test_loading_says_what_is_wrong_with_a_file(tmp_path, kind, match):
    path = tmp_path / "token.safetensors"
    write_foreign(path, kind)
    with pytest.raises(PrivgenError, match=match) as caught:
        Token.load(path)
    assert str(path) in str(caught.value)


def test_a_mapper_issues_tokens_by_the_keys_message():
    mapper = Mapper()
    token = issue_token(mapper, KEY, metadata={"base_model": "mini"})
    bits = torch.tensor([KEY.bits(16)], dtype=torch.float32)
    assert torch.equal(key_bits([KEY], mapper), bits)
    assert torch.equal(token.embedding, mapper(bits)[0].detach())
    assert (token.key_id, token.tau) == (KEY_ID, 300)
    assert dict(token.metadata) == {"method": "token_mapper", "base_model": "mini"}
    assert issue_token(mapper, KEY, tau=8).tau == 8


def test_every_sample_can_have_its_own_token(tiny_pipe):
    tokens, prompts = embedding(3, 2, 32), ["a cat", "two dogs and a hat", "a"]
    batch = encode_with_token(tiny_pipe, prompts, tokens)
    for index, prompt in enumerate(prompts):
        torch.testing.assert_close(batch[index], encode_with_token(tiny_pipe, prompt, tokens[index])[0])
    torch.testing.assert_close(encode_with_token(tiny_pipe, "a cat", tokens)[0], batch[0])
    torch.testing.assert_close(encode_with_token(tiny_pipe, prompts, tokens[1])[1], batch[1])


def test_the_words_before_the_token_are_encoded_as_without_it(tiny_pipe):
    ours = encode_with_token(tiny_pipe, "a cat", embedding(2, 32))
    plain = encoded_by_diffusers(tiny_pipe, "a cat")
    words = len(tiny_pipe.tokenizer("a cat").input_ids) - 1
    torch.testing.assert_close(ours[:, :words], plain[:, :words])
    assert not torch.allclose(ours[:, words], plain[:, words], atol=1e-2)
    assert ours.shape == plain.shape


def test_gradients_reach_the_embedding_and_nothing_else(tiny_pipe):
    tiny_pipe.text_encoder.requires_grad_(False)
    vectors = embedding(2, 2, 32).requires_grad_()
    encode_with_token(tiny_pipe, ["a cat", "a dog"], vectors).square().sum().backward()
    assert (vectors.grad.abs().amax(2) > 0).all()
    with torch.no_grad():
        assert not encode_with_token(tiny_pipe, "a cat", vectors).requires_grad


def test_text_encoders_with_an_attention_mask_get_theirs(tiny_pipe):
    tiny_pipe.text_encoder.config.use_attention_mask = True
    token = Token(embedding(2, 32), KEY_ID)
    ours = encode_with_token(tiny_pipe, "a cat", token)
    tiny_pipe.load_textual_inversion({token.name: token.embedding})
    assert torch.equal(ours, encoded_by_diffusers(tiny_pipe, f"a cat {token.name}"))


def test_clip_skip_takes_an_earlier_layer(tiny_pipe):
    token = embedding(1, 32)
    whole = encode_with_token(tiny_pipe, "a cat", token)
    torch.testing.assert_close(encode_with_token(tiny_pipe, "a cat", token, clip_skip=0), whole)
    assert not torch.allclose(encode_with_token(tiny_pipe, "a cat", token, clip_skip=1), whole, atol=1e-2)


@pytest.mark.parametrize("fails", [False, True])
def test_the_pipeline_is_left_as_it_was(tiny_pipe, fails, monkeypatch):
    encoder = tiny_pipe.text_encoder
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    words = len(tiny_pipe.tokenizer)
    plain = encoded_by_diffusers(tiny_pipe, "a cat")
    if fails:
        monkeypatch.setattr(encoder.final_layer_norm, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else contextlib.nullcontext():
        encode_with_token(tiny_pipe, "a cat", embedding(2, 32))
    monkeypatch.undo()
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not encoder.get_input_embeddings()._forward_hooks
    assert len(tiny_pipe.tokenizer) == words
    assert torch.equal(encoded_by_diffusers(tiny_pipe, "a cat"), plain)


def test_a_prompt_must_leave_room(tiny_pipe):
    # Every letter is a token here; 77 less BOS and EOS leave 75 for words and vectors.
    assert encode_with_token(tiny_pipe, "a " * 73, embedding(2, 32)).shape == (1, 77, 32)
    with pytest.raises(UsageError, match=r"room for 1 vectors of the token's 2; shorten it by 1 tokens"):
        encode_with_token(tiny_pipe, "a " * 74, embedding(2, 32))
    with pytest.raises(UsageError, match=r"room for 0 vectors of the token's 2; shorten it by 27 tokens"):
        encode_with_token(tiny_pipe, "a " * 100, embedding(2, 32))


@pytest.mark.parametrize(
    ("prompts", "shape", "match"),
    [
        ("a cat", (32,), "vectors, dim"),
        ("a cat", (1, 16), "another model"),
        (["a", "b"], (3, 1, 32), "got 2 and 3"),
    ],
)
def test_shapes_must_fit(tiny_pipe, prompts, shape, match):
    with pytest.raises(ValueError, match=match):
        encode_with_token(tiny_pipe, prompts, embedding(*shape))


def test_pipelines_without_one_text_encoder_are_refused(tiny_pipe):
    tiny_pipe.text_encoder_2 = tiny_pipe.text_encoder
    with pytest.raises(UsageError, match="several text encoders"):
        encode_with_token(tiny_pipe, "a cat", embedding(1, 32))
    tiny_pipe.text_encoder = None
    with pytest.raises(UsageError, match="has none"):
        encode_with_token(tiny_pipe, "a cat", embedding(1, 32))


def test_a_token_with_a_negative_survives_its_file_and_is_still_a_textual_inversion(tiny_pipe, tmp_path):
    token = Token(embedding(3, 32), KEY_ID, negative=embedding(3, 32, seed=1))
    path = token.save(tmp_path / "a.safetensors")
    loaded = Token.load(path)
    assert torch.equal(loaded.embedding, token.embedding)
    assert torch.equal(loaded.negative, token.negative)
    assert not loaded.metadata
    ours = encode_with_token(tiny_pipe, "a cat", token)
    tiny_pipe.load_textual_inversion(path)
    assert torch.equal(ours, encoded_by_diffusers(tiny_pipe, f"a cat {token.name}"))


def test_a_negative_of_another_shape():
    with pytest.raises(ValueError, match=r"negative of shape \(3, 32\), got \(2, 32\)"):
        Token(embedding(3, 32), KEY_ID, negative=embedding(2, 32))


def test_a_mapper_with_a_complement_issues_both():
    mapper = Mapper()
    mapper.config.complement = True
    token = issue_token(mapper, KEY)
    bits = key_bits([KEY], mapper)
    torch.testing.assert_close(token.embedding, mapper(bits)[0])
    torch.testing.assert_close(token.negative, mapper(1 - bits)[0])

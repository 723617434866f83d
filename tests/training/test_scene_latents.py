import errno
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from privgen.errors import PrivgenError
from privgen.models.initialise import seeded_weights
from privgen.models.tokenizer import build_tokenizer, scene_words
from privgen.training.mini.autoencoder import AutoencoderRecipe, build_autoencoder
from privgen.training.scene_latents import load_or_encode_scenes, load_scenes, scenes_fingerprint, tokenize


COUNT = 3


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(scene_words(), 24)


@pytest.fixture
def vae():
    with seeded_weights(0):
        return build_autoencoder(AutoencoderRecipe(size=64, channels=(8, 8, 8, 8), latent_channels=2)).eval()


@pytest.fixture
def encode(vae, tokenizer, tmp_path):
    """Reads or makes the cache `tmp_path / "sub" / "cache.safetensors"`."""

    def call(vae=vae, count=COUNT, seed=0):
        return load_or_encode_scenes(tmp_path / "sub" / "cache.safetensors", vae, tokenizer, count, seed, batch_size=2)

    return call


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "sub" / "cache.safetensors"


def test_encoded_once(encode, cache, vae, tokenizer, monkeypatch):
    first = encode()
    assert first["latents"].shape == (COUNT, 2, 8, 8)
    assert first["ids"].shape == (COUNT, 24)
    monkeypatch.setattr(vae, "encode", None)  # must not be called again
    again = encode()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]
    with safe_open(cache, "pt") as file:
        assert file.metadata()["fingerprint"] == scenes_fingerprint(vae, tokenizer, COUNT, 0)


def test_nothing_is_left_of_a_write_that_failed(encode, cache, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PrivgenError, match="the disk is full"):
            encode()
    assert list(cache.parent.iterdir()) == []
    assert len(encode()["latents"]) == COUNT


def test_another_encoder_or_seed_is_refused(encode, cache, vae):
    encode()
    with pytest.raises(
        PrivgenError, match=rf"{cache} holds latents of scenes of other networks or other settings; delete"
    ):
        encode(seed=1)
    with torch.no_grad():
        next(vae.encoder.parameters()).flatten()[0] += 1e-3
    with pytest.raises(PrivgenError, match="of other networks or other settings"):
        encode()


@pytest.mark.parametrize("changed", [{"scaling_factor": 0.5}, {"sample_size": 96}])
def test_another_scale_or_size_is_refused(encode, vae, changed):
    encode()
    vae.register_to_config(**changed)
    with pytest.raises(PrivgenError, match="of other networks or other settings"):
        encode()


def test_a_decoder_may_learn_on(encode, vae):
    first = encode()
    with torch.no_grad():
        next(vae.decoder.parameters()).add_(1)
    assert torch.equal(encode()["latents"], first["latents"])


def test_the_vocabulary_counts(vae, tokenizer):
    other = build_tokenizer(scene_words()[:5], 24)
    assert scenes_fingerprint(vae, other, COUNT, 0) != scenes_fingerprint(vae, tokenizer, COUNT, 0)


def test_another_number_is_refused(encode, cache):
    encode()
    with pytest.raises(PrivgenError, match="holds 3 scenes, and the recipe asks for 4; set scenes=3, or delete"):
        encode(count=4)
    with pytest.raises(PrivgenError, match="holds 3 scenes, and the recipe asks for 2"):
        load_scenes(cache, 2)


@pytest.mark.parametrize("keep", [0, 4, 1000])
def test_a_damaged_cache(encode, cache, keep):
    encode()
    cache.write_bytes(cache.read_bytes()[:keep])
    with pytest.raises(PrivgenError, match=r"cannot be read as latents of scenes .*; delete the file"):
        encode()


def test_a_file_that_is_no_cache(encode, cache):
    cache.parent.mkdir()
    save_file({"other": torch.zeros(1)}, cache)
    with pytest.raises(PrivgenError, match="holds no latents of scenes; delete it"):
        encode()


def test_captions_are_padded(tokenizer):
    ids = tokenize(tokenizer, ["", "a cat on a pink background"])
    assert ids.shape == (2, 24)
    assert (ids[0, 2:] == tokenizer.pad_token_id).all()

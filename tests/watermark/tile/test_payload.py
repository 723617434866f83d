"""Payloads: an ID comes back as it was written, or not at all."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privgen import Watermark
from privgen.attacks import parse_attack
from privgen.errors import UsageError
from privgen.watermark.tile.embed import mark_image
from privgen.watermark.tile.pattern import pattern_of
from privgen.watermark.tile.payload import pattern_with, read_payload
from privgen.watermark.tile.payload_code import FALSE_ACCEPT, LARGEST, WORD_BYTES, code_word, decode
from privgen.watermark.tile.search import detect_tiles
from privgen.watermark.write.mark_spec import MarkSpec


@pytest.fixture(scope="module")
def owner(key_of):
    return key_of(1)


def scores_of(word, wrong=(), *, doubtful=False):
    """Scores that tell a code word, but for wrong bytes, which are told as clearly, or hardly."""
    scores = torch.zeros(WORD_BYTES, 256)
    scores[torch.arange(WORD_BYTES), list(word)] = 5 + torch.arange(WORD_BYTES) / 100
    for place in wrong:
        scores[place] = 0
        scores[place, word[place] ^ 1] = 1 if doubtful else 6
    return scores


def test_the_format_never_changes(owner):
    assert code_word(owner, 1234).hex() == "000004d283b48e09bec07c64"
    carried = (pattern_with(owner, 1234).written - 0.6**0.5 * pattern_of(owner).template) / 0.8**0.5
    quarters = torch.view_as_real(carried).round().to(torch.int8)
    assert quarters.abs().sum(1).eq(1).all()
    assert hashlib.sha256(quarters.numpy().tobytes()).hexdigest()[:16] == "e08ad4cbf29eb768"


@given(payload=st.integers(0, LARGEST), places=st.permutations(range(WORD_BYTES)), certain=st.integers(0, 2))
def test_an_id_is_read_although_bytes_are_wrong(owner, payload, places, certain):
    word = code_word(owner, payload)
    assert decode(owner, scores_of(word, places[:certain])) == payload
    assert decode(owner, scores_of(word, places[:4], doubtful=True)) == payload


@settings(max_examples=10)
@given(payload=st.integers(0, LARGEST))
def test_nobody_else_can_write_an_id(owner, key_of, payload):
    assert decode(key_of(2), scores_of(code_word(owner, payload))) is None


def test_chance_is_not_read(owner, generator):
    assert FALSE_ACCEPT == 2**-25
    for _ in range(20):
        assert decode(owner, torch.randn(WORD_BYTES, 256, generator=generator)) is None


@pytest.mark.parametrize("attack", ["jpeg=75", "flip then rotation=90", "crop=0.5", "scale=0.5 then jpeg=90"])
def test_a_photograph_tells_its_id(owner, photo, generator, attack):
    marked = mark_image(photo("endlesssky-city4"), pattern_with(owner, LARGEST), levels=255).pixels
    attacked = parse_attack(attack)(marked[None], generator=generator)[0]
    pattern = pattern_of(owner)
    [[match]] = detect_tiles([attacked], [pattern], search=attack.startswith("crop"))
    assert match.p_value < 1e-12
    assert read_payload(owner, pattern, match.evidence) == LARGEST


def test_a_mark_without_a_payload_tells_none(owner, photo):
    plain = pattern_with(owner, None)
    assert plain.written is None
    [[match]] = detect_tiles([mark_image(photo("endlesssky-city4"), plain, levels=255).pixels], [plain])
    assert match.p_value < 1e-12
    assert read_payload(owner, plain, match.evidence) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"payload": -1}, "a whole number from 0 to 4294967295, got -1"),
        ({"payload": LARGEST + 1}, "got 4294967296"),
        ({"payload": True}, "got True"),
        ({"payload": 1.0}, "got 1.0"),
        ({"payload": 1, "carrier": "latent"}, "use the carrier tile or tile"),
        ({"payload": 1, "carrier": "token"}, "use the carrier tile or tile"),
    ],
)
def test_wrong_calls(changes, message):
    with pytest.raises(UsageError, match=message):
        MarkSpec(**changes)


def test_a_payload_gets_a_tile():
    carriers = {name: MarkSpec(payload=1).or_carrier(name).carrier for name in ("latent", "token", "tile")}
    assert carriers == {"latent": "tile+latent", "token": "tile", "tile": "tile"}
    assert MarkSpec().or_carrier("latent").carrier == "latent"


def test_embed_says_if_an_image_is_too_busy_for_a_payload(owner, photo):
    mark, pixels = Watermark.from_pretrained("mini"), photo("gcompris-fishes-fish10")
    with pytest.warns(UserWarning, match="image 0: its payload 5 cannot be read back"):
        mark.embed(pixels, owner, payload=5, carrier="tile", psnr=44)

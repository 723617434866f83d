"""Detection with a registry of many keys: what it finds is what is found with the same keys in a list."""

from dataclasses import replace

import pytest
import torch

from privgen import Watermark
from privgen.io.images import load_image
from privgen.watermark.key import Key, Secret
from privgen.watermark.networks import Networks
from privgen.watermark.read.detection import Detector, DetectSpec
from privgen.watermark.registry.registry import Registry
from privgen.watermark.registry.values import IssuedFor
from privgen.watermark.tile.embed import mark_image
from privgen.watermark.tile.pattern import faces_of, pattern_of
from privgen.watermark.tile.payload import pattern_with
from privgen.watermark.tile.search import detect_tiles
from privgen.watermark.tile.templates import MANY, Templates


def key_of(number):
    return Key(f"key-{number}", Secret(number.to_bytes(32, "big")))


KEYS = tuple(map(key_of, range(MANY + 1)))
ALICE, BOB = KEYS[150], KEYS[-1]


@pytest.fixture(scope="module")
def photo(root):
    return load_image(root / "privgen/data/photos/heldout/endlesssky-beach3.jpg").pixels


@pytest.fixture(scope="module")
def marked(photo):
    return mark_image(photo, pattern_with(BOB, 1234)).pixels


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    with Registry.create(tmp_path_factory.mktemp("registry") / "keys.db") as registry:
        for key in KEYS:
            registry.add(key)
        registry.issue(BOB.key_id, IssuedFor("client 17"), payload=1234)
        yield registry


def test_a_registry_finds_what_its_keys_find(registry, photo, marked):
    mark, mirrored = Watermark.from_pretrained("mini"), marked.flip(2)
    given, found = mark.detect(mirrored, KEYS), mark.detect(mirrored, registry)
    listed = {match.key_id: match for match in given.keys}
    assert len(listed) == found.n_keys == len(KEYS)
    assert found.keys == (listed[BOB.key_id],)
    assert replace(found, keys=()) == replace(given, keys=())
    assert str(found) == str(given)
    assert (found.key, found.payload, found.pose) == (BOB.name, 1234, "mirrored")
    assert found.p_value == pytest.approx(len(KEYS) * 2 * found.best.p_value)  # two kinds of marks
    assert not mark.detect(photo, registry).detected


def test_all_keys_count_in_the_p_value(marked):
    """What is found among many keys is as likely by chance as it is for one, times their number."""
    spec = DetectSpec(carrier="tile")
    few, many = (Detector(Networks(), keys, spec, every=False)([marked])[0] for keys in (KEYS[-1:], KEYS))
    assert many.best.p_value == pytest.approx(few.best.p_value, rel=0.05)
    assert many.p_value == len(KEYS) * many.best.p_value


def test_several_owners_among_many_keys(photo):
    both = mark_image(mark_image(photo, pattern_of(ALICE)).pixels, pattern_of(BOB)).pixels
    [found] = Detector(Networks(), KEYS, DetectSpec(carrier="tile"), every=False)([both])
    assert {match.key for match in found.keys if match.detected} == {ALICE.name, BOB.name}


def test_a_search_for_many_keys_ends_where_the_mark_was_written(marked):
    patterns = [pattern_of(key) for key in KEYS]
    [matches] = detect_tiles([marked], patterns)  # it would take a minute to look for the others everywhere
    assert [match.key for match in matches if match.p_value < 1e-9] == [BOB.name]


def test_the_faces_of_many_templates_are_those_of_each_pattern():
    patterns = [pattern_of(key) for key in KEYS[:3]]
    templates = Templates(iter(patterns), 3)
    assert torch.equal(templates.each, torch.stack([pattern.template for pattern in patterns]))
    assert torch.equal(faces_of(templates.each[1:]), torch.stack([pattern.templates for pattern in patterns[1:]]))

"""Marks are looked for in images that were cut out or turned, by mini's aligner, and p-values count the places."""

import numpy as np
import pytest
import torch

from privgen.hub import load_extra, load_pipeline
from privgen.watermark.alignment import Poses, take
from privgen.watermark.bits import weigh_bits
from privgen.watermark.detection import p_values_of
from privgen.watermark.embed import mark_images
from privgen.watermark.pose_search import UPHILL, AlignedReader, places_of, search


@pytest.fixture(scope="module")
def reader():
    return AlignedReader(load_extra("extractor"), load_extra("aligner"))


@pytest.fixture(scope="module")
def photos(photo_files):
    from privgen.images import load_image
    from privgen.watermark.embed import to_canvas

    return to_canvas([load_image(path).pixels for path in photo_files[:2]])


@pytest.fixture(scope="module")
def messages():
    return torch.randint(2, (2, 48), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def marked(photos, messages):
    """Louder than usual, so that they are found whatever the keys."""
    options = {"vae": load_pipeline("mini").vae, "latent_mapper": load_extra("latent_mapper"), "psnr_db": 33.0}
    return torch.stack([image.pixels for image in mark_images(list(photos), messages, **options)])


def matches(found, messages):
    own = torch.arange(len(messages))
    return ((found.logits[own, own] > 0) == messages.bool()).sum(dim=1)


def p_values(found, messages):
    """(images, keys), corrected for the places."""
    own = [p_values_of(weigh_bits(found.logits[:, k]), messages[k], "weighted") for k in range(len(messages))]
    return found.places * np.concatenate(own, axis=1)


def test_images_as_they_are_need_no_search(reader, marked, messages):
    found = reader(marked, messages, fpr=1e-6)
    own = np.arange(2)
    assert found.places[own, own].tolist() == [2, 2]
    with torch.no_grad():
        torch.testing.assert_close(found.logits[own, own], reader.extractor(marked))
    assert bool((matches(found, messages) >= 44).all())


def test_moved_images_are_found_where_they_are(reader, marked, messages):
    poses = Poses(torch.cat([Poses.of(degrees=13.0).values, Poses.of(side=0.9, left=0.07, top=0.02).values]))
    moved = take(marked, poses)
    with torch.no_grad():
        as_they_are = ((reader.extractor(moved) > 0) == messages.bool()).sum(dim=1)
    found = reader(moved, messages, fpr=1e-6)
    assert bool((matches(found, messages) > as_they_are).all())
    own = np.arange(2)
    assert (p_values(found, messages).diagonal() < 1e-3).all()
    assert found.places[own, own].tolist() == [2 * places_of(False)] * 2
    distance = (found.poses[own, own] - poses.values).abs()
    assert bool((distance < torch.tensor([0.04, 0.04, 0.04, 3.0])).all())


def test_a_key_is_tried_at_so_many_places(reader, photos, messages, monkeypatch):
    from privgen.watermark import pose_search

    tried, keep = [], pose_search._Best.keep
    monkeypatch.setattr(pose_search._Best, "keep", lambda *args: (tried.append(1), keep(*args)))
    monkeypatch.setattr(pose_search, "_uphill", lambda *args: pose_search._Best(1, torch.ones(1, 48)))
    search(reader.aligner, photos[:1], torch.ones(1, 48))
    assert UPHILL * len(tried) == places_of(False)


def test_unmarked_images_are_not_marked(reader, photos):
    """Of 24 pairs none is near: the correction for places is on the safe side."""
    messages = torch.randint(2, (12, 48), generator=torch.Generator().manual_seed(1))
    found = reader(photos, messages, fpr=1e-6)
    assert p_values(found, messages).min() > 1e-3


def test_images_do_not_depend_on_their_batch(reader, marked, messages):
    moved = take(marked, Poses.of(degrees=20.0).expand(2))
    both, one = (reader(images, messages, fpr=1e-6) for images in (moved, moved[1:]))
    torch.testing.assert_close(both.logits[1:], one.logits, rtol=1e-3, atol=1e-3)
    assert (both.places[1:] == one.places).all()

"""Marks are looked for in images that were cut out or turned, by mini's aligner, and p-values count the places."""

import numpy as np
import pytest
import torch

from privgen.hub import load_extra, load_pipeline
from privgen.io.residual import add_residual
from privgen.models.family import Canvas
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.p_values import p_values_of
from privgen.watermark.read.pose import Poses, take
from privgen.watermark.read.search import UPHILL, AlignedReader, places_of, search
from privgen.watermark.write.residual import latent_residuals


CANVAS = Canvas(size=128, patch=8, channels=8)  # of mini


@pytest.fixture(scope="module")
def reader():
    return AlignedReader(load_extra("extractor"), load_extra("aligner"))


@pytest.fixture(scope="module")
def photos(photo_files):
    from privgen.io.images import load_image
    from privgen.io.residual import to_canvas

    return to_canvas([load_image(path).pixels for path in photo_files[:2]], 128)


@pytest.fixture(scope="module")
def messages():
    return torch.randint(2, (2, 48), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def marked(photos, messages):
    """Louder than usual, so that they are found whatever the keys."""
    vae, mapper = load_pipeline("mini").vae, load_extra("latent_mapper")
    residuals = latent_residuals(photos, messages, vae=vae, latent_mapper=mapper)
    return torch.stack(
        [add_residual(x, residual, psnr=33.0).pixels for x, residual in zip(photos, residuals, strict=True)]
    )


def matches(found, messages):
    own = torch.arange(len(messages))
    return ((found.logits[own, own] > 0) == messages.bool()).sum(dim=1)


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
    assert (found.p.diagonal() < 1e-3).all()
    again = [p_values_of(weigh_bits(found.logits[i, i]), messages[i], "weighted")[0, 0] for i in own]
    assert found.p.diagonal() == pytest.approx(4 * places_of(CANVAS, False) * np.array(again))
    assert found.places[own, own].tolist() == [4 * places_of(CANVAS, False)] * 2
    distance = (found.poses[own, own] - poses.values).abs()
    assert bool((distance < torch.tensor([0.04, 0.04, 0.04, 3.0])).all())


def test_each_image_can_have_keys_of_its_own(reader, marked, messages):
    """And of those that all have, the same is read."""
    moved = take(marked, Poses.of(degrees=13.0).expand(2))
    own, all_keys = reader(moved, messages[:, None], fpr=1e-6), reader(moved, messages, fpr=1e-6)
    assert own.logits.shape == (2, 1, 48)
    for i in range(2):
        torch.testing.assert_close(own.logits[i, 0], all_keys.logits[i, i], rtol=1e-3, atol=1e-3)


def test_shapes_of_images_are_searched_apart(reader, marked, messages):
    moved = take(marked, Poses.of(degrees=13.0).expand(2), torch.tensor([1.0, 1.5]))
    both = reader(moved, messages[:, None], fpr=1e-6, aspect=torch.tensor([1.0, 1.5]))
    for i, aspect in enumerate((1.0, 1.5)):
        one = reader(moved[i, None], messages[i, None], fpr=1e-6, aspect=aspect)
        torch.testing.assert_close(both.logits[i], one.logits[0], rtol=1e-3, atol=1e-3)
        assert abs(float(one.poses[0, 0, 3]) - 13) < 3


def test_turned_cut_outs_are_found_after_all_else(reader, marked, messages):
    pose = Poses.of(side=0.8, left=0.1, top=0.05, degrees=20.0)
    found = reader(take(marked[:1], pose), messages[:1], fpr=1e-6)
    assert found.p[0, 0] < 1e-3
    assert found.places[0, 0] == 4 * places_of(CANVAS, True)
    assert bool(((found.poses[0, 0] - pose.values[0]).abs() < torch.tensor([0.05, 0.05, 0.05, 3.0])).all())


@pytest.mark.parametrize("turned", [False, True])
def test_a_key_is_tried_at_so_many_places(reader, photos, monkeypatch, turned):
    from privgen.watermark.read import search as pose_search

    tried, keep = [], pose_search._Best.keep

    def counted(best, values, logits):
        tried.append(len(values))
        keep(best, values, logits)

    monkeypatch.setattr(pose_search._Best, "keep", counted)
    monkeypatch.setattr(pose_search, "_uphill", lambda *args: pose_search._Best(torch.ones(1, 1, 48)))
    search(reader.aligner, photos[:1], torch.ones(1, 48), turned=turned)
    assert UPHILL * sum(tried) == places_of(CANVAS, turned)


def test_unmarked_images_are_not_marked(reader, photos):
    """Of 24 pairs none is near: the correction for places is on the safe side."""
    messages = torch.randint(2, (12, 48), generator=torch.Generator().manual_seed(1))
    found = reader(photos, messages, fpr=1e-6)
    assert found.p.min() > 1e-3


def test_images_do_not_depend_on_their_batch(reader, marked, messages):
    moved = take(marked, Poses.of(degrees=20.0).expand(2))
    both, one = (reader(images, messages, fpr=1e-6) for images in (moved, moved[1:]))
    torch.testing.assert_close(both.logits[1:], one.logits, rtol=1e-3, atol=1e-3)
    assert (both.places[1:] == one.places).all()

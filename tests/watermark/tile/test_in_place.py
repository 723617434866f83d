import pytest
import torch

from privgen.watermark.tile.embed import mark_image
from privgen.watermark.tile.in_place import EXACTLY, NEARLY, correlate_in_place
from privgen.watermark.tile.pattern import FACES
from privgen.watermark.tile.poses import as_is
from privgen.watermark.tile.read import BANDS, SHIFTS, correlate
from privgen.watermark.tile.search import detect_tiles
from privgen.watermark.tile.spectrum import spectrum_of


@pytest.fixture(scope="module", params=[(240, 320), (239, 301)], ids=["even", "odd"])
def marked(request, photo, alice):
    height, width = request.param
    return mark_image(photo("gcompris-monuments-operahouse")[:, :height, :width], alice).pixels


@pytest.mark.parametrize("face", FACES)
def test_where_the_tile_begins_is_known_for_each_face(marked, alice, face):
    turns, mirrored = face
    spectrum = spectrum_of(torch.rot90(marked.flip(-1) if mirrored else marked, turns, (1, 2)))
    exactly = float(correlate_in_place(spectrum, alice.templates[None], [face], EXACTLY))
    anywhere = float(correlate(spectrum, as_is(spectrum.work), alice.face(*face).template[None], BANDS, SHIFTS))
    assert exactly > 0.99 * anywhere > 15
    assert float(correlate_in_place(spectrum, alice.templates[None], [face], NEARLY)) >= exactly
    others = correlate_in_place(spectrum, alice.templates[None], [other for other in FACES if other != face], NEARLY)
    assert float(others.max()) < 6


def test_an_image_as_it_was_marked_needs_the_least_evidence(marked, alice):
    # The same correlation says more where fewer were tried.
    plain, flipped, cropped = detect_tiles([marked, marked.flip(2), marked[:, 3:]], [alice], search=False)
    assert [match[0].matches for match in (plain, flipped, cropped)] == [48, 48, 48]
    assert plain[0].p_value < flipped[0].p_value
    assert cropped[0].p_value < 1e-6

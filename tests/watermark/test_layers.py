"""A tile and the pattern in the latents in one image: both are written, both are read, and the rate is shared."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from privgen import Key, Watermark
from privgen.errors import UsageError
from privgen.hub import Placement
from privgen.metrics.quality import psnr
from privgen.watermark.key import Secret
from privgen.watermark.networks import Networks
from privgen.watermark.write.embed_files import embed_files
from privgen.watermark.write.mark_spec import CARRIERS, MarkSpec


ALICE, BOB, CAROL = (Key(n, Secret(bytes([20 + i]) * 32)) for i, n in enumerate(("alice", "bob", "carol")))
PSNR = 30.0  # at which the tiny extractor reads its part of a layered mark


@pytest.fixture(scope="module")
def mark(marked_model):
    return Watermark(Networks(str(marked_model), Placement("cpu")))


@pytest.fixture(scope="module")
def pipe(tiny):
    loaded = tiny.tiny_pipeline("sd15")
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def photo(photo_files):
    with Image.open(photo_files[3]) as image:
        return image.convert("RGB").resize((320, 240), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def marked(mark, photo):
    return {carrier: mark.embed(photo, ALICE, psnr=PSNR, carrier=carrier) for carrier in CARRIERS}


def pixels(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize(
    ("carrier", "found"),
    [
        ("tile", {"tile"}),
        ("latent", {"latent", "token"}),
        ("tile+latent", {"tile", "latent", "token"}),
    ],
)
def test_each_carrier_is_read_as_itself(mark, marked, photo, carrier, found):
    assert float(psnr(pixels(marked[carrier]), pixels(photo))) == pytest.approx(PSNR, abs=0.1)
    for kind in ("tile", "latent", "token"):
        detection = mark.detect(marked[carrier], [BOB, ALICE], carrier=kind, fpr=1e-4)
        assert (detection.key == "alice") == (kind in found), kind
    whole = mark.detect(marked[carrier], [BOB, ALICE], fpr=1e-4)
    assert (whole.key, whole.best.carrier) == ("alice", "tile" if "tile" in carrier else "latent")


def test_existing_images_get_both_layers_if_nothing_is_asked_for(mark, photo):
    assert np.array_equal(mark.embed(photo, ALICE), mark.embed(photo, ALICE, carrier="tile+latent", psnr=42))


def test_kinds_and_keys_share_the_rate(mark, marked):
    image = marked["tile"].filter(ImageFilter.GaussianBlur(1))
    alone = mark.detect(image, ALICE, carrier="tile")
    shared = mark.detect(image, [ALICE, BOB, CAROL])
    assert alone.p_value == alone.best.p_value
    assert shared.best.p_value == pytest.approx(alone.best.p_value)
    assert shared.p_value == pytest.approx(6 * alone.p_value)  # three keys, two kinds


def test_marks_of_several_keys_are_each_found(mark, photo):
    image = photo
    for key in (ALICE, BOB, CAROL):
        image = mark.embed(image, key)
    found = mark.detect(image, [CAROL, ALICE, BOB])
    assert [match.detected for match in found.keys] == [True] * 3
    assert {region.key for region in found.regions} == {"alice", "bob", "carol"}


def test_a_search_finds_what_was_cut_out_turned_and_mirrored(mark, marked):
    part = marked["tile+latent"].transpose(Image.Transpose.FLIP_LEFT_RIGHT).rotate(20).crop((60, 40, 260, 200))
    assert not mark.detect(part, ALICE).detected
    found = mark.detect(part, [BOB, ALICE], search=True)
    assert (found.key, found.best.carrier) == ("alice", "tile")
    assert "mirrored" in found.pose
    assert found.pose in str(found)


def test_a_model_without_networks_of_its_own_gets_tiles(tmp_path, pipe, photo):
    folder = tmp_path / "plain"
    pipe.save_pretrained(folder)
    plain = Watermark.from_pretrained(folder, device="cpu")
    image = plain.embed(photo, ALICE)
    found = plain.detect(image, [BOB, ALICE])
    assert (found.key, found.best.carrier, found.threshold) == ("alice", "tile", None)
    with plain.on(pipe, ALICE, psnr=32):
        generated = generate(pipe, ["a cat"])
    assert plain.detect(generated, ALICE)[0].detected


def test_a_model_that_does_not_exist_gets_no_tiles(photo):
    with pytest.raises(Exception, match="nowhere"):
        Watermark.from_pretrained("nowhere").embed(photo, ALICE)


def generate(pipe, prompts):
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return pipe(prompts, height=96, width=112, num_inference_steps=2, output_type="pt", generator=generators).images


def test_tiles_on_generated_images(mark, pipe):
    prompts = ["a cat", "a dog"]
    plain = generate(pipe, prompts)
    with mark.on(pipe, [ALICE, BOB], carrier="tile", psnr=32):
        tiled = generate(pipe, prompts)
    assert torch.equal(generate(pipe, prompts), plain)
    assert psnr(tiled, plain).tolist() == pytest.approx([32, 32], abs=0.2)
    assert [found.key for found in mark.detect(tiled, [ALICE, BOB])] == ["alice", "bob"]


def test_both_layers_on_generated_images(mark, pipe):
    with mark.on(pipe, ALICE, carrier="latent"):
        latent = generate(pipe, ["a cat"])
    with mark.on(pipe, ALICE, carrier="tile+latent", psnr=32):
        both = generate(pipe, ["a cat"])
    assert float(psnr(both, latent)) == pytest.approx(32, abs=0.2)
    assert mark.detect(both, ALICE, carrier="tile")[0].detected


def test_payloads_of_generated_images(mark, pipe):
    # The tiny model's images are small and noisy; a loud mark gets through.
    with mark.on(pipe, ALICE, psnr=24, payload=2**31 + 5):
        images = pipe("a cat", height=128, width=128, num_inference_steps=2).images
    found = mark.detect(images[0], [BOB, ALICE])
    assert (found.key, found.payload) == ("alice", 2**31 + 5)


def test_a_pipeline_whose_latents_the_networks_do_not_know_gets_tiles(pipe):
    mark = Watermark.from_pretrained("mini")  # of eight channels; the pipeline has four
    with mark.on(pipe, ALICE, psnr=32):
        [found] = mark.detect(generate(pipe, ["a cat"]), [BOB, ALICE])
    assert (found.key, found.best.carrier) == ("alice", "tile")
    with pytest.raises(UsageError, match="mapper is another model's"), mark.on(pipe, ALICE, carrier="latent"):
        generate(pipe, ["a cat"])


def test_what_goes_with_no_tile(mark, pipe, photo):
    with pytest.raises(UsageError, match="leave tau out"), mark.on(pipe, ALICE, carrier="tile", tau=100):
        pass
    with pytest.raises(UsageError, match="use them with the carrier latent"):
        mark.embed(photo, ALICE, carrier="tile", robust_steps=2)
    with pytest.raises(UsageError, match="one of the carriers tile, token"):
        mark.embed(photo, ALICE, carrier="ink")
    with pytest.raises(UsageError, match="one of the carriers tile, token"):
        mark.detect(photo, ALICE, carrier="ink")


def test_embed_warns_of_images_that_carry_no_mark(mark):
    with pytest.warns(UserWarning, match="image 1: its mark can hardly be read back"):
        mark.embed([torch.rand(3, 200, 200, generator=torch.Generator().manual_seed(0)), torch.ones(3, 8, 8)], ALICE)


def test_files_that_carry_a_mark_already_are_named(mark, marked, photo, tmp_path):
    marked["tile"].save(tmp_path / "old.png")
    photo.save(tmp_path / "new.png")
    paths = [tmp_path / "old.png", tmp_path / "new.png"]

    def notes(key, output, known=()):
        result = embed_files(paths, tmp_path / output, key, networks=mark.networks, spec=MarkSpec("tile"), known=known)
        return [file.notes for file in result.files]

    assert notes(ALICE, "own") == [("it already carries the mark of alice",), ()]
    assert notes(BOB, "unknown") == [(), ()]
    assert notes(BOB, "known", known=[ALICE]) == [("it already carries the mark of alice",), ()]

"""Batches of files to mark: resumed, refused, named."""

import json

import pytest
from PIL import Image

from privgen.errors import PrivgenError, UsageError
from privgen.hub import Placement
from privgen.io.batches import BatchOptions
from privgen.io.images import load_image
from privgen.watermark.key import Key, Secret
from privgen.watermark.networks import Networks, default_carrier
from privgen.watermark.read.detect_files import detect_files
from privgen.watermark.read.detection import DetectSpec
from privgen.watermark.write.embed_files import LEDGER, embed_files
from privgen.watermark.write.mark_spec import MarkSpec


ALICE, BOB = (Key(name, Secret(bytes([number]) * 32)) for number, name in enumerate(("alice", "bob")))
WIDTH, HEIGHT = 240, 180
PSNR = 30.0  # at which the tiny extractor reads nearly everything


@pytest.fixture(scope="module")
def photo(photo_files):
    with Image.open(photo_files[3]) as image:
        return image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def model(marked_model):
    return Networks(str(marked_model), Placement("cpu"))


@pytest.fixture
def two(tmp_path, photo):
    """A folder with two photos."""
    for name, image in (("a.png", photo), ("b.jpg", photo.rotate(180))):
        (tmp_path / "photos").mkdir(exist_ok=True)
        image.save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def embed(two, tmp_path, model):
    """Marks the two photos into one folder."""

    def run(key=ALICE, batch=None, **changes):
        spec = MarkSpec(**{"psnr": PSNR, **changes})
        return embed_files([two], tmp_path / "out", key, networks=model, spec=spec, batch=batch)

    return run


def status(result):
    return [file.status for file in result.files]


def test_resumes(embed, tmp_path):
    first = embed()
    assert status(first) == ["done", "done"]
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert set(before) == {"a.png", "b.png", LEDGER}
    (tmp_path / "out" / "b.png").unlink()
    assert status(embed()) == ["skipped", "done"]
    again = embed()
    assert status(again) == ["skipped", "skipped"]
    assert [(file.psnr, file.matches) for file in again.files] == [(file.psnr, file.matches) for file in first.files]
    assert (tmp_path / "out" / "b.png").read_bytes() == before["b.png"]


@pytest.mark.parametrize("change", [{"key": BOB}, {"psnr": 35}, {"carrier": "token"}])
def test_other_work_is_refused_unless_overwritten(embed, tmp_path, change):
    embed()
    kept = (tmp_path / "out" / "a.png").read_bytes()
    refused = embed(**change)
    assert status(refused) == ["failed", "failed"]
    assert "a.png exists; choose another path, or pass --overwrite" in refused.files[0].error
    assert (tmp_path / "out" / "a.png").read_bytes() == kept
    assert status(embed(**change, batch=BatchOptions(overwrite=True))) == ["done", "done"]
    assert (tmp_path / "out" / "a.png").read_bytes() != kept
    assert status(embed(**change)) == ["skipped", "skipped"]


def test_an_existing_file_does_not_stop_the_rest(embed, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"precious")
    assert status(embed()) == ["failed", "done"]
    assert (tmp_path / "out" / "a.png").read_bytes() == b"precious"


def test_formats_can_be_kept(embed, tmp_path, model):
    result = embed(batch=BatchOptions(keep_format=True))
    outputs = [tmp_path / "out" / "a.png", tmp_path / "out" / "b.jpg"]
    assert [file.output for file in result.files] == [str(path) for path in outputs]
    assert load_image(outputs[1]).format == "JPEG"
    assert all(file.detected for file in detect_files(outputs, [ALICE], networks=model))


def test_what_is_said_of_a_mark_is_read_from_the_file(two, photo, tmp_path, model):
    """A file that is compressed so strongly cannot hold what its pixels held."""
    photo.save(two / "b.jpg", quality=1)
    spec = MarkSpec("tile", 45.0)
    strong, weak = (
        embed_files([two / "b.jpg"], tmp_path / name, ALICE, networks=model, spec=spec, batch=batch).files[0]
        for name, batch in (("kept", BatchOptions(keep_format=True)), ("png", None))
    )
    assert strong.matches < weak.matches == 48
    assert "--quality" in strong.notes[-1]


def test_same_names_from_different_folders(two, photo, tmp_path, model):
    (tmp_path / "more").mkdir()
    photo.resize((100, 50)).save(tmp_path / "more" / "a.png")
    result = embed_files([two, tmp_path / "more"], tmp_path / "out", ALICE, networks=model, spec=MarkSpec(psnr=PSNR))
    assert status(result) == ["done"] * 3
    assert load_image(tmp_path / "out" / "photos-a.png").width == WIDTH
    assert load_image(tmp_path / "out" / "more-a.png").width == 100


def test_never_among_its_inputs(two, model):
    with pytest.raises(UsageError, match="inputs come from"):
        embed_files([two], two, ALICE, networks=model, batch=BatchOptions(overwrite=True))
    assert {path.name for path in two.iterdir()} == {"a.png", "b.jpg"}


def test_ledger_holds_no_secret(embed, tmp_path):
    embed()
    text = (tmp_path / "out" / LEDGER).read_text()
    assert ALICE.key_id in text
    for hidden in (ALICE.secret.hex(), "".join(map(str, ALICE.bits())), "alice", str(tmp_path)):
        assert hidden not in text


def test_an_image_that_can_hold_no_mark_is_noted(tmp_path, model):
    Image.new("RGB", (16, 700), "white").save(tmp_path / "a.png")
    result = embed_files([tmp_path / "a.png"], tmp_path / "out", ALICE, networks=model, spec=MarkSpec(psnr=60))
    assert status(result) == ["done"]
    assert "can hardly be read back" in result.files[0].notes[0]


def test_carrier_token(embed, tmp_path):
    result = embed(carrier="token")
    assert result.carrier == "token"
    assert status(result) == ["done", "done"]
    assert load_image(tmp_path / "out" / "a.png").pixels.shape == (3, HEIGHT, WIDTH)
    assert status(embed(carrier="token", seed=1)) == ["failed", "failed"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "latent"),
        ({}, "latent"),
        ({"default_carrier": "token"}, "token"),
        ({"default_carrier": "x"}, None),
        ([], None),
        ("{", None),
    ],
)
def test_default_carrier(tmp_path, content, expected):
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "privgen").mkdir()
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / "privgen" / "privgen_config.json").write_text(text)
    if expected is None:
        with pytest.raises(PrivgenError, match=r"name (a carrier|one of token, latent)"):
            default_carrier(str(tmp_path))
    else:
        assert default_carrier(str(tmp_path)) == expected


def test_default_carrier_of_models_that_are_not_there():
    with pytest.raises(PrivgenError, match="There is no model 'nowhere'"):
        default_carrier("nowhere")
    with pytest.raises(PrivgenError, match=r"cannot be read: .*; name a carrier"):
        default_carrier("nobody/nothing")


def test_a_model_without_networks_of_ours(two, tmp_path, tiny):
    tiny.tiny_pipeline().save_pretrained(tmp_path / "plain")
    plain = Networks(str(tmp_path / "plain"))
    with pytest.raises(PrivgenError, match="has no latent_mapper for privgen"):
        embed_files([two], tmp_path / "out", ALICE, networks=plain, spec=MarkSpec("latent"))
    with pytest.raises(PrivgenError, match="has no extractor for privgen"):
        detect_files([two], [ALICE], networks=plain, spec=DetectSpec(carrier="latent"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_twelve_megapixels(tmp_path, photo, model):
    photo.resize((4000, 3000), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    result = embed_files([tmp_path / "a.jpg"], tmp_path / "out", ALICE, networks=model, spec=MarkSpec(psnr=PSNR))
    assert result.files[0].psnr == pytest.approx(PSNR, abs=0.01)
    assert detect_files([tmp_path / "out" / "a.png"], [ALICE], networks=model)[0].detected

"""Batches of files to protect: resumed, refused, and as their sources were."""

import pytest
import torch
from PIL import Image, ImageCms

from privgen.errors import PrivgenError, UsageError
from privgen.io.batches import BatchOptions
from privgen.io.images import load_image
from privgen.protection.protect_files import LEDGER, protect_files
from privgen.protection.protection import Protection


PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture
def photos(tmp_path, photo_files):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, file in zip(("a.png", "b.jpg"), photo_files[3:], strict=False):
        with Image.open(file) as image:
            small = image.convert("RGB").resize((90, 70))
            small.save(folder / name, exif=_turned(), icc_profile=PROFILE)
    return folder


def _turned():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    exif[0x010F] = "maker"
    return exif


def protect(photos, tmp_path, batch=None, method="noise", **settings):
    return protect_files(
        [photos], tmp_path / "out", Protection.from_pretrained(method=method), batch=batch, **settings
    )


def status(result):
    return [file.status for file in result.files]


def test_resumes(photos, tmp_path):
    first = protect(photos, tmp_path)
    assert status(first) == ["done", "done"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"a.png", "b.png", LEDGER}
    assert first.files[0].psnr == pytest.approx(36, abs=0.1)
    before = (tmp_path / "out" / "b.png").read_bytes()
    (tmp_path / "out" / "b.png").unlink()
    again = protect(photos, tmp_path)
    assert status(again) == ["skipped", "done"]
    assert (tmp_path / "out" / "b.png").read_bytes() == before
    assert [again.count(name) for name in ("done", "skipped", "failed")] == [1, 1, 0]


@pytest.mark.parametrize("change", [{"psnr": 30}, {"seed": 1}, {"method": "universal"}])
def test_other_work_is_refused_unless_overwritten(photos, tmp_path, change, monkeypatch):
    monkeypatch.setattr("privgen.protection.universal._pattern", lambda *_: torch.rand(1, 3, 128, 128))
    protect(photos, tmp_path)
    refused = protect(photos, tmp_path, **change)
    assert status(refused) == ["failed", "failed"]
    assert "a.png exists" in refused.files[0].error
    assert status(protect(photos, tmp_path, batch=BatchOptions(overwrite=True), **change)) == ["done", "done"]


def test_an_image_does_not_depend_on_the_others(photos, tmp_path):
    protect(photos, tmp_path)
    protection = Protection.from_pretrained(method="noise")
    protect_files([photos / "b.jpg"], tmp_path / "alone", protection)
    assert (tmp_path / "alone" / "b.png").read_bytes() == (tmp_path / "out" / "b.png").read_bytes()


def test_size_orientation_profile_and_metadata_are_kept(photos, tmp_path):
    protect(photos, tmp_path, batch=BatchOptions(keep_format=True))
    before, after = (load_image(folder / "b.jpg") for folder in (photos, tmp_path / "out"))
    assert before.pixels.shape == after.pixels.shape
    assert after.metadata.icc_profile == PROFILE
    with Image.open(tmp_path / "out" / "b.jpg") as image:
        assert image.format == "JPEG"
        assert image.getexif()[0x010F] == "maker"
    torch.testing.assert_close(before.pixels, after.pixels, rtol=0, atol=0.3)  # not turned once more


def test_a_file_that_holds_little_of_the_change_is_named(photos, tmp_path):
    with Image.open(photos / "b.jpg") as image:
        image.save(photos / "b.jpg", quality=20)
    kept, better = (
        protect_files(
            [photos / "b.jpg"], tmp_path / name, Protection.from_pretrained(method="noise"), batch=batch
        ).files[0]
        for name, batch in (
            ("kept", BatchOptions(keep_format=True)),
            ("better", BatchOptions(keep_format=True, quality=100)),
        )
    )
    assert "% of the change: --quality 95 holds more" in kept.notes[-1]
    assert better.notes == ()


def test_a_bad_file_does_not_stop_the_rest(photos, tmp_path):
    (photos / "aa.png").write_bytes(b"not an image")
    seen = []
    result = protect(photos, tmp_path, report=seen.append)
    assert status(result) == ["done", "failed", "done"]
    assert "aa.png" in result.files[1].error
    assert seen == list(result.files)


def test_a_model_that_is_missing_stops_before_anything_is_written(photos, tmp_path):
    protection = Protection.from_pretrained("no-such-model", method="encoder")
    with pytest.raises(PrivgenError, match="no-such-model"):
        protect_files([photos], tmp_path / "out", protection)
    assert not (tmp_path / "out").exists()


def test_never_among_its_inputs(photos):
    with pytest.raises(UsageError, match="inputs come from"):
        protect_files([photos], photos, Protection.from_pretrained(method="noise"))

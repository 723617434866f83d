"""Files that are marked get IDs of their own, which lead back to their records."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from privgen.errors import UsageError
from privgen.watermark.key import Key
from privgen.watermark.read.detect_files import detect_files
from privgen.watermark.read.detection import DetectSpec
from privgen.watermark.registry.issuer import Issuer
from privgen.watermark.registry.registry import Registry
from privgen.watermark.registry.values import IssuedFor
from privgen.watermark.write.embed_files import embed_files
from privgen.watermark.write.mark_spec import MarkSpec


TILE = MarkSpec("tile")


@pytest.fixture
def registry(tmp_path):
    with Registry.create(tmp_path / "keys.db") as registry:
        registry.add(Key.new("studio"))
        yield registry


@pytest.fixture
def photos(tmp_path, root):
    (tmp_path / "photos").mkdir()
    for name in ("beach3", "badlands5"):
        shutil.copy(root / f"privgen/data/photos/heldout/endlesssky-{name}.jpg", tmp_path / "photos" / f"{name}.jpg")
    return tmp_path / "photos"


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_files_lead_back_to_what_they_were_issued_for(registry, photos, tmp_path):
    (photos / "bad.png").write_bytes(b"not an image")
    issuer = Issuer(registry, "studio", IssuedFor("client 17"))
    made = embed_files([photos], tmp_path / "out", issuer, spec=TILE)
    done = [file for file in made.files if file.status == "done"]
    assert len(done) == 2
    issued = {item.payload: item for item in registry.issued()}
    assert set(issued) == {file.payload for file in done}  # none for the bad file
    for file in done:
        what = issued[file.payload]
        assert (what.output_sha256, what.issued_for.source_sha256) == (digest(file.output), digest(file.source))
        assert (what.issued_for.note, what.issued_for.file) == ("client 17", Path(file.source).name)
    registry.rotate("studio")
    [first, _] = found = detect_files([tmp_path / "out"], [], spec=DetectSpec(carrier="tile"), registry=registry)
    assert [file.records[0].issued for file in found] == [issued[file.payload] for file in done]
    assert "replaced" in str(first.records[0])
    assert str(first.records[0]).endswith(f"for client 17, file {Path(done[0].source).name}")
    assert first.record()["records"][0]["issued"]["note"] == "client 17"


def test_a_repeated_call_issues_no_second_id(registry, photos, tmp_path, monkeypatch):
    issuer = Issuer(registry, "studio", IssuedFor("client 17"))
    photo = photos / "beach3.jpg"
    with monkeypatch.context() as disk:
        disk.setattr("privgen.io.batches.write_bytes", lambda *args, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):  # the run dies just before it writes the file
            embed_files([photo], tmp_path / "out", issuer, spec=TILE)
    [died] = registry.issued()
    [first], [again] = (embed_files([photo], tmp_path / "out", issuer, spec=TILE).files for _ in range(2))
    assert (first.status, again.status) == ("done", "skipped")
    assert first.payload == again.payload == died.payload
    with Registry.create(tmp_path / "restored.db") as restored:  # from a copy that does not know the ID yet
        restored.add(registry.key("studio"))
        [known] = embed_files([photo], tmp_path / "out", replace(issuer, registry=restored), spec=TILE).files
        assert (known.status, known.payload) == ("skipped", first.payload)
        assert list(restored.issued()) == []
    [other] = embed_files(
        [photo], tmp_path / "out-18", replace(issuer, issued_for=IssuedFor("client 18")), spec=TILE
    ).files
    assert other.payload != first.payload
    assert len(list(registry.issued())) == 2


def test_an_id_that_the_registry_did_not_issue(registry, photos, tmp_path):
    embed_files([photos / "beach3.jpg"], tmp_path / "out", registry.key("studio"), spec=MarkSpec("tile", payload=5))
    [found] = detect_files([tmp_path / "out"], [], spec=DetectSpec(carrier="tile"), registry=registry)
    assert str(found.records[0]).endswith("ID 5, which the registry did not issue")


def test_wrong_calls(registry, photos, tmp_path):
    with pytest.raises(UsageError, match="leave the payload out"):
        embed_files([photos], tmp_path / "out", Issuer(registry, "studio"), spec=MarkSpec("tile", payload=5))
    with pytest.raises(UsageError, match="A payload is written in a tile"):
        embed_files([photos], tmp_path / "out", Issuer(registry, "studio"), spec=MarkSpec("latent"))
    registry.revoke("studio", "lost")
    with pytest.raises(UsageError, match="revoked"):
        embed_files([photos], tmp_path / "out", Issuer(registry, "studio"), spec=TILE)
    assert list(registry.issued()) == []

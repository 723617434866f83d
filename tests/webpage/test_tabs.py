"""What the tabs do, without Gradio and without a browser; see test_page.py for these."""

import stat

import pytest

from privgen.errors import PrivgenError, UsageError
from privgen.io.images import load_image, save_image
from privgen.provenance.credentials import Credentials
from privgen.watermark.networks import Networks
from privgen.watermark.read.detection import DetectSpec
from privgen.webpage import owners
from privgen.webpage.attack import ATTACKS, attack_picture, chain, strength_of, written
from privgen.webpage.desk import Desk
from privgen.webpage.gate import Gate
from privgen.webpage.mark import MarkRequest, mark_picture, payload_in
from privgen.webpage.pictures import LONG_SIDE, difference, preview
from privgen.webpage.verify import facts, p_value, verify_picture


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Folders of keys and credentials with alice's key, and one for results."""
    monkeypatch.setenv("PRIVGEN_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("PRIVGEN_CREDENTIALS", str(tmp_path / "credentials"))
    owners.make_key("alice")
    (tmp_path / "made").mkdir()
    return tmp_path


def test_mark_verify_attack(folders, photo_files):
    Credentials.new("studio").save(folders / "credentials" / "studio.credentials")
    networks = Networks.of()  # none, so that only tiles are written and looked for, which is fast
    photo = save_image(load_image(photo_files[0]).pixels[:, :256, :256], folders / "photo.png")
    request = MarkRequest("alice", payload_in(" 7 "), sign="studio", said={"creator": "Alice", "credit": " "})
    marked = mark_picture(photo, folders / "made", request, networks)
    assert marked.psnr == pytest.approx(42, abs=0.1)
    assert marked.proves.proven
    assert marked.proves.detection.payload == 7

    found = verify_picture(marked.file, ["alice"], networks, DetectSpec())
    said = facts(found.proves)
    assert 'creator "Alice". The signature covers it' in said["Label"]
    assert "carries the mark of alice" in said["Mark"]
    assert p_value(found.proves).startswith(f"{found.proves.detection.p_value:.2g}: ")
    assert facts(verify_picture(marked.file, [], networks, DetectSpec()).proves)["Mark"].startswith("not looked for")

    for step, verdict in (("flip", "survives"), ("blur", "is lost")):
        attack = chain([(step, strength_of(step).high * 10 if step == "blur" else 1), (None, 0)])
        attacked = attack_picture(marked.file, folders / "made", attack, "alice", networks)
        assert attacked.verdict == f"The mark of alice {verdict}."
        attacked.file.unlink()


def test_every_attack_of_the_page_exists_and_says_what_it_does():
    for name in ATTACKS:
        strength = strength_of(name)
        assert strength.low <= strength.default <= strength.high
        assert strength.words.endswith(".")
        assert written(chain([(name, strength.default)])) == f"{name}={strength.default:g}"
    assert written(chain([("jpeg", 50.4), ("", 0), ("crop", 0.5)])) == "jpeg=50 then crop=0.5"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: owners.load_named_key("../keys/alice"), "cannot name a key"),
        (lambda: owners.load_named_key(None), "Choose a key"),
        (lambda: owners.load_named_credentials("/etc/passwd"), "cannot name credentials"),
        (lambda: owners.make_key("alice"), "keys are not overwritten"),
        (lambda: payload_in("1.5"), "is no payload"),
        (lambda: chain([("pgd", 1.0)]), "no attack 'pgd' on this page"),
        (lambda: chain([("jpeg", 0.0)]), "expected a strength in"),
        (lambda: MarkRequest("alice", label="sb-942").seal(), "names the provider"),
    ],
)
def test_what_a_browser_sends_is_checked(folders, call, sentence):
    with pytest.raises((UsageError, PrivgenError), match=sentence):
        call()


def test_desk_keeps_nothing(tmp_path):
    desk = Desk()
    assert stat.S_IMODE(desk.folder.stat().st_mode) == 0o700

    def drop(visitor, tab, name):
        upload = desk.folder / name
        upload.write_bytes(b"picture")
        return desk.drop(visitor, tab, upload)

    first = drop("v", "mark", "a.png")
    result = desk.results("v", "mark") / "a-marked.png"
    result.write_bytes(b"marked")
    other = drop("w", "mark", "a.png")
    assert desk.picture("v", "mark") == first != other
    second = drop("v", "mark", "b.png")
    assert desk.picture("v", "mark") == second
    assert not first.exists()
    assert not result.exists()
    desk.leave("v")
    with pytest.raises(UsageError, match="drop one first"):
        desk.picture("v", "mark")
    assert [path for path in desk.folder.rglob("*") if path.is_file()] == [other]
    desk.close()
    assert not desk.folder.exists()


def test_previews_are_small_and_differences_show(photo_files):
    pixels = load_image(photo_files[0]).pixels
    changed = (pixels + 1 / 255).clamp(0, 1)
    assert difference(pixels, changed).factor == 100
    assert difference(pixels, 1 - pixels).factor == 1
    wide = pixels[:, :20].repeat(1, 1, 20)[:, :, : 3 * LONG_SIDE]
    assert preview(wide).size == (LONG_SIDE, 7)


@pytest.mark.parametrize(
    ("path", "query", "cookie", "status"),
    [
        ("/", b"", "", 403),
        ("/", b"secret=guess", "", 403),
        ("/", b"secret=s3cret", "", 303),
        ("/config", b"secret=s3cret", "", 403),
        ("/config", b"", "privgen-7860=s3cret", 200),
        ("/config", b"", "privgen-7861=s3cret; a=b", 403),
        ("/gradio_api/file=https://example.test/a.png", b"", "privgen-7860=s3cret", 403),
    ],
)
def test_gate(path, query, cookie, status):
    import asyncio

    sent = []

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path, "query_string": query, "headers": [(b"cookie", cookie.encode())]}
    asyncio.run(Gate(page, "s3cret", 7860)(scope, None, send))
    headers = dict(sent[0]["headers"])
    assert sent[0]["status"] == status
    assert b"default-src 'self'" in headers[b"content-security-policy"]
    assert (b"set-cookie" in headers) == (status == 303)


def test_without_gradio(cli, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    result = cli("app", "--no-browser", "--port", 0)
    assert result.exit_code == 1
    assert result.stderr == "Error: The page needs Gradio: pip install 'privgen[app]'.\n"

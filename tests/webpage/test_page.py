"""The page in a real browser: headless Chromium clicks through every tab.

`make test-slow` runs this in an environment that has Gradio. With PRIVGEN_SCREENSHOTS=DIR, pictures of the tabs are
written there; `make test-page SCREENSHOTS=docs/images` draws those of the docs.
"""

import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image, ImageDraw

from privgen import Key, Watermark, load_key
from privgen.io.images import load_image, save_image
from privgen.metrics.quality import psnr
from privgen.provenance.credentials import Credentials
from privgen.provenance.label import Label, write_label


pytest.importorskip("gradio", reason="needs Gradio, which `make test-slow` installs in an environment of its own")
sync_playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright").sync_playwright
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome"),
]

SERVER = """
import sys

def watch(event, arguments):
    if event == "socket.connect":
        host = arguments[1][0] if isinstance(arguments[1], tuple) else "local"
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    if host not in ("127.0.0.1", "localhost", "local", None):
        print("went to", host, file=sys.stderr, flush=True)

sys.addaudithook(watch)
from privgen.cli.main import main
main()
"""
"""`privgen app`, which says on standard error where it connects to, beside this computer."""

MILLISECONDS = 30_000


class Server:
    """`privgen app` in a process of its own."""

    def __init__(self, folder, source):
        self.folder, self.keys = folder, folder / "keys"
        self.log = (folder / "log.txt").open("w")
        temporary = folder / "tmp"
        temporary.mkdir()
        for name in ("bob", "carol"):
            Key.new(name).save(self.keys / f"{name}.key")
        Credentials.new("studio").save(folder / "credentials" / "studio.credentials")
        own = {"PRIVGEN_KEYS": self.keys, "PRIVGEN_CREDENTIALS": folder / "credentials", "TMPDIR": temporary}
        # Proxies and offline switches of the environment would hide requests.
        environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        environment |= {name: str(value) for name, value in own.items()} | {"PYTHONPATH": source}
        command = [sys.executable, "-c", SERVER, "app", "--no-browser", "--port", "0"]
        self.process = subprocess.Popen(
            command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=self.log, text=True
        )
        self.address = self.process.stdout.readline().strip()
        assert self.address, self.said()
        self.origin = "{0.scheme}://{0.netloc}".format(urlsplit(self.address))
        (self.desk,) = temporary.glob("privgen-app-*")

    def said(self):
        self.log.flush()
        return (self.folder / "log.txt").read_text()

    def pictures(self):
        # Gradio leaves an empty file for each upload.
        return [path for path in self.desk.rglob("*") if path.is_file() and path.stat().st_size]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@pytest.fixture(scope="module")
def server(tmp_path_factory, root):
    made = Server(tmp_path_factory.mktemp("app"), str(root / ".types"))
    yield made
    if made.process.poll() is None:
        made.process.kill()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture(scope="module")
def asked():
    """Hosts that the browser sent requests to."""
    return set()


@pytest.fixture(scope="module")
def page(server, browser, asked):
    context = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True, color_scheme="light")
    context.set_default_timeout(MILLISECONDS)
    opened = context.new_page()
    opened.on("request", lambda request: asked.add(urlsplit(request.url).netloc))
    opened.on("websocket", lambda opened: asked.add(urlsplit(opened.url).netloc))
    opened.goto(server.address)
    opened.get_by_role("tab", name="Mark").wait_for()
    yield opened
    context.close()


@pytest.fixture(scope="module")
def photo(root, tmp_path_factory):
    copy = tmp_path_factory.mktemp("photo") / "coffee.jpg"
    shutil.copy(root / "privgen/data/photos/train/skimage-coffee.jpg", copy)
    return copy


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def drop(page, tab, file):
    page.locator(f"#{tab}-drop input[type=file]").set_input_files(file)
    page.locator(f"#{tab}-picture img").wait_for()


def choose(page, name, value):
    page.locator(f"#{name} input").click()
    page.get_by_role("option", name=value, exact=True).click()


def words(page, tab):
    """What a tab says, once it says something new."""
    found = page.locator(f"#{tab}-words .verdict")
    found.wait_for()
    return page.locator(f"#{tab}-words").inner_text()


def screenshot(page, name):
    if folder := os.environ.get("PRIVGEN_SCREENSHOTS"):
        page.wait_for_timeout(700)  # pictures fade in
        page.mouse.move(0, 0)
        taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
        taken.quantize(256).save(Path(folder) / f"app-{name}.png", optimize=True)  # a third of the size


@pytest.fixture(scope="module")
def marked(page, server, photo, tmp_path_factory):
    """The file that the page gives for the photograph: marked with a new key, numbered, labelled and signed."""
    open_tab(page, "Mark")
    drop(page, "mark", photo)
    page.locator("#new-name input, #new-name textarea").fill("alice")
    page.locator("#new-key").click()
    page.wait_for_function("document.querySelector('#mark-key input').value == 'alice'")
    page.locator("#mark-payload input, #mark-payload textarea").fill("1234")
    page.get_by_role("button", name="Sign and label").click()
    choose(page, "mark-sign", "studio")
    page.get_by_label("Creator").fill("Alice Adams")
    page.locator("#mark-run").click()
    said = words(page, "mark")
    assert "carries the mark of alice" in said
    assert "payload 1234" in said
    assert 'creator "Alice Adams". The signature covers it' in said
    page.get_by_role("button", name="Sign and label").click()
    with page.expect_download() as waiting:
        page.locator("#mark-download").click()
    target = tmp_path_factory.mktemp("downloads") / waiting.value.suggested_filename
    waiting.value.save_as(target)
    screenshot(page, "mark")
    return target


def test_mark_download_detect(page, server, marked, photo):
    assert marked.name == "coffee-marked.png"
    assert load_image(marked).pixels.shape == load_image(photo).pixels.shape
    open_tab(page, "Detect and verify")
    drop(page, "verify", marked)
    page.locator("#verify-run").click()
    said = words(page, "verify")
    assert "The file is as it was signed, and its mark is there." in said
    assert "The credentials name what was found." in said
    p = float(re.search(r"p-value\s+(\S+):", said)[1])
    assert p < 1e-30
    screenshot(page, "verify")


def test_locate(page, server, photo, tmp_path):
    """Two objects of one picture have different owners; the page shows where they are."""
    image = Image.open(photo)
    masks = {"cup": Image.new("L", image.size), "table": Image.new("L", image.size)}
    ImageDraw.Draw(masks["cup"]).ellipse((150, 0, 480, 350), fill=255)
    ImageDraw.Draw(masks["table"]).rectangle((0, 0, 140, 400), fill=255)
    keys = {"cup": load_key(server.keys / "bob.key"), "table": load_key(server.keys / "carol.key")}
    Watermark.from_pretrained().embed(image, objects=keys, masks=masks).save(tmp_path / "two-owners.png")
    open_tab(page, "Detect and verify")
    drop(page, "verify", tmp_path / "two-owners.png")
    page.locator("#verify-words .verdict").wait_for(state="detached")  # that of the picture before
    page.get_by_label("Locate").check()
    page.locator("#verify-run").click()
    said = words(page, "verify")
    assert "bob owns" in said
    assert "carol owns" in said
    page.locator("#verify-owners img").wait_for()
    screenshot(page, "locate")
    page.get_by_label("Locate").uncheck()


def test_attack(page, marked):
    open_tab(page, "Attack")
    drop(page, "attack", marked)
    choose(page, "attack-1", "crop")
    page.locator("#strength-1 input[type=number]").fill("0.5")
    page.locator("#attack-run").click()
    said = words(page, "attack")
    assert "The mark of alice survives." in said
    before, after = map(float, re.findall(r"p = (\S+?)[,;)]", said))
    assert before < after < 1e-6
    screenshot(page, "attack")


def test_protect(page, photo, tmp_path):
    open_tab(page, "Protect")
    drop(page, "protect", photo)
    page.locator("#protect-run").click()
    assert "PSNR\n36.0 dB" in words(page, "protect")
    with page.expect_download() as waiting:
        page.locator("#protect-download").click()
    waiting.value.save_as(tmp_path / "safe.png")
    quality = psnr(load_image(tmp_path / "safe.png").pixels[None], load_image(photo).pixels[None])
    assert float(quality) == pytest.approx(36, abs=0.05)
    screenshot(page, "protect")


def test_errors_are_one_sentence_and_name_no_folder(page, server, tmp_path):
    open_tab(page, "Detect and verify")
    (tmp_path / "<b>not.png").write_bytes(b"no picture")
    page.locator("#verify-drop input[type=file]").set_input_files(tmp_path / "<b>not.png")
    toast = page.locator(".toast-body")
    toast.wait_for()
    said = toast.inner_text()
    assert "not.png is not an image in PNG" in said
    assert str(server.desk) not in said
    page.get_by_test_id("toast-close").click()
    page.locator("#verify-picture img").wait_for(state="detached")


def test_texts_of_files_are_shown_as_they_are(page, photo, asked, tmp_path):
    """A label can hold anything; as a part of the page it could send who looks at it elsewhere."""
    evil = "<img src='http://evil.test/a'>![b](http://evil.test/b) ${1+1} {{7*7}}"
    loaded = load_image(photo)
    xmp = write_label(loaded.metadata.xmp, Label(creator=evil))
    named = replace(loaded, metadata=replace(loaded.metadata, xmp=xmp))
    open_tab(page, "Detect and verify")
    drop(page, "verify", save_image(named, tmp_path / "evil.png"))
    page.locator("#verify-run").click()
    page.get_by_text("nothing proves where it comes from", exact=False).wait_for()
    assert evil in page.locator("#verify-words").inner_text()
    assert not [host for host in asked if "evil" in host]


def test_nothing_goes_elsewhere(page, server, asked):
    assert asked <= {urlsplit(server.origin).netloc, ""}  # "" is data: and blob:
    assert "went to" not in server.said()
    # Not even when somebody asks for it.
    assert fetch(page, "/gradio_api/file=http://example.test/a.png") == 403
    assert "went to" not in server.said()


def fetch(page, path):
    """The status that the page gets for a path."""
    return page.evaluate("async path => (await fetch(path)).status", path)


def test_secrets_stay_on_this_computer(page, server):
    key = server.keys / "alice.key"
    secret = json.loads(key.read_text())["secret"]
    assert secret not in page.content()
    assert secret not in page.evaluate("async () => (await fetch('/config')).text()")
    for path in (key, "/etc/passwd", server.folder / "log.txt"):
        assert fetch(page, f"/gradio_api/file={path}") == 403


def test_only_who_has_the_address_gets_in(server):
    for path in ("/", "/config", "/gradio_api/upload", "/?secret=guessed"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(server.origin + path)
    with pytest.raises(ConnectionError):
        socket.create_connection((other_address(), urlsplit(server.origin).port), timeout=5)


def other_address():
    """An address of this computer that is not 127.0.0.1, as others reach it."""
    return "127.0.0.2" if sys.platform == "linux" else socket.gethostbyname(socket.gethostname())


def test_pictures_are_private_and_go(page, server):
    """The last test: it closes the page, and stops the server."""
    assert stat.S_IMODE(server.desk.stat().st_mode) == 0o700
    assert server.pictures()
    page.context.close()
    deadline = time.monotonic() + 30
    while left := server.pictures():
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    assert server.stop() == 0
    assert server.said().endswith("Stopped; the pictures of the page are deleted.\n")
    assert not server.desk.exists()

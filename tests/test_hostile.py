"""Files that were made to do harm: each is read as far as is safe, or refused in one sentence."""

import ast
import csv
import inspect
import io
import json
import os
import re
import signal
import struct
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from privgen.errors import UNPRINTABLE, PrivgenError, UsageError
from privgen.hub import load_extra, load_pipeline, read_config, resolve_model
from privgen.io.batches import name_outputs
from privgen.io.files import HEIF_PACKAGE, iter_image_files
from privgen.io.foreign_weights import read_weights
from privgen.io.images import load_image
from privgen.io.journal import Journal
from privgen.io.tensor_cache import load_tensors
from privgen.models.autoencoder import load_autoencoder
from privgen.training.recipes import load_recipe
from privgen.watermark.key import Key, Secret, load_keys
from privgen.watermark.token import Token


resource = pytest.importorskip("resource", reason="what is hostile here is so on POSIX systems")

SIDE = 60_000
ZEROS = zlib.compress(bytes(10**8), 9)
ESCAPE = "\x1b[31mred"


@pytest.fixture(autouse=True)
def deadline():
    """Whatever hangs is a fault."""

    def stop(*args):
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refused(error):
    """Whether an error is one sentence, short enough to read."""
    text = str(error)
    return "\n" not in text and len(text) < 600


# Images


def encoded(kind, mode="RGB", frames=1):
    data = io.BytesIO()
    images = [Image.new(mode, (64, 48), i) for i in range(frames)]
    images[0].save(data, kind, **({"save_all": True, "append_images": images[1:]} if frames > 1 else {}))
    return data.getvalue()


def claiming(kind, *numbers, mode="RGB"):
    """A small file whose header claims a large image: each pattern of `numbers` says how it writes two sizes."""
    data = encoded(kind, mode)
    for pattern in numbers:
        was, now = pattern(64, 48), pattern(SIDE, SIDE)
        assert was in data
        data = data.replace(was, now)
    return data


def png(before=b"", after=b"", pixels=None, side=32):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(96)) * 32) if pixels is None else pixels
    parts = [(b"IHDR", header), *([before] if before else []), (b"IDAT", pixels), *([after] if after else [])]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in [*parts, (b"IEND", b"")])


def tiff_of_pages(count, *, loop=False):
    data = bytearray(encoded("TIFF"))
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    page = bytes(data[first : first + 2 + 12 * entries])
    start = len(data) + len(data) % 2
    struct.pack_into("<I", data, 4, start)
    data = data.ljust(start, b"\0")
    for i in range(count):
        following = start + (i + 1) * (len(page) + 4) if i < count - 1 else start * loop
        data += page + struct.pack("<I", following)
    return bytes(data)


IMAGES = {
    "pixels.png": (png(side=SIDE), "more pixels|not an image"),
    "pixels.jpg": (claiming("JPEG", lambda w, h: b"\x08" + struct.pack(">HH", h, w)), "more pixels"),
    "pixels.gif": (claiming("GIF", lambda w, h: struct.pack("<HH", w, h), mode="P"), "more pixels"),
    "pixels.bmp": (claiming("BMP", lambda w, h: struct.pack("<ii", w, h)), "more pixels"),
    "pixels.avif": (claiming("AVIF", lambda w, h: struct.pack(">II", w, h)), "not an image|more pixels"),
    "pixels.ppm": (claiming("PPM", lambda w, h: f"{w} {h}".encode()), "more pixels"),
    "pixels.jp2": (
        claiming("JPEG2000", lambda w, h: struct.pack(">II", h, w), lambda w, h: struct.pack(">II", w, h)),
        "more pixels",
    ),
    "pixels.tif": (
        claiming(
            "TIFF",
            lambda w, h: struct.pack("<HHII", 256, 4, 1, w),
            lambda w, h: struct.pack("<HHII", 257, 4, 1, h),
        ),
        "more pixels",
    ),
    "pixels.webp": (
        encoded("WEBP", "RGBA").replace(b"\x3f\0\0\x2f\0\0", b"\xff\x3f\0\xff\x3f\0", 1),  # 16384 x 16384
        "more pixels",
    ),
    "text.png": (png((b"zTXt", b"k\0\0" + ZEROS)), "too large"),
    "text-behind.png": (png(after=(b"zTXt", b"k\0\0" + ZEROS)), None),
    "xmp.png": (png((b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + ZEROS)), "too large"),
    "profile.png": (png((b"iCCP", b"k\0\0" + ZEROS)), "too large"),
    "exif.png": (png((b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(20))), None),
    "rows.png": (png(pixels=ZEROS), None),
    "frames.png": (png((b"acTL", struct.pack(">II", 2**31 - 1, 0))), None),
    "frames.gif": (encoded("GIF", "P", frames=2000), None),
    "frames.webp": (encoded("WEBP", frames=50), None),
    "pages.tif": (tiff_of_pages(1000), None),
    "pages-round.tif": (tiff_of_pages(3, loop=True), None),
}


if HEIF_PACKAGE is not None:  # whose decoder has a limit of its own
    size = re.compile(rb"ispe\0{4}.{8}", re.DOTALL)
    heic = (Path(__file__).parent / "fixtures" / "turned.heic").read_bytes()
    IMAGES["pixels.heic"] = (size.sub(b"ispe\0\0\0\0" + struct.pack(">II", SIDE, SIDE), heic), "Security limit")


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_unfold(tmp_path, name):
    data, match = IMAGES[name]
    path = tmp_path / name
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if match is None:
        assert min(load_image(path).pixels.shape[1:]) >= 32
    else:
        with pytest.raises(PrivgenError, match=match) as caught:
            load_image(path)
        assert refused(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


# Settings, keys, recipes, weights


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def lying(shape, offsets, kind="F32", name="<a>", **more):
    meta = {"privgen": "1", "key_id": "0" * 16, "tau": "250", **more}
    return {"__metadata__": meta, name: {"dtype": kind, "shape": shape, "data_offsets": offsets}}


SAFETENSORS = {
    "length of 2**63": safetensors({}, length=2**63 - 1),
    "length of 99 MB": safetensors({}, length=99_000_000),
    "beyond the end": safetensors(lying([2**40, 4], [0, 2**44]), bytes(8)),
    "overlap": safetensors(lying([2], [0, 8]) | {"b": lying([2], [4, 12])["<a>"]}, bytes(12)),
    "wrong shape": safetensors(lying([4, 4], [0, 8]), bytes(8)),
    "overflow": safetensors(lying([2**62, 2**62], [0, 0])),
    "unknown kind": safetensors(lying([1, 2], [0, 8], "F99"), bytes(8)),
    "nested": safetensors(b'{"a":' + b"[" * 100_000),
}
TOKENS = {
    "numbers of 8 bits": safetensors(lying([1, 8], [0, 8], "F8_E4M3"), bytes(8)),
    "whole numbers": safetensors(lying([1, 1], [0, 8], "I64"), bytes(8)),
    "nothing": safetensors(lying([0, 2**62], [0, 0])),
    "a long name": safetensors(lying([1, 2], [0, 8], name="x" * 500_000), bytes(8)),
    "a huge number": safetensors(lying([1, 2], [0, 8], tau="9" * 5000), bytes(8)),
    "NaN": safetensors(lying([1, 2], [0, 8], tau="nan"), bytes(8)),
}
RECIPES = {
    "nested lists": "steps = " + "[" * 5000,
    "nested tables": "steps = " + "{a=" * 5000,
    "nested names": "steps." * 2000 + "a = 1",
    "digits": "steps = " + "9" * 10_000,
    "text": "steps = '" + "a" * 20_000 + "'",
    "name": "'" + "a" * 20_000 + "' = 1",
    "NaN": "learning_rate = nan",
    "size": "#" * 10**6,
}


def of_bytes(read, suffix=".safetensors"):
    def reader(folder, data):
        path = folder / f"file{suffix}"
        path.write_bytes(data)
        return read(path)

    return reader


def config_of(folder, data):
    (folder / "privgen").mkdir()
    (folder / "privgen" / "privgen_config.json").write_bytes(data)
    return read_config(folder)


KEY = json.dumps({"format": "privgen-key", "version": 1, "name": "a", "created": "", "secret": "", "fingerprint": ""})
CASES = [
    *((of_bytes(Token.load), data) for data in (SAFETENSORS | TOKENS).values()),
    *((of_bytes(read_weights), data) for data in SAFETENSORS.values()),
    *((of_bytes(lambda path: load_tensors(path, "x")), data) for data in SAFETENSORS.values()),
    *(
        (of_bytes(lambda path: load_recipe("extractor", path), ".toml"), f"[loop]\n{text}".encode())
        for text in RECIPES.values()
    ),
    *((config_of, data) for data in (b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b" " * (2**24 + 1))),
    *(
        (of_bytes(Key.load, ".key"), data)
        for data in (
            b"[" * 60_000,
            KEY.replace("1", "9" * 5000).encode(),
            KEY.replace("1", f'"{ESCAPE * 999}"').encode(),
        )
    ),
]


def test_settings_keys_recipes_and_weights_that_lie(tmp_path):
    for number, (read, data) in enumerate(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(PrivgenError) as caught:
            read(folder, data)
        assert refused(caught.value), (read, data[:99])


@pytest.mark.parametrize("name", ["a.safetensors", "a.key", "a.toml", "a.jsonl", "a.png"])
def test_pipes_and_devices_are_not_opened(tmp_path, name):
    os.mkfifo(tmp_path / name)
    readers = {
        "a.safetensors": (Token.load, read_weights, lambda path: load_tensors(path, "x")),
        "a.key": (Key.load,),
        "a.toml": (lambda path: load_recipe("extractor", path),),
        "a.jsonl": (lambda path: Journal(path).read(dict), lambda path: Journal(path).append([{"a": 1}])),
        "a.png": (load_image,),
    }
    (tmp_path / f"zero-{name}").symlink_to("/dev/zero")
    for read in readers[name]:
        for path in (tmp_path / name, tmp_path / f"zero-{name}"):
            with pytest.raises(PrivgenError) as caught:
                read(path)
            assert refused(caught.value)
    assert iter_image_files([Path(__file__), tmp_path / "a.txt"])  # named files stay, whatever they are


# Models


@pytest.fixture
def model(tmp_path):
    """A folder that is mini by links, whose index can be changed."""
    source, folder = Path(resolve_model("mini")), tmp_path / "model"
    folder.mkdir()
    for entry in source.iterdir():
        if entry.name != "model_index.json":
            (folder / entry.name).symlink_to(entry)
    index = json.loads((source / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    "change", [{"unet": ["evil", "Net"]}, {"_class_name": ["evil", "Pipe"]}, {"x": ["os", "system"]}]
)
def test_code_in_models_is_never_imported(tmp_path, model, monkeypatch, change):
    (tmp_path / "evil.py").write_text("raise SystemExit('code was run')")
    (model / "evil.py").write_text("raise SystemExit('code was run')")
    monkeypatch.syspath_prepend(tmp_path)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | change))
    with pytest.raises(PrivgenError, match="comes with code of its own, which privgen does not run"):
        load_pipeline(model, device="cpu")
    assert "evil" not in sys.modules


def test_models_with_pipes_and_pickles(tmp_path, model):
    os.mkfifo(model / "extra.json")
    with pytest.raises(PrivgenError, match="neither a file nor a folder"):
        load_pipeline(model, device="cpu")
    vae = tmp_path / "vae"
    vae.mkdir()
    (vae / "config.json").write_bytes((model / "vae" / "config.json").read_bytes())
    (vae / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch code-was-run'\ntR.")
    with pytest.raises(PrivgenError, match="weights are safetensors") as caught:
        load_autoencoder(vae)
    assert refused(caught.value)


def test_networks_whose_settings_lie(tmp_path, model):
    (model / "privgen").unlink()
    source = Path(resolve_model("mini")) / "privgen" / "extractor"
    folder = model / "privgen" / "extractor"
    folder.mkdir(parents=True)
    (folder / "diffusion_pytorch_model.safetensors").symlink_to(source / "diffusion_pytorch_model.safetensors")
    config = json.loads((source / "config.json").read_text())
    for text in ("[" * 100_000, json.dumps(config | {"n_bits": 10**9}), json.dumps(config | {"n_bits": "x"}), "[]"):
        (folder / "config.json").write_text(text)
        with pytest.raises(PrivgenError) as caught:
            load_extra("extractor", model, device="cpu")
        assert refused(caught.value)


def test_weights_are_safetensors_everywhere(root):
    """Diffusers falls back to pickles, unless it is told not to."""
    plain = ("Scheduler", "Watermark", "Protection")
    for folder in ("privgen", "attacks", "pipelines", "cli"):
        for file in (root / folder).rglob("*.py"):
            text = file.read_text()
            for node in ast.walk(ast.parse(text)) if ".from_pretrained(" in text else ():
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                    named = any(keyword.arg == "use_safetensors" for keyword in node.keywords)
                    assert named or any(name in ast.unparse(node.func) for name in plain), (file, node.lineno)


# Folders and links


def test_links_lead_to_no_original(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    (photos / "sub").mkdir(parents=True)
    out.mkdir()
    for name in ("a.png", "sub/b.png"):
        (photos / name).write_bytes(encoded("PNG"))
    (tmp_path / "link").symlink_to(photos)
    with pytest.raises(UsageError, match="folder that inputs come from"):
        name_outputs([photos], tmp_path / "link")
    (out / "a.png").symlink_to(photos / "a.png")
    with pytest.raises(UsageError, match="is a link to an image that goes in"):
        name_outputs([photos / "a.png"], out)
    (out / "a.png").unlink()
    (out / "sub").symlink_to(photos / "sub")
    with pytest.raises(UsageError, match="is a link to an image that goes in"):
        name_outputs([photos], out, recursive=True)
    text = tmp_path / "thesis.txt"
    text.write_text("no line break")
    (out / "marks.jsonl").symlink_to(text)
    with pytest.raises(PrivgenError, match="it is a link"):
        Journal(out / "marks.jsonl").append([{"a": 1}])
    assert text.read_text() == "no line break"


def test_folders_that_go_deep_or_round(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PNG"))
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "itself.png").symlink_to("itself.png")
    deep = tmp_path.joinpath(*["d"] * 150)
    deep.mkdir(parents=True)
    (deep / "b.png").write_bytes(encoded("PNG"))
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        found = iter_image_files([tmp_path], recursive=True)
    finally:
        sys.setrecursionlimit(limit)
    assert [path.name for path in found] == ["a.png", "b.png"]


# Keys


def test_key_files_of_others_are_warned_of_in_one_line(tmp_path, caplog, monkeypatch):
    for i in range(50):
        Key(f"k{i:02}", Secret(bytes([i] * 32))).save(tmp_path / f"k{i:02}.key").chmod(0o644)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    if os.getuid() == 0:  # keys of root are everybody's to trust
        for path in tmp_path.iterdir():
            os.chown(path, 12345, -1)
    assert len(load_keys([tmp_path])) == 50
    assert len(load_keys([tmp_path])) == 50
    others, owner = [record.getMessage() for record in caplog.records]
    assert others.startswith("Others on this computer may read 50 keys, such as ")
    assert others.endswith(f"run: chmod 600 {tmp_path}/*.key")
    assert owner.startswith("Another user owns, and may use or replace, 50 keys, such as ")


# Names


NAMES = [
    "=1+1.png",
    "-x.png",
    "@a.png",
    "a\nb.png",
    f"{ESCAPE}.png",
    "\u202egnp.png",
    "\U0001f600.png",
    "x" * 251 + ".png",
]
ODD = "\udcff.png"  # bytes that are no UTF-8


def test_names_reach_the_terminal_escaped_and_programs_whole(tmp_path, cli, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Key("alice", Secret(bytes(32))).save("alice.key")
    names = list(NAMES)
    try:
        Path("photos", ODD).touch()
        names.append(ODD)
    except (OSError, UnicodeError):  # a file system of UTF-8 names only
        pass
    for name in names:
        data = io.BytesIO()
        Image.linear_gradient("L").resize((96, 80)).save(data, "PNG")
        Path("photos", name).write_bytes(data.getvalue())
    Path("photos", f"{ESCAPE}.cr2").touch()
    embedded = cli("watermark", "embed", "photos", "--key", "alice.key", "--carrier", "tile", "-o", "-out")
    assert embedded.exit_code == 0, embedded.output
    assert "Hint: privgen watermark detect ./-out" in embedded.stderr
    monkeypatch.chdir("photos")
    Path("broken\x1b]0;title\x07.png").write_bytes(b"no image")
    words = ("watermark", "detect", "--key", "../alice.key", "--carrier", "tile", "--", *sorted(os.listdir()))  # noqa: PTH208
    for form in ((), ("--json",), ("--csv",)):
        result = cli(*words[:2], *form, *words[2:])
        assert result.exit_code == 1  # for the broken one
        assert not UNPRINTABLE.search(result.output.replace("\n", ""))
        if form == ("--json",):
            found = {json.loads(line)["file"] for line in result.stdout.splitlines()}
            assert set(names) < found
        if form == ("--csv",):
            cells = [row["file"] for row in csv.DictReader(io.StringIO(result.stdout))]
            assert {"'=1+1.png", "'-x.png", "'@a.png", r"a\nb.png", r"\x1b[31mred.png"} < set(cells)

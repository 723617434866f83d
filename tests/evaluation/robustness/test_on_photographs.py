"""The evaluation on photographs: own sizes, the front door, baselines at two sizes, the log and the page."""

import importlib.util
import json
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from privgen import Watermark
from privgen.attacks import parse_attack
from privgen.cli.evaluate_robustness import robustness
from privgen.errors import PrivgenError, UsageError
from privgen.evaluation.robustness.baselines import DwtDctSvd
from privgen.evaluation.robustness.log import LOG
from privgen.evaluation.robustness.photographs.attacks import plan_photograph_attacks
from privgen.evaluation.robustness.photographs.contestants import AtTwoSizes, FrontDoor
from privgen.evaluation.robustness.photographs.evaluate import evaluate_photographs
from privgen.evaluation.robustness.photographs.images import Photographs
from privgen.evaluation.robustness.photographs.plan import PhotographsPlan
from privgen.evaluation.robustness.photographs.seconds import measure_seconds
from privgen.evaluation.robustness.report import PAGE
from privgen.evaluation.robustness.run import attacked
from privgen.evaluation.watermark.generation import as_saved, draw_keys
from privgen.io.images import from_pil, load_image, to_pil
from privgen.metrics.quality import psnr
from privgen.metrics.visible_difference import visible_de_p99


ATTACKS = ("jpeg=50", "crop=0.5,size=own", "flip then grey")
LABELS = ["jpeg_50", "crop_0_5_size_own", "flip_1_then_grey_1"]


def needs(*modules):
    """Skips a test where the extra is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    reason = f"needs {', '.join(missing)}: pip install 'privgen[baselines]'"
    return pytest.mark.skipif(bool(missing), reason=reason)


@pytest.fixture(scope="module")
def photographs(photo_files, tmp_path_factory):
    """A folder with two photographs of different sizes."""
    folder = tmp_path_factory.mktemp("photographs")
    for name, file, size in zip(("a.png", "b.jpg"), photo_files, ((96, 80), (131, 97)), strict=False):
        with Image.open(file) as image:
            image.resize(size).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def mark(marked_model):
    return Watermark.from_pretrained(marked_model, device="cpu")


@pytest.fixture(scope="module")
def plan(photographs):
    return PhotographsPlan(
        photographs, n=5, negatives=2, seed=3, attacks=ATTACKS, baselines=False, search=False, seconds=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def result(mark, plan, folder):
    return evaluate_photographs(mark, plan, folder=folder)


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return {(row["method"], row["attack"], row["image"]): row for row in rows}


# The evaluation


def test_the_record(result):
    record = result.record()
    assert (record["n"], record["negatives"], record["seed"], record["preset"]) == (2, 2, 3, "photographs")
    assert list(record["attacks"]) == record["mean_over"] == LABELS
    assert record["clean"]["tpr_1e-3"] == 1
    assert record["psnr_db"] == record["clean"]["psnr_db"]
    assert 0 < record["visible_de_mean"] < record["visible_de_p99"]
    assert record["attacks"]["jpeg_50"]["psnr_db"] > 20
    # Images of another size cannot be compared.
    cut = record["attacks"]["crop_0_5_size_own"]
    assert (cut["psnr_db"], cut["ssim"]) == (None, None)
    assert {"tpr_1e-3", "tpr_1e-6", "bit_accuracy"} < cut.keys() & cut["ci95"].keys()
    # Two photographs, each as it is and after three attacks.
    assert record["false_positives"]["n"] == record["false_positives"]["ci95"]["1e-6"]["n"] == 8
    assert record["notes"] == ["5 photographs were asked for, and the folder holds 2."]
    assert (record["baselines"], record["lead_over_best_baseline"], record["seconds_embed"]) == ({}, None, None)
    json.dumps(record, allow_nan=False)


def test_rows_are_what_the_front_door_says(result, mark, photographs, folder):
    rows, keys = rows_of(folder), draw_keys(2, torch.Generator().manual_seed(3), "image")
    for number, name in enumerate(("a.png", "b.jpg")):
        with Image.open(photographs / name) as picture:
            marked = mark.embed(picture, keys[number])
        pixels, plain = from_pil(marked).pixels[None], load_image(photographs / name).pixels[None]
        clean = rows["privgen", "clean", number]
        assert clean["psnr_db"] == pytest.approx(float(psnr(pixels, plain)))
        assert clean["visible_de_p99"] == pytest.approx(visible_de_p99(pixels[0], plain[0]), rel=1e-4)
        cut = attacked(parse_attack(ATTACKS[1]), LABELS[1], pixels, [number], 3)
        assert cut.shape[-1] < pixels.shape[-1]
        found = mark.detect(to_pil(cut[0]), keys[number])
        row = rows["privgen", LABELS[1], number]
        assert row["p_value"] == pytest.approx(found.p_value)
        assert [bit > 0 for bit in row["marked"]] == [bit == "1" for bit in found.bits]
        unmarked = attacked(parse_attack(ATTACKS[1]), LABELS[1], plain, [number], 3)
        assert row["unmarked_p_value"] == pytest.approx(mark.detect(to_pil(unmarked[0]), keys[number]).p_value)


def test_marks_of_grey_photographs_are_grey(mark, photographs, tmp_path):
    with Image.open(photographs / "a.png") as picture:
        picture.convert("L").save(tmp_path / "grey.png")
    found = Photographs((tmp_path / "grey.png",))
    keys = draw_keys(1, torch.Generator().manual_seed(0), "a")
    marked = FrontDoor(mark, search=False).contestant(found).mark([0], found.images([0]), keys)
    assert torch.equal(marked[:, 0], marked[:, 1])
    assert torch.equal(marked[:, 0], marked[:, 2])
    assert not torch.equal(marked, found.images([0]))


def test_the_command_says_how_to_repeat_it(result, plan):
    arguments = shlex.split(result.command)
    assert arguments[:3] == ["privgen", "evaluate", "robustness"]
    chosen = robustness.make_context("robustness", arguments[3:]).params
    for name in ("preset", "n", "negatives", "seed", "attacks", "methods", "search", "images", "carrier"):
        assert chosen[name] == getattr(plan, name, "photographs"), name
    assert [chosen[name] for name in ("no_baselines", "no_seconds", "no_perceptual")] == [True, True, False]


def test_a_rerun_takes_up_photographs_that_are_the_same(result, mark, plan, photographs, folder, tmp_path):
    again, other = tmp_path / "again", tmp_path / "photographs"
    shutil.copytree(photographs, other)
    again.mkdir()
    # What the log says is believed of a photograph that is the same, and not of another one of its name.
    changed = [{**row, "p_value": 1.0} for row in rows_of(folder).values()]
    (again / LOG).write_text("".join(json.dumps(row) + "\n" for row in changed))
    with Image.open(photographs / "b.jpg") as picture:
        picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(other / "b.jpg")
    record = evaluate_photographs(mark, replace(plan, images=other), folder=again).record()
    assert record["clean"]["tpr_1e-3"] == 0.5
    # Nor of marks that are written in another way.
    fitted = evaluate_photographs(mark, replace(plan, carrier="latent", robust_steps=1), folder=again).record()
    assert fitted["clean"]["tpr_1e-3"] > 0


@needs("imwatermark", "blind_watermark")
def test_baselines_take_the_same_attacks(mark, plan):
    methods = ("privgen", "dwtDctSvd", "blind_watermark")
    chosen = replace(plan, attacks=("jpeg=50", "scale=0.6 then jpeg=70"), methods=methods, baselines=True, negatives=1)
    measured = evaluate_photographs(mark, chosen)
    record = measured.record()
    assert record["baselines"].keys() == {"dwtDctSvd", "blind_watermark"}
    for scores in record["baselines"].values():
        assert scores["attacks"].keys() == record["attacks"].keys()
        assert scores["visible_de_p99"] > 0
        assert scores["false_positives"]["n"] == 3
    best = max(record["baselines"].values(), key=lambda scores: scores["mean_tpr_1e-6"])
    assert record["lead_over_best_baseline"] == pytest.approx(record["mean_tpr_1e-6"] - best["mean_tpr_1e-6"])
    assert measured.table()[0].keys() == {"attack", *methods}


@needs("imwatermark")
def test_baselines_are_told_the_size(photo_files):
    key = draw_keys(1, torch.Generator().manual_seed(0), "a")[0]
    method = DwtDctSvd()
    plain = as_saved(load_image(photo_files[0]).pixels[None])
    marked = as_saved(method.embed(plain, torch.tensor([key.bits(48)])))
    size = (plain.shape[-2], plain.shape[-1])
    larger = parse_attack("scale=2")(marked)
    as_is = method.read(larger)[0] > 0
    own = torch.tensor(key.bits(48)) > 0
    found = AtTwoSizes(method).look_for(larger, [key], size)
    assert found.places == [2]
    assert (torch.tensor(found.weighed[0]) > 0).eq(own).sum() > as_is.eq(own).sum()
    assert AtTwoSizes(method).look_for(marked, [key], size).places == [1]
    # Too small for the message as it is, so only the reading at the marked size counts.
    assert AtTwoSizes(method).look_for(marked[..., :40, :40], [key], size).places == [1]


def test_seconds(mark):
    key = draw_keys(1, torch.Generator().manual_seed(0), "a")[0]
    seconds = measure_seconds(FrontDoor(mark, search=False), key, megapixels=0.01)
    assert seconds.keys() == {"seconds_embed", "seconds_detect"}
    assert all(value > 0 for value in seconds.values())


# What is chosen


def test_attacks_are_chosen_by_name_label_or_text():
    chosen = plan_photograph_attacks(3, ["crop", "jpeg_20", "flip then grey", "rotation_15_then_jpeg_50"])
    assert [entry.key for entry in chosen] == [
        *("jpeg_20", "crop_0_75_size_own", "crop_0_5_size_own", "crop_0_25_size_own", "crop_0_1_size_own"),
        *("rotation_15_then_jpeg_50", "flip_1_then_grey_1"),
    ]
    assert all(entry.middle and entry.n == 3 for entry in chosen)


def test_photographs_are_the_first_by_name(photographs):
    found = Photographs.some(photographs, 64, 0)
    assert [path.name for path in found.paths] == ["a.png", "b.jpg"]
    assert found.sizes() == [(80, 96), (97, 131)]
    assert [path.name for path in Photographs.some(photographs, 1, 0).paths] == ["a.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 1}, "--n must be at least 2"),
        ({"negatives": 0}, "--negatives must be at least 1"),
        ({"methods": ("latent",)}, "No method of photographs is called 'latent'"),
        ({"methods": ("dwtDct",), "baselines": False}, "No method is left to measure"),
        ({"attacks": ("jpeg_51",)}, "--attack jpeg_51 is not among those of the preset photographs"),
        ({"images": "nowhere"}, "--images nowhere is not a folder"),
    ],
)
def test_bad_input(options, message, mark):
    with pytest.raises(UsageError, match=message):
        evaluate_photographs(mark, PhotographsPlan(**{"baselines": False, **options}))


def test_a_folder_with_one_photograph_or_a_broken_one(mark, plan, photographs, tmp_path):
    shutil.copy(photographs / "a.png", tmp_path)
    with pytest.raises(UsageError, match="holds one image"):
        evaluate_photographs(mark, replace(plan, images=tmp_path))
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(PrivgenError, match=r"b\.png is not an image"):
        evaluate_photographs(mark, replace(plan, images=tmp_path))


# The page


class Page(HTMLParser):
    """Tags that are open, what is loaded, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loaded, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_needs_nothing_else(result, tmp_path):
    result.save(tmp_path)
    text = (tmp_path / PAGE).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    # Two photographs: plain, marked, and the difference.
    assert len(page.loaded) == 2 * 3
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    assert not re.search(r"<script|@import|url\(", text)
    words = " ".join(page.words)
    for word in (
        "flip_1_then_grey_1",
        "a.png, 96 x 80",
        "visible difference",
        "p = ",
        "--seed 3",
        "asked for",
        "torch",
    ):
        assert word in words

import importlib.util
import json
import re
import shlex
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from accelerate.state import AcceleratorState

from privgen.attacks import get_attack
from privgen.cli.evaluate_robustness import robustness
from privgen.diffusion.sampling import Sampling
from privgen.errors import PrivgenError
from privgen.evaluation.record import check_output
from privgen.evaluation.robustness.contestants import ExtractorReader, on_generated
from privgen.evaluation.robustness.evaluate import evaluate_robustness
from privgen.evaluation.robustness.log import LOG, Log
from privgen.evaluation.robustness.page import ExampleImage, Examples, draw_page
from privgen.evaluation.robustness.plan import RobustnessPlan, get_preset, plan_attacks
from privgen.evaluation.robustness.report import PAGE
from privgen.evaluation.robustness.run import Comparison, attacked, measure
from privgen.evaluation.watermark.generation import Generation, as_saved, draw_keys
from privgen.evaluation.watermark.model import load_watermark_model
from privgen.evaluation.watermark.readings import CLEAN
from privgen.evaluation.workers import Processes, processes
from privgen.hub import Placement
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.logits import read_logits


PROMPTS = ("a cat", "a red car", "a clock")
CPU = Placement("cpu")
SAMPLING = Sampling(steps=2, batch_size=2)
ATTACKS = ("jpeg", "rotation_10", "vae", "diffpure")
SMALL = RobustnessPlan(n=3, seed=3, attacks=ATTACKS, baselines=False, prompts=PROMPTS)
KEYS = {"jpeg_50", "rotation_10", "vae_1", "diffpure_100"}


def needs(*modules):
    """Skips a test where the extra is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    reason = f"needs {', '.join(missing)}: pip install 'privgen[baselines]'"
    return pytest.mark.skipif(bool(missing), reason=reason)


@pytest.fixture(scope="module")
def model(model_folder):
    return load_watermark_model(model_folder, CPU)


@pytest.fixture(scope="module")
def large_model(model_folder, tmp_path_factory):
    """The same with images of 128 pixels, which baselines have room in."""
    folder = tmp_path_factory.mktemp("models") / "large"
    shutil.copytree(model_folder, folder)
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": 64}))
    return load_watermark_model(folder, CPU, carriers=["latent"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def result(model, folder):
    return evaluate_robustness(model, SMALL, SAMPLING, folder=folder)


@pytest.fixture
def alone():
    """What asks accelerate for the processes leaves no trace."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def comparison(model):
    generation = Generation(model.pipeline, 3, PROMPTS, SAMPLING)
    planned = plan_attacks(get_preset("quick", 3), model, only=["noise", "jpeg"])
    contestants = [on_generated("latent", generation, model, ExtractorReader(model.extractor))]
    return Comparison(contestants, planned, generation, draw_keys(3, torch.Generator().manual_seed(3), "image"), 3, 3)


# The evaluation


def test_the_record(result):
    record = result.record()
    assert (record["n"], record["seed"], record["carrier"], record["preset"]) == (3, 3, "latent", "quick")
    assert record["attacks"].keys() == KEYS
    assert record["clean"]["tpr_1e-3"] == 1
    jpeg = record["attacks"]["jpeg_50"]
    assert jpeg.keys() >= {"tpr_1e-3", "tpr_1e-6", "bit_accuracy", "psnr_db", "ssim", "fpr_1e-3", "quality_loss", "n"}
    assert record["attacks"]["diffpure_100"] is None
    assert "No pixel denoiser" in record["not_run"]["diffpure_100"]
    assert record["mean_over"] == ["jpeg_50"]
    assert record["mean_tpr_1e-3"] == jpeg["tpr_1e-3"]
    assert record["baselines"] == {}
    assert record["lead_over_best_baseline"] is None
    assert record["carriers"]["latent"]["attacks"] == record["attacks"]
    assert record["negatives"] == 2
    assert jpeg["ci95"]["fpr_1e-3"]["n"] == 2 * 3
    json.dumps(record, allow_nan=False)


def test_the_command_says_how_to_repeat_it(result):
    arguments = shlex.split(result.command)
    assert arguments[:3] == ["privgen", "evaluate", "robustness"]
    chosen = robustness.make_context("robustness", arguments[3:]).params
    for name in ("model", "preset", "n", "negatives", "seed", "steps", "guidance_scale", "robust_steps"):
        assert chosen[name] == result.settings[name]
    assert (chosen["attacks"], chosen["methods"], chosen["search"]) == (ATTACKS, (), False)
    assert (chosen["no_baselines"], chosen["no_perceptual"]) == (True, False)


def test_networks_look_only_where_they_are_asked(model, monkeypatch):
    asked = []

    def perceive(images, before, *, with_features):
        asked.append(len(images))
        return [{"st_lpips": 0.25, "features": None}] * len(images)

    monkeypatch.setattr("privgen.evaluation.robustness.run.perceive", perceive)
    measured = [
        evaluate_robustness(
            model, replace(SMALL, attacks=("jpeg_50",), methods=("latent",), perceptual=perceptual), SAMPLING
        ).record()
        for perceptual in (True, False)
    ]
    assert asked == [2, 2, 1, 1], "two batches without an attack and with one, in the first evaluation only"
    assert measured[0]["attacks"]["jpeg_50"]["st_lpips"] == 0.25
    assert "st_lpips" not in measured[1]["attacks"]["jpeg_50"]
    assert ["--no-perceptual" in record["command"] for record in measured] == [False, True]
    assert all("--method latent" in record["command"] for record in measured)


def test_intervals_hold_the_values(result):
    record = result.record()
    for block in (record, record["clean"], *filter(None, record["attacks"].values())):
        for name, interval in block["ci95"].items():
            if interval["low"] is not None:
                assert interval["low"] <= block[name] <= interval["high"], name


def test_more_negatives_are_read_where_they_are_missing(model, folder, tmp_path):
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    more = evaluate_robustness(model, replace(SMALL, negatives=3), SAMPLING, folder=again).record()
    assert more == evaluate_robustness(model, replace(SMALL, negatives=3), SAMPLING).record()
    assert more["attacks"]["jpeg_50"]["ci95"]["fpr_1e-3"]["n"] == 3 * 3
    fewer = evaluate_robustness(model, replace(SMALL, negatives=1), SAMPLING, folder=again).record()
    assert fewer == evaluate_robustness(model, replace(SMALL, negatives=1), SAMPLING).record()


def test_a_rerun_takes_up_what_was_read(result, model, folder, tmp_path):
    lines = (folder / LOG).read_text().splitlines(keepends=True)
    assert len(lines) == 3 * len(KEYS)  # every image, clean and under the three attacks that can be run
    again = tmp_path / "again"
    again.mkdir()
    # Interrupted in the middle of a line.
    (again / LOG).write_text("".join(lines[:5]) + lines[5][:40])
    resumed = evaluate_robustness(model, SMALL, SAMPLING, folder=again)
    assert resumed.record() == result.record()
    assert set((again / LOG).read_text().splitlines(keepends=True)) == set(lines)  # half a batch is there twice
    # What the log says is believed.
    changed = [json.loads(line) for line in lines]
    for row in changed:
        row["marked"] = [-weight for weight in row["marked"]]
    (again / LOG).write_text("".join(json.dumps(row) + "\n" for row in changed))
    believed = evaluate_robustness(model, SMALL, SAMPLING, folder=again).record()
    assert believed["clean"]["tpr_1e-3"] == 0
    # But not of another seed.
    other = evaluate_robustness(model, replace(SMALL, seed=4, attacks=("jpeg",)), SAMPLING, folder=again)
    assert other.record()["clean"]["tpr_1e-3"] == 1


@needs("imwatermark", "blind_watermark")
def test_baselines_take_the_same_attacks(large_model):
    methods = ("latent", "dwtDctSvd", "blind_watermark")
    plan = replace(SMALL, n=2, attacks=("jpeg_50",), methods=methods, baselines=True)
    record = evaluate_robustness(large_model, plan, SAMPLING).record()
    baselines = record["baselines"]
    assert baselines.keys() == {"dwtDctSvd", "blind_watermark"}
    for scores in baselines.values():
        assert scores["attacks"].keys() == {"jpeg_50"}
        assert (scores["n_bits"], scores["clean"]["n"]) == (48, 2)
        assert 25 < scores["clean"]["psnr_db"] < 50
    best = max(baselines, key=lambda name: baselines[name]["mean_tpr_1e-3"])
    assert record["best_baseline"] == best
    expected = record["mean_tpr_1e-3"] - baselines[best]["mean_tpr_1e-3"]
    assert record["lead_over_best_baseline"] == pytest.approx(expected)
    assert record["psnr_lead_db"] == pytest.approx(
        record["clean"]["psnr_db"] - baselines[best]["clean"]["psnr_db"], abs=1e-5
    )


@needs("imwatermark")
def test_baselines_alone(large_model):
    plan = replace(SMALL, n=2, attacks=("jpeg_50",), baselines=True, methods=("dwtDctSvd",))
    alone = evaluate_robustness(large_model, plan, SAMPLING).record()
    assert (alone["carrier"], alone["mean_tpr_1e-3"], alone["attacks"]) == (None, None, {})
    assert alone["baselines"]["dwtDctSvd"]["attacks"]["jpeg_50"]["n"] == 2


def test_baselines_without_room(model):
    plan = replace(SMALL, n=2, attacks=("jpeg_50",), baselines=True)
    record = evaluate_robustness(model, plan, SAMPLING).record()
    assert record["baselines"].keys() == {"dwtDct", "dwtDctSvd", "rivaGan", "blind_watermark"}
    assert set(record["baselines"].values()) == {None}
    assert "got 16 in an image of 32x32" in record["left_out"]["dwtDct"]
    assert "too slow for this preset" in record["left_out"]["rivaGan"]


def test_another_reader(model):
    def reversed_signs(images):
        return -read_logits(images, model.extractor)

    plan = replace(SMALL, n=2, attacks=("jpeg_50",))
    record = evaluate_robustness(model, plan, SAMPLING, reader=reversed_signs).record()
    assert record["clean"]["bit_accuracy"] < 0.2
    assert "reversed_signs" in record["reader"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "slow"}, "No preset is called 'slow'"),
        ({"n": 1}, "--n must be at least 2"),
        ({"negatives": 0}, "--negatives must be at least 1"),
        ({"attacks": ("jpg",)}, "--attack jpg is not among those of the preset quick"),
        ({"methods": ("dct",)}, "No method is called 'dct'; choose from token, latent, dwtDct"),
        ({"methods": ("dwtDct",), "baselines": False}, "No method is left to measure"),
        ({"methods": ("dwtDct",)}, "got 16 in an image of 32x32"),
        ({"search": True}, "has no aligner"),
    ],
)
def test_bad_input(options, message, model):
    with pytest.raises(PrivgenError, match=message):
        evaluate_robustness(model, RobustnessPlan(**options))


# Running


def test_processes_share_the_work(model, alone):
    whole = measure(comparison(model), Log(None, {}), Processes())
    parts = [measure(comparison(model), Log(None, {}), Processes(rank, 2)) for rank in (0, 1)]
    assert {row.image for row in parts[0]} == {0, 1}
    assert {row.image for row in parts[1]} == {2}
    assert sorted(map(repr, parts[0] + parts[1])) == sorted(map(repr, whole))


def test_a_row_is_what_reading_by_hand_says(model):
    job = comparison(model)
    rows = {(row.attack, row.image): row for row in measure(job, Log(None, {}), Processes())}
    marked = job.contestants[0].mark([2], job.source.images([2]), [job.keys[2]])
    noisy = attacked(get_attack("noise"), "noise_0_05", marked, [2], 3)
    for key, images in ((CLEAN, marked), ("noise_0_05", noisy)):
        weighed = weigh_bits(read_logits(as_saved(images), model.extractor))
        assert rows[key, 2].marked == weighed[0].tolist()


def test_draws_depend_on_the_number_only():
    images = torch.full((2, 3, 8, 8), 0.5)
    noise = get_attack("noise")
    both = attacked(noise, "noise_0_05", images, [4, 5], 1)
    torch.testing.assert_close(attacked(noise, "noise_0_05", images[:1], [5], 1), both[1:], atol=1.01 / 255, rtol=0)
    for other in (attacked(noise, "noise_0_05", images[:1], [5], 2), attacked(noise, "noise_1", images[:1], [5], 1)):
        assert (other - both[1:]).abs().mean() > 0.02
    assert (both[:1] - both[1:]).abs().mean() > 0.02


def test_a_process_that_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert processes() == Processes()
    assert Processes().gather([1, 2]) == [1, 2]
    assert Processes(1, 3).share(range(8)) == [1, 4, 7]


def test_readers_are_told_apart(model, model_folder):
    other = load_watermark_model(model_folder, CPU)
    assert repr(ExtractorReader(model.extractor)) == repr(ExtractorReader(other.extractor))
    with torch.no_grad():
        next(iter(other.extractor.parameters())).add_(1)
    assert repr(ExtractorReader(model.extractor)) != repr(ExtractorReader(other.extractor))


# The page


class Page(HTMLParser):
    """Tags that are open, what is loaded, and the text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loaded, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_needs_nothing_else(result, folder):
    check_output(folder, [PAGE])
    result.save(folder)
    text = (folder / PAGE).read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    # Plain, marked and difference of both sorts; three attacks; and the charts of these attacks.
    assert len(page.loaded) == 1 + 2 + 3 + 3
    assert all(source.startswith("data:image/png;base64,") for source in page.loaded)
    assert not re.search(r"<script|@import|url\(", text)
    words = " ".join(page.words)
    for word in ("jpeg_50", "No pixel denoiser", "p = ", "--seed 3", "privgen evaluate robustness", "torch"):
        assert word in words
    assert json.loads((folder / "results.json").read_text()) == result.record()
    with pytest.raises(PrivgenError, match=r"results.json exists"):
        check_output(folder, [PAGE])
    check_output(folder, [PAGE], overwrite=True)


def test_names_are_no_html(result):
    named = replace(result, settings={**result.settings, "model": "<b>&"}, left_out={"<i>": '"too" large'})
    image = ExampleImage(torch.zeros(3, 4, 4), "a <cat>", 47, 48, 1e-9)
    text = draw_page(named, Examples(image, [image], []))
    assert Page(text).open == []
    for written in ("&lt;b&gt;&amp;", "&lt;i&gt; was not measured: &#34;too&#34; large", 'alt="a &lt;cat&gt;"'):
        assert written in text
    assert "<b>&" not in text


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_the_page_in_a_browser(result, tmp_path, width):
    """Headless Chromium lays it out without a message on its console, and nothing is wider than the window."""
    import subprocess

    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    result.save(tmp_path, overwrite=True)
    probe = tmp_path / "probe.html"
    # A frame, because Chromium's own window is never narrower than 500 pixels.
    probe.write_text(
        f"<!doctype html><iframe src='{PAGE}' width='{width}' height='800' style='border:0'></iframe><pre></pre>"
        "<script>"
        "onload = () => { const d = document.querySelector('iframe').contentDocument; const r = d.documentElement;"
        "document.querySelector('pre').textContent = JSON.stringify({wide: r.scrollWidth, seen: r.clientWidth,"
        "images: [...d.images].map(i => i.naturalWidth), charts: d.querySelectorAll('.card img').length}); }</script>"
    )
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom")
    command = [
        browser,
        *flags,
        "--virtual-time-budget=5000",
        f"--user-data-dir={tmp_path / 'profile'}",
        probe.as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in shown.stderr
    laid_out = json.loads(re.search(r"<pre>(\{.*\})</pre>", shown.stdout).group(1))
    assert laid_out["wide"] <= laid_out["seen"]
    assert laid_out["images"] == [32] * len(laid_out["images"])
    assert laid_out["charts"] >= 3

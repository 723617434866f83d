"""The study from end to end on a tiny random model: what it reports, that it goes on, and that processes share it."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from privgen.diffusion.sampling import Sampling
from privgen.evaluation.protection import evaluate, run
from privgen.evaluation.protection.check import check_protection
from privgen.evaluation.protection.evaluate import evaluate_protection
from privgen.evaluation.protection.judge import classifier_features
from privgen.evaluation.protection.log import Log
from privgen.evaluation.protection.plan import CLEAN, Cell, StudyPlan
from privgen.evaluation.protection.report import PAGE
from privgen.evaluation.protection.run import Bench, Study
from privgen.evaluation.protection.subjects import scene_subject
from privgen.evaluation.workers import Processes
from privgen.hub import Placement
from privgen.protection.encoder import EncoderAttack
from privgen.protection.noise import Noise
from privgen.protection.surrogate import Surrogate


pytest.importorskip("peft")

PLAN = StudyPlan("quick", 0, (EncoderAttack(steps=2),), longest=4, guidance_scales=(1.5, 3.0), sampling=Sampling(2))


@pytest.fixture(scope="module")
def surrogate(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny.tiny_pipeline().save_pretrained(folder)
    return Surrogate(folder, placement=Placement("cpu"))


@pytest.fixture(scope="module", autouse=True)
def small_judge():
    """The small features, which every installation has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "best_features", classifier_features)
        yield


@pytest.fixture(scope="module")
def result(surrogate, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    found = evaluate_protection(surrogate, PLAN, folder=folder)
    return found, folder


def test_the_record_has_all_figures(result):
    record = json.loads(json.dumps(result[0].record(), allow_nan=False))
    methods = record["models"]["tiny"]["lora"]
    assert set(methods) == {"clean", "noise", "encoder"}
    assert {"success", "drop", "cost_factor", "cost_factor_text", "ci95", "psnr_db", "visible_de_p99"} <= set(
        methods["noise"]
    )
    assert methods["noise"]["psnr_db"] == pytest.approx(34, abs=0.1)
    assert record["methods"]["encoder"] == "EncoderAttack(steps=2)"
    assert list(record["sentences"]) == ["tiny/lora/encoder"]
    assert record["judge"] == "classifier"


def test_the_page_has_the_sentence_and_sheets(result):
    page = result[0].pages[PAGE]
    (sentence,) = result[0].sentences().values()
    assert sentence.replace("'", "&#39;") in page
    assert page.count('alt="encoder, 4 steps"') == page.count('alt="untrained, 0 steps"') == 1
    assert "http" not in page.replace("http://www.w3.org", "")


def test_a_second_run_does_nothing_new(result, surrogate, monkeypatch):
    found, folder = result
    log = (folder / "protection.jsonl").read_bytes()
    monkeypatch.setattr(run.Bench, "measure", None)
    again = evaluate_protection(surrogate, PLAN, folder=folder)
    assert again.record() == found.record()
    assert (folder / "protection.jsonl").read_bytes() == log


def test_other_work_in_the_log_is_not_taken_up(result, surrogate, tmp_path):
    shutil.copy(result[1] / "protection.jsonl", tmp_path)
    other = StudyPlan("quick", 0, (EncoderAttack(steps=2),), psnr=30.0, longest=4, sampling=Sampling(2))
    found = evaluate_protection(surrogate, other, folder=tmp_path)
    assert found.record()["models"]["tiny"]["lora"]["noise"]["psnr_db"] == pytest.approx(30, abs=0.1)


class Part(Processes):
    """One of two processes, which gives back what it has itself."""

    def gather(self, items):
        return items


def test_two_processes_share_the_work(result, surrogate, tmp_path):
    study, done = _study(surrogate), []
    for rank in (1, 0):
        rows = run.measure(study, Log(tmp_path, study.works(), rank), Part(rank, 2))
        done += list(dict.fromkeys(row.cell for row in rows))
    assert sorted(map(repr, done)) == sorted(map(repr, study.cells())), "each cell is done once"
    together = Log(tmp_path, study.works())
    alone = Log(result[1], study.works())
    for cell in study.cells():
        assert [_without_times(row) for row in together.get(cell)] == [_without_times(row) for row in alone.get(cell)]


def _without_times(row):
    return replace(row, seconds=0, seconds_per_image=None)


def _study(surrogate):
    side = 32
    return Study(
        PLAN,
        {"tiny": surrogate},
        {"panda": scene_subject("panda", side)},
        PLAN.resolved_methods(),
        classifier_features(),
    )


@pytest.mark.parametrize("purification", ["jpeg", "resize"])
def test_images_are_purified_then_mixed_with_clean_ones(surrogate, purification):
    study = _study(surrogate)
    bench = Bench(study)
    clean, _ = bench.images(Cell("tiny", "lora", "panda", 0, CLEAN))
    noisy, cost = bench.images(Cell("tiny", "lora", "panda", 0, "noise"))
    partly, _ = bench.images(Cell("tiny", "lora", "panda", 0, "noise", purification, 0.75))
    assert len(clean) == len(noisy) == len(partly) == 6
    assert [torch.equal(a, b) for a, b in zip(partly, clean, strict=True)] == [False] * 4 + [True] * 2
    assert not any(torch.equal(a, b) for a, b in zip(partly, noisy, strict=True))
    assert cost.psnr_db == pytest.approx(34, abs=0.1)
    assert all(torch.equal(image, (image * 255).round() / 255) for image in noisy)


def test_the_command_with_shifts_of_latents(surrogate, cli, tmp_path):
    options = ("--method", "noise", "--effort", 4, "--steps", 1, "--autoencoder", surrogate.model / "vae")
    call = (
        "evaluate",
        "protection",
        "--model",
        surrogate.model,
        *options,
        "-o",
        tmp_path,
        "--json",
        "--device",
        "cpu",
    )
    outcome = cli(*call)
    assert outcome.exit_code == 0, outcome.output
    record = json.loads(outcome.stdout)
    assert set(record["models"]["tiny"]["lora"]) == {"clean", "noise"}
    assert record["latents"]["noise"]["vae"]["over_noise"] == pytest.approx(1, abs=0.2)
    assert "Shift of latents" in (tmp_path / PAGE).read_text()
    assert cli(*call).exit_code == 1, "a folder with a record is not overwritten"


def test_the_check_of_your_own_photographs(surrogate, photo_files, tmp_path):
    text = check_protection(photo_files[:3], Noise(), surrogate, longest=4, output=tmp_path)
    assert text.endswith(".")
    assert {file.name for file in (tmp_path / "check").iterdir()} == {"results.json", PAGE, "protection.jsonl"}

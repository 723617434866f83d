import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from privgen.attacks import get_attack
from privgen.diffusion.sampling import Sampling
from privgen.errors import PrivgenError
from privgen.evaluation.record import check_output
from privgen.evaluation.watermark.evaluate import NEGATIVE_KEYS, WatermarkPlan, evaluate_watermark
from privgen.evaluation.watermark.generation import Generation, as_saved, draw_keys
from privgen.evaluation.watermark.marking import compare, evenly, mark_generated, mark_photos
from privgen.evaluation.watermark.model import load_watermark_model
from privgen.evaluation.watermark.negatives import LOG, NegativesLog, fingerprint, read_generated
from privgen.evaluation.watermark.readings import ATTACKS, CLEAN, read
from privgen.evaluation.watermark.report import FILES
from privgen.hub import Placement
from privgen.metrics.quality import psnr
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.logits import read_logits
from privgen.watermark.read.p_values import match_keys
from privgen.watermark.watermark import Watermark
from privgen.watermark.write.mark_spec import NETWORK_PSNR as PSNR


HEADLINES = {
    *("bit_accuracy", "tpr_1e-3", "tpr_1e-6", "fpr_clean", "psnr_db", "ssim", "time_ratio", "trainable_parameters"),
    *("jpeg_75", "blur_1", "brightness_1_5"),
}
PROMPTS = ("a cat", "a red car", "a clock")
PLAN = WatermarkPlan(n=4, seed=3, negatives=7, photos=2, prompts=PROMPTS)
SAMPLING = Sampling(steps=3, batch_size=3)
CPU = Placement("cpu")


@pytest.fixture(scope="module")
def model(model_folder):
    return load_watermark_model(model_folder, CPU)


@pytest.fixture(scope="module")
def photos(photo_files, tmp_path_factory):
    """Three held-out photographs and two of training."""
    folder = tmp_path_factory.mktemp("photos")
    for name, files in (("heldout", photo_files[3:6]), ("train", photo_files[6:8])):
        (folder / name).mkdir()
        for file in files:
            shutil.copy(file, folder / name)
    return {"heldout": folder / "heldout", "training": folder / "train"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def result(model, photos, folder):
    return evaluate_watermark(model, replace(PLAN, **photos), SAMPLING, folder=folder)


def generation(model, seed=3, prompts=PROMPTS, **sampling):
    return Generation(model.pipeline, seed, prompts, Sampling(**{"steps": 2, "batch_size": 3, **sampling}))


# The evaluation


def test_the_figures_of_both_carriers(result):
    record = result.record()
    assert record.keys() >= HEADLINES
    assert (record["n"], record["seed"], record["carrier"]) == (4, 3, "latent")
    assert record["carriers"].keys() == {"token", "latent"}
    latent, token = record["carriers"]["latent"], record["carriers"]["token"]
    for name in HEADLINES - {"fpr_clean"}:
        assert record[name] == latent[name]
    assert record["photos"] == latent["photos"]
    assert latent["bit_accuracy"] > 0.8
    assert latent["photos"]["bit_accuracy"] > 0.65
    assert latent["photos"]["psnr_db"] == pytest.approx(PSNR, abs=0.02)
    assert token["bit_accuracy"] < 0.75  # its mapper is untrained
    assert latent["trainable_parameters"] == 48 * 4 * 16 * 16
    assert latent["time_ratio"] > 0


def test_intervals_hold_the_values(result):
    record = result.record()
    blocks = [record, *(block for c in record["carriers"].values() for block in (c, c["photos"]))]
    blocks += [record["unmarked"][name] for name in (CLEAN, "jpeg_75", "generated", "photographs")]
    for block in blocks:
        assert block["ci95"]
        for name, interval in block["ci95"].items():
            if interval["low"] is not None:
                assert interval["low"] <= block[name] <= interval["high"], name
    assert record["ci95"]["bit_accuracy"]["n"] == 4
    assert record["photos"]["ci95"]["tpr_1e-6"]["n"] == record["photos"]["n"] == 2


def test_negatives_are_counted(result):
    record = result.record()
    counts = {name: record[name] for name in record if name.startswith("negative")}
    assert "count as negatives only" in counts.pop("negatives_note")
    assert counts == {
        "negatives": 12,
        "negatives_generated": 7,
        "negatives_photos": 5,
        "negatives_photos_training": 2,
        "negative_keys": NEGATIVE_KEYS,
        "negative_pairs": 12 * NEGATIVE_KEYS,
    }
    assert record["ci95"]["fpr_clean"]["n"] == counts["negative_pairs"]
    unmarked = record["unmarked"]
    assert unmarked[CLEAN]["images"] == 12
    assert (unmarked["generated"]["images"], unmarked["photographs"]["images"]) == (7, 5)
    curve = unmarked["curve"]
    assert curve["measured"][0] == curve["binomial"][0] == 1
    assert curve["binomial"][48] == pytest.approx(2**-48)
    mean = sum(curve["measured"][1:])  # of a whole number: the sum of its tail
    assert mean == pytest.approx(unmarked[CLEAN]["matches_mean"])


def test_marked_images_are_those_of_the_pipeline(model):
    """One image without the evaluation's code: generated by hand, read by `match_keys`."""
    key = draw_keys(NEGATIVE_KEYS + 1, torch.Generator().manual_seed(3), "k")[-1]
    call = {"num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "pt"}
    call["generator"] = torch.Generator().manual_seed(2_000_000_000 + 3_000_000)
    with Watermark(model.networks).on(model.pipeline, key, carrier="latent") as pipe:
        marked = pipe("a cat", **call).images
    found = match_keys(read_logits(as_saved(marked), model.extractor), key.bits())[0][0]
    (example, *_) = mark_generated(generation(model, steps=3), model, [key])[1]["latent"]
    assert example.matches == found.matches >= 36
    torch.testing.assert_close(example.marked, as_saved(marked)[0], atol=1.01 / 255, rtol=0)


def test_it_writes_figures_and_pictures(result, folder):
    check_output(folder, FILES)
    result.save(folder)
    pictures = {"latent.png", "latent-photos.png", "token.png", "token-photos.png", "negatives.png"}
    assert {path.name for path in folder.iterdir()} == {"results.json", LOG, *pictures}
    assert json.loads((folder / "results.json").read_text()) == result.record()
    with Image.open(folder / "latent.png") as sheet:
        assert sheet.width > 6 * 32
    with pytest.raises(PrivgenError, match=r"results.json exists"):
        check_output(folder, FILES)
    check_output(folder, FILES, overwrite=True)
    assert "unmarked" not in result.summary()


def test_a_left_over_picture_is_noticed_before_the_work(tmp_path):
    (tmp_path / "token-photos.png").touch()
    with pytest.raises(PrivgenError, match=r"token-photos.png exists"):
        check_output(tmp_path, FILES)


def test_a_missing_carrier_is_null(marked_model, photos, tmp_path):
    shutil.copytree(marked_model, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "privgen" / "token_mapper")
    small = replace(PLAN, n=2, negatives=0, photos=1, **photos)
    record = evaluate_watermark(load_watermark_model(tmp_path / "model", CPU), small, SAMPLING).record()
    assert record["carriers"]["token"] is None
    assert record["carrier"] == "latent"
    only = load_watermark_model(tmp_path / "model", CPU, carriers=["token"])
    record = evaluate_watermark(only, small, SAMPLING).record()
    assert record["carriers"] == {"token": None, "latent": None}
    assert [record[name] for name in ("carrier", "bit_accuracy", "photos")] == [None] * 3
    assert record["negatives"] == 7


def test_the_default_carrier_leads(marked_model, tmp_path):
    shutil.copytree(marked_model, tmp_path / "model")
    (tmp_path / "model" / "privgen" / "privgen_config.json").write_text('{"default_carrier": "token"}')
    assert load_watermark_model(tmp_path / "model", CPU).carriers == ("token", "latent")
    assert load_watermark_model(tmp_path / "model", CPU, carriers=["latent"]).carriers == ("latent",)


def test_a_damaged_carrier_is_an_error(marked_model, tmp_path):
    shutil.copytree(marked_model, tmp_path / "model")
    (tmp_path / "model" / "privgen" / "token_mapper" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    with pytest.raises(PrivgenError, match="could not load the token_mapper"):
        load_watermark_model(tmp_path / "model", CPU)


def test_too_few_pairs():
    with pytest.raises(ValueError, match="expected n of at least 2, got 1"):
        WatermarkPlan(n=1)


# Marking


@pytest.mark.parametrize("carrier", ["token", "latent"])
def test_photographs_are_marked_as_embed_marks_them(carrier, model, model_folder, photos):
    path = sorted(photos["heldout"].iterdir())[0]
    (key,) = draw_keys(1, torch.Generator().manual_seed(0), "k")
    measured, (example,) = mark_photos([path], [key], model.marker(carrier), batch_size=2)
    marked = Watermark.from_pretrained(model_folder, device="cpu").embed(path, key, carrier=carrier)
    expected = torch.from_numpy(np.array(marked)).permute(2, 0, 1) / 255
    assert example.plain.shape == example.marked.shape == expected.shape
    torch.testing.assert_close(example.marked, expected, atol=1e-6, rtol=0)
    assert example.psnr_db == pytest.approx(measured.psnr_db[0]) == pytest.approx(PSNR, abs=0.02)


def test_paths_are_taken_evenly():
    assert evenly(list("abcdefgh"), 4) == list("aceg")
    assert evenly(list("ab"), 3) == ["a", "b"]
    assert evenly(list("ab"), 0) == []


def test_images_are_compared_one_by_one(model, generator):
    plain = [as_saved(torch.rand(3, side, side, generator=generator)) for side in (32, 40)]
    marked = [as_saved(image * 0.9) for image in plain]
    keys = draw_keys(2, generator, "k")
    measured = compare(plain, marked, keys, model.extractor)
    quality = [float(psnr(after[None], before[None])) for before, after in zip(plain, marked, strict=True)]
    assert measured.psnr_db.tolist() == pytest.approx(quality)
    bits = (read_logits(marked, model.extractor) > 0).long()
    expected = [(row == torch.tensor(key.bits())).sum().item() for row, key in zip(bits, keys, strict=True)]
    assert measured.matches().tolist() == expected


# Reading


def test_attacks_are_those_that_were_agreed():
    expected = {
        "jpeg_75": get_attack("jpeg", strength=75),
        "blur_1": get_attack("blur", strength=1, reference=None),
        "brightness_1_5": get_attack("brightness", strength=1.5),
    }
    assert expected == ATTACKS


def test_readings_follow_the_attacks(model, generator):
    images = [torch.rand(3, side, side + 8, generator=generator) for side in (32, 48)]
    readings = read(images, model.extractor)
    assert readings.keys() == {CLEAN, *ATTACKS}
    for name, attack in ATTACKS.items():
        logits = read_logits([as_saved(attack(image[None]))[0] for image in images], model.extractor)
        assert readings[name].tolist() == weigh_bits(logits).tolist()
    assert any((readings[name] != readings[CLEAN]).any() for name in ATTACKS)


def test_keys_come_from_the_generator():
    first, again, other = (draw_keys(3, torch.Generator().manual_seed(seed), "k") for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({key.bits() for key in (*first, *other)}) == 6


def test_an_image_depends_on_its_number_only(model):
    many, one = generation(model).images([4, 5]), generation(model, batch_size=1).images([5])
    torch.testing.assert_close(many[1:], one, atol=1.01 / 255, rtol=0)
    assert not torch.equal(generation(model, seed=4).images([5]), one)
    captions = generation(model, prompts=())
    assert captions.prompt(0) != captions.prompt(2)
    assert " and " in captions.prompt(1)


# Negatives


def test_an_interrupted_run_goes_on(model, tmp_path):
    images, path = generation(model), tmp_path / "out" / LOG
    whole = read_generated(images, model.extractor, range(2, 7), NegativesLog(path, "a"))
    lines = path.read_text().splitlines(keepends=True)
    assert len(lines) == 5
    changed = json.loads(lines[1]) | {CLEAN: [1] * 48}
    # Cut in the middle of the last line; one other image reads differently, so that what was taken up shows.
    path.write_text("".join([lines[0], json.dumps(changed) + "\n", *lines[2:4]]) + lines[4][:30])
    again = read_generated(images, model.extractor, range(2, 7), NegativesLog(path, "a"))
    assert again[CLEAN][1].tolist() == [1] * 48 != whole[CLEAN][1].tolist()
    # Image 6 was in a batch of two before, and is alone now.
    assert np.abs(again["jpeg_75"].astype(int) - whole["jpeg_75"]).max() <= 1
    assert [json.loads(line)["image"] for line in path.read_text().splitlines()] == [2, 3, 4, 5, 6]
    assert not NegativesLog(path, "b").has(3)
    assert not NegativesLog(None, "a").has(3)


def test_what_the_log_depends_on(model):
    first = fingerprint(model, generation(model))
    assert fingerprint(model, generation(model, batch_size=1)) == first
    for change in ({"seed": 4}, {"steps": 4}, {"guidance_scale": 1.0}, {"prompts": ("a cat",)}):
        assert fingerprint(model, generation(model, **change)) != first
    weight = model.pipeline.unet.conv_in.weight
    with torch.no_grad():
        weight[0, 0, 0, 0] += 1
    try:
        assert fingerprint(model, generation(model)) != first
    finally:
        with torch.no_grad():
            weight[0, 0, 0, 0] -= 1


def test_a_log_that_cannot_be_written(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PrivgenError, match="was not written"):
        NegativesLog(tmp_path / "file" / LOG, "a").add([0], {CLEAN: np.zeros((1, 48), np.uint8)})

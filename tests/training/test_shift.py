import json
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from privgen.errors import UsageError
from privgen.models.shift_network import ShiftNetwork
from privgen.training.loop import LoopOptions, fit
from privgen.training.protection.shift import ShiftRecipe, ShiftTask


LOOP = LoopOptions(steps=4, batch_size=2, learning_rate=0.01, warmup=1, log_every=1, preview_every=4)


@pytest.fixture(scope="module", autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def recipe(tiny, tmp_path_factory):
    """Trains for a tiny random model; so faint a budget is exceeded at once."""
    folder = tmp_path_factory.mktemp("models")
    tiny.tiny_pipeline().save_pretrained(folder)
    return ShiftRecipe(model=folder, photo_fraction=0.0, width=8, blocks=1, n=2, draws=1, psnr=70.0)


def fitted(recipe, folder, **arguments):
    task = ShiftTask(recipe, LOOP.seed)
    fit(task, LOOP, folder, accelerator=Accelerator(cpu=True), **arguments)
    return task


def test_an_interrupted_run_ends_as_an_uninterrupted_one(recipe, tmp_path):
    """The multiplier is no parameter, but it is in the checkpoint."""
    whole = fitted(recipe, tmp_path / "whole")
    fitted(recipe, tmp_path / "parts", stop_at=3)
    parts = fitted(recipe, tmp_path / "parts")
    assert float(whole.multiplier) > 0
    assert torch.equal(parts.multiplier, whole.multiplier)
    inside = "model/shift/diffusion_pytorch_model.safetensors"
    one, other = (load_file(tmp_path / name / inside) for name in ("whole", "parts"))
    assert all(torch.equal(other[name], value) for name, value in one.items())
    assert (tmp_path / "whole" / "loss.jsonl").read_text() == (tmp_path / "parts" / "loss.jsonl").read_text()


def test_a_run(recipe, cli, tmp_path):
    changes = [f"shift.model={recipe.model}", "shift.photo_fraction=0.5", "shift.width=8", "shift.blocks=1"]
    changes += ["shift.n=1", "loop.batch_size=2", "loop.log_every=1"]
    words = [word for change in changes for word in ("--set", change)]
    result = cli("train", "shift", "-o", tmp_path, "--steps", 2, "--device", "cpu", *words)
    assert result.exit_code == 0, result.output
    assert ShiftNetwork.from_pretrained(tmp_path / "model" / "shift").config.channels == 4
    rows = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    assert rows[0]["gain"] == pytest.approx(0, abs=1e-5)  # a new network changes nothing
    assert rows[0]["psnr_db"] > 90
    assert (tmp_path / "previews" / "0000002.png").is_file()


def test_samples_depend_on_their_numbers_alone(recipe):
    task = ShiftTask(recipe, seed=0)
    batch, again = task.batch([3, 7]), task.batch([7])
    assert batch["pixels"].shape == (2, 3, 32, 32)
    for name, value in batch.items():
        torch.testing.assert_close(again[name][0], value[1])


def test_the_multiplier_follows_the_budget(recipe):
    task = ShiftTask(recipe, seed=0)
    batch = task.batch([0, 1])
    task(batch)
    assert float(task.multiplier) == 0  # a new network is within any budget
    task.network.leave.weight.data.fill_(0.05)
    first = task(batch)
    risen = float(task.multiplier)
    assert first["psnr_db"] < recipe.psnr
    assert risen > 0
    task.network.leave.weight.data.zero_()
    task(batch)
    assert float(task.multiplier) < risen


def test_only_the_network_is_trained(recipe):
    task = ShiftTask(recipe, seed=0)
    task.network.leave.weight.data.fill_(0.01)
    task(task.batch([0, 1]))["loss"].backward()
    trained = {name for name, value in task.named_parameters() if value.requires_grad}
    assert trained == {f"network.{name}" for name, _ in task.network.named_parameters()}
    assert task.network.enter.weight.grad.abs().max() > 0


def test_an_unknown_delivery_is_refused(recipe):
    with pytest.raises(UsageError, match=r"shift.delivery must be one of residual, decoded, not 'mail'"):
        ShiftTask(replace(recipe, delivery="mail"), seed=0)

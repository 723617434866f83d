import importlib.util
import json
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from privgen.errors import PrivgenError
from privgen.training import loop


SCRIPT = Path(__file__).with_name("tiny_task.py")


@pytest.fixture(scope="module")
def tiny_task():
    spec = importlib.util.spec_from_file_location("tiny_task", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def fresh_accelerate():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def train(tiny_task):
    """Trains in a folder and gives back the exported weights."""

    def run(folder, *, kill_at=None, options=tiny_task.OPTIONS, **arguments):
        task = tiny_task.TinyTask(kill_at=kill_at)
        loop.fit(task, options, folder, accelerator=Accelerator(cpu=True), **arguments)
        return load_file(folder / "model" / "tiny.safetensors")

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """A run that nothing interrupted: its folder and its weights."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(folder)


@pytest.fixture(scope="module")
def saving(tiny_task):
    """Options by which a run saves a checkpoint after each step."""
    return replace(tiny_task.OPTIONS, checkpoint_minutes=0.0)


def assert_same_run(folder, weights, whole):
    expected_folder, expected = whole
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(weights[name], value), name
    for name in ("loss.jsonl", "checkpoint/state.json"):
        assert (folder / name).read_text() == (expected_folder / name).read_text()
    for name in ("model", "ema", "optimizer"):
        ours, theirs = (load_file(f / "checkpoint" / f"{name}.safetensors") for f in (folder, expected_folder))
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())


@pytest.mark.parametrize(("saved_at", "kill_at"), [(None, 1), (3, 5), (3, 6), (9, 11)])
def test_killed_and_resumed_is_the_uninterrupted_run(saved_at, kill_at, train, tiny_task, whole, tmp_path):
    """What was learnt and logged since the last checkpoint is done again."""
    if saved_at:
        train(tmp_path, stop_at=saved_at)
    with pytest.raises(tiny_task.Killed):
        train(tmp_path, kill_at=kill_at)
    assert_same_run(tmp_path, train(tmp_path), whole)


def test_killed_right_after_a_checkpoint(train, tiny_task, whole, saving, tmp_path):
    with pytest.raises(tiny_task.Killed):
        train(tmp_path, kill_at=5, options=saving)
    assert_same_run(tmp_path, train(tmp_path), whole)


def test_stopped_and_resumed_is_the_uninterrupted_run(train, whole, tmp_path):
    for step in (2, 3, 7, None):
        weights = train(tmp_path, stop_at=step)
    assert_same_run(tmp_path, weights, whole)


@pytest.mark.parametrize("renames", range(6))
def test_killed_while_saving(renames, train, tiny_task, whole, saving, tmp_path, monkeypatch):
    """Each run dies at the rename of that number, the second one too; then one goes to the end."""
    rename = Path.rename
    for left in (renames, renames % 3):
        calls = iter(range(left))

        def dying(path, target, calls=calls):
            if next(calls, None) is None:
                raise tiny_task.Killed
            return rename(path, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "rename", dying)
            with pytest.raises(tiny_task.Killed):
                train(tmp_path, options=saving)
    assert_same_run(tmp_path, train(tmp_path), whole)


@pytest.mark.parametrize("left_over", ["checkpoint", "checkpoint.old", "checkpoint.new"])
def test_killed_while_removing_a_checkpoint(left_over, train, whole, tmp_path, monkeypatch):
    train(tmp_path, stop_at=4)
    kept = tmp_path / "checkpoint"
    if left_over == "checkpoint.old":  # killed between the renames of the next save
        kept.rename(tmp_path / left_over)
    elif left_over == "checkpoint.new":
        shutil.copytree(kept, tmp_path / left_over)
        (tmp_path / left_over / "state.json").unlink()
    assert_same_run(tmp_path, train(tmp_path), whole)
    assert not (tmp_path / "checkpoint.old").exists()


def test_a_line_cut_short_is_written_again(train, whole, tmp_path):
    train(tmp_path, stop_at=4)
    with (tmp_path / "loss.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    assert_same_run(tmp_path, train(tmp_path), whole)


def test_a_loss_that_is_not_finite(train, tiny_task, saving, monkeypatch, tmp_path):
    """The run ends with an error. The last checkpoint stays, and a mended run goes on from it."""
    draw = tiny_task.TinyTask.batch

    def spoilt(task, indices):
        batch = draw(task, indices)
        return {"x": batch["x"] / (0 if 30 in indices else 1)}

    with monkeypatch.context() as patch:
        patch.setattr(tiny_task.TinyTask, "batch", spoilt)
        with pytest.raises(PrivgenError, match=r"not finite at step 6 \(loss nan\); lower loop.learning_rate"):
            train(tmp_path, options=saving)
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 5
    assert all(value.isfinite().all() for value in train(tmp_path).values())


@pytest.mark.parametrize(("minutes", "steps"), [(0.0, list(range(1, 13))), (60.0, [12])])
def test_on_save_follows_every_checkpoint(train, saving, tmp_path, minutes, steps):
    seen, state = [], tmp_path / "checkpoint" / "state.json"
    options = replace(saving, checkpoint_minutes=minutes)
    train(tmp_path, options=options, on_save=lambda: seen.append(json.loads(state.read_text())["step"]))
    assert seen == steps


def test_a_finished_run_stays_as_it_is(train, whole, tmp_path):
    folder, weights = whole
    shutil.copytree(folder, tmp_path / "copy")
    assert_same_run(tmp_path / "copy", train(tmp_path / "copy"), (folder, weights))


def test_what_a_run_leaves(whole, tiny_task):
    folder, _ = whole
    rows = [json.loads(line) for line in (folder / "loss.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert rows[0].keys() == {"step", "loss", "bias", "grad_norm"}
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert sorted(path.name for path in (folder / "previews").iterdir()) == [
        "0000005.png",
        "0000010.png",
        "0000012.png",
    ]
    assert {path.name for path in folder.iterdir()} >= {"checkpoint", "loss.jsonl", "model", "previews"}
    assert tiny_task.OPTIONS.steps == json.loads((folder / "checkpoint" / "state.json").read_text())["step"]


def test_the_average_is_exported(train, tiny_task, tmp_path):
    """After step k the average takes in the weights with a share of 1 - min(.9, (1 + k) / (10 + k))."""
    saved = []
    for step in range(1, 5):
        train(tmp_path, stop_at=step)
        saved.append(load_file(tmp_path / "checkpoint" / "model.safetensors"))
    average = dict(tiny_task.TinyTask().named_parameters())
    for step, weights in enumerate(saved):
        # Diffusers' own schedule: the first update takes over the weights.
        decay = 0.0 if step == 0 else min(0.9, (1 + step) / (10 + step))
        average = {name: decay * average[name].detach() + (1 - decay) * value for name, value in weights.items()}
    exported = load_file(tmp_path / "model" / "tiny.safetensors")
    for name, value in average.items():
        torch.testing.assert_close(exported[name], value)


def test_learning_rate(tiny_task):
    options = replace(tiny_task.OPTIONS, steps=103, warmup=3, learning_rate=1.0, decay_from=0.0)
    rates = [options.rate(step) for step in range(103)]
    assert rates[:4] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates[53] == pytest.approx(0.5)
    assert all(a >= b for a, b in pairwise(rates[3:]))
    assert options.rate(103) == pytest.approx(0, abs=1e-12)
    late = replace(options, decay_from=0.6)
    assert [late.rate(3), late.rate(62), late.rate(83)] == pytest.approx([1, 1, 0.5])


def test_a_sample_has_its_own_randomness():
    def draw(seed, index):
        return torch.rand(4, generator=loop.sample_generator(seed, index))

    assert torch.equal(draw(1, 5), draw(1, 5))
    assert not torch.equal(draw(1, 5), draw(1, 6))
    assert not torch.equal(draw(1, 5), draw(2, 5))


@pytest.mark.slow
def test_two_processes_train_as_one(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [
        subprocess.Popen([sys.executable, SCRIPT, port, str(rank), tmp_path], stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    weights = load_file(tmp_path / "model" / "tiny.safetensors")
    for name, value in whole[1].items():
        torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=1e-3)
    steps = [json.loads(line)["step"] for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8, 10, 12]

"""Kills commands at random moments, and checks that nothing is lost or half-written: `make chaos`.

    python tests/chaos.py                      # 200 kills, some minutes
    python tests/chaos.py --kills 20 --job embed

Each job is a command of `privgen` that writes into a folder. It runs once to the end; then, again and again in an
empty folder, it is killed with SIGKILL at a random moment, and repeated until it ends by itself. After a kill, every
finished file must be whole, and at the end all files must be those of the first run, byte for byte. Then the same with
two processes at once on one folder, with a disk that is full, and with a folder that cannot be written.

Commands run in forks of this process, which has run them once itself and so has loaded all that they need. That
makes a kill cheap.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

import click
import torch
from click.testing import CliRunner
from PIL import Image
from tqdm import tqdm

from privgen.cli.main import main as privgen
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.io.files import iter_image_files
from privgen.io.images import load_image
from privgen.watermark.key import Key


TIMELESS = ("created", "seconds", "environment", "seconds_per_step", "time")
"""Fields of records that differ from run to run."""
IMAGES = (".png", ".jpg", ".webp")
LIMIT = 120  # seconds, after which a command counts as hanging
FULL = 6_000  # bytes that a file may have on the full disk


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder.

    Attributes:
        words: of the command, where OUT stands for the folder.
        compared: which of its files must be the same at the end; the others hold times.
        loads_here: run it once in this process. Not what follows gradients: PyTorch can do that in forks only of a
            process that has never done it.
    """

    words: tuple[str, ...]
    compared: Callable[[Path], bool]
    loads_here: bool = True

    def into(self, folder: Path) -> list[str]:
        """The command that writes into a folder."""
        return [str(folder) if word == "OUT" else word for word in self.words]


def jobs(work: Path) -> dict[str, Job]:
    """The jobs by name, on five small photographs that are written to a folder."""
    (work / "photos").mkdir(parents=True)
    for number, path in enumerate(iter_image_files([heldout_photos()])[:5]):
        with Image.open(path) as image:
            small = image.convert("RGB").resize((160 + 16 * number, 128))
        small.save(work / "photos" / f"{number}.{'jpg' if number % 2 else 'png'}")
    key, photos = Key.new("alice").save(work / "alice.key"), str(work / "photos")
    train = ("--set", "loop.batch_size=2", "--set", "loop.preview_every=1000", "--set", "classifier.channels=[8,8]")
    evaluate = ("--attack", "jpeg_50", "--attack", "flip", "--no-baselines", "--no-perceptual", "--no-seconds")
    evaluate += ("--carrier", "tile", "--no-search", "--json", "--overwrite", "--device", "cpu")

    def is_image(path: Path) -> bool:
        return path.suffix in IMAGES

    def is_model(path: Path) -> bool:
        return path.suffix == ".safetensors" and "checkpoint" not in path.parts

    return {
        "embed": Job(
            ("watermark", "embed", photos, "--key", str(key), "--carrier", "tile", "-o", "OUT", "--device", "cpu"),
            is_image,
        ),
        "protect": Job(("protect", photos, "-o", "OUT", "--device", "cpu"), is_image),
        "train": Job(("train", "classifier", "--steps", "8", *train, "-o", "OUT", "--device", "cpu"), is_model, False),
        "evaluate": Job(
            ("evaluate", "robustness", "--images", photos, "--n", "3", "--negatives", "1", *evaluate, "-o", "OUT"),
            lambda path: path.name == "results.json",
        ),
    }  # fmt: skip


def start(words: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Start a command in a fork of this process, and return the number of the process."""
    if process := os.fork():
        return process
    code = 1
    try:
        torch.set_num_threads(1)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        prepare()
        privgen(words, prog_name="privgen")
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def wait(process: int) -> int:
    """Wait for a process, at most `LIMIT` seconds, and return its exit code; negative for one that was killed."""
    end = time.monotonic() + LIMIT
    while True:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(process, signal.SIGKILL)
        time.sleep(0.01)


def contents(job: Job, folder: Path) -> dict[str, bytes | str]:
    """The files of a job that are compared, by their path in the folder."""
    return {str(path.relative_to(folder)): _content(path) for path in _files(folder) if job.compared(path)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))


def _content(path: Path) -> bytes | str:
    if path.suffix != ".json":
        return path.read_bytes()
    return json.dumps(_timeless(json.loads(path.read_text())), sort_keys=True)


def _timeless(value: object) -> object:
    if isinstance(value, Mapping):
        return {name: _timeless(item) for name, item in value.items() if name not in TIMELESS}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def broken(folder: Path, whole: Mapping[str, bytes | str], job: Job) -> Iterator[str]:
    """Say which files in a folder are not whole."""
    for path in _files(folder):
        name = str(path.relative_to(folder))
        if path.suffix in IMAGES:
            try:
                load_image(path)
            except Exception as error:
                yield f"{name} is half-written: {error}"
        if job.compared(path) and whole.get(name) != _content(path):
            yield f"{name} differs"


@contextmanager
def _fresh(work: Path) -> Iterator[Path]:
    folder = work / "out"
    rmtree(folder, ignore_errors=True)
    yield folder
    rmtree(folder, ignore_errors=True)


def kill_once(job: Job, whole: Mapping[str, bytes | str], seconds: float, work: Path, rng: random.Random) -> list[str]:
    """Kill a job once, check, repeat it to its end, and check again; return the faults."""
    with _fresh(work) as folder:
        process = start(job.into(folder))
        time.sleep(rng.uniform(0, seconds))
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        wait(process)
        faults = [f"after the kill, {fault}" for fault in broken(folder, whole, job)] if folder.exists() else []
        code = wait(start(job.into(folder)))
        if code:
            return [*faults, f"the repeated command ended with exit code {code}"]
        if contents(job, folder) != whole:
            faults += [f"at the end, {fault}" for fault in broken(folder, whole, job)] or [
                "at the end, files are missing"
            ]
        return faults


def trouble(job: Job, whole: Mapping[str, bytes | str], work: Path) -> dict[str, list[str]]:
    """Two processes at once, a full disk, and a folder that cannot be written: the faults of each."""
    found = {}
    with _fresh(work) as folder:
        codes = [wait(process) for process in [start(job.into(folder)), start(job.into(folder))]]
        found["two at once"] = list(broken(folder, whole, job)) + [
            f"exit code {code}" for code in codes if code not in (0, 1)
        ]
        if 0 not in codes and wait(start(job.into(folder))):
            found["two at once"].append("none of the commands ended well, nor did a third one")
    with _fresh(work) as folder:
        code = wait(start(job.into(folder), lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))))
        found["full disk"] = list(broken(folder, whole, job)) if folder.exists() else []
        found["full disk"] += [] if code == 1 else [f"exit code {code}, not 1"]
        if wait(start(job.into(folder))) or contents(job, folder) != whole:
            found["full disk"].append("once there was room again, the files were not made")
    with _fresh(work) as folder:
        folder.write_text("a file where the folder should be")
        code = wait(start(job.into(folder)))
        found["no folder"] = [] if code in (1, 2) else [f"exit code {code}, not 1 or 2"]
        folder.unlink()
    return found


def check(name: str, job: Job, kills: int, work: Path, seed: int = 0) -> list[str]:
    """Kill a job so many times, and bring it into trouble; return the faults."""
    rng = random.Random(f"{seed} {name}")
    with _fresh(work) as folder:
        if job.loads_here:
            CliRunner().invoke(privgen, job.into(folder), catch_exceptions=False)
    with _fresh(work) as folder:
        begun = time.perf_counter()
        code = wait(start(job.into(folder)))
        seconds = time.perf_counter() - begun
        whole = contents(job, folder) if folder.exists() else {}
    if code or not whole:
        return [f"{name} does not work: exit code {code}, {len(whole)} files"]
    faults = []
    for number in tqdm(range(kills), f"{name}, {seconds:.1f} s", unit="kill"):
        faults += [f"{name}, kill {number}: {fault}" for fault in kill_once(job, whole, seconds, work, rng)]
    for what, found in trouble(job, whole, work).items():
        faults += [f"{name}, {what}: {fault}" for fault in found]
    return faults


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--kills", type=click.IntRange(1), default=200, show_default=True, help="Kills in all.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--job", "chosen", multiple=True, help="By default all; repeatable.")
def main(kills: int, seed: int, chosen: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # its thread may hold a lock when this process forks
    with TemporaryDirectory() as place:
        known = {name: job for name, job in jobs(Path(place)).items() if name in (chosen or (name,))}
        each = -(-kills // len(known))
        faults = [fault for name, job in known.items() for fault in check(name, job, each, Path(place), seed)]
    click.echo(
        f"{each * len(known)} kills of {', '.join(known)}; two at once, a full disk, no folder: {len(faults)} faults"
    )
    for fault in faults:
        click.echo(fault)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

"""Kills commands at random moments, and checks that nothing is lost or half-written: `make chaos`.

    python tests/chaos.py                      # 200 kills, some minutes
    python tests/chaos.py --kills 20 --job embed

Each job is a command of `privgen` that writes into a folder. It runs once to the end; then, again and again in an
empty folder, it is killed with SIGKILL at a random moment, and repeated until it ends by itself. After a kill, every
finished file must be whole, and at the end all files must be those of the first run, byte for byte. Then the same with
two processes at once on one folder, with a disk that is full, with a disk that is read-only, and with a file where the
folder should be. Where this process may mount disks (as root on Linux), the disks are real ones in memory; elsewhere
files may not grow over a limit, and the read-only disk is left out.

Commands run in forks of this process, which has run them once itself and so has loaded all that they need. That
makes a kill cheap. A fork is safe only from a process with one thread, which is checked before each, and only if the
forks share no lock: one that is killed while it holds the lock would stop all others for ever. So every wait has a
deadline, after which the process that hangs writes where it stands.
"""

import faulthandler
import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
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
TASKS = Path("/proc/self/task")
"""Where Linux lists the threads of this process."""
LIMIT = 120  # seconds, after which a command counts as hanging
FULL = 6_000  # bytes that a file may have on the full disk, where no disk can be mounted


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


class Hanging(Exception):
    """A command did not end."""


@dataclass(frozen=True)
class Started:
    """A command that runs in a fork of this process.

    Attributes:
        process: its number.
        said: what it writes to standard error, and where it stands if it hangs.
    """

    process: int
    said: Path

    def kill(self) -> None:
        """Kill the process, unless it has ended."""
        with suppress(ProcessLookupError):
            os.kill(self.process, signal.SIGKILL)

    def wait(self) -> int:
        """Wait for the process, and return its exit code; negative for one that was killed.

        Raises:
            Hanging: it ran for longer than `LIMIT`.
        """
        end = time.monotonic() + LIMIT + 10  # by then, its own alarm has ended it
        while True:
            done, status = os.waitpid(self.process, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if done else None
            if code == -signal.SIGALRM or time.monotonic() > end:
                self.kill()
                raise Hanging(f"it hangs here: {' '.join(self.text().split())[-1500:]}")
            if code is not None:
                return code
            time.sleep(0.01)

    def text(self) -> str:
        """What it wrote to standard error."""
        return self.said.read_text(errors="replace") if self.said.exists() else ""

    def failed_badly(self) -> Iterator[str]:
        """A command that fails must say why in one sentence; say what it said otherwise."""
        text = self.text()
        if "Traceback" in text or not any(line.startswith("Error: ") for line in text.splitlines()):
            yield f"it failed without a sentence: {text[-300:]!r}"


def deadline(seconds: int) -> None:
    """End this process after so many seconds, and write first where it stands."""
    faulthandler.register(signal.SIGALRM, file=2, all_threads=True, chain=True)
    signal.alarm(seconds)


def start(words: list[str], said: Path, prepare: Callable[[], None] = lambda: None) -> Started:
    """Start a command in a fork of this process.

    Args:
        words: of the command.
        said: file for its standard error.
        prepare: called in the fork, before the command.
    """
    if threading.active_count() > 1 or (TASKS.exists() and len(list(TASKS.iterdir())) > 1):
        raise RuntimeError(f"a process with several threads must not fork: {threading.enumerate()}")
    if process := os.fork():
        return Started(process, said)
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        deadline(LIMIT)
        torch.set_num_threads(1)
        prepare()
        privgen(words, prog_name="privgen")
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


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


def run(job: Job, folder: Path) -> tuple[int, Started]:
    """Run a job to its end, and return its exit code."""
    started = start(job.into(folder), folder.with_name("said.txt"))
    return started.wait(), started


def kill_once(job: Job, whole: Mapping[str, bytes | str], seconds: float, work: Path, rng: random.Random) -> list[str]:
    """Kill a job once, check, repeat it to its end, and check again; return the faults."""
    with _fresh(work) as folder:
        started = start(job.into(folder), work / "said.txt")
        time.sleep(rng.uniform(0, seconds))
        started.kill()
        started.wait()
        faults = [f"after the kill, {fault}" for fault in broken(folder, whole, job)] if folder.exists() else []
        code, again = run(job, folder)
        if code:
            return [*faults, f"the repeated command ended with exit code {code}: {again.text()[-300:]!r}"]
        return faults + [f"at the end, {fault}" for fault in _unlike(folder, whole, job)]


def _unlike(folder: Path, whole: Mapping[str, bytes | str], job: Job) -> list[str]:
    """How the files of a finished job differ from those of the first run."""
    if contents(job, folder) == whole:
        return []
    return list(broken(folder, whole, job)) or ["files are missing"]


def two_at_once(job: Job, whole: Mapping[str, bytes | str], work: Path) -> Iterator[str]:
    """Two processes write into one folder: no file is broken, and the work gets done."""
    with _fresh(work) as folder:
        both = [start(job.into(folder), work / f"said-{i}.txt") for i in range(2)]
        codes = [one.wait() for one in both]
        yield from broken(folder, whole, job)
        for code, one in zip(codes, both, strict=True):
            if code:
                yield from one.failed_badly()
        if 0 not in codes and run(job, folder)[0]:
            yield "none of the commands ended well, nor did a third one"
        yield from _unlike(folder, whole, job)


def full_disk(job: Job, whole: Mapping[str, bytes | str], work: Path) -> Iterator[str]:
    """The disk has room for half of the files: the command says so, and goes on once there is more room."""
    size = sum(path.stat().st_size for path in (work / "whole").rglob("*") if path.is_file())
    disk = Disk(work / "disk")
    with _fresh(work) as folder, disk.mounted(f"size={max(4096, size // 2)}") as mounted:
        place = disk.place / "out" if mounted else folder
        prepare = (lambda: None) if mounted else _limit_files
        started = start(job.into(place), work / "said.txt", prepare)
        if (code := started.wait()) != 1:
            yield f"exit code {code}, not 1: {started.text()[-300:]!r}"
        else:
            yield from started.failed_badly()
        if place.exists():
            yield from broken(place, whole, job)
        if mounted:
            disk.remount("size=1g")
        code, again = run(job, place)
        if code:
            yield f"once there was room again, exit code {code}: {again.text()[-300:]!r}"
        yield from _unlike(place, whole, job)


def read_only(job: Job, whole: Mapping[str, bytes | str], work: Path) -> Iterator[str]:
    """The disk is read-only, as that of another user may be: the command says so. Nothing is checked without root."""
    disk = Disk(work / "disk")
    with disk.mounted("size=1m") as mounted:
        if mounted:
            disk.remount("ro")
            started = start(job.into(disk.place / "out"), work / "said.txt")
            if (code := started.wait()) not in (1, 2):
                yield f"exit code {code}, not 1 or 2"
            yield from started.failed_badly()


def no_folder(job: Job, whole: Mapping[str, bytes | str], work: Path) -> Iterator[str]:
    """A file is where the folder should be: the command says so."""
    with _fresh(work) as folder:
        folder.write_text("a file where the folder should be")
        code, started = run(job, folder)
        if code not in (1, 2):
            yield f"exit code {code}, not 1 or 2"
        yield from started.failed_badly()
        folder.unlink()


TROUBLES = {"two at once": two_at_once, "full disk": full_disk, "read-only disk": read_only, "no folder": no_folder}


def _limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))


@dataclass(frozen=True)
class Disk:
    """A small disk in memory, where this process may mount one: as root on Linux."""

    place: Path

    @contextmanager
    def mounted(self, options: str) -> Iterator[bool]:
        """Mount it, and yield whether that worked."""
        self.place.mkdir(exist_ok=True)
        works = sys.platform == "linux" and self._mount("-t", "tmpfs", "-o", options, "chaos")
        try:
            yield works
        finally:
            if works:
                subprocess.run(["umount", "--lazy", self.place], check=True)

    def remount(self, options: str) -> None:
        """Change the disk while it is mounted."""
        if not self._mount("-o", f"remount,{options}"):
            raise RuntimeError(f"the disk cannot be remounted with {options}")

    def _mount(self, *words: str) -> bool:
        done = subprocess.run(["mount", *words, self.place], capture_output=True, check=False)
        return done.returncode == 0


def check(name: str, job: Job, kills: int, work: Path, seed: int = 0) -> list[str]:
    """Kill a job so many times, and bring it into trouble; return the faults."""
    rng = random.Random(f"{seed} {name}")
    deadline(3 * LIMIT)
    with _fresh(work) as folder:
        if job.loads_here:
            CliRunner().invoke(privgen, job.into(folder), catch_exceptions=False)
    begun = time.perf_counter()
    code, started = run(job, work / "whole")
    seconds = time.perf_counter() - begun
    whole = contents(job, work / "whole") if (work / "whole").exists() else {}
    if code or not whole:
        return [f"{name} does not work: exit code {code}, {len(whole)} files: {started.text()[-300:]!r}"]
    faults = []
    for number in tqdm(range(kills), f"{name}, {seconds:.1f} s", unit="kill"):
        deadline(3 * LIMIT)
        try:
            found = kill_once(job, whole, seconds, work, rng)
        except Hanging as hang:
            found = [str(hang)]
        faults += [f"{name}, kill {number}: {fault}" for fault in found]
    for what, trouble in TROUBLES.items():
        deadline(5 * LIMIT)
        try:
            found = list(trouble(job, whole, work))
        except Hanging as hang:
            found = [str(hang)]
        faults += [f"{name}, {what}: {fault}" for fault in found]
    rmtree(work / "whole")
    signal.alarm(0)
    return faults


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--kills", type=click.IntRange(1), default=200, show_default=True, help="Kills in all.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--job", "chosen", multiple=True, help="By default all; repeatable.")
def main(kills: int, seed: int, chosen: tuple[str, ...]) -> None:
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # no thread
    tqdm.set_lock(threading.RLock())  # its own lock is one of all forks; whoever is killed with it stops the rest
    with TemporaryDirectory() as place:
        known = {name: job for name, job in jobs(Path(place)).items() if name in (chosen or (name,))}
        each = -(-kills // len(known))
        faults = [fault for name, job in known.items() for fault in check(name, job, each, Path(place), seed)]
    click.echo(f"{each * len(known)} kills of {', '.join(known)}; {', '.join(TROUBLES)}: {len(faults)} faults")
    for fault in faults:
        click.echo(fault)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

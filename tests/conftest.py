import importlib.util
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis
import pytest
from click.testing import CliRunner


# Before torch and huggingface_hub are imported: one thread, so that sums round alike on every machine and two workers
# do not get into each other's way; no network; and an empty cache, so that what a developer has downloaded changes no
# test.
_cache = TemporaryDirectory(prefix="privgen-tests-")
os.environ |= {
    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": _cache.name,
    "TOKENIZERS_PARALLELISM": "false",
}
os.environ.pop("PRIVGEN_DEBUG", None)

# The same examples in every run, however slow the machine is.
hypothesis.settings.register_profile("privgen", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("privgen")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root():
    """The folder of the repository."""
    return ROOT


@pytest.fixture
def cli():
    """Calls the command line in this process: ``cli("env", "--json")`` gives click's `Result`."""
    from privgen.cli.main import main

    return lambda *args: CliRunner().invoke(main, [str(arg) for arg in args], prog_name="privgen")


@pytest.fixture(scope="session")
def tiny():
    """The module `tests/tiny.py`: ``tiny.tiny_pipeline("sd21")`` builds a Stable Diffusion of a few kilobytes."""
    spec = importlib.util.spec_from_file_location("tiny", ROOT / "tests" / "tiny.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def real_autoencoder():
    """The folder of a real tiny autoencoder by name, such as "taesd"; the test is skipped where it is not there."""

    def find(name):
        folder = Path(os.environ.get("PRIVGEN_AUTOENCODERS", ROOT.parent / "shared" / "assets" / "vae")) / name
        if not folder.is_dir():
            pytest.skip(f"needs the autoencoder madebyollin/{name} in a folder that PRIVGEN_AUTOENCODERS names")
        return folder

    return find


@pytest.fixture(params=["sd15", "sd21"])
def tiny_pipe(tiny, request):
    """A tiny random pipeline, once in the shape of Stable Diffusion 1.5 and once of 2.1; new for each test."""
    return tiny.tiny_pipeline(request.param)


@pytest.fixture
def generator():
    """A CPU generator, seeded alike for every test."""
    import torch

    return torch.Generator().manual_seed(0)


@pytest.fixture
def python():
    """Runs a fresh Python: ``python("-m", "privgen", "env")`` gives a `CompletedProcess` with text."""
    import subprocess

    def run(*args, **kwargs):
        command = [sys.executable, *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **kwargs)

    return run


@pytest.fixture
def launch():
    """Runs a command in several processes, as `accelerate launch` and `torchrun` do: ``launch(2, "env")`` gives what
    each of them prints."""
    import os
    import socket
    import subprocess

    def run(count, *args):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
        started = []
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            command = [sys.executable, "-m", "privgen", *map(str, args)]
            started.append(subprocess.Popen(command, env=os.environ | shared | own, **pipes))
        try:
            outputs = [process.communicate(timeout=600) for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0] * count, "\n".join(error for _, error in outputs)
        return [output for output, _ in outputs]

    return run


@pytest.fixture(scope="session")
def marked_model(tmp_path_factory, root, tiny):
    """A tiny model folder with an extractor and a latent mapper that work: see `tests/marked.py`."""
    spec = importlib.util.spec_from_file_location("marked", root / "tests" / "marked.py")
    marked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(marked)
    photos = sorted((root / "privgen" / "data" / "photos" / "heldout").glob("*.jpg"))[:100]
    return marked.save_marked_model(tmp_path_factory.mktemp("models") / "tiny", tiny.tiny_pipeline(), photos)


@pytest.fixture(scope="session")
def photo_files(root):
    """Photographs that the extractor was not fitted to."""
    return sorted((root / "privgen" / "data" / "photos" / "heldout").glob("*.jpg"))[100:]
